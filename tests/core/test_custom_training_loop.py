from __future__ import annotations

import json
import logging
import math
import threading
from pathlib import Path

import pytest
import torch
import torchmetrics

from tests.core.toy_run import CPU, Crash, Rows, ToyModel, crash, run_toy, toy_config
from tests.distributed import RankFailure, run_ranks
from tml.common.checkpointing import CheckpointManager, read_extra
from tml.common.device import rank
from tml.common.errors import CheckpointError, ConfigError, DataError, NonFiniteError
from tml.common.tracking.json_lines import read_metrics
from tml.core.batch_stream import StopKind, StopRequest
from tml.core.custom_training_loop import EvaluationInterrupted, evaluate, only_evaluate, open_checkpoints


def test_b16_a_run_makes_exactly_its_steps(tmp_path) -> None:
    outcome = run_toy(tmp_path, num_train_steps=7, num_epochs=None)
    assert outcome.state.step == 7
    assert len(outcome.record.rows) == 7
    assert outcome.record.rates == pytest.approx([0.05 / (1 + step) for step in range(7)])


def test_b15_saving_does_not_depend_on_logging_and_the_last_step_is_always_saved(tmp_path) -> None:
    outcome = run_toy(tmp_path, num_train_steps=10, num_epochs=None, checkpoint_every_n=4, checkpoint_max_to_keep=None)
    assert outcome.steps == [4, 8, 10]
    logged = [line["step"] for line in read_metrics(str(tmp_path / "metrics.jsonl"))]
    assert logged == [3, 6, 9, 10]


def test_without_an_interval_only_the_last_step_is_saved(tmp_path) -> None:
    assert run_toy(tmp_path, checkpoint_every_n=None).steps == [6]


def test_b24_checkpoint_max_to_keep_acts(tmp_path) -> None:
    assert run_toy(tmp_path, checkpoint_every_n=1, checkpoint_max_to_keep=2).steps == [5, 6]


def test_num_epochs_and_num_train_steps_whichever_ends_first(tmp_path) -> None:
    assert run_toy(tmp_path / "a", num_epochs=2).state.step == 12
    assert run_toy(tmp_path / "b", num_epochs=2, num_train_steps=9).state.step == 9
    assert run_toy(tmp_path / "c", num_epochs=1, num_train_steps=9).state.step == 6


