"""What happens around the steps of the training loop, one small file per concern.

A hook keeps what it needs to continue after a restart in `state_dict`. Methods are called in the order of the loop's
list, on every rank; hooks do not know each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tml.core.train_loop import TrainLoop


class Hook:
    """Does nothing at every moment; a hook overrides the moments it cares for."""

    def on_train_start(self, loop: TrainLoop) -> None:
        """Called once, after the state has been restored and before the first step."""

    def after_step(self, loop: TrainLoop) -> None:
        """Called after every update; `loop.result` is its `StepResult` and `loop.state.step` counts it."""

    def after_evaluation(self, loop: TrainLoop, metrics: dict[str, float]) -> None:
        """Called with every evaluation's metrics, the same on all ranks."""

    def on_train_end(self, loop: TrainLoop) -> None:
        """Called once when training ends without an error, preempted or not."""

    def on_error(self, loop: TrainLoop, error: BaseException) -> None:
        """Called when training fails. Other ranks may be gone: no collectives here."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to keep, JSON-able."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
