"""Checkpoints of strangers: whatever lies in the folder, nothing of it is run."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path

import pytest
import torch

from tests.faults import data_files
from tml.common.checkpointing import CheckpointManager, load_tensors
from tml.common.checkpointing.layout import METADATA_NAME, FileRecord, read_commit, step_folder, write_commit
from tml.common.checkpointing.layout import crc32_of_file as crc
from tml.common.errors import CheckpointError

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is")


def _save(directory: Path) -> None:
    with CheckpointManager(directory, max_to_keep=None) as manager:
        manager.save(1, {"a": torch.ones(50, 4)}, {"step": 1})


class _Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def _recommit(folder: Path) -> None:
    """Make a tampered folder consistent again, as an attacker would."""
    record = read_commit(folder)
    for name in list(record.files):
        record.files[name] = FileRecord((folder / name).stat().st_size, crc(folder / name))
    write_commit(folder, record)


def test_fault_13_a_hostile_pickle_runs_nothing(tmp_path: Path) -> None:
    directory, trap = tmp_path / "checkpoints", tmp_path / "trap"
    _save(directory)
    folder = step_folder(directory, 1)
    (folder / METADATA_NAME).write_bytes(pickle.dumps(_Evil(trap)))
    _recommit(folder)
    with pytest.raises(CheckpointError, match=r"mkdir"):
        load_tensors(directory, 1)
    with pytest.raises(CheckpointError, match=r"mkdir"):
        CheckpointManager(directory, max_to_keep=None).restore({"a": torch.zeros(50, 4)})
    assert not trap.exists()


def test_fault_13_a_hostile_tensor_runs_nothing(tmp_path: Path) -> None:
    directory, trap = tmp_path / "checkpoints", tmp_path / "trap"
    _save(directory)
    folder = step_folder(directory, 1)
    torch.save({"x": _Evil(trap)}, data_files(folder)[0])
    _recommit(folder)
    with pytest.raises(CheckpointError):
        load_tensors(directory, 1)
    assert not trap.exists()


def test_fault_13_a_tensor_outside_the_folder_is_not_read(tmp_path: Path) -> None:
    _save(tmp_path)
    folder = step_folder(tmp_path, 1)
    with (folder / METADATA_NAME).open("rb") as file:
        metadata = pickle.load(file)
    for info in metadata.storage_data.values():
        info.relative_path = "../elsewhere"
    (folder / METADATA_NAME).write_bytes(pickle.dumps(metadata))
    _recommit(folder)
    with pytest.raises(CheckpointError, match=r"not committed"):
        load_tensors(tmp_path, 1)


def test_13_an_enum_member_pickled_by_getattr_is_read_and_nothing_else_is() -> None:
    from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING

    from tml.common.checkpointing.storage import _MetadataUnpickler

    def pickled(module: str, owner: str, name: str) -> bytes:
        return f"cbuiltins\ngetattr\n(c{module}\n{owner}\nV{name}\ntR.".encode()

    good = pickled("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING", "TORCH_CONTIGUOUS_FORMAT")
    assert _MetadataUnpickler(io.BytesIO(good)).load() is _MEM_FORMAT_ENCODING.TORCH_CONTIGUOUS_FORMAT
    bad = pickled("torch.distributed.checkpoint.metadata", "TensorProperties", "__init__")
    with pytest.raises(CheckpointError, match="no place there"):
        _MetadataUnpickler(io.BytesIO(bad)).load()