@pytest.mark.parametrize("accumulation", [1, 2, 4])
@pytest.mark.parametrize("num_prefetch_batches", [0, 3])
def test_fault_32_every_row_once_per_epoch_with_a_short_last_batch(
    tmp_path, accumulation, num_prefetch_batches
) -> None:
    outcome = run_toy(
        tmp_path,
        num_epochs=2,
        gradient_accumulation=accumulation,
        runtime={"num_prefetch_batches": num_prefetch_batches},
    )
    half = len(outcome.record.rows) // 2
    assert half == -(-6 // accumulation)
    for epoch in (outcome.record.rows[:half], outcome.record.rows[half:]):
        assert sorted(row for batch in epoch for row in batch) == list(range(22))
    assert outcome.state.num_examples == 44
    assert outcome.state.cursor.to_dict() == {"epoch": 2, "row": 0}


def _values(values: list[float]):
    given = iter(values)
    return lambda stop: {"mrr": next(given)}


_STOPPING = {
    "num_epochs": 5,
    "evaluate_every_n": 2,
    "checkpoint_max_to_keep": 1,
    "early_stopping": {"metric": "mrr", "patience": 2},
}


def test_fault_40_early_stopping_gives_back_the_best_step_and_keeps_it_from_the_purge(tmp_path) -> None:
    outcome = run_toy(tmp_path, evaluate=_values([0.1, 0.5, 0.4, 0.3]), checkpoint_every_n=3, **_STOPPING)
    assert (outcome.state.step, outcome.best, outcome.state.best_step) == (8, 4, 4)
    assert outcome.steps == [4, 8]
    assert "mrr has not improved for 2 evaluations" in str(outcome.state.stop_reason)
    assert outcome.weight == run_toy(tmp_path / "four", num_train_steps=4).weight


def test_fault_40_patience_survives_a_restart(tmp_path) -> None:
    with pytest.raises(Crash):
        run_toy(tmp_path, evaluate=_values([0.5, 0.4]), at={5: crash}, checkpoint_every_n=4, **_STOPPING)
    outcome = run_toy(tmp_path, evaluate=_values([0.3]), checkpoint_every_n=4, **_STOPPING)
    assert (outcome.state.step, outcome.best) == (6, 2)
    again = run_toy(tmp_path, evaluate=_values([]), checkpoint_every_n=4, **_STOPPING)
    assert again.record.rows == []
    assert again.weight == outcome.weight == run_toy(tmp_path / "two", num_train_steps=2).weight


def test_early_stopping_on_an_unknown_or_nan_metric_is_an_error(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"(?s)'mrr'.*one of auc"):
        run_toy(tmp_path / "a", evaluate=lambda stop: {"auc": 0.5}, **_STOPPING)
    with pytest.raises(NonFiniteError, match="step 2"):
        run_toy(tmp_path / "b", evaluate=_values([math.nan]), **_STOPPING)
    with pytest.raises(ConfigError, match="nothing to watch"):
        run_toy(tmp_path / "c", evaluate=None, **_STOPPING)


def test_b23_evaluation_runs_every_n_steps_and_at_the_end_and_is_tracked(tmp_path) -> None:
    outcome = run_toy(tmp_path, num_train_steps=5, evaluate=_values([0.1, 0.2, 0.3]), evaluate_every_n=2)
    assert outcome.record.evaluations == [(2, {"mrr": 0.1}), (4, {"mrr": 0.2}), (5, {"mrr": 0.3})]
    lines = read_metrics(str(tmp_path / "metrics.jsonl"))
    assert [line["eval/mrr"] for line in lines if "eval/mrr" in line] == [0.1, 0.2, 0.3]
    assert outcome.state.metrics == {"mrr": 0.3}


def test_evaluation_does_not_disturb_training(tmp_path) -> None:
    def evaluation(stop: StopRequest) -> dict[str, float]:
        return {"draw": float(torch.rand(()))}

    watched = run_toy(tmp_path / "a", evaluate=evaluation, evaluate_every_n=1)
    assert watched.weight == run_toy(tmp_path / "b").weight


def test_the_model_is_in_evaluation_mode_only_while_it_is_evaluated(tmp_path) -> None:
    modes = []
    outcome = run_toy(
        tmp_path,
        at={2: lambda loop: modes.append(("train", loop.model.training))},
        evaluate=lambda stop: modes.append(("eval", torch.is_grad_enabled())) or {},
        num_train_steps=2,
    )
    assert modes == [("train", True), ("eval", False)]
    assert outcome.state.step == 2


@pytest.mark.parametrize(
    ("settings", "has_evaluation", "expected"),
    [
        ({"evaluate_every_n": 2}, False, "there is no validation data"),
        ({"num_eval_steps": 0}, True, "num_eval_steps is 0"),
        ({"profile_steps": {"start": 100, "count": 1}}, False, "profile_steps"),
        ({"evaluate_every_n": 100}, True, "only 6 steps"),
    ],
)
def test_fault_43_a_setting_without_effect_is_a_warning_at_start(
    tmp_path, caplog, settings, has_evaluation, expected
) -> None:
    with caplog.at_level(logging.WARNING, logger="tml"):
        run_toy(tmp_path, evaluate=(lambda stop: {}) if has_evaluation else None, **settings)
    warnings = [record.getMessage() for record in caplog.records if "without effect" in record.getMessage()]
    assert len(warnings) == 1
    assert expected in warnings[0]


def test_fault_23_non_finite_loss_leaves_the_last_good_checkpoint_and_a_debug_batch(tmp_path) -> None:
    class Poisoned(Rows):
        def __iter__(self):
            for batch in super().__iter__():
                if batch.cursor.row == 20:
                    batch.y[0] = math.inf
                yield batch

    with pytest.raises(NonFiniteError, match="step 5, rank 0"):
        run_toy(tmp_path, data=Poisoned(), checkpoint_every_n=2)
    assert CheckpointManager(tmp_path, max_to_keep=None, lock=False).steps() == [2, 4]
    assert (tmp_path / "debug" / "non-finite-step-5-rank-0.pt").exists()
    assert "tml-prefetch" not in {thread.name for thread in threading.enumerate()}


def test_data_errors_reach_the_caller_and_tell_hooks(tmp_path) -> None:
    class Broken(Rows):
        def __iter__(self):
            yield from list(super().__iter__())[:2]
            raise DataError("cannot be read", where="part-1.parquet")

    with pytest.raises(DataError, match="part-1"):
        run_toy(tmp_path, data=Broken())


def test_checkpoints_say_where_the_run_is(tmp_path) -> None:
    run_toy(tmp_path, num_train_steps=4, num_epochs=None)
    extra = read_extra(tmp_path, 4)
    assert (extra["step"], extra["cursor"], extra["num_examples"]) == (4, {"epoch": 0, "row": 16}, 16)
    assert extra["finished"] is True
    assert extra["fingerprints"] == {"data": "rows-22-a"}
    assert json.loads(json.dumps(extra)) == extra


def test_evaluate_uses_all_of_the_data_or_as_many_batches_as_asked() -> None:
    model, data = ToyModel(dropout=0.5), Rows(num_rows=10, batch_size=4)
    batches = list(data)
    weight = model.weight.detach()
    errors = [(b.x @ weight - b.y).square() for b in batches]
    assert evaluate(model, data, None, CPU)["loss"] == pytest.approx(float(torch.cat(errors).mean()), rel=1e-6)
    assert evaluate(model, data, None, CPU, num_steps=2)["loss"] == pytest.approx(float(torch.cat(errors[:2]).mean()))
    assert model.training


class _Seen(torchmetrics.Metric):
    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, outputs) -> None:
        self.total += len(outputs["scores"])

    def compute(self):
        return self.total


