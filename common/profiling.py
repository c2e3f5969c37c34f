"""Names the phases of a training step, so that `training.profile_steps` can say how long each of them takes.

    with phase("lookup"):
        rows = tables(nodes)

Phases nest: the time of an inner one is not counted in the outer one, also where the inner one runs in a backward.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch.autograd.profiler as autograd_profiler

PREFIX = "tml."

# Where a step's time can go, in the order of a step. `forward` is what the forward does outside its inner phases,
# `exchange` the wait for other ranks' ids, `check` that for the loss.
Phase = Literal[
    "read", "copy", "exchange", "forward", "lookup", "scores", "loss", "scores+loss", "check", "backward", "update"
]

_OPERATOR_PREFIX = "tml::"

_NOTHING = nullcontext()


def phase(name: Phase) -> AbstractContextManager[None]:
    """Mark what is done inside as this phase, on this thread. Without a profiler it is one look at a flag."""
    return _mark(PREFIX + name)


def kernel(name: str) -> AbstractContextManager[None]:
    """Mark what is done inside as an operator of ours, `tml::name`: a call of compiled code, not Python's own time."""
    return _mark(_OPERATOR_PREFIX + name)


def _mark(name: str) -> AbstractContextManager[None]:
    # torch keeps the flag for just this use; it is set while any of its profilers runs.
    return autograd_profiler.record_function(name) if autograd_profiler._is_profiler_enabled else _NOTHING
