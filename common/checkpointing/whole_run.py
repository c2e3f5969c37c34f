"""The lock of a directory for a run of several phases, of which training is one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from tml.common.checkpointing.lock import DirectoryLock
from tml.common.checkpointing.ranks import Ranks
from tml.common.checkpointing.reading import require_directory

_held: set[Path] = set()


@contextlib.contextmanager
def lock_of_whole_run(directory: str | os.PathLike[str]) -> Iterator[None]:
    """Keep other writers out of a directory for several phases; all ranks call it together.

    A `CheckpointManager` that is opened meanwhile does not lock the directory itself: between training's lock and the
    next phase another run could otherwise replace what this one goes on with.

    Args:
        directory: made if it is missing.

    Raises:
        CheckpointError: on all ranks, when it is a file, cannot be made, or a live job holds its lock.
    """
    folder = Path(directory)
    lock = DirectoryLock(folder)

    def take() -> None:
        require_directory(folder)
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()

    Ranks.create().run_on_first("opening the run's directory", take)
    _held.add(folder.resolve())
    try:
        yield
    finally:
        _held.discard(folder.resolve())
        lock.release()


def is_held(directory: Path) -> bool:
    """Whether this process is within `lock_of_whole_run` of a directory."""
    return directory.resolve() in _held
