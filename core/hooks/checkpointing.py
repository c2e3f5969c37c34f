"""Saves every n steps and at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tml.core.hooks import Hook

if TYPE_CHECKING:
    from tml.core.train_loop import TrainLoop


class CheckpointHook(Hook):
    """Asks the loop for a checkpoint every `every_n` steps and, always, at the end.

    Args:
        every_n: steps between checkpoints; None saves only at the end.
    """

    def __init__(self, every_n: int | None) -> None:
        self._every_n = every_n

    def after_step(self, loop: TrainLoop) -> None:
        """Save if it is time; the last step is saved in the end, with its evaluation."""
        if self._every_n is not None and loop.state.step % self._every_n == 0 and not loop.is_finished:
            loop.save_checkpoint()

    def on_train_end(self, loop: TrainLoop) -> None:
        """Save and wait until it is committed."""
        loop.save_checkpoint(final=True)
