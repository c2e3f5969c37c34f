"""Faults of one process, by name: a kill, a torn file, a full disk, a mismatch, a foreign lock."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.distributed import RankFailure, run_ranks
from tests.faults import at_stage, data_files, fail_at, flip_bit, kill_at, truncate
from tml.common.checkpointing import CheckpointManager, load_tensors
from tml.common.checkpointing.layout import COMMIT_NAME, EXTRA_NAME, METADATA_NAME, step_folder
from tml.common.errors import CheckpointError, TmlError

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is")


@pytest.fixture
def warnings_logged() -> Iterator[list[str]]:
    """What the checkpoint code logs, whatever other tests have done to the root logger."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("tml.common.checkpointing")
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


def _tensors(value: float) -> dict[str, torch.Tensor]:
    return {"a": torch.full((50, 4), float(value)), "b": torch.full((3,), float(value))}


def _manager(directory: Path, **options: object) -> CheckpointManager:
    return CheckpointManager(directory, **({"max_to_keep": None} | options))  # type: ignore[arg-type]


def _save(directory: Path, *steps: int) -> None:
    with _manager(directory) as manager:
        for step in steps:
            manager.save(step, _tensors(step), {"step": step})


def _restored(directory: Path, **options: object) -> tuple[float, int]:
    loaded = _tensors(-1)
    with _manager(directory, **options) as manager:
        extra = manager.restore(loaded)
    assert len(set(torch.cat([t.flatten() for t in loaded.values()]).tolist())) == 1
    return float(loaded["b"][0]), extra["step"]


def _save_and_wait(manager: CheckpointManager, step: int) -> None:
    manager.save(step, _tensors(step), {"step": step})
    manager.wait()


class _Run:
    """A run with momentum; its state after n steps depends on every step before."""

    def __init__(self) -> None:
        self.weight, self.velocity, self.step = torch.linspace(-1, 1, 64), torch.zeros(64), 0

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"weight": self.weight, "velocity": self.velocity}

    def train(self, until: int, manager: CheckpointManager) -> list[float]:
        losses = []
        while self.step < until:
            generator = torch.Generator().manual_seed(self.step)
            error = self.weight - torch.randn(64, generator=generator)
            self.velocity.mul_(0.9).add_(error, alpha=-0.01)
            self.weight.add_(self.velocity)
            self.step += 1
            losses.append(float((error**2).mean()))
            manager.save(self.step, self.tensors(), {"step": self.step})
        return losses


def _train_and_die(directory: Path, stage: str) -> None:
    manager = _manager(directory, max_to_keep=2)
    with kill_at(stage, step=3):
        _Run().train(5, manager)


@pytest.mark.parametrize("stage", ["writing", "before_commit", "before_rename", "before_purge", "purge"])
def test_fault_1_and_2_kill_during_a_save_costs_at_most_that_step(
    tmp_path: Path, stage: str, warnings_logged: list[str]
) -> None:
    with pytest.raises(RankFailure, match="died"):
        run_ranks(_train_and_die, 1, tmp_path / "killed", stage)
    committed = stage in ("before_purge", "purge")
    assert bool(list((tmp_path / "killed").glob("*.tmp"))) is not committed
    with _manager(tmp_path / "whole") as manager:
        losses = _Run().train(5, manager)
    resumed = _Run()
    with _manager(tmp_path / "killed", max_to_keep=2) as manager:
        assert any("taking over the lock" in message for message in warnings_logged)
        assert manager.steps() == ([1, 2, 3] if committed else [1, 2])
        resumed.step = start = manager.restore(resumed.tensors())["step"]
        assert start == (3 if committed else 2)
        assert resumed.train(5, manager) == losses[start:]
        assert manager.steps() == [4, 5]
    assert not list((tmp_path / "killed").glob("*.tmp"))
    assert any("unfinished" in message for message in warnings_logged) is not committed
    whole = load_tensors(tmp_path / "whole", 5)
    assert all(torch.equal(tensor, whole[name]) for name, tensor in resumed.tensors().items())


def _damage(folder: Path, kind: str) -> Path:
    path = {
        "bit": data_files(folder)[0],
        "truncated": data_files(folder)[0],
        "missing": data_files(folder)[0],
        "extra": folder / EXTRA_NAME,
        "contents": folder / METADATA_NAME,
        "commit": folder / COMMIT_NAME,
    }[kind]
    if kind == "truncated":
        truncate(path)
    elif kind == "missing":
        path.unlink()
    else:
        flip_bit(path)
    return path


