"""A Chrome trace of some steps, and the time of their phases."""

from __future__ import annotations

import json
import logging
import os
import statistics
import time
from collections import deque
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch.profiler import record_function

from tml.common.device import rank
from tml.core.hooks import Hook
from tml.core.step_profile import STEP, StepProfile, profile_of

if TYPE_CHECKING:
    from tml.core.train_loop import TrainLoop

logger = logging.getLogger(__name__)


class ProfilerHook(Hook):
    """Profiles `count` steps once `start` steps are complete.

    Every rank writes a trace of its own and, beside it, the time of the phases of a step; the log has them as a table.

    Args:
        start: completed steps after which profiling begins.
        count: steps to profile.
        folder: where the files go.
    """

    def __init__(self, start: int, count: int, folder: str) -> None:
        self._start, self._count, self._folder = start, count, folder
        self._profiler: torch.profiler.profile | None = None
        self._mark: record_function | None = None
        self._num_done = 0
        # When the steps before those that are profiled ended.
        self._ends: deque[float] = deque(maxlen=count + 1)

    def on_train_start(self, loop: TrainLoop) -> None:
        """Begin at once if it is time."""
        self._begin_if_due(loop)

    def after_step(self, loop: TrainLoop) -> None:
        """Begin or end if it is time."""
        if self._profiler is not None:
            self._end_step()
            self._num_done += 1
            if self._num_done == self._count:
                self._finish(loop)
            else:
                self._begin_step()
        elif loop.state.step <= self._start:
            self._ends.append(time.perf_counter())
            self._begin_if_due(loop)

    def on_train_end(self, loop: TrainLoop) -> None:
        """Write what there is if training ended early."""
        if self._profiler is not None:
            self._end_step()
            self._finish(loop)

    def on_error(self, loop: TrainLoop, error: BaseException) -> None:
        """Stop profiling without a trace."""
        if self._profiler is not None:
            self._end_step()
            self._profiler.stop()
            self._profiler = None

    def _begin_if_due(self, loop: TrainLoop) -> None:
        if loop.state.step == self._start:
            # The thread that makes batches is part of the story.
            threads = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)
            self._profiler = torch.profiler.profile(experimental_config=threads)
            self._profiler.start()
            self._begin_step()

    def _begin_step(self) -> None:
        self._mark = record_function(STEP)
        self._mark.__enter__()

    def _end_step(self) -> None:
        if self._mark is not None:
            self._mark.__exit__(None, None, None)
            self._mark = None

    def _finish(self, loop: TrainLoop) -> None:
        assert self._profiler is not None
        profiler, self._profiler = self._profiler, None
        profiler.stop()
        path = os.path.join(self._folder, f"steps-{self._start}-{loop.state.step}-rank-{rank()}")
        phases = self._phases(profiler, loop.device)
        try:
            os.makedirs(self._folder, exist_ok=True)
            profiler.export_chrome_trace(f"{path}.json")
            if phases is not None:
                with open(f"{path}.phases.json", "w", encoding="utf-8") as file:
                    json.dump(phases.as_json(), file, indent=1)
            logger.info("profile written to %s.json", path)
        except OSError as error:
            logger.warning("the profile cannot be written to %s.json: %s", path, error)

    def _phases(self, profiler: torch.profiler.profile, device: torch.device) -> StepProfile | None:
        if self._num_done == 0:
            return None
        plain = [1000 * (end - begin) for begin, end in pairwise(self._ends)]
        plain_ms = statistics.median(plain) if plain else None
        found = profile_of(profiler.events() or [], self._num_done, device.type != "cpu", plain_ms)
        logger.info("%s", found.table())
        return found
