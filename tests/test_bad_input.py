"""Bad input and faults, end to end: what the program does with each, and where the rest is tested.

The first column numbers the rows of the list of faults in the project's requirements; paths begin in this folder.

01 common/test_checkpointing_faults.py::test_fault_1_and_2_kill_during_a_save_costs_at_most_that_step
01 common/test_checkpointing_ranks.py::test_fault_1_a_rank_killed_while_writing_is_an_error_elsewhere_not_a_hang
01 projects/twhin/test_resume.py::test_fault_8_a_run_killed_again_and_again_equals_the_uninterrupted_one_to_the_bit
02 projects/twhin/test_resume.py::test_fault_1_and_2_killed_around_a_commit_the_run_still_ends_the_same
03 common/test_checkpointing_faults.py::test_fault_3_damaged_latest_falls_back_with_a_warning_that_names_the_file
03 core/test_resume.py::test_fault_3_strict_resume_refuses_a_damaged_checkpoint_that_else_is_stepped_over
03 test_bad_input.py::test_03_a_damaged_checkpoint_is_stepped_over_or_refused_as_asked
04 common/test_checkpointing_ranks.py::test_fault_4_a_failing_rank_is_one_error_on_all_ranks_and_no_commit
04 test_bad_input.py::test_04_a_full_disk_is_one_message_with_the_free_space_and_no_commit
05 common/test_checkpointing_faults.py::test_fault_5_a_background_failure_is_raised_by_the_next_save_or_close
05 test_bad_input.py::test_05_a_background_save_that_fails_ends_the_run
07 common/test_checkpointing_ranks.py::test_fault_7_two_row_wise_ranks_to_one_plain_process_and_back_momentum_included
07 projects/twhin/test_resume.py::test_fault_7_a_run_goes_on_with_another_number_of_ranks_and_every_row_is_seen_once
08 projects/twhin/test_resume.py::test_fault_8_a_run_killed_again_and_again_equals_the_uninterrupted_one_to_the_bit
09 core/test_resume.py::test_fault_9_a_changed_config_is_refused_with_a_diff_of_fields
09 test_bad_input.py::test_09_a_changed_config_is_refused_with_every_difference
09 test_bad_input.py::test_09_what_does_not_change_the_model_may_change
10 common/test_checkpointing_faults.py::test_fault_10_missing_extra_and_different_names_are_all_listed
10 test_bad_input.py::test_10_a_warm_start_from_another_model_lists_what_does_not_fit
11 common/test_checkpointing_faults.py::test_fault_11_a_step_that_is_not_there_is_an_error_that_lists_those_that_are
11 test_bad_input.py::test_11_a_save_dir_that_is_a_file_or_empty_is_refused
13 common/test_checkpointing_faults.py::test_fault_13_a_hostile_pickle_runs_nothing
13 common/test_checkpointing_faults.py::test_fault_13_a_hostile_tensor_runs_nothing
14 core/test_hooks.py::test_fault_14_a_signal_in_evaluation_leaves_it_and_saves
14 core/test_hooks.py::test_fault_14_a_signal_while_waiting_for_data_saves
14 core/test_hooks.py::test_fault_14_a_signal_during_a_save_lets_it_finish
14 core/test_hooks.py::test_fault_14_the_second_signal_exits_at_once_and_leaves_the_last_commit
14 projects/twhin/test_resume.py::test_fault_14_sigterm_ends_all_ranks_with_75_and_the_next_start_ends_the_same
18 machines/test_environment.py::test_18_a_missing_variable_is_named_with_the_fix
18 common/test_device.py::test_fault_18_port_in_use_is_a_launch_error
18 common/test_device.py::test_fault_18_more_ranks_than_gpus_names_both_numbers_and_the_fix
18 test_bad_input.py::test_18_half_of_a_launchers_variables_is_one_message
23 core/test_train_pipeline.py::test_fault_23_nan_on_one_rank_stops_all_before_the_tables_change
23 test_bad_input.py::test_23_a_loss_that_is_not_finite_ends_all_ranks_and_keeps_the_last_checkpoint
26 test_bad_input.py::test_26_a_batch_of_one_edge_and_masked_negatives_have_a_finite_loss
26 projects/twhin/test_losses.py::test_fault_26_an_edge_whose_negatives_are_all_masked_or_absent_has_a_finite_loss
27 core/test_config_loading.py::test_27_absurd_learning_rate_is_refused_with_the_range
27 test_bad_input.py::test_27_and_42_faults_in_a_config_are_one_message
28 common/test_reader_faults.py::test_empty_file_is_skipped_with_a_warning
28 test_bad_input.py::test_28_29_30_31_faults_in_the_data_are_one_message
29 common/test_reader_faults.py::test_types_that_could_lose_a_value_are_refused
29 common/test_reader_faults.py::test_nulls_are_counted_before_reading
29 test_bad_input.py::test_28_29_30_31_faults_in_the_data_are_one_message
30 projects/twhin/test_edges.py::test_fault_30_an_id_out_of_range_names_file_row_table_value_and_limit
30 test_bad_input.py::test_28_29_30_31_faults_in_the_data_are_one_message
31 common/test_reader_faults.py::test_deleted_during_the_run
31 test_bad_input.py::test_31_data_that_changed_between_runs_are_refused_unless_allowed
32 common/test_reader.py::test_every_row_exactly_once_per_epoch_on_any_layout_and_world_size
32 test_original_bugs.py::test_b10_and_b11_every_edge_is_read_once_an_epoch_by_one_rank_in_an_order_of_the_seed
33 core/test_train_pipeline.py::test_fault_33_ranks_with_unequal_numbers_of_batches_stop_together
33 projects/twhin/test_ranks.py::test_two_ranks_equal_one_rank
34 common/test_reader_faults.py::test_one_row_group_feeds_all_ranks
35 test_bad_input.py::test_35_duplicate_edges_and_self_loops_train
35 projects/twhin/test_convert_output.py::test_duplicates_and_self_loops_stay_unless_filtered
37 projects/twhin/test_convert_faults.py::test_bad_line_fails_with_file_line_number_and_content
37 projects/twhin/test_convert_faults.py::test_bad_line_is_skipped_and_counted_on_request
37 projects/twhin/test_convert_restart.py::test_killed_midway_then_restarted_gives_the_same_bytes
38 projects/twhin/test_convert_output.py::test_ids_unseen_in_train_are_dropped_and_counted_never_mapped_to_row_0
38 test_bad_input.py::test_38_a_vocabulary_that_does_not_fit_or_changed_is_refused
39 projects/twhin/test_evaluation.py::test_metric_on_an_empty_split_is_an_error
39 projects/twhin/test_evaluation.py::test_ties_get_the_mean_of_optimistic_and_pessimistic_rank
39 test_bad_input.py::test_39_an_empty_validation_split_is_refused_before_training
42 core/test_config_loading.py::test_42_typo_in_a_key_names_line_path_and_the_right_key
42 core/test_config_loading.py::test_42_1e_minus_3_is_a_number
42 test_bad_input.py::test_27_and_42_faults_in_a_config_are_one_message
43 core/test_custom_training_loop.py::test_fault_43_a_setting_without_effect_is_a_warning_at_start
43 test_bad_input.py::test_43_a_setting_without_effect_is_a_warning
"""

