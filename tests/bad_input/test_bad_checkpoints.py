"""Damaged checkpoints, full disks, changes between two starts, losses that are not finite: refused, or stepped over."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import faults
from tests.distributed import run_ranks
from tests.projects.twhin.tiny import run, tables, write_edges
from tests.runs import Settings, assert_equal_tensors, final_tensors, losses, merged, run_program, write_config
from tml.projects.twhin.run import main


def test_03_a_damaged_checkpoint_is_stepped_over_or_refused_as_asked(small, fault, tmp_path):
    small["training"]["checkpoint_every_n"] = 2
    assert run(small) == 0
    expected = final_tensors(tmp_path / "run")
    damaged = faults.data_files(tmp_path / "run" / "step-00000004")[0]
    faults.flip_bit(damaged)
    message = fault(small, "training.strict_resume=true")
    assert damaged.name in message
    assert run(small) == 0
    assert_equal_tensors(final_tensors(tmp_path / "run"), expected)
    assert list(losses(tmp_path / "run")) == [1, 2, 3, 4]


def test_04_a_full_disk_is_one_message_with_the_free_space_and_no_commit(small, fault, tmp_path):
    with faults.fail_at("writing"):
        message = fault(small)
    assert os.strerror(errno.ENOSPC) in message
    assert "step-00000004" in message
    assert "free" in message
    assert not list((tmp_path / "run").glob("step-????????"))


def test_05_a_background_save_that_fails_ends_the_run(small, fault, tmp_path):
    small["training"] |= {"checkpoint_async": True, "checkpoint_every_n": 2}
    with faults.fail_at("writing", step=2):
        message = fault(small)
    assert os.strerror(errno.ENOSPC) in message
    assert not (tmp_path / "run" / "step-00000002").exists()
    assert run(small) == 0
    assert list(losses(tmp_path / "run")) == [1, 2, 3, 4]


def test_09_a_changed_config_is_refused_with_every_difference(small, fault, tmp_path):
    assert run(small) == 0
    expected, metrics = final_tensors(tmp_path / "run"), (tmp_path / "run" / "metrics.jsonl").read_text()
    message = fault(small, "model.loss=ranking", "train_data.global_negatives=21", "training.num_epochs=2")
    assert 'model.loss: "softmax" -> "ranking"' in message
    assert "train_data.global_negatives: 20 -> 21" in message
    assert "num_epochs" not in message
    assert_equal_tensors(final_tensors(tmp_path / "run"), expected)
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == metrics
    changed = tables(small, embedding_dim=8)
    message = fault(merged(small, {"model": {"embeddings": {"tables": changed}}}))
    assert "model.embeddings.tables.0.embedding_dim: 16 -> 8" in message
    allow = "training.allow_config_changes=[train_data.global_negatives]"
    assert run(merged(small, {"training": {"num_epochs": 2, "allow_config_changes": ["train_data.global_negatives"]},
                              "train_data": {"global_negatives": 21}})) == 0, allow  # fmt: skip
    assert max(losses(tmp_path / "run")) == 8


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"training": {"train_log_every_n": 2, "num_epochs": 2}}, id="training"),
        pytest.param({"runtime": {"num_prefetch_batches": 0, "log": {"level": "error"}}}, id="runtime"),
        pytest.param({"evaluation": {"block_size": 64}}, id="evaluation"),
        pytest.param({"test_data": {"limit": 20}}, id="test_data"),
    ],
)
def test_09_what_does_not_change_the_model_may_change(change, small, graph):
    settings = merged(small, {"test_data": {"data_root": graph.test}, "training": {"num_eval_steps": -1}})
    assert run(settings) == 0
    assert run(merged(settings, change)) == 0


def test_10_a_warm_start_from_another_model_lists_what_does_not_fit(small, fault, tmp_path):
    assert run(small) == 0
    other = merged(
        small, {"training": {"save_dir": str(tmp_path / "other"), "initial_checkpoint_dir": str(tmp_path / "run")}}
    )
    user, tweet = tables(small)
    tweet["optimizer"] = {"sgd": {"learning_rate": 0.1}}
    message = fault(merged(other, {"model": {"embeddings": {"tables": [user, tweet]}}}))
    assert (
        "only in the model: ['tables.tweet.weight', 'tables.user.momentum1', 'tables.user.weight']; "
        "only in the checkpoint: ['" in message
    )
    assert "'tables.user+tweet.momentum1', 'tables.user+tweet.weight']" in message
    message = fault(merged(other, {"training": {"initial_checkpoint_dir": str(tmp_path / "nowhere")}}))
    assert str(tmp_path / "nowhere") in message


def test_11_a_save_dir_that_is_a_file_or_empty_is_refused(small, fault, tmp_path, graph):
    (tmp_path / "file").write_text("precious")
    message = fault(small, f"training.save_dir={tmp_path / 'file'}")
    assert str(tmp_path / "file") in message
    assert (tmp_path / "file").read_text() == "precious"
    settings = merged(small, {"test_data": {"data_root": graph.test}})
    message = fault(settings, "--task", "evaluate", f"training.save_dir={tmp_path / 'nothing'}")
    assert str(tmp_path / "nothing") in message
    assert not (tmp_path / "nothing").exists()


def _with_nan(settings: Settings, nan_rank: int) -> int:
    """A run in which the loss of step 3 is not a number on one rank."""
    from unittest import mock

    from tml.common.device import rank
    from tml.projects.twhin.models.model import TwhinHead

    calls = iter(range(1, 10_000))

    def forward(head: TwhinHead, rows: Any, batch: Any) -> Any:
        loss, outputs = original(head, rows, batch)
        bad = head.training and next(calls) == 3 and rank() == nan_rank
        return (loss * float("nan") if bad else loss), outputs

    original = TwhinHead.forward
    with mock.patch.object(TwhinHead, "forward", forward):
        path = Path(settings["training"]["save_dir"]).parent / f"config-{rank()}.yaml"
        return run_program(main, write_config(path, settings))


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_23_a_loss_that_is_not_finite_ends_all_ranks_and_keeps_the_last_checkpoint(
    num_ranks, small, graph, tmp_path, capfd
):
    small["training"]["checkpoint_every_n"] = 2
    reference = merged(small, {"training": {"save_dir": str(tmp_path / "reference"), "num_train_steps": 2}})
    assert run_ranks(_with_nan, num_ranks, small, num_ranks - 1) == [2] * num_ranks
    assert run_ranks(run, num_ranks, reference) == [0] * num_ranks
    assert [path.name for path in (tmp_path / "run").glob("step-*")] == ["step-00000002"]
    assert_equal_tensors(final_tensors(tmp_path / "run"), final_tensors(tmp_path / "reference"))
    debug = list((tmp_path / "run" / "debug").iterdir())
    assert [path.name for path in debug] == [f"non-finite-step-3-rank-{num_ranks - 1}.pt"]
    batch = torch.load(debug[0], weights_only=True)
    assert batch["loss"].isnan()
    assert batch["batch.node_ids"].dtype == torch.int64
    # Without the fault the run goes on from there.
    assert run_ranks(run, num_ranks, small) == [0] * num_ranks
    assert list(losses(tmp_path / "run")) == [1, 2, 3, 4]


def test_31_data_that_changed_between_runs_are_refused_unless_allowed(graph, small, fault, tmp_path):
    folder = tmp_path / "edges"
    folder.mkdir()
    for path in Path(graph.train).glob("*.parquet"):
        (folder / path.name).write_bytes(path.read_bytes())
    small["train_data"]["data_root"] = str(folder)
    assert run(small) == 0
    os.utime(folder / "part-0.parquet", (1, 1))
    assert run(merged(small, {"training": {"num_epochs": 2}})) == 0
    write_edges(folder / "part-0.parquet", np.zeros((700, 3)))
    message = fault(small, "training.num_epochs=3")
    assert "fingerprints.data" in message
    assert "allow_config_changes" in message
    assert max(losses(tmp_path / "run")) == 8
    allowed = {"training": {"num_epochs": 3, "allow_config_changes": ["fingerprints.data"]}}
    assert run(merged(small, allowed)) == 0
