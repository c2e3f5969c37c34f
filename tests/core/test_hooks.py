from __future__ import annotations

import os
import signal
import time
from datetime import UTC, datetime, timedelta

import pytest
import torch.distributed as dist

from tests.core.toy_run import Rows, run_toy
from tests.distributed import exit_code_of, run_ranks
from tml.common.checkpointing import CheckpointManager
from tml.common.errors import NonFiniteError
from tml.common.tracking.json_lines import read_metrics
from tml.common.tracking.record import ExperimentRecord
from tml.core.batch_stream import StopKind, StopRequest
from tml.core.hooks.duration import DurationHook
from tml.core.hooks.evaluation import EarlyStopping
from tml.core.hooks.signals import PREEMPTED_EXIT_CODE
from tml.core.hooks.stopping import StopAtTimeHook, StopIfFileExistsHook
from tml.ml_logging.progress import Progress


def _signal(number: int = signal.SIGTERM):
    return lambda loop: os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_fault_14_a_signal_in_training_saves_once_and_asks_to_be_run_again(tmp_path, number) -> None:
    before = signal.getsignal(number)
    outcome = run_toy(tmp_path, at={3: _signal(number)}, checkpoint_every_n=None)
    assert outcome.state.exit_code == PREEMPTED_EXIT_CODE == 75
    assert (outcome.state.step, outcome.steps) == (3, [3])
    assert outcome.state.stop_reason == signal.Signals(number).name
    assert signal.getsignal(number) is before
    resumed = run_toy(tmp_path, seed_of_model=9)
    assert resumed.state.exit_code == 0
    assert resumed.weight == run_toy(tmp_path / "whole").weight


def test_fault_14_a_signal_in_evaluation_leaves_it_and_saves(tmp_path) -> None:
    def evaluation(stop: StopRequest) -> dict[str, float]:
        from tml.core.custom_training_loop import EvaluationInterrupted

        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(1000):
            if stop.poll():
                raise EvaluationInterrupted
        return {"mrr": 1.0}

    outcome = run_toy(tmp_path, evaluate=evaluation, evaluate_every_n=2, checkpoint_every_n=None)
    assert (outcome.state.step, outcome.steps, outcome.state.exit_code) == (2, [2], 75)
    assert outcome.record.evaluations == []


def test_fault_14_a_signal_while_waiting_for_data_saves(tmp_path) -> None:
    class Stalling(Rows):
        def __iter__(self):
            for batch in super().__iter__():
                if batch.cursor.row == 16:
                    os.kill(os.getpid(), signal.SIGTERM)
                    time.sleep(0.5)
                yield batch

    outcome = run_toy(tmp_path, data=Stalling(), checkpoint_every_n=None, runtime={"num_prefetch_batches": 1})
    assert outcome.state.exit_code == 75
    assert 0 < outcome.state.step < 6
    assert outcome.steps == [outcome.state.step]


def test_fault_14_a_signal_during_a_save_lets_it_finish(tmp_path, monkeypatch) -> None:
    save = CheckpointManager.save
    saved: list[int] = []

    def interrupted(self, step, tensors, extra) -> None:
        if not saved:
            os.kill(os.getpid(), signal.SIGTERM)
        save(self, step, tensors, extra)
        saved.append(step)

    monkeypatch.setattr(CheckpointManager, "save", interrupted)
    outcome = run_toy(tmp_path, checkpoint_every_n=2)
    assert (outcome.state.step, outcome.state.exit_code) == (2, 75)
    assert saved == outcome.steps == [2]


def _signalled_twice(folder: str) -> None:
    def stuck(loop) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    run_toy(folder, at={3: stuck}, checkpoint_every_n=2)


def test_fault_14_the_second_signal_exits_at_once_and_leaves_the_last_commit(tmp_path) -> None:
    assert exit_code_of(_signalled_twice, str(tmp_path)) == PREEMPTED_EXIT_CODE
    assert CheckpointManager(tmp_path, max_to_keep=None, lock=False).steps() == [2]


