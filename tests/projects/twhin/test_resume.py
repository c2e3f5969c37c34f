"""A run that was killed, stopped or moved to another number of ranks ends where an uninterrupted one ends."""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from unittest import mock

import pytest

from tests.distributed import RankFailure, run_ranks
from tests.faults import kill_at
from tests.projects.twhin.tiny import TinyGraph, read_edges_of, run, run_recorded, tables, tiny_settings, write_graph
from tests.runs import (
    Settings,
    assert_close_tensors,
    assert_equal_tensors,
    evaluations,
    final_tensors,
    losses,
    merged,
    write_config,
)
from tml.common.checkpointing import read_extra
from tml.core.train_pipeline import TrainPipeline

STEPS_PER_EPOCH = 9


@pytest.fixture(scope="module")
def graph(tmp_path_factory) -> TinyGraph:
    return write_graph(tmp_path_factory.mktemp("graph"))


def _plain(graph: TinyGraph, save_dir: Path) -> Settings:
    """Synchronous saves every third step, relations by Adam with a schedule, a validation along the way."""
    schedule = {"linear_ramp_to_cosine": {
        "learning_rate": 0.05, "final_learning_rate": 0.001, "num_ramp_steps": 3, "final_num_steps": 18,
    }}  # fmt: skip
    return tiny_settings(
        graph,
        save_dir,
        training={"num_epochs": 2, "checkpoint_every_n": 3, "evaluate_every_n": 5},
        model={"translation_optimizer": {"adagrad": None, "adam": {"learning_rate": schedule}}},
        validation_data={"data_root": graph.valid},
    )


def _unusual(graph: TinyGraph, save_dir: Path) -> Settings:
    """Background saves of every step, half precision, an optimizer per table, accumulation, reciprocal relations."""
    settings = tiny_settings(
        graph,
        save_dir,
        runtime={"num_prefetch_batches": 0},
        training={"num_epochs": 4, "checkpoint_every_n": 1, "checkpoint_async": True, "gradient_accumulation": 2},
        model={"reciprocal_relations": True, "regularization": {"kind": "n3", "weight": 0.01}},
    )
    user, tweet = tables(settings, data_type="fp16")
    tweet["optimizer"] = {"adagrad": {"learning_rate": {"inverse": {"learning_rate": 0.1, "decay_rate": 0.1}}}}
    return merged(settings, {"model": {"embeddings": {"tables": [user, tweet]}}})


def _killed(settings: Settings, step: int, stage: str | None) -> int:
    """Train, and die after the update of a step, or when its save reaches a stage."""
    steps = iter(range(read_extra_step(settings) + 1, 10_000))

    def step_and_die(pipeline: TrainPipeline, batches: object) -> object:
        result = original(pipeline, batches)
        if next(steps) == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    original = TrainPipeline.step
    with ExitStack() as stack:
        if stage is None:
            stack.enter_context(mock.patch.object(TrainPipeline, "step", step_and_die))
        else:
            stack.enter_context(kill_at(stage, step=step))
        return run(settings)


def read_extra_step(settings: Settings) -> int:
    save_dir = settings["training"]["save_dir"]
    return read_extra(save_dir)["step"] if list(Path(save_dir).glob("step-????????/COMMIT.json")) else 0


def _kill(settings: Settings, step: int, stage: str | None = None) -> None:
    with pytest.raises(RankFailure, match="died"):
        run_ranks(_killed, 1, settings, step, stage)


# Accumulation joins two batches into a step and leaves the ninth of an epoch alone.
@pytest.mark.parametrize(("make", "num_steps"), [(_plain, 18), (_unusual, 20)], ids=["plain", "unusual"])
def test_fault_8_a_run_killed_again_and_again_equals_the_uninterrupted_one_to_the_bit(make, num_steps, graph, tmp_path):
    whole, torn = make(graph, tmp_path / "whole"), make(graph, tmp_path / "torn")
    assert run(whole) == 0
    for step in sorted(random.Random(5).sample(range(2, 18), 2)):
        _kill(torn, step)
    _kill(torn, 18, "writing")
    assert run(torn) == 0
    assert_equal_tensors(final_tensors(tmp_path / "torn"), final_tensors(tmp_path / "whole"))
    assert losses(tmp_path / "torn") == losses(tmp_path / "whole")
    assert list(losses(tmp_path / "torn")) == list(range(1, num_steps + 1))
    ours, theirs = evaluations(tmp_path / "torn"), evaluations(tmp_path / "whole")
    assert [(step, m.get("filtered.mrr")) for step, m in ours.items()] == [
        (step, m.get("filtered.mrr")) for step, m in theirs.items()
    ]
    for name in ("step", "cursor", "num_examples", "rng", "metrics", "finished"):
        assert read_extra(tmp_path / "torn")[name] == read_extra(tmp_path / "whole")[name], name
    assert not list((tmp_path / "torn").glob("*.tmp"))