from __future__ import annotations

import ast
import errno
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests import faults
from tests.distributed import run_ranks
from tests.projects.twhin.tiny import (
    NUM_TWEETS,
    NUM_USERS,
    Settings,
    TinyGraph,
    assert_equal_tensors,
    final_tensors,
    losses,
    merged,
    run,
    tables,
    tiny_settings,
    write_config,
    write_edges,
    write_graph,
)
from tml.projects.twhin.data.vocab import Vocabulary

ROWS = [1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 13, 14, 18, 23, *range(26, 36), 37, 38, 39, 42, 43]
FOLDER = Path(__file__).parent


@pytest.fixture(scope="module")
def graph(tmp_path_factory) -> TinyGraph:
    return write_graph(tmp_path_factory.mktemp("graph"))


@pytest.fixture
def small(graph, tmp_path) -> Settings:
    """Four steps."""
    return tiny_settings(graph, tmp_path / "run", train_data={"limit": 1600})


@pytest.fixture
def fault(tmp_path, capfd) -> Callable[..., str]:
    """Runs the program and gives its message: exit code 2, on stderr alone, without a traceback."""

    def message(settings: Settings | str, *arguments: str) -> str:
        path = tmp_path / "config.yaml"
        path.write_text(settings if isinstance(settings, str) else json.dumps(settings))
        capfd.readouterr()
        code = _program(str(path), *arguments)
        err = capfd.readouterr().err
        assert code == 2, err
        text = err[err.index("\nerror: ") + 1 :] if "\nerror: " in err else err
        assert text.startswith("error: ")
        assert "Traceback" not in text
        return text

    return message