def _signal_on_rank_1(folder: str) -> tuple[int, int, list[int]]:
    at = {2: _signal()} if dist.get_rank() == 1 else None
    outcome = run_toy(folder, at=at, num_epochs=4, checkpoint_every_n=None)
    return outcome.state.exit_code, outcome.state.step, outcome.steps


def test_fault_14_a_signal_to_one_rank_stops_all_at_the_same_step(tmp_path) -> None:
    first, second = run_ranks(_signal_on_rank_1, 2, str(tmp_path))
    assert first == second
    code, step, steps = first
    assert code == 75
    assert steps == [step]
    assert 2 <= step <= 4


def test_a_stop_kind_is_preempted_only_if_something_is_left_to_train(tmp_path) -> None:
    outcome = run_toy(tmp_path, num_train_steps=3, at={3: _signal()})
    assert outcome.state.exit_code == 0


@pytest.mark.parametrize(
    ("minimize", "tolerance", "values", "improved", "best_step"),
    [
        (False, 0.0, [0.1, 0.3, 0.2, 0.3], [True, True, False, False], 1),
        (True, 0.0, [0.3, 0.1, 0.2, 0.05], [True, True, False, True], 3),
        (False, 0.1, [0.50, 0.55, 0.61, 0.70], [True, False, True, False], 2),
    ],
)
def test_early_stopping_decides(minimize, tolerance, values, improved, best_step) -> None:
    logic = EarlyStopping(minimize=minimize, patience=2, tolerance=tolerance)
    assert [logic.update(step, value) for step, value in enumerate(values)] == improved
    assert logic.best_step == best_step


def test_early_stopping_is_over_after_patience_evaluations_without_improvement() -> None:
    logic = EarlyStopping(minimize=False, patience=2)
    over = []
    for step, value in enumerate([0.5, 0.4, 0.6, 0.6, 0.5]):
        logic.update(step, value)
        over.append(logic.is_over)
    assert over == [False, False, False, False, True]


def test_early_stopping_refuses_nan() -> None:
    with pytest.raises(NonFiniteError, match="step 7"):
        EarlyStopping(minimize=True, patience=1).update(7, float("nan"))


class _Asked:
    def __init__(self) -> None:
        self.reasons: list[str] = []

    def request_stop(self, reason: str) -> None:
        self.reasons.append(reason)


def test_duration_counts_earlier_runs_but_not_the_time_between_them() -> None:
    now = [100.0]
    first, loop = DurationHook(10.0, clock=lambda: now[0]), _Asked()
    first.on_train_start(loop)  # type: ignore[arg-type]
    now[0] += 6
    first.after_step(loop)  # type: ignore[arg-type]
    state = first.state_dict()
    now[0] += 1000
    second = DurationHook(10.0, clock=lambda: now[0])
    second.load_state_dict(state)
    second.on_train_start(loop)  # type: ignore[arg-type]
    now[0] += 3.9
    second.after_step(loop)  # type: ignore[arg-type]
    assert loop.reasons == []
    now[0] += 0.2
    second.after_step(loop)  # type: ignore[arg-type]
    assert len(loop.reasons) == 1


def test_bug_3_time_is_kept_by_one_clock_that_evaluations_do_not_start_again(tmp_path) -> None:
    def seconds(folder, **settings) -> float:
        found: list[float] = []

        def look(loop) -> None:
            found.extend(hook.seconds for hook in loop.hooks if isinstance(hook, DurationHook))

        run_toy(folder, at={6: look}, evaluate=_slow_evaluation, **settings)
        (once,) = found
        return once

    assert 0.2 <= seconds(tmp_path / "a", evaluate_every_n=3) < 1.0
    begun = time.monotonic()
    outcome = run_toy(
        tmp_path / "b", num_epochs=10_000, evaluate=_slow_evaluation, evaluate_every_n=3, max_duration_in_s=0.5
    )
    assert time.monotonic() - begun < 3.0
    assert outcome.state.stop_reason == "max_duration_in_s of 0.5 reached"


def _slow_evaluation(stop: StopRequest) -> dict[str, float]:
    time.sleep(0.1)
    return {"mrr": 0.5}


