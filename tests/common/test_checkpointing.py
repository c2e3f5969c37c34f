"""Checkpoints on one process: what goes in comes out, bounded, kept and purged by the rules."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.faults import data_files, fail_at, truncate
from tml.common.checkpointing import (
    Best,
    CheckpointManager,
    iter_row_blocks,
    iterate_new,
    load_tensors,
    read_extra,
)
from tml.common.checkpointing import pieces as pieces_module
from tml.common.checkpointing import planner as planner_module
from tml.common.checkpointing import reading as reading_module
from tml.common.checkpointing.layout import read_commit
from tml.common.checkpointing.reading import Checkpoint
from tml.common.errors import CheckpointError

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is")


def _tensors(value: float = 1.0) -> dict[str, torch.Tensor]:
    return {
        "table": torch.arange(30, dtype=torch.float32).reshape(10, 3) * value,
        "momentum": torch.arange(10, dtype=torch.float32) + value,
        "half": torch.full((4, 2), value, dtype=torch.float16),
        "scalar": torch.tensor(value, dtype=torch.float64),
        "counts": torch.tensor([2**62, -5], dtype=torch.int64),
        "empty": torch.zeros(0, 7),
    }


def _like(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.full_like(tensor, 99) for name, tensor in tensors.items()}


def _assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype
        assert torch.equal(left[name], right[name]), name


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 24 bytes: two rows of the table."""
    monkeypatch.setattr(reading_module, "BLOCK_BYTES", 24)
    monkeypatch.setattr(planner_module.BlockSavePlanner.__init__, "__defaults__", (24,))


def test_every_kind_of_tensor_and_extra_comes_back_exactly(tmp_path: Path) -> None:
    saved, extra = _tensors(), {"step": 3, "loss": 0.1 + 0.2, "cursor": {"epoch": 1, "row": 2**53 + 1}, "none": None}
    with CheckpointManager(tmp_path, max_to_keep=None) as manager:
        manager.save(3, saved, extra)
    loaded = _like(saved)
    with CheckpointManager(tmp_path, max_to_keep=None) as manager:
        assert manager.restore(loaded) == extra
        assert manager.restored_step == 3
    _assert_same(loaded, saved)


def test_restore_writes_into_the_live_tensors_and_views(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(6, 2)
    weight = torch.nn.Parameter(torch.zeros(3, 2))
    with CheckpointManager(tmp_path, max_to_keep=1) as manager:
        manager.save(1, {"part": whole[2:5]}, {})
        manager.restore({"part": weight})
        assert torch.equal(weight.detach(), torch.tensor([[4.0, 5.0], [6.0, 7.0], [8.0, 9.0]]))
        assert weight.requires_grad
        into = torch.zeros(6, 2)
        manager.restore({"part": into[1:4]})
    assert into.sum(1).tolist() == [0, 9, 13, 17, 0, 0]


@pytest.mark.usefixtures("small_blocks")
def test_large_tensors_are_stored_as_bounded_row_blocks(tmp_path: Path) -> None:
    saved = _tensors()
    with CheckpointManager(tmp_path, max_to_keep=1) as manager:
        manager.save(1, saved, {})
        loaded = _like(saved)
        manager.restore(loaded)
    _assert_same(loaded, saved)
    chunks = Checkpoint.open(tmp_path).metadata.state_dict_metadata["table"].chunks
    assert sorted(tuple(chunk.offsets) for chunk in chunks) == [(0, 0), (2, 0), (4, 0), (6, 0), (8, 0)]
    assert {tuple(chunk.sizes) for chunk in chunks} == {(2, 3)}


def test_blocks_cover_every_row_once_and_keep_to_the_bound() -> None:
    view = pieces_module.pieces_of("t", torch.arange(21.0).reshape(7, 3))
    found = list(pieces_module.blocks(view, block_bytes=30))
    assert [block.offsets for block in found] == [(0, 0), (2, 0), (4, 0), (6, 0)]
    assert torch.equal(torch.cat([block.tensor for block in found]), view.pieces[0].tensor)
    assert [len(block.tensor) for block in pieces_module.blocks(view, block_bytes=1)] == [1] * 7


def test_saving_a_committed_step_again_changes_nothing(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path, max_to_keep=None) as manager:
        manager.save(1, _tensors(1.0), {"n": 1})
        manager.save(1, _tensors(2.0), {"n": 2})
        loaded = _like(_tensors())
        assert manager.restore(loaded) == {"n": 1}
    _assert_same(loaded, _tensors(1.0))


def test_a_step_of_an_abandoned_future_is_replaced_and_latest_follows_the_new_run(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path, max_to_keep=None) as manager:
        for step in (1, 2, 3):
            manager.save(step, _tensors(step), {"run": "old"})
    with CheckpointManager(tmp_path, max_to_keep=None) as manager:
        manager.restore(_like(_tensors()), step=1)
        manager.save(2, _tensors(20.0), {"run": "new"})
        assert manager.steps() == [1, 2, 3]
        assert manager.latest() == 2
        assert manager.restore(_like(_tensors())) == {"run": "new"}


def test_commit_record_says_what_was_written(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path, max_to_keep=1) as manager:
        manager.save(12, _tensors(), {"fingerprints": {"config": "abc"}})
    folder = tmp_path / "step-00000012"
    record = read_commit(folder)
    assert (record.step, record.world_size, record.fingerprints) == (12, 1, {"config": "abc"})
    assert record.versions["torch"] == torch.__version__
    sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.name != "COMMIT.json"}
    assert {name: file.size for name, file in record.files.items()} == sizes


