"""One save: write aside, gather checksums, commit, rename."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from tml.common.checkpointing import layout
from tml.common.checkpointing.layout import CommitRecord, FileRecord
from tml.common.checkpointing.pieces import TensorPieces
from tml.common.checkpointing.planner import BlockSavePlanner
from tml.common.checkpointing.ranks import Ranks
from tml.common.checkpointing.storage import ChecksummingWriter, write_failure
from tml.common.errors import CheckpointError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SaveJob:
    """All that is needed to write one step; `prepare` and `run` are called by all ranks.

    Attributes:
        directory: the checkpoint directory.
        step: the step.
        views: what this rank writes.
        extra: the caller's extra data as JSON text.
        fingerprints: copied into the commit record.
        ranks: the group that `run` talks over.
    """

    directory: Path
    step: int
    views: Mapping[str, TensorPieces]
    extra: str
    fingerprints: dict[str, Any]
    ranks: Ranks

    @property
    def folder(self) -> Path:
        """Where the step is written before it is committed."""
        return layout.temporary_folder(self.directory, self.step)

    def staged(self, ranks: Ranks) -> SaveJob:
        """The same job over copies of the tensors, talking over another group."""
        return replace(self, views={name: view.staged() for name, view in self.views.items()}, ranks=ranks)

    def prepare(self) -> None:
        """Clear away what earlier saves left unfinished and make the folder."""
        self.ranks.run_on_first("preparing a checkpoint", self._make_folder)

    def run(self) -> None:
        """Write and commit; on failure nothing is committed and all ranks raise the same error."""
        try:
            records = self._write_data()
            self.ranks.run_on_first("committing a checkpoint", lambda: self._commit(records))
        except CheckpointError:
            if self.ranks.rank == 0:
                shutil.rmtree(self.folder, ignore_errors=True)
            raise

    def _make_folder(self) -> None:
        for leftover in layout.leftovers(self.directory):
            logger.warning("removing the unfinished checkpoint folder %s", leftover)
            try:
                shutil.rmtree(leftover)
            except OSError as error:
                logger.warning("cannot remove it: %s", error)
        self._or_write_failure(lambda: self.folder.mkdir(parents=True))

    def _write_data(self) -> dict[str, FileRecord]:
        writer = ChecksummingWriter(self.folder, self.ranks.rank)
        alone = self.ranks.group is None
        try:
            dcp.save(
                dict(self.views),
                storage_writer=writer,
                planner=BlockSavePlanner(),
                process_group=self.ranks.group,
                no_dist=alone,
            )
        except (Exception, CheckpointException) as error:
            raise first_failure(error, "saving a checkpoint failed; nothing was committed", self.folder) from error
        return {name: record for records in self.ranks.gather(writer.records) for name, record in records.items()}

    def _commit(self, records: dict[str, FileRecord]) -> None:
        self._or_write_failure(lambda: self._write_commit(records))
        layout.publish(self.folder, layout.step_folder(self.directory, self.step))

    def _write_commit(self, records: dict[str, FileRecord]) -> None:
        extra = layout.write_durably(self.folder / layout.EXTRA_NAME, self.extra.encode())
        record = CommitRecord(
            step=self.step,
            sequence=1 + max((e.record.sequence for e in layout.scan(self.directory) if e.record), default=0),
            world_size=self.ranks.world_size,
            files=records | {layout.EXTRA_NAME: extra},
            fingerprints=self.fingerprints,
        )
        layout.write_commit(self.folder, record)

    def _or_write_failure(self, action: Callable[[], object]) -> None:
        try:
            action()
        except OSError as error:
            raise write_failure(self.folder, self.ranks.rank, error) from error


def first_failure(error: BaseException, what: str, folder: Path) -> CheckpointError:
    """The error of the lowest rank that failed inside DCP, the same on all ranks."""
    if isinstance(error, CheckpointException):
        rank, (cause, _) = min(error.failures.items(), key=lambda item: item[0])
        if isinstance(cause, CheckpointError):
            return cause
        return CheckpointError(what, where=f"rank {rank}, {folder}", value=f"{type(cause).__name__}: {cause}")
    return CheckpointError(
        what, where=folder, value=f"{type(error).__name__}: {error}", fix="see whether another rank has ended"
    )


def extra_as_json(extra: Mapping[str, Any]) -> str:
    """The extra data as JSON text.

    Raises:
        CheckpointError: a value is not JSON; names its place.
    """
    _require_json(extra, "extra")
    return json.dumps(extra, indent=1)


def _require_json(value: Any, place: str) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                _refuse(key, f"a key of {place}", "a string: JSON would turn this key into one")
            _require_json(item, f"{place}[{key!r}]")
    elif isinstance(value, list | tuple):
        for position, item in enumerate(value):
            _require_json(item, f"{place}[{position}]")
    elif value is not None and type(value) not in (bool, int, float, str):
        _refuse(value, place, "None, bool, int, float, str, list or dict")


def _refuse(value: Any, place: str, limit: str) -> None:
    raise CheckpointError(
        "extra data must be JSON",
        where=place,
        value=f"{type(value).__name__}: {value}",
        limit=limit,
        fix="convert it, or put tensors into `tensors`",
    )