def _program(config: str, *arguments: str) -> int:
    from tml.projects.twhin.run import main

    try:
        main(["--config", config, *arguments])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_the_index_names_tests_that_exist_for_every_row():
    lines = [line.split() for line in __doc__.splitlines() if "::" in line]
    missing = [test for _, test in lines if not _exists(test)]
    assert not missing
    assert sorted({int(row) for row, _ in lines}) == ROWS


def _exists(test: str) -> bool:
    path, name = test.split("::")
    nodes = ast.walk(ast.parse((FOLDER / path).read_text(encoding="utf-8")))
    return any(isinstance(node, ast.FunctionDef) and node.name == name for node in nodes)


def test_a_users_fault_is_shown_without_a_traceback(small, tmp_path, capfd):
    small["train_data"]["data_root"] = str(tmp_path / "nowhere")
    assert _program(write_config(tmp_path / "config.yaml", small)) == 2
    assert "Traceback" not in capfd.readouterr().err


# Checkpoints


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


# Processes


def test_18_half_of_a_launchers_variables_is_one_message(small, fault, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert "WORLD_SIZE is not set" in fault(small)


# Numbers


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
        return _program(write_config(path, settings))


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


@pytest.mark.parametrize("loss", ["softmax", "logistic", "ranking"])
def test_26_a_batch_of_one_edge_and_masked_negatives_have_a_finite_loss(loss, graph, tmp_path):
    """With one edge and no uniform negatives nothing is left to compare with."""
    settings = tiny_settings(
        graph,
        tmp_path / "run",
        model={"loss": loss, "comparator": "cosine"},
        train_data={"global_batch_size": 1, "global_negatives": 0, "limit": 6},
    )
    assert run(settings) == 0
    assert np.isfinite(list(losses(tmp_path / "run").values())).all()
    assert all(tensor.isfinite().all() for tensor in final_tensors(tmp_path / "run").values())


def test_26_a_relation_without_any_edge_is_left_as_it_was(graph, tmp_path):
    settings = tiny_settings(graph, tmp_path / "run", train_data={"limit": 1600})
    settings["model"]["relations"].append({"name": "never", "lhs": "user", "rhs": "tweet"})
    assert run(settings) == 0
    weight = final_tensors(tmp_path / "run")["relations.weight"]
    assert weight.isfinite().all()
    assert not weight[4].any()
    assert weight[0].any()


# Config


TYPO, TWICE, UNSET = "num_epocs: 3", "num_epochs: 1, num_epochs: 2", "save_dir: $TML_TEST_NOT_SET"


@pytest.mark.parametrize(
    ("training", "overrides", "expected"),
    [
        (TYPO, [], ["training.num_epocs", "did you mean 'num_epochs'", "line 1"]),
        (TWICE, [], ["num_epochs", "line 1"]),
        (UNSET, [], ["TML_TEST_NOT_SET", "training.save_dir", "line 1"]),
        ("num_epochs: many", [], ["training.num_epochs", "many", "line 1"]),
        ("num_epochs: yes", [], ["training.num_epochs"]),
        ("num_epochs: 1", ["model.comparator=dott"], ["model.comparator", "dott"]),
        ("num_epochs: 1", ["model.los=softmax"], ["model.los", "did you mean 'loss'"]),
        ("num_epochs: 1", ["model.margin=1e9"], ["model.margin", "1000"]),
        ("num_epochs: 1", ["model.translation_optimizer.adagrad.learning_rate=1e9"], ["learning_rate", "1000"]),
        ("num_epochs: 1", ["model.translation_optimizer.adagrad.learning_rate=-1"], ["learning_rate"]),
        ("num_epochs: 1", ["train_data.global_batch_size=0"], ["train_data.global_batch_size"]),
        ("num_epochs: 1", ["model.embeddings.tables.0.optimizer.adam.learning_rate=0.1"], ["exactly one of"]),
        ("num_epochs: 1", ["model.relations.0.rhs=twet"], ["'follow'", "'twet'", "user, tweet"]),
        ("num_epochs: null", [], ["never end"]),
    ],
)
def test_27_and_42_faults_in_a_config_are_one_message(training, overrides, expected, small, fault, tmp_path):
    del small["training"]
    text = json.dumps(small)
    message = fault("{training: {" + training + "}, " + text[1:], *overrides)
    for part in expected:
        assert part in message
    assert not (tmp_path / "run").exists()


def test_42_a_config_that_is_not_there_names_the_nearest(small, tmp_path, capfd):
    write_config(tmp_path / "local.yaml", small)
    assert _program(str(tmp_path / "locl.yaml")) == 2
    err = capfd.readouterr().err
    assert "locl.yaml" in err
    assert "local.yaml" in err.replace("locl.yaml", "")
    assert "Traceback" not in err


def test_43_a_setting_without_effect_is_a_warning(small, caplog):
    small["training"]["evaluate_every_n"] = 2
    logging.getLogger("tml").propagate = True
    with caplog.at_level(logging.WARNING):
        assert run(small) == 0
    assert "training.evaluate_every_n" in caplog.text


# Data


def _columns(**changed: Any) -> dict[str, Any]:
    columns = {name: np.arange(50, dtype=np.int64) for name in ("lhs", "rhs")} | {"rel": np.zeros(50, np.int64)}
    return {name: array for name, array in (columns | changed).items() if array is not None}


def _at(row: int, value: int) -> np.ndarray:
    column = np.zeros(50, dtype=np.int64)
    column[row] = value
    return column


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (_columns(rhs=None), ["column is missing", "column 'rhs'", "lhs"]),
        (_columns(rhs=["a"] * 50), ["wrong type", "column 'rhs'", "string", "int64"]),
        (_columns(lhs=np.arange(50.0)), ["wrong type", "column 'lhs'", "double", "int64"]),
        (_columns(lhs=pa.array([None, *range(49)], pa.int64())), ["column 'lhs'", "1 nulls"]),
        (_columns(rhs=_at(17, NUM_USERS)), ["row 17", "column rhs", str(NUM_USERS), f"< {NUM_USERS}", "'user'"]),
        (_columns(lhs=_at(31, -1)), ["row 31", "column lhs", "-1", "'user'"]),
        (_columns(rel=_at(49, 4)), ["row 49", "column rel", "value: 4", "< 4", "follow"]),
        (_columns(rel=np.ones(50, np.int64), rhs=_at(3, NUM_TWEETS)), ["row 3", str(NUM_TWEETS), "'tweet'"]),
    ],
)
@pytest.mark.parametrize("task", ["train", "check"])
def test_28_29_30_31_faults_in_the_data_are_one_message(task, columns, expected, graph, small, fault, tmp_path):
    folder = tmp_path / "edges"
    folder.mkdir()
    pq.write_table(pq.read_table(graph.valid), folder / "part-0.parquet")
    pq.write_table(pa.table(columns), folder / "part-1.parquet")
    small["train_data"] |= {"data_root": str(folder), "limit": None}
    message = fault(small, "--task", task)
    for part in ["part-1.parquet", *expected]:
        assert part in message
    assert not list((tmp_path / "run").glob("step-*"))