def _evaluate_on_ranks() -> dict[str, float]:
    metrics = torchmetrics.MetricCollection({"seen": _Seen()})
    model, data = ToyModel(), Rows(num_rows=10, batch_size=4)
    evaluate(model, data, metrics, CPU)
    return evaluate(model, data, metrics, CPU)


def test_evaluate_reduces_over_ranks_and_starts_fresh() -> None:
    first, second = run_ranks(_evaluate_on_ranks, 2)
    assert first == second
    assert first["seen"] == 10


def test_evaluate_of_nothing_is_an_error() -> None:
    with pytest.raises(DataError, match="nothing to evaluate"):
        evaluate(ToyModel(), [], None, CPU)


def test_evaluate_can_be_interrupted() -> None:
    stop = StopRequest()
    stop.ask("SIGTERM", StopKind.PREEMPTED)
    with pytest.raises(EvaluationInterrupted):
        evaluate(ToyModel(), Rows(), None, CPU, stop=stop)


def test_only_evaluate_takes_each_new_checkpoint_once_and_ends_with_the_last(tmp_path) -> None:
    config = toy_config(tmp_path, eval_poll_every_s=0.02, eval_timeout_in_s=60)
    seen: list[int] = []

    def evaluation(step: int) -> dict[str, float]:
        seen.append(step)
        if step == 2:
            trainer.start()
        return {"mrr": step / 10}

    trainer = threading.Thread(target=run_toy, args=(tmp_path,), kwargs={"checkpoint_every_n": 3, "num_train_steps": 5})
    preempted = {2: lambda loop: loop.request_stop("SIGTERM", StopKind.PREEMPTED)}
    run_toy(tmp_path, at=preempted, checkpoint_every_n=3, num_train_steps=5)
    results = only_evaluate(evaluation, config)
    trainer.join()
    assert seen == [2, 3, 5]
    assert results == {2: {"mrr": 0.2}, 3: {"mrr": 0.3}, 5: {"mrr": 0.5}}
    assert only_evaluate(evaluation, config) == results
    assert seen == [2, 3, 5]


def test_only_evaluate_ends_after_a_time_without_checkpoints(tmp_path) -> None:
    config = toy_config(tmp_path / "empty", eval_poll_every_s=0.01, eval_timeout_in_s=0.05)
    assert only_evaluate(lambda step: {}, config) == {}


