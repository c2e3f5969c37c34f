"""A progress bar of training, for people who watch; the log lines are for everybody."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from tml.common.device import rank
from tml.core.hooks import Hook
from tml.ml_logging.progress import Progress

if TYPE_CHECKING:
    from tml.core.train_loop import TrainLoop


class ProgressHook(Hook):
    """Shows steps, rate, time left and the last logged loss on rank 0 if stderr is a terminal, else nothing."""

    def __init__(self) -> None:
        self._progress: Progress | None = None

    def on_train_start(self, loop: TrainLoop) -> None:
        """Show the bar, from the step on at which a run goes on."""
        # Elsewhere `Progress` would write log lines, and training has its own.
        if rank() == 0 and sys.stderr.isatty():
            self._progress = Progress(loop.total_steps, "training")
            self._progress.num_done = loop.state.step
            self._progress.__enter__()

    def after_step(self, loop: TrainLoop) -> None:
        """Move it."""
        if self._progress is not None:
            shown = {} if loop.state.loss is None else {"loss": loop.state.loss}
            self._progress.update(1, **shown)

    def on_train_end(self, loop: TrainLoop) -> None:
        """Leave it as it stands."""
        self._close()

    def on_error(self, loop: TrainLoop, error: BaseException) -> None:
        """Leave it as it stands, so that the error is not written over it."""
        self._close()

    def _close(self) -> None:
        if self._progress is not None:
            self._progress.__exit__(None, None, None)
            self._progress = None
