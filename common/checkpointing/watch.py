"""Following a directory that another job writes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tml.common.checkpointing import layout
from tml.common.checkpointing.ranks import Ranks


def iterate_new(
    directory: str | os.PathLike[str],
    *,
    poll_s: float = 30.0,
    timeout_s: float | None = None,
    stop: Callable[[], bool] | None = None,
) -> Iterator[int]:
    """Yield each committed step once, in the order of their commits, as they appear.

    Steps that are there already come first. A step that is deleted before its turn is left out; one that is
    written anew (after a fall back) comes again. With a process group all ranks iterate
    together and see what rank 0 sees.

    Args:
        directory: a checkpoint directory, which need not exist yet.
        poll_s: seconds between two looks.
        timeout_s: seconds without a new step after which the iteration ends; None waits forever.
        stop: asked on rank 0 before each step and each look; the iteration ends when it says so.
    """
    ranks = Ranks.create()
    seen: set[tuple[int, int]] = set()
    silent_since = time.monotonic()

    def look() -> tuple[int, int] | bool:
        if stop is not None and stop():
            return False
        news = _next(Path(directory), seen)
        return news or timeout_s is None or time.monotonic() - silent_since < timeout_s

    while news := ranks.run_on_first("watching for checkpoints", look):
        if isinstance(news, tuple):
            seen.add(news)
            yield news[0]
            silent_since = time.monotonic()
        else:
            time.sleep(poll_s)


def _next(directory: Path, seen: set[tuple[int, int]]) -> tuple[int, int] | None:
    for entry in reversed(layout.committed(directory)):
        assert entry.record is not None
        place = (entry.step, entry.record.sequence)
        if place not in seen:
            return place
    return None