def test_28_and_31_files_that_are_not_there_or_not_whole(graph, small, fault, tmp_path):
    small["train_data"]["data_root"] = str(graph.root / "trian")
    message = fault(small)
    assert str(graph.root / "trian") in message
    assert "train" in message.replace("trian", "")
    (tmp_path / "empty").mkdir()
    small["train_data"]["data_root"] = str(tmp_path / "empty")
    assert str(tmp_path / "empty") in fault(small)
    torn = tmp_path / "torn" / "part-0.parquet"
    torn.parent.mkdir()
    torn.write_bytes(next(Path(graph.train).glob("*.parquet")).read_bytes()[:-100])
    small["train_data"]["data_root"] = str(torn.parent)
    assert str(torn) in fault(small)
    write_edges(torn, np.empty((0, 3)))
    assert "no rows" in fault(small)


def test_28_fewer_edges_than_a_batch_train(graph, tmp_path):
    settings = tiny_settings(graph, tmp_path / "run", train_data={"limit": 7})
    assert run(settings) == 0
    assert list(losses(tmp_path / "run")) == [1]


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


def test_35_duplicate_edges_and_self_loops_train(tmp_path, graph):
    """Every edge is a self loop and there five times: all in-batch candidates of a copy are masked, as they are it."""
    edges = np.repeat(np.stack([np.arange(40), np.zeros(40), np.arange(40)], axis=1), 5, axis=0)
    write_edges(tmp_path / "edges" / "part-0.parquet", edges)
    settings = tiny_settings(graph, tmp_path / "run", train_data={"data_root": str(tmp_path / "edges")})
    settings["training"]["num_epochs"] = 30
    settings["train_data"] |= {"global_batch_size": 50, "global_negatives": 0}
    assert run(settings) == 0
    logged = list(losses(tmp_path / "run").values())
    assert np.isfinite(logged).all()
    assert np.mean(logged[-4:]) < 0.3 * logged[0]