def test_stop_at_time_stops_at_the_first_step_after_it() -> None:
    now, loop = [datetime(2031, 5, 28, 16, 29, tzinfo=UTC)], _Asked()
    hook = StopAtTimeHook(datetime.fromisoformat("2031-05-28T18:30:00+02:00"), now=lambda: now[0])
    hook.on_train_start(loop)  # type: ignore[arg-type]
    now[0] += timedelta(seconds=59)
    hook.after_step(loop)  # type: ignore[arg-type]
    assert loop.reasons == []
    now[0] += timedelta(seconds=1)
    hook.after_step(loop)  # type: ignore[arg-type]
    assert loop.reasons == ["stop_at_time 2031-05-28T18:30:00+02:00 has come"]


def test_a_run_after_its_time_trains_nothing_says_so_and_a_later_time_goes_on(tmp_path, caplog) -> None:
    outcome = run_toy(tmp_path, stop_at_time="2001-01-01T00:00:00")
    assert (outcome.state.step, outcome.state.exit_code, outcome.state.has_trained) == (0, 0, False)
    assert "2001-01-01T00:00:00+00:00" in (outcome.state.stop_reason or "")
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [line for line in warnings if "nothing was trained" in line and "2001-01-01T00:00:00+00:00" in line]
    caplog.clear()
    later = run_toy(tmp_path, stop_at_time="2999-01-01").state
    assert (later.step, later.has_trained) == (6, True)
    assert "nothing was trained" not in caplog.text


def test_a_file_stops_training_and_is_left_there(tmp_path) -> None:
    flag = tmp_path / "stop now"
    settings = {"stop_if_file_exists": str(flag), "checkpoint_every_n": None}
    hooks: list[StopIfFileExistsHook] = []

    def make_file(loop) -> None:
        hooks.extend(hook for hook in loop.hooks if isinstance(hook, StopIfFileExistsHook))
        hooks[0]._next_look = 0.0
        flag.touch()

    outcome = run_toy(tmp_path / "run", at={2: make_file}, **settings)
    # Hooks that stop are called before those of the test, so the file is seen after the next step.
    assert (outcome.state.step, outcome.steps, outcome.state.exit_code) == (3, [3], 0)
    assert outcome.state.stop_reason == f"stop_if_file_exists: {flag} exists"
    assert run_toy(tmp_path / "run", **settings).state.step == 3
    flag.unlink()
    assert run_toy(tmp_path / "run", **settings).weight == run_toy(tmp_path / "whole").weight


def test_the_file_is_looked_for_at_most_once_a_second(tmp_path) -> None:
    now, loop = [0.0], _Asked()
    hook = StopIfFileExistsHook(str(tmp_path / "stop"), clock=lambda: now[0])
    hook.on_train_start(loop)  # type: ignore[arg-type]
    (tmp_path / "stop").touch()
    for seconds, expected in ((0.4, 0), (0.9, 0), (1.0, 1)):
        now[0] = seconds
        hook.after_step(loop)  # type: ignore[arg-type]
        assert len(loop.reasons) == expected


def _stop_by_file(folder: str) -> tuple[int, str | None]:
    at = {3: lambda loop: open(f"{folder}/stop", "w").close()} if dist.get_rank() == 1 else None
    outcome = run_toy(f"{folder}/run", at=at, num_epochs=100_000, stop_if_file_exists=f"{folder}/stop")
    return outcome.state.step, outcome.state.stop_reason


def test_a_file_that_rank_0_sees_stops_all_ranks_at_the_same_step(tmp_path) -> None:
    (step, reason), others = run_ranks(_stop_by_file, 2, str(tmp_path))
    assert others == (step, "asked for by rank 0")
    assert step > 3
    assert reason is not None
    assert "exists" in reason


