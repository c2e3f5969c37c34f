"""Evaluates every n steps and at the end; keeps the best step; stops when a metric no longer improves."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tml.common.errors import ConfigError, NonFiniteError
from tml.core.config.training import EarlyStoppingConfig
from tml.core.hooks import Hook

if TYPE_CHECKING:
    from tml.core.train_loop import TrainLoop

logger = logging.getLogger(__name__)


@dataclass
class EarlyStopping:
    """The decision alone: which value is an improvement, and how many evaluations may go without one.

    Args:
        minimize: smaller is better.
        patience: evaluations in a row without improvement after which to stop.
        tolerance: a change has to be larger than this.
        best: best value so far, or None.
        best_step: its step.
        num_without: evaluations since then.
    """

    minimize: bool
    patience: int
    tolerance: float = 0.0
    best: float | None = None
    best_step: int | None = None
    num_without: int = 0

    @property
    def is_over(self) -> bool:
        """True when patience is at its end."""
        return self.num_without >= self.patience

    def update(self, step: int, value: float) -> bool:
        """Take note of a value; True if it is an improvement.

        Raises:
            NonFiniteError: the value is not finite.
        """
        if not math.isfinite(value):
            raise NonFiniteError(
                "the metric of early stopping is not finite", where=f"evaluation at step {step}", value=value
            )
        if self.best is None or (self.best - value if self.minimize else value - self.best) > self.tolerance:
            self.best, self.best_step, self.num_without = value, step, 0
            return True
        self.num_without += 1
        return False


class EvaluationHook(Hook):
    """Evaluates, and watches one metric if early stopping is configured.

    An improvement is saved at once and marked as the best, so that the best step is always there to go back to.

    Args:
        every_n: steps between evaluations; None evaluates at the end only.
        early_stopping: what to watch, or None.
    """

    def __init__(self, every_n: int | None, early_stopping: EarlyStoppingConfig | None = None) -> None:
        self._every_n = every_n
        self._config = early_stopping
        self._logic: EarlyStopping | None = None
        if early_stopping is not None:
            c = early_stopping
            self._logic = EarlyStopping(minimize=c.minimize, patience=c.patience, tolerance=c.tolerance)
        self._last_step: int | None = None

    def on_train_start(self, loop: TrainLoop) -> None:
        """Do not train on after a run that early stopping has ended."""
        self._stop_if_over(loop)

    def after_step(self, loop: TrainLoop) -> None:
        """Evaluate if it is time."""
        if self._every_n is not None and loop.state.step % self._every_n == 0:
            self._evaluate(loop)

    def on_train_end(self, loop: TrainLoop) -> None:
        """Evaluate the last step, unless the run is to be continued."""
        if not loop.is_preempted and self._last_step != loop.state.step and loop.state.step > 0:
            self._evaluate(loop)

    def after_evaluation(self, loop: TrainLoop, metrics: dict[str, float]) -> None:
        """Note the metric, keep the best step."""
        self._last_step = loop.state.step
        if self._logic is None or self._config is None:
            return
        name = self._config.metric
        if name not in metrics:
            raise ConfigError(
                "early stopping watches a metric that the evaluation does not give",
                where="training.early_stopping.metric",
                value=name,
                limit=f"one of {', '.join(sorted(metrics))}",
            )
        if self._logic.update(loop.state.step, metrics[name]):
            loop.save_checkpoint()
            loop.mark_best(name, metrics[name])
        self._stop_if_over(loop)

    def state_dict(self) -> dict[str, Any]:
        """The last evaluated step, and the best value with its step and the patience used up."""
        logic = self._logic
        watched = {"best": logic.best, "best_step": logic.best_step, "num_without": logic.num_without} if logic else {}
        return {"last_step": self._last_step} | watched

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self._last_step = state["last_step"]
        if self._logic is not None and "best" in state:
            self._logic.best, self._logic.best_step = state["best"], state["best_step"]
            self._logic.num_without = state["num_without"]

    def _evaluate(self, loop: TrainLoop) -> None:
        loop.run_evaluation()

    def _stop_if_over(self, loop: TrainLoop) -> None:
        if self._logic is not None:
            loop.state.best_step = self._logic.best_step
            if self._logic.is_over:
                name, best = self._config.metric if self._config else "", self._logic.best
                loop.request_stop(
                    f"{name} has not improved for {self._logic.num_without} evaluations; best {best} "
                    f"at step {self._logic.best_step}",
                    everywhere=True,
                )
