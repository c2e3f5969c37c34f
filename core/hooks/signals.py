"""SIGTERM and SIGINT: the first asks for an orderly end with a checkpoint, the second ends at once."""

from __future__ import annotations

import logging
import os
import signal
import threading
from typing import TYPE_CHECKING, Any

from tml.core.batch_stream import StopKind
from tml.core.hooks import Hook

if TYPE_CHECKING:
    from types import FrameType

    from tml.core.train_loop import TrainLoop

logger = logging.getLogger(__name__)

# A launcher's wrapper can tell "run me again" from success and from failure (EX_TEMPFAIL of sysexits.h).
PREEMPTED_EXIT_CODE = 75

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class SignalHook(Hook):
    """While training, turns signals into a stop of kind `PREEMPTED`; puts the old handlers back afterwards."""

    def __init__(self) -> None:
        self._old: dict[int, Any] = {}
        self._loop: TrainLoop | None = None
        self._seen = False

    def on_train_start(self, loop: TrainLoop) -> None:
        """Install the handlers, if this is the main thread; Python allows them nowhere else."""
        self._loop = loop
        if threading.current_thread() is threading.main_thread():
            self._old = {number: signal.signal(number, self._handle) for number in _SIGNALS}

    def on_train_end(self, loop: TrainLoop) -> None:
        """Put the old handlers back."""
        self._restore()

    def on_error(self, loop: TrainLoop, error: BaseException) -> None:
        """Put the old handlers back."""
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._old, self._loop, self._seen = {}, None, False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._seen:
            os._exit(PREEMPTED_EXIT_CODE)
        self._seen = True
        if self._loop is not None:
            self._loop.request_stop(signal.Signals(number).name, StopKind.PREEMPTED)
