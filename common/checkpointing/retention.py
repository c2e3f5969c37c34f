"""Which checkpoints stay: the newest k, the best and the last one known to be good."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path

from tml.common.checkpointing import layout
from tml.common.checkpointing.layout import Entry
from tml.common.errors import CheckpointError

logger = logging.getLogger(__name__)

BEST_NAME = "best.json"


@dataclass(frozen=True)
class Best:
    """The best step and the metric's value that made it so."""

    step: int
    metric: str
    value: float


def read_best(directory: Path) -> Best | None:
    """What `best.json` says, or None if there is none; an unreadable file is a warning and None."""
    path = directory / BEST_NAME
    try:
        return Best(**json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        logger.warning("ignoring %s: %s", path, error)
        return None


def write_best(directory: Path, best: Best) -> None:
    """Record the best step, replacing the one before in a single step.

    Raises:
        CheckpointError: the value is not finite, or the step is not committed.
    """
    if not math.isfinite(best.value):
        raise CheckpointError(
            "the best value must be finite", where=f"step {best.step}, {best.metric}", value=best.value
        )
    steps = sorted(entry.step for entry in layout.committed(directory))
    if best.step not in steps:
        raise CheckpointError(
            "only a committed step can be the best",
            where=directory,
            value=best.step,
            limit=f"steps present: {steps}",
            fix="save the step first",
        )
    layout.replace_durably(directory / BEST_NAME, json.dumps(asdict(best)).encode())


def purge(directory: Path, max_to_keep: int | None, protected: Collection[int]) -> None:
    """Delete all but the newest `max_to_keep` checkpoints whose files are all there at full size.

    Damaged ones do not count and are left for a person to look at; a failed deletion is a warning.

    Args:
        directory: the checkpoint directory.
        max_to_keep: number of checkpoints to keep; None keeps all.
        protected: steps that are never deleted, however old: the best one, say.
    """
    if max_to_keep is None:
        return
    whole = [entry for entry in layout.committed(directory) if _is_whole(entry)]
    for entry in whole[max_to_keep:]:
        if entry.step not in protected:
            try:
                delete_folder(entry.path)
            except OSError as error:
                logger.warning("cannot delete the old checkpoint %s: %s", entry.path, error)


def _is_whole(entry: Entry) -> bool:
    assert entry.record is not None
    return layout.find_damage(entry.path, entry.record, entry.record.files, sizes_only=True) is None


def delete_folder(folder: Path) -> None:
    """Delete a checkpoint; it loses its name first, so that no reader meets half of one."""
    doomed = folder.with_name(folder.name + ".deleted.tmp")
    folder.rename(doomed)
    shutil.rmtree(doomed)
