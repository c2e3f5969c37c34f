"""Stops training after a given time, counted over restarts."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from tml.core.hooks import Hook

if TYPE_CHECKING:
    from tml.core.train_loop import TrainLoop


class DurationHook(Hook):
    """Counts the seconds of training and asks for a stop when there are too many.

    Args:
        max_duration_in_s: the limit; None only counts.
        clock: seconds, monotonic.
    """

    def __init__(self, max_duration_in_s: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._clock = max_duration_in_s, clock
        self._before, self._start = 0.0, clock()

    @property
    def seconds(self) -> float:
        """Seconds of training so far, of earlier runs too."""
        return self._before + self._clock() - self._start

    def on_train_start(self, loop: TrainLoop) -> None:
        """Start the clock."""
        self._start = self._clock()
        self._check(loop)

    def after_step(self, loop: TrainLoop) -> None:
        """Look at the clock."""
        self._check(loop)

    def state_dict(self) -> dict[str, Any]:
        """The seconds so far."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on counting from there."""
        self._before = float(state["seconds"])

    def _check(self, loop: TrainLoop) -> None:
        if self._limit is not None and self.seconds >= self._limit:
            loop.request_stop(f"max_duration_in_s of {self._limit:g} reached")
