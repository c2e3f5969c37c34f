"""Checkpoints: written whole or not at all, verified before they are trusted, loadable on any number of ranks.

The names below are imported on first use, so that importing this package costs no import of torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tml.common.checkpointing.manager import CheckpointManager as CheckpointManager
    from tml.common.checkpointing.reading import Checkpoint as Checkpoint
    from tml.common.checkpointing.reading import iter_row_blocks as iter_row_blocks
    from tml.common.checkpointing.reading import load_tensors as load_tensors
    from tml.common.checkpointing.reading import read_extra as read_extra
    from tml.common.checkpointing.retention import Best as Best
    from tml.common.checkpointing.watch import iterate_new as iterate_new
    from tml.common.checkpointing.whole_run import lock_of_whole_run as lock_of_whole_run

_HOMES = {
    "Best": "retention",
    "Checkpoint": "reading",
    "CheckpointManager": "manager",
    "iter_row_blocks": "reading",
    "iterate_new": "watch",
    "load_tensors": "reading",
    "lock_of_whole_run": "whole_run",
    "read_extra": "reading",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