def test_bug_2_the_tolerance_holds_in_a_run_and_after_a_restart(tmp_path) -> None:
    # 0.55 and 0.58 are within 0.1 of 0.5, so they are no improvement, whether or not a restart lies between.
    def evaluation_of(values):
        left = iter(values)
        return lambda stop: {"mrr": next(left)}

    values = [0.5, 0.55, 0.62, 0.70, 0.71]
    early = {"metric": "mrr", "patience": 2, "tolerance": 0.1}
    settings = {"evaluate_every_n": 1, "early_stopping": early, "num_epochs": 2}
    whole = run_toy(tmp_path / "whole", evaluate=evaluation_of(values), **settings)
    assert (whole.state.step, whole.state.best_step, whole.best) == (5, 3, 3)
    preempted = {4: lambda loop: loop.request_stop("test", StopKind.PREEMPTED)}
    first = run_toy(tmp_path / "run", evaluate=evaluation_of(values), at=preempted, **settings)
    assert (first.state.step, first.state.exit_code) == (4, PREEMPTED_EXIT_CODE)
    second = run_toy(tmp_path / "run", evaluate=evaluation_of(values[4:]), **settings)
    assert (second.state.step, second.state.best_step, second.best) == (5, 3, 3)
    assert second.weight == whole.weight


def test_bug_4_every_evaluation_is_recorded_with_its_own_numbers(tmp_path) -> None:
    numbers = iter(range(1, 100))
    run_toy(tmp_path, evaluate=lambda stop: {"mrr": next(numbers) / 100}, evaluate_every_n=2, train_log_every_n=100)
    lines = read_metrics(str(tmp_path / "metrics.jsonl"))
    found = {line["step"]: line["eval/mrr"] for line in lines if "eval/mrr" in line}
    assert found == {2: 0.01, 4: 0.02, 6: 0.03}


def _statuses(folder) -> tuple[str, str | None]:
    record = ExperimentRecord(folder).read()
    return record["status"], record["message"]


def test_the_record_of_a_run_has_its_evaluations_and_how_it_ended(tmp_path) -> None:
    numbers = iter(range(1, 100))
    settings = {"evaluate": lambda stop: {"mrr": next(numbers) / 100}, "evaluate_every_n": 2}
    seen: list[str] = []
    run_toy(tmp_path, at={1: lambda loop: seen.append(_statuses(tmp_path)[0]), 4: _signal()}, **settings)
    assert seen == ["RUNNING"]
    assert _statuses(tmp_path) == ("PREEMPTED", None)
    run_toy(tmp_path, **settings)
    assert _statuses(tmp_path) == ("SUCCEEDED", None)
    record = ExperimentRecord(tmp_path).read()
    assert [(e["step"], e["metrics"]["mrr"]) for e in record["evaluations"]] == [(2, 0.01), (4, 0.02), (6, 0.03)]
    assert [start["from_step"] for start in record["starts"]] == [0, 4]
    assert record["parameters"]["training"]["evaluate_every_n"] == 2


def test_the_record_of_a_run_that_raised_says_what(tmp_path) -> None:
    with pytest.raises(NonFiniteError):
        run_toy(tmp_path, at={2: _not_finite})
    assert _statuses(tmp_path) == ("FAILED", "NonFiniteError: the loss is not finite")


def test_a_bar_is_shown_on_a_terminal_only(tmp_path, monkeypatch) -> None:
    bars: list[list[str]] = []

    class Bar:
        def __init__(self, progress: Progress) -> None:
            self.progress, self.shown = progress, []
            bars.append(self.shown)

        def update(self) -> None:
            self.shown.append(self.progress.status().split(" (")[0])

        def close(self) -> None:
            self.shown.append("closed")

    monkeypatch.setattr("tml.ml_logging.progress._Bar", Bar)
    run_toy(tmp_path, num_train_steps=2)
    assert bars == []
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    run_toy(tmp_path, num_train_steps=4)
    assert bars == [["3 of 4 steps", "4 of 4 steps", "closed"]]
    with pytest.raises(NonFiniteError):
        run_toy(tmp_path / "b", at={1: _not_finite})
    assert bars[1] == ["1 of 6 steps", "closed"]


def _not_finite(loop) -> None:
    raise NonFiniteError("the loss is not finite")


def test_a_preemption_outranks_an_ordinary_stop() -> None:
    stop = StopRequest()
    stop.ask("enough", StopKind.DONE)
    stop.ask("SIGTERM", StopKind.PREEMPTED)
    stop.ask("enough", StopKind.DONE)
    assert (stop.agreed, stop.reason) == (StopKind.PREEMPTED, "SIGTERM")
