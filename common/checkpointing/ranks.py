"""Deciding together: an action of one or all ranks ends the same way everywhere, in a result or in one error."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch.distributed as dist

from tml.common.errors import CheckpointError, TmlError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """The ranks that share a checkpoint, with a gloo group of their own (None for a single process)."""

    rank: int
    world_size: int
    group: dist.ProcessGroup | None

    @staticmethod
    def alone() -> Ranks:
        """This process by itself, also within a process group."""
        return Ranks(0, 1, None)

    @staticmethod
    def create() -> Ranks:
        """Make a new group over all ranks; every rank must call it. A single process needs no process group."""
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return Ranks.alone()
        return Ranks(dist.get_rank(), dist.get_world_size(), dist.new_group(backend="gloo"))

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, on all ranks."""
        if self.group is None:
            return [value]
        values: list[Any] = [None] * self.world_size
        with _lost_rank_named():
            dist.all_gather_object(values, value, group=self.group)
        return values

    def run_everywhere(self, what: str, action: Callable[[], T]) -> T:
        """Run `action` on every rank and return this rank's result.

        Raises:
            CheckpointError: on all ranks, the error of the lowest rank that failed.
        """
        outcome = _outcome(what, self.rank, action)
        for error in self.gather(outcome if isinstance(outcome, TmlError) else None):
            if error is not None:
                raise error
        assert not isinstance(outcome, TmlError)
        return outcome

    def run_on_first(self, what: str, action: Callable[[], T]) -> T:
        """Run `action` on rank 0 only; its result, or its error, reaches every rank."""
        values: list[Any] = [_outcome(what, self.rank, action) if self.rank == 0 else None]
        if self.group is not None:
            with _lost_rank_named():
                dist.broadcast_object_list(values, src=0, group=self.group)
        if isinstance(values[0], TmlError):
            raise values[0]
        return values[0]


@contextlib.contextmanager
def _lost_rank_named() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise CheckpointError(
            "lost touch with another rank while handling a checkpoint",
            value=str(error),
            fix="look for the first error of the rank that ended; nothing was committed",
        ) from error


def _outcome(what: str, rank: int, action: Callable[[], T]) -> T | TmlError:
    try:
        return action()
    except TmlError as error:
        return error
    except Exception as error:
        # Only errors of our own tree are sure to survive the journey to the other ranks.
        return CheckpointError(f"{what} failed", where=f"rank {rank}", value=f"{type(error).__name__}: {error}")