def test_b20_max_duration_counts_over_restarts(tmp_path) -> None:
    outcome = run_toy(tmp_path, max_duration_in_s=1e-6, num_epochs=2)
    assert outcome.state.step == 0
    assert "max_duration_in_s" in str(outcome.state.stop_reason)
    assert outcome.state.exit_code == 0


def test_fault_22_a_failing_tracker_warns_once_and_training_goes_on(tmp_path, caplog) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with caplog.at_level(logging.WARNING, logger="tml"):
        outcome = run_toy(tmp_path, train_log_every_n=1)
    assert outcome.state.step == 6
    assert sum("left out" in record.getMessage() for record in caplog.records) == 1


def test_open_checkpoints_passes_the_settings_on(tmp_path) -> None:
    with (
        open_checkpoints(toy_config(tmp_path / "a")),
        pytest.raises(CheckpointError, match="lock"),
        open_checkpoints(toy_config(tmp_path / "a")),
    ):
        pass


def _two_ranks(folder: str, settings: dict) -> tuple[int, list[list[int]], float | None]:
    outcome = run_toy(folder, **settings)
    return outcome.state.step, outcome.record.rows, outcome.state.loss


def test_fault_7_rows_are_read_once_when_a_run_on_two_ranks_goes_on_with_one(tmp_path) -> None:
    two = run_ranks(_two_ranks, 2, str(tmp_path), {"num_train_steps": 4})
    assert [steps for steps, _, _ in two] == [4, 4]
    one = run_toy(tmp_path)
    rows = [row for _, batches, _ in two for batch in batches for row in batch]
    rows += [row for batch in one.record.rows for row in batch]
    assert sorted(rows) == list(range(22))
    assert one.state.num_examples == 22


def test_b19_the_logged_loss_is_the_mean_over_ranks_and_the_outputs_stay_as_they_were(tmp_path) -> None:
    (first, second) = run_ranks(_losses, 2, str(tmp_path))
    assert first[1] == first[2]
    assert second[1] == second[2]
    logged = read_metrics(str(tmp_path / "metrics.jsonl"))[0]["train/loss"]
    assert logged == pytest.approx((sum(first[1]) + sum(second[1])) / 6)
    assert sum(first[1]) != pytest.approx(sum(second[1]))


def _losses(folder: str) -> tuple[int, list[float], list[float]]:
    kept = []
    outcome = run_toy(
        folder, num_train_steps=3, at=dict.fromkeys((1, 2, 3), lambda loop: kept.append(loop.result.outputs["loss"]))
    )
    return outcome.state.step, outcome.record.losses, [float(loss) for loss in kept]


def test_b20_examples_are_counted_once_for_all_ranks(tmp_path) -> None:
    class Clock:
        now = 0.0

        def __call__(self) -> float:
            return self.now

    from tml.core.hooks.logging import LoggingHook

    clock, tracked = Clock(), []

    def tick(loop) -> None:
        clock.now += 2.0

    hook = LoggingHook(1, clock=clock)

    def start(loop) -> None:
        hook.on_train_start(loop)

    def log(loop) -> None:
        clock.now += 2.0
        loop.track = tracked.append
        hook.after_step(loop)

    run_toy(tmp_path, num_train_steps=2, at={1: start, 2: log})
    assert tracked[0]["train/examples_per_s"] == pytest.approx(4 / 2.0)


def _disagree(folder: str) -> str:
    try:
        run_toy(folder, num_train_steps=1 + rank())
    except ConfigError as error:
        return str(error)
    return "no error"


def test_fault_19_ranks_with_different_configs_stop_at_the_start(tmp_path) -> None:
    assert all("ranks [1] differ" in message for message in run_ranks(_disagree, 2, str(tmp_path)))


def _raise_on_rank_1(folder: str) -> None:
    run_toy(folder, checkpoint_every_n=1, at={2: crash} if rank() == 1 else None)


def test_fault_15_an_error_of_one_rank_ends_the_others(tmp_path) -> None:
    with pytest.raises(RankFailure) as caught:
        run_ranks(_raise_on_rank_1, 2, str(tmp_path), timeout=60)
    assert isinstance(caught.value.errors[1], Crash)
    assert set(caught.value.errors) == {0, 1}
    assert Path(tmp_path / "step-00000001").exists()