@pytest.mark.parametrize("stage", ["before_commit", "purge"])
def test_fault_1_and_2_killed_around_a_commit_the_run_still_ends_the_same(stage, graph, tmp_path):
    settings = _plain(graph, tmp_path / "torn") | {"validation_data": None}
    settings["training"] |= {"num_epochs": 1, "checkpoint_max_to_keep": 1}
    whole = merged(settings, {"training": {"save_dir": str(tmp_path / "whole")}})
    _kill(settings, 6, stage)
    assert run(settings) == 0
    assert run(whole) == 0
    assert_equal_tensors(final_tensors(tmp_path / "torn"), final_tensors(tmp_path / "whole"))


def _command_line(settings: Settings, folder: str, signalled_step: int | None, signalled_rank: int = 0) -> int:
    """The program's exit code; a signal comes after a step."""
    from tml.projects.twhin.run import main

    steps = iter(range(1, 10_000))

    def step_and_signal(pipeline: TrainPipeline, batches: object) -> object:
        result = original(pipeline, batches)
        if next(steps) == signalled_step and int(os.environ["RANK"]) == signalled_rank:
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    original = TrainPipeline.step
    config = write_config(Path(folder, f"config-{os.environ['RANK']}.yaml"), settings)
    with mock.patch.object(TrainPipeline, "step", step_and_signal):
        try:
            main(["--config", config])
        except SystemExit as end:
            return int(end.code or 0)
    return 0


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_fault_14_sigterm_ends_all_ranks_with_75_and_the_next_start_ends_the_same(num_ranks, graph, tmp_path):
    settings = _plain(graph, tmp_path / "torn") | {"validation_data": None}
    settings["training"] |= {"checkpoint_every_n": None, "num_epochs": 1}
    whole = merged(settings, {"training": {"save_dir": str(tmp_path / "whole")}})
    assert run_ranks(_command_line, num_ranks, settings, str(tmp_path), 4, num_ranks - 1) == [75] * num_ranks
    stopped_at = read_extra(tmp_path / "torn")["step"]
    assert 4 <= stopped_at <= 6
    assert read_extra(tmp_path / "torn")["finished"] is False
    assert run_ranks(_command_line, num_ranks, settings, str(tmp_path), None) == [0] * num_ranks
    assert run_ranks(_command_line, num_ranks, whole, str(tmp_path), None) == [0] * num_ranks
    assert_equal_tensors(final_tensors(tmp_path / "torn"), final_tensors(tmp_path / "whole"))
    assert losses(tmp_path / "torn") == losses(tmp_path / "whole")


@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2)])
def test_fault_7_a_run_goes_on_with_another_number_of_ranks_and_every_row_is_seen_once(first, then, graph, tmp_path):
    settings = tiny_settings(graph, tmp_path / "moved", train_data={"assembly_blocks": 2})
    settings["training"] |= {"num_epochs": 2, "checkpoint_every_n": 4}
    begin = merged(settings, {"training": {"num_train_steps": 7}})
    whole = merged(settings, {"training": {"save_dir": str(tmp_path / "whole")}})

    records = [run_ranks(run_recorded, first, begin), run_ranks(run_recorded, then, settings)]
    assert run(whole) == 0

    assert all(code == 0 for record in records for code, _ in record)
    # By step: the edges of all ranks.
    steps = [[*chain(*parts)] for record in records for parts in zip(*(steps for _, steps in record), strict=True)]
    assert len(steps) == 2 * STEPS_PER_EPOCH
    expected = Counter(read_edges_of(graph.train))
    for epoch in range(2):
        trained = Counter(edge for step in steps[epoch * STEPS_PER_EPOCH :][:STEPS_PER_EPOCH] for edge in step)
        assert trained == expected, f"epoch {epoch}"
    assert_close_tensors(final_tensors(tmp_path / "moved"), final_tensors(tmp_path / "whole"))
    assert losses(tmp_path / "moved") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)


def test_a_finished_run_started_again_changes_nothing(graph, tmp_path):
    settings = _plain(graph, tmp_path / "run")
    settings["training"] |= {"num_epochs": 1, "evaluate_every_n": None}
    assert run(settings) == 0
    before = (tmp_path / "run" / "metrics.jsonl").read_text(), final_tensors(tmp_path / "run")
    assert run(settings) == 0
    assert_equal_tensors(final_tensors(tmp_path / "run"), before[1])
    assert list(losses(tmp_path / "run")) == list(range(1, STEPS_PER_EPOCH + 1))
    assert list(evaluations(tmp_path / "run")) == [STEPS_PER_EPOCH]
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before[0]
