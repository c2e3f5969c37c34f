"""A Chrome trace of some steps."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

import torch

from tml.common.device import rank
from tml.core.hooks import Hook

if TYPE_CHECKING:
    from tml.core.train_loop import TrainLoop

logger = logging.getLogger(__name__)


class ProfilerHook(Hook):
    """Profiles `count` steps once `start` steps are complete; every rank writes a trace of its own.

    Args:
        start: completed steps after which profiling begins.
        count: steps to profile.
        folder: where the traces go.
    """

    def __init__(self, start: int, count: int, folder: str) -> None:
        self._start, self._count, self._folder = start, count, folder
        self._profiler: torch.profiler.profile | None = None
        self._stop = start + count

    def on_train_start(self, loop: TrainLoop) -> None:
        """Begin at once if it is time."""
        self._begin_if_due(loop)

    def after_step(self, loop: TrainLoop) -> None:
        """Begin or end if it is time."""
        if self._profiler is not None and loop.state.step >= self._stop:
            self._finish(loop)
        self._begin_if_due(loop)

    def on_train_end(self, loop: TrainLoop) -> None:
        """Write what there is if training ended early."""
        if self._profiler is not None:
            self._finish(loop)

    def on_error(self, loop: TrainLoop, error: BaseException) -> None:
        """Stop profiling without a trace."""
        if self._profiler is not None:
            self._profiler.stop()
            self._profiler = None

    def _begin_if_due(self, loop: TrainLoop) -> None:
        if self._profiler is None and loop.state.step == self._start:
            self._profiler = torch.profiler.profile()
            self._profiler.start()

    def _finish(self, loop: TrainLoop) -> None:
        assert self._profiler is not None
        profiler, self._profiler = self._profiler, None
        profiler.stop()
        path = os.path.join(self._folder, f"steps-{self._start}-{loop.state.step}-rank-{rank()}.json")
        try:
            os.makedirs(self._folder, exist_ok=True)
            profiler.export_chrome_trace(path)
            logger.info("profile written to %s", path)
        except OSError as error:
            logger.warning("the profile cannot be written to %s: %s", path, error)