def test_no_path_of_this_machine_is_written(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path, max_to_keep=1) as manager:
        manager.save(1, _tensors(), {})
    for path in (tmp_path / "step-00000001").iterdir():
        assert str(tmp_path).encode() not in path.read_bytes()


def test_keep_k_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path, max_to_keep=2) as manager:
        for step in range(1, 4):
            manager.save(step, _tensors(), {})
        assert manager.steps() == [2, 3]
        manager.mark_best(2, "mrr", 0.5)
        for step in range(4, 7):
            manager.save(step, _tensors(), {})
        assert (manager.steps(), manager.latest(), manager.best()) == ([2, 5, 6], 6, 2)
    with CheckpointManager(tmp_path, max_to_keep=2) as manager:
        assert manager.best_record() == Best(2, "mrr", 0.5)
        manager.mark_best(6, "mrr", 0.6)
        manager.save(7, _tensors(), {})
        assert manager.steps() == [6, 7]


def test_only_a_committed_step_and_a_finite_value_can_be_best(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path, max_to_keep=2) as manager:
        manager.save(1, _tensors(), {})
        with pytest.raises(CheckpointError, match=r"steps present: \[1\]"):
            manager.mark_best(2, "mrr", 0.5)
        with pytest.raises(CheckpointError, match="finite"):
            manager.mark_best(1, "mrr", float("nan"))
        assert manager.best() is None


@pytest.mark.parametrize(
    ("extra", "place"),
    [
        ({"a": {"b": [1, torch.tensor(1)]}}, r"extra\['a'\]\['b'\]\[1\]"),
        ({"a": {1: 2}}, r"a key of extra\['a'\]"),
        ({"a": b"x"}, r"extra\['a'\]"),
    ],
)
def test_extra_that_json_would_change_is_refused_before_anything_is_written(
    tmp_path: Path, extra: dict[str, object], place: str
) -> None:
    with CheckpointManager(tmp_path, max_to_keep=1, lock=False) as manager, pytest.raises(CheckpointError, match=place):
        manager.save(1, _tensors(), extra)
    assert list(tmp_path.iterdir()) == []


def test_values_that_are_no_tensors_are_refused(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path, max_to_keep=1) as manager:
        with pytest.raises(CheckpointError, match=r"tensors\['a'\]"):
            manager.save(1, {"a": 3}, {})  # type: ignore[dict-item]
        with pytest.raises(CheckpointError, match="strided"):
            manager.save(1, {"a": torch.eye(3).to_sparse()}, {})
        assert manager.steps() == []


def test_load_tensors_needs_no_model(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path, max_to_keep=None) as manager:
        manager.save(1, _tensors(1.0), {"n": 1})
        manager.save(2, _tensors(2.0), {"n": 2})
    _assert_same(load_tensors(tmp_path), _tensors(2.0))
    _assert_same(load_tensors(tmp_path, 1, ["half"]), {"half": _tensors(1.0)["half"]})
    assert (read_extra(tmp_path), read_extra(tmp_path, 1)) == ({"n": 2}, {"n": 1})
    with pytest.raises(CheckpointError, match=r"nothere.*\n.*'counts', 'empty', 'half'"):
        load_tensors(tmp_path, names=["nothere"])
    with pytest.raises(CheckpointError, match=r"steps present: \[1, 2\]"):
        read_extra(tmp_path, 3)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("rows_per_block", [1, 2, 3, 7, 10, 100])
