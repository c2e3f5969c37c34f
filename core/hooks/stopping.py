"""Stops training at a time of day, or when a file appears."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tml.common.device import rank
from tml.core.hooks import Hook

if TYPE_CHECKING:
    from tml.core.train_loop import TrainLoop


class StopAtTimeHook(Hook):
    """Asks for a stop once a time has come.

    Args:
        time: with its time zone.
        now: the time, with a time zone.
    """

    def __init__(self, time: datetime, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._time, self._now = time, now

    def on_train_start(self, loop: TrainLoop) -> None:
        """Do not begin if it is too late."""
        self._check(loop)

    def after_step(self, loop: TrainLoop) -> None:
        """Look at the clock."""
        self._check(loop)

    def _check(self, loop: TrainLoop) -> None:
        if self._now() >= self._time:
            loop.request_stop(f"stop_at_time {self._time.isoformat()} has come")


class StopIfFileExistsHook(Hook):
    """Asks for a stop once a file exists; rank 0 looks, at most once in `every_s` seconds.

    Args:
        path: the file or folder to look for.
        every_s: seconds between looks, as the folder may be on the network.
        clock: seconds, monotonic.
    """

    def __init__(self, path: str, every_s: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._every_s, self._clock = path, every_s, clock
        self._next_look = clock()

    def on_train_start(self, loop: TrainLoop) -> None:
        """Do not begin if it is there."""
        self._check(loop)

    def after_step(self, loop: TrainLoop) -> None:
        """Look if it is time to."""
        self._check(loop)

    def _check(self, loop: TrainLoop) -> None:
        if rank() != 0 or self._clock() < self._next_look:
            return
        self._next_look = self._clock() + self._every_s
        if os.path.exists(self._path):
            loop.request_stop(f"stop_if_file_exists: {self._path} exists")
