"""Faults by name: raise or die at a chosen stage of a save, on a chosen rank and step; damage files afterwards.

with fail_at("writing", rank=1, step=2):
    manager.save(2, tensors, {})            # CheckpointError on all ranks
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from tml.common.checkpointing import layout, retention
from tml.common.checkpointing.manager import CheckpointManager
from tml.common.checkpointing.pieces import TensorPieces
from tml.common.checkpointing.planner import BlockSavePlanner, PieceLoadPlanner
from tml.common.checkpointing.save import SaveJob
from tml.common.checkpointing.storage import ChecksummedFile

# A stage begins where this function is called. `before_commit` and later stages run on rank 0 only.
STAGES: dict[str, tuple[Any, str]] = {
    "staging": (TensorPieces, "staged"),
    "planning": (BlockSavePlanner, "create_local_plan"),
    "writing": (ChecksummedFile, "write"),
    "before_commit": (layout, "write_commit"),
    "before_rename": (layout, "publish"),
    "before_purge": (retention, "purge"),
    "purge": (retention, "delete_folder"),
    "reading": (PieceLoadPlanner, "lookup_tensor"),
}


@contextlib.contextmanager
def at_stage(
    stage: str, action: Callable[[], object], *, rank: int | None = None, step: int | None = None
) -> Iterator[None]:
    """Call `action` whenever a save (or load) reaches `stage`, on `rank` (None: any) and at `step` (None: any)."""
    owner, name = STAGES[stage]
    original, original_run = getattr(owner, name), CheckpointManager._run
    jobs: list[SaveJob] = []

    def run(manager: CheckpointManager, job: SaveJob) -> None:
        jobs.append(job)
        original_run(manager, job)

    def reach(*args: Any, **kwargs: Any) -> Any:
        if (rank is None or rank == int(os.environ.get("RANK", "0"))) and (
            step is None or (jobs and jobs[-1].step == step)
        ):
            action()
        return original(*args, **kwargs)

    with mock.patch.object(CheckpointManager, "_run", run), mock.patch.object(owner, name, reach):
        yield


def fail_at(
    stage: str, *, rank: int | None = None, step: int | None = None, error: BaseException | None = None
) -> contextlib.AbstractContextManager[None]:
    """Raise `error` (disk full, unless given) at a stage."""

    def fail() -> None:
        raise error if error is not None else OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return at_stage(stage, fail, rank=rank, step=step)


def kill_at(stage: str, *, rank: int | None = None, step: int | None = None) -> contextlib.AbstractContextManager[None]:
    """Die by SIGKILL at a stage; for use in a process of its own."""
    return at_stage(stage, lambda: os.kill(os.getpid(), signal.SIGKILL), rank=rank, step=step)


def data_files(folder: Path) -> list[Path]:
    """The tensor files of a checkpoint."""
    return sorted(folder.glob("*.distcp"))


def truncate(path: Path, num_bytes: int = 1) -> None:
    """Cut bytes off the end of a file."""
    os.truncate(path, path.stat().st_size - num_bytes)


def flip_bit(path: Path, position: int | None = None) -> None:
    """Flip the lowest bit of one byte (the middle one, unless given) of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if position is None else position] ^= 1
    path.write_bytes(data)