@pytest.mark.parametrize("kind", ["bit", "truncated", "missing", "extra", "contents", "commit"])
def test_fault_3_damaged_latest_falls_back_with_a_warning_that_names_the_file(
    tmp_path: Path, kind: str, warnings_logged: list[str]
) -> None:
    _save(tmp_path, 1, 2)
    path = _damage(step_folder(tmp_path, 2), kind)
    assert _restored(tmp_path) == (1.0, 1)
    (message,) = [m for m in warnings_logged if "cannot be trusted" in m]
    reason = {"truncated": "truncated", "missing": "missing", "commit": "its own checksum|Expecting|Invalid"}
    assert str(path if kind != "commit" else path.parent) in message
    assert any(part in message for part in reason.get(kind, "checksum mismatch").split("|"))
    with pytest.raises(CheckpointError):
        _restored(tmp_path, strict=True)
    with _manager(tmp_path) as manager, pytest.raises(CheckpointError):
        manager.restore(_tensors(0), step=2)


def test_fault_3_all_damaged_is_an_error_with_every_reason(tmp_path: Path) -> None:
    _save(tmp_path, 1, 2)
    for step in (1, 2):
        truncate(data_files(step_folder(tmp_path, step))[0])
    with pytest.raises(CheckpointError, match=r"step 2: .*truncated.*; step 1: .*truncated"):
        _restored(tmp_path)


def test_fault_3_the_damaged_step_is_written_anew_when_the_run_reaches_it_again(tmp_path: Path) -> None:
    _save(tmp_path, 1, 2)
    flip_bit(data_files(step_folder(tmp_path, 2))[0])
    with _manager(tmp_path) as manager:
        assert manager.restore(_tensors(0)) == {"step": 1}
        manager.save(2, _tensors(2), {"step": 2})
    assert _restored(tmp_path, strict=True) == (2.0, 2)


@pytest.mark.parametrize("stage", ["planning", "writing", "before_commit", "before_rename"])
@pytest.mark.parametrize("async_save", [False, True])
def test_fault_4_and_5_a_failed_save_is_one_error_without_a_commit_and_the_run_goes_on(
    tmp_path: Path, stage: str, async_save: bool
) -> None:
    with _manager(tmp_path, async_save=async_save) as manager:
        manager.save(1, _tensors(1), {"step": 1})
        with fail_at(stage, step=2), pytest.raises(CheckpointError, match="No space left") as caught:
            _save_and_wait(manager, 2)
        if stage in ("writing", "before_commit"):
            assert "rank 0" in str(caught.value)
            assert "step-00000002.tmp" in str(caught.value)
            assert "GiB" in str(caught.value)
        assert manager.steps() == [1]
        assert not list(tmp_path.glob("*.tmp"))
        manager.save(3, _tensors(3), {"step": 3})
        manager.wait()
        assert manager.steps() == [1, 3]
    assert _restored(tmp_path) == (3.0, 3)


def test_fault_5_a_background_failure_is_raised_by_the_next_save_or_close(tmp_path: Path) -> None:
    manager = _manager(tmp_path, async_save=True)
    with fail_at("writing"):
        manager.save(1, _tensors(1), {})
        with pytest.raises(CheckpointError, match="No space left"):
            manager.save(2, _tensors(2), {})
        manager.save(2, _tensors(2), {})
        with pytest.raises(CheckpointError, match="No space left"):
            manager.close()
    assert not list(tmp_path.iterdir())