def test_row_blocks_are_the_rows_in_order(tmp_path: Path, rows_per_block: int) -> None:
    with CheckpointManager(tmp_path, max_to_keep=1) as manager:
        manager.save(1, _tensors(), {})
    found = list(iter_row_blocks(tmp_path, 1, "table", rows_per_block))
    assert torch.equal(torch.cat(found), _tensors()["table"])
    assert [len(block) for block in found[:-1]] == [rows_per_block] * (len(found) - 1)
    assert len(found) == -(-10 // rows_per_block)
    assert torch.equal(torch.cat(list(iter_row_blocks(tmp_path, None, "momentum", 4))), _tensors()["momentum"])


@pytest.mark.usefixtures("small_blocks")
def test_reading_row_blocks_allocates_no_full_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with CheckpointManager(tmp_path, max_to_keep=1) as manager:
        manager.save(1, _tensors(), {})
    loaded: list[int] = []
    original = torch.load

    def counting(*args: object, **kwargs: object) -> torch.Tensor:
        tensor = original(*args, **kwargs)  # type: ignore[arg-type]
        loaded.append(len(tensor))
        return tensor

    monkeypatch.setattr(torch, "load", counting)
    assert sum(len(block) for block in iter_row_blocks(tmp_path, 1, "table", 1)) == 10
    assert loaded == [2] * 5


def test_iterate_new_yields_each_committed_step_once_and_ends_in_silence(tmp_path: Path) -> None:
    directory = tmp_path / "later"
    assert list(iterate_new(directory, poll_s=0.001, timeout_s=0.01)) == []
    with CheckpointManager(directory, max_to_keep=2) as manager:
        manager.save(1, _tensors(), {})
        manager.save(2, _tensors(), {})
        (directory / "step-00000009").mkdir()
        found = []
        for step in iterate_new(directory, poll_s=0.001, timeout_s=0.05):
            found.append(step)
            if step == 2:
                manager.save(3, _tensors(), {})
                manager.save(4, _tensors(), {})
                manager.save(5, _tensors(), {})
        assert found == [1, 2, 4, 5]


def test_iterate_new_ends_when_told_to(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path, max_to_keep=None) as manager:
        for step in (1, 2, 3):
            manager.save(step, _tensors(), {})
    found: list[int] = []
    for step in iterate_new(tmp_path, poll_s=0.001, stop=lambda: len(found) == 2):
        found.append(step)
    assert found == [1, 2]


def test_restore_latest_is_none_without_a_checkpoint(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path, max_to_keep=1) as manager:
        assert manager.restore_latest(_like(_tensors())) is None
        with pytest.raises(CheckpointError, match="no checkpoint here"):
            manager.restore(_like(_tensors()))
        manager.save(1, _tensors(), {"n": 1})
        assert manager.restore_latest(_like(_tensors())) == {"n": 1}


def test_max_to_keep_below_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="max_to_keep"):
        CheckpointManager(tmp_path, max_to_keep=0)


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, tml.common.checkpointing; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_async_save_keeps_the_values_of_the_moment_of_the_call(tmp_path: Path) -> None:
    tensors, extra = _tensors(1.0), {"history": [1]}
    with CheckpointManager(tmp_path, max_to_keep=None, async_save=True) as manager:
        manager.save(1, tensors, extra)
        for tensor in tensors.values():
            tensor.fill_(-1)
        extra["history"].append(2)
        manager.wait()
        loaded = _like(tensors)
        assert manager.restore(loaded) == {"history": [1]}
    _assert_same(loaded, _tensors(1.0))


def test_purge_counts_only_whole_checkpoints(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with CheckpointManager(tmp_path, max_to_keep=1) as manager:
        manager.save(1, _tensors(), {})
        with fail_at("purge"), caplog.at_level(logging.WARNING):
            manager.save(2, _tensors(), {})
        assert manager.steps() == [1, 2]
        truncate(data_files(tmp_path / "step-00000002")[0])
        manager.save(3, _tensors(), {})
        assert manager.steps() == [2, 3]
