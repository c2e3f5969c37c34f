"""The log line of training and what trackers get: loss, learning rates, examples a second, time left."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from tml.common.device import gather_numbers
from tml.core.hooks import Hook
from tml.ml_logging.progress import duration

if TYPE_CHECKING:
    from tml.core.train_loop import TrainLoop

logger = logging.getLogger(__name__)

_METRICS_SHOWN = 8


class LoggingHook(Hook):
    """Logs every `every_n` steps.

    The loss is the mean over ranks and over the steps since the last line. Examples are those of all ranks, as batches
    count them, each once; the time of evaluations is left out of their rate. The gradient norm is that of the dense
    parameters in the last step, before clipping.

    Args:
        every_n: steps between lines.
        clock: seconds, monotonic.
    """

    def __init__(self, every_n: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._every_n, self._clock = every_n, clock
        self._losses: list[torch.Tensor] = []
        self._last_time, self._last_evaluating = clock(), 0.0
        self._last_examples, self._last_step = 0, 0

    def on_train_start(self, loop: TrainLoop) -> None:
        """Start to count."""
        self._mark(loop)

    def after_step(self, loop: TrainLoop) -> None:
        """Log if it is time."""
        assert loop.result is not None
        self._losses.append(loop.result.loss)
        if loop.state.step % self._every_n == 0:
            self._log(loop)

    def on_train_end(self, loop: TrainLoop) -> None:
        """Log the steps since the last line."""
        if self._losses:
            self._log(loop)

    def after_evaluation(self, loop: TrainLoop, metrics: dict[str, float]) -> None:
        """Log the first metrics; trackers get all."""
        shown = [f"{name} {value:.5g}" for name, value in list(metrics.items())[:_METRICS_SHOWN]]
        more = f" (and {len(metrics) - len(shown)} more in metrics.jsonl)" if len(metrics) > len(shown) else ""
        logger.info("evaluation at step %d: %s%s", loop.state.step, ", ".join(shown), more)
        loop.track({f"eval/{name}": value for name, value in metrics.items()})

    def _log(self, loop: TrainLoop) -> None:
        # One number leaves the device per line, not one per step.
        mine = float(torch.stack(self._losses).mean())
        loss = statistics.fmean(told for [told] in gather_numbers([mine]))
        loop.state.loss = loss
        evaluating = loop.evaluation_seconds - self._last_evaluating
        seconds = max(self._clock() - self._last_time - evaluating, 1e-9)
        rate = (loop.state.num_examples - self._last_examples) / seconds
        values = {"train/loss": loss, "train/examples_per_s": rate, "train/epoch": float(loop.state.cursor.epoch)}
        if loop.gradients is not None and loop.gradients.norm is not None:
            values["train/gradient_norm"] = float(loop.gradients.norm)
        values |= {f"train/learning_rate/{name}": value for name, value in loop.learning_rates.items()}
        rates = ", ".join(f"lr {name} {value:.4g}" for name, value in loop.learning_rates.items())
        logger.info(
            "step %d%s, loss %.6g, %s%s%s",
            loop.state.step,
            f" of {loop.total_steps}" if loop.total_steps else "",
            loss,
            f"{rates}, " if rates else "",
            f"{rate:,.0f} examples/s",
            self._time_left(loop, seconds),
        )
        loop.track(values)
        self._losses.clear()
        self._mark(loop)

    def _time_left(self, loop: TrainLoop, seconds: float) -> str:
        steps = loop.state.step - self._last_step
        if not loop.total_steps or not steps:
            return ""
        return f", {duration(max(loop.total_steps - loop.state.step, 0) * seconds / steps)} left"

    def _mark(self, loop: TrainLoop) -> None:
        self._last_time, self._last_evaluating = self._clock(), loop.evaluation_seconds
        self._last_examples, self._last_step = loop.state.num_examples, loop.state.step