def _when_logged(messages: list[str], text: str, action: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if any(text in message for message in messages):
            action()
            return
        time.sleep(0.005)


def test_fault_6_a_save_waits_for_the_one_before_and_says_so(tmp_path: Path, warnings_logged: list[str]) -> None:
    writing, go_on, writers, released = threading.Event(), threading.Event(), [], []

    def hold() -> None:
        writers.append(threading.current_thread().name)
        writing.set()
        released.append(go_on.wait(30))

    live = _tensors(1)
    with _manager(tmp_path, async_save=True) as manager:
        with at_stage("before_commit", hold, step=1):
            manager.save(1, live, {"step": 1})
            for tensor in live.values():
                tensor.fill_(2)
            assert writing.wait(30)
            assert manager.steps() == []
            threading.Thread(target=_when_logged, args=(warnings_logged, "step 2 waits", go_on.set)).start()
            manager.save(2, live, {"step": 2})
            assert manager.steps()[0] == 1
        manager.wait()
        assert manager.steps() == [1, 2]
    assert released == [True]
    assert writers[0].startswith("checkpoint")
    assert float(load_tensors(tmp_path, 1)["b"][0]) == 1.0
    assert float(load_tensors(tmp_path, 2)["b"][0]) == 2.0


def test_fault_10_missing_extra_and_different_names_are_all_listed(tmp_path: Path) -> None:
    _save(tmp_path, 1)
    wanted = {"a": torch.zeros(51, 4), "b": torch.zeros(3, dtype=torch.float64), "new": torch.zeros(2)}
    with _manager(tmp_path) as manager:
        with pytest.raises(CheckpointError) as caught:
            manager.restore({"a": wanted["a"], "new": wanted["new"]})
        assert "only in the model: ['new']" in str(caught.value)
        assert "only in the checkpoint: ['b']" in str(caught.value)
        assert "a: checkpoint [50, 4] float32, model [51, 4] float32" in str(caught.value)
        with pytest.raises(CheckpointError, match=r"b: checkpoint \[3\] float32, model \[3\] float64"):
            manager.restore(wanted)
    assert all(not tensor.any() for tensor in wanted.values())


def test_fault_10_a_part_is_loaded_only_by_name(tmp_path: Path) -> None:
    _save(tmp_path, 1)
    wanted = {"a": torch.zeros(50, 4), "new": torch.zeros(2)}
    with _manager(tmp_path) as manager:
        manager.restore(wanted, only=["a"])
        assert float(wanted["a"].min()) == 1.0
        assert not wanted["new"].any()
        with pytest.raises(CheckpointError) as caught:
            manager.restore(wanted, only=["a", "new", "gone"])
        assert "only in the model: ['new']; only in the checkpoint: ['b']; in neither: ['gone']" in str(caught.value)


def test_fault_11_a_step_that_is_not_there_is_an_error_that_lists_those_that_are(tmp_path: Path) -> None:
    _save(tmp_path, 1, 2)
    (tmp_path / "step-00000007").mkdir()
    with _manager(tmp_path) as manager, pytest.raises(CheckpointError, match=r"steps present: \[1, 2\]"):
        manager.restore(_tensors(0), step=7)


def test_fault_11_a_file_as_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("precious")
    with pytest.raises(CheckpointError, match="is a file"):
        _manager(path)
    with pytest.raises(CheckpointError, match="is a file"):
        load_tensors(path)
    assert path.read_text() == "precious"


def test_fault_11_a_folder_with_checkpoints_is_refused_to_a_run_that_does_not_resume(tmp_path: Path) -> None:
    with _manager(tmp_path) as manager:
        manager.require_empty()
    _save(tmp_path, 4)
    before = sorted(tmp_path.rglob("*"))
    with _manager(tmp_path, lock=False) as manager, pytest.raises(CheckpointError, match=r"steps present: \[4\]"):
        manager.require_empty()
    assert sorted(tmp_path.rglob("*")) == before


def test_fault_12_torn_folders_are_not_counted_and_a_failed_delete_is_a_warning(
    tmp_path: Path, warnings_logged: list[str]
) -> None:
    for name in ("step-00000090", "step-00000091.tmp", "step-00000092"):
        (tmp_path / name).mkdir()
    with _manager(tmp_path, max_to_keep=2) as manager:
        manager.save(1, _tensors(1), {})
        manager.save(2, _tensors(2), {})
        assert manager.steps() == [1, 2]
        with fail_at("purge", error=PermissionError("not yours")):
            manager.save(3, _tensors(3), {})
        assert manager.steps() == [1, 2, 3]
        assert any("cannot delete" in message and "not yours" in message for message in warnings_logged)
        manager.save(4, _tensors(4), {})
        assert manager.steps() == [3, 4]


def test_fault_12_the_last_whole_checkpoint_is_never_deleted(tmp_path: Path) -> None:
    _save(tmp_path, 1)

    def tear() -> None:
        truncate(data_files(step_folder(tmp_path, 2))[0])

    with _manager(tmp_path, max_to_keep=1) as manager, at_stage("before_purge", tear):
        manager.save(2, _tensors(2), {})
    assert _restored(tmp_path) == (1.0, 1)


def test_fault_40_the_best_step_survives_purge_and_restart(tmp_path: Path) -> None:
    with _manager(tmp_path, max_to_keep=1, async_save=True) as manager:
        manager.save(1, _tensors(1), {"step": 1})
        manager.mark_best(1, "mrr", 0.3)
        manager.save(2, _tensors(2), {"step": 2})
    with _manager(tmp_path, max_to_keep=1) as manager:
        for step in (3, 4):
            manager.save(step, _tensors(step), {"step": step})
        assert (manager.best(), manager.steps()) == (1, [1, 4])
        loaded = _tensors(0)
        assert manager.restore(loaded, step=manager.best()) == {"step": 1}
        assert float(loaded["a"].max()) == 1.0


def test_a_reading_failure_after_verification_falls_back(tmp_path: Path) -> None:
    _save(tmp_path, 1, 2)
    calls: list[int] = []

    def fail_once() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise OSError("the disk has gone")

    loaded = _tensors(0)
    with _manager(tmp_path) as manager, at_stage("reading", fail_once):
        assert manager.restore(loaded) == {"step": 1}
    assert float(loaded["a"].min()) == 1.0


def test_every_error_is_of_the_users_tree() -> None:
    assert issubclass(CheckpointError, TmlError)