def test_38_a_vocabulary_that_does_not_fit_or_changed_is_refused(small, fault, tmp_path):
    folder = tmp_path / "vocab"
    folder.mkdir()
    _write_vocabulary(folder / "user.parquet", [f"u{n}" for n in range(NUM_USERS)])
    small["vocab_dir"] = str(folder)
    assert "tweet.parquet" in fault(small)
    _write_vocabulary(folder / "tweet.parquet", [f"t{n}" for n in range(NUM_TWEETS + 1)])
    message = fault(small)
    assert f"{NUM_TWEETS} rows" in message
    assert f"{NUM_TWEETS + 1} ids" in message
    _write_vocabulary(folder / "tweet.parquet", [f"t{n}" for n in range(NUM_TWEETS)])
    assert run(small) == 0
    _write_vocabulary(folder / "tweet.parquet", [f"t{n}" for n in reversed(range(NUM_TWEETS))])
    message = fault(small, "training.num_epochs=2")
    assert "vocab" in message
    assert "tweet" in message
    _write_vocabulary(folder / "tweet.parquet", ["same"] * NUM_TWEETS)
    assert "same" in fault(small)


def _write_vocabulary(path: Path, ids: list[str]) -> None:
    pq.write_table(pa.table({"id": ids, "index": np.arange(len(ids))}), path)
    if len(set(ids)) == len(ids):
        assert len(Vocabulary.from_parquet(str(path))) == len(ids)


def test_39_an_empty_validation_split_is_refused_before_training(small, fault, tmp_path):
    write_edges(tmp_path / "valid" / "part-0.parquet", np.empty((0, 3)))
    small["validation_data"] = {"data_root": str(tmp_path / "valid")}
    assert "no rows" in fault(small)
    assert not list((tmp_path / "run").glob("step-*"))
    del small["validation_data"]
    message = fault(small, "--task", "evaluate")
    assert "nothing to evaluate" in message
    assert "validation_data" in message
