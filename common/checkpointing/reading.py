"""Reading checkpoints back: into live tensors of any sharding, or without the model, for export."""

from __future__ import annotations

import functools
import json
import logging
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata

from tml.common.checkpointing import layout
from tml.common.checkpointing.layout import CommitRecord, Entry
from tml.common.checkpointing.pieces import BLOCK_BYTES, Piece, TensorPieces
from tml.common.checkpointing.planner import PieceLoadPlanner, tensor_metadata
from tml.common.checkpointing.ranks import Ranks
from tml.common.checkpointing.storage import TrustedReader, load_metadata
from tml.common.errors import CheckpointError

logger = logging.getLogger(__name__)

T = TypeVar("T")

_ALONE = Ranks.alone()


class DamagedCheckpointError(CheckpointError):
    """A committed checkpoint is not what was written; the one before may do."""


class Checkpoint:
    """One committed step, opened for reading. The ranks given share the work of verification.

    Args:
        entry: a finished step folder.
        ranks: the ranks that read it together; all of them call each method.

    Raises:
        DamagedCheckpointError: its commit record cannot be trusted.
    """

    def __init__(self, entry: Entry, ranks: Ranks = _ALONE) -> None:
        if entry.record is None:
            raise DamagedCheckpointError(entry.problem or "no commit record", where=entry.path)
        self.step, self.folder, self.record, self._ranks = entry.step, entry.path, entry.record, ranks

    @staticmethod
    def open(directory: str | os.PathLike[str], step: int | None = None, *, strict: bool = False) -> Checkpoint:
        """Open and verify a step on this process alone; without a step the newest sound one.

        Raises:
            CheckpointError: there is no such step, or nothing that can be trusted.
        """

        def verified(entry: Entry) -> Checkpoint:
            checkpoint = Checkpoint(entry)
            checkpoint.verify()
            return checkpoint

        return first_sound(candidates(Path(directory), step), verified, strict=strict or step is not None)

    def verify(self, names: Collection[str] | None = None) -> None:
        """Compare files (all, or those named) with the commit record; each rank reads its share of them.

        Raises:
            DamagedCheckpointError: on all ranks, naming the first damaged file and the reason.
        """
        share = sorted(names or self.record.files)[self._ranks.rank :: self._ranks.world_size]
        self._ranks.run_everywhere("verifying a checkpoint", lambda: self._require_undamaged(share))

    def _require_undamaged(self, names: Collection[str]) -> None:
        damage = layout.find_damage(self.folder, self.record, names)
        if damage is not None:
            path, reason = damage
            raise DamagedCheckpointError(f"a checkpoint file is damaged: {reason}", where=path)

    def extra(self) -> dict[str, Any]:
        """The caller's extra data."""
        return json.loads((self.folder / layout.EXTRA_NAME).read_bytes())

    @functools.cached_property
    def metadata(self) -> Metadata:
        """DCP's table of contents."""
        return load_metadata(self.folder)

    @functools.cached_property
    def shapes(self) -> dict[str, tuple[torch.Size, torch.dtype]]:
        """Global size and dtype of each tensor."""
        saved = {name: tensor_metadata(self.metadata, name) for name in self.metadata.state_dict_metadata}
        return {name: (found.size, found.properties.dtype) for name, found in saved.items()}

    @functools.cached_property
    def _reader(self) -> TrustedReader:
        return TrustedReader(self.folder, self.metadata, self.record.files)

    def require_match(self, views: Mapping[str, TensorPieces], only: Collection[str] | None) -> None:
        """Check that names, sizes and dtypes are those of `views`; with `only`, just for the names in it.

        Raises:
            CheckpointError: lists what is only here, only there and different.
        """
        wanted = {name: (view.size, view.dtype) for name, view in views.items() if only is None or name in only}
        saved = {name: shape for name, shape in self.shapes.items() if only is None or name in only}
        absent = [] if only is None else sorted(set(only) - set(wanted) - set(saved))
        missing, unexpected = sorted(set(wanted) - set(saved)), sorted(set(saved) - set(wanted))
        different = [name for name in sorted(set(wanted) & set(saved)) if wanted[name] != saved[name]]
        if absent or missing or unexpected or different:
            # With `only` too: a name that has changed shows only beside the names that nobody asked for.
            others = sorted(set(self.shapes) - set(views))
            changes = [f"{name}: checkpoint {_shown(saved[name])}, model {_shown(wanted[name])}" for name in different]
            raise CheckpointError(
                "the checkpoint does not match the model",
                where=self.folder,
                limit=f"only in the model: {missing}; only in the checkpoint: {others}; in neither: {absent}; "
                f"different: {changes}",
                fix="use the config that wrote it, or load part of it by naming the tensors (only=[...])",
            )

    def read_into(self, views: Mapping[str, TensorPieces]) -> None:
        """Fill the pieces in place.

        Raises:
            DamagedCheckpointError: on all ranks, when one of them could not read.
        """
        alone = self._ranks.group is None
        reader, planner = self._reader, PieceLoadPlanner()
        try:
            dcp.load(
                dict(views), storage_reader=reader, planner=planner, process_group=self._ranks.group, no_dist=alone
            )
        except (Exception, CheckpointException) as error:
            raise DamagedCheckpointError(
                "reading a verified checkpoint failed half-way", where=self.folder, value=f"{error}"
            ) from error

    def load(self, name: str) -> Tensor:
        """A full tensor, on the CPU, whatever it was sharded over.

        Raises:
            CheckpointError: there is no tensor of that name.
        """
        saved = tensor_metadata(self.metadata, name)
        tensor = torch.empty(saved.size, dtype=saved.properties.dtype)
        whole = Piece((0,) * tensor.dim(), tensor)
        self.read_into({name: TensorPieces(saved.size, tensor.dtype, (whole,), replicated=True)})
        return tensor

    def row_blocks(self, name: str, rows_per_block: int) -> Iterator[Tensor]:
        """The tensor's rows in order, as [n, ...] blocks with n = `rows_per_block` (the last may be shorter).

        Memory is bounded by a block or two of stored data (64 MiB each), not by the size of the tensor.

        Raises:
            CheckpointError: there is no such tensor, or it has no rows.
        """
        saved = tensor_metadata(self.metadata, name)
        if rows_per_block < 1 or len(saved.size) == 0:
            raise CheckpointError(
                "cannot read this in row blocks",
                where=f"{self.folder}, {name}",
                value=f"rows_per_block={rows_per_block}, shape={list(saved.size)}",
                limit="rows_per_block >= 1 and at least one dimension",
            )
        for chunk in self._row_chunks(name, rows_per_block):
            yield from chunk.split(rows_per_block)

    def _row_chunks(self, name: str, rows_per_block: int) -> Iterator[Tensor]:
        saved = tensor_metadata(self.metadata, name)
        num_rows, row_size = saved.size[0], saved.size[1:]
        row_bytes = max(1, row_size.numel() * saved.properties.dtype.itemsize)
        # Stored blocks are read whole, so many small requests for one of them are joined into one.
        rows = rows_per_block * max(1, BLOCK_BYTES // row_bytes // rows_per_block)
        for start in range(0, num_rows, rows):
            chunk = torch.empty((min(rows, num_rows - start), *row_size), dtype=saved.properties.dtype)
            piece = Piece((start, *[0] * len(row_size)), chunk)
            self.read_into({name: TensorPieces(saved.size, chunk.dtype, (piece,), replicated=True)})
            yield chunk


def _shown(shape: tuple[torch.Size, torch.dtype]) -> str:
    return f"{list(shape[0])} {str(shape[1]).removeprefix('torch.')}"


def require_directory(directory: Path) -> None:
    """Refuse a path that is something else than a directory; one that does not exist yet is fine."""
    if directory.exists() and not directory.is_dir():
        raise CheckpointError(
            "the checkpoint directory is a file", where=directory, fix="choose another save_dir or move the file away"
        )


def candidates(directory: Path, step: int | None) -> list[Entry]:
    """The finished checkpoints to try, newest first; with a step just that one.

    Raises:
        CheckpointError: there is none; lists the steps present.
    """
    require_directory(directory)
    entries = layout.scan(directory)
    chosen = [entry for entry in entries if step is None or entry.step == step]
    if not chosen:
        raise CheckpointError(
            "no checkpoint here" if step is None else "no checkpoint of this step",
            where=directory,
            value=step,
            limit=f"steps present: {sorted(entry.step for entry in entries)}",
            fix="check the directory" if step is None else "choose one of the steps present",
        )
    return chosen


def first_sound(entries: list[Entry], attempt: Callable[[Entry], T], *, strict: bool) -> T:
    """The result of `attempt` for the first entry that is not damaged; each damaged one before it is a warning.

    Raises:
        CheckpointError: all are damaged or, if `strict`, the first one is.
    """
    reasons = []
    for entry in entries:
        try:
            return attempt(entry)
        except DamagedCheckpointError as error:
            if strict:
                raise
            reasons.append(f"step {entry.step}: {error.where}: {error.what}")
            logger.warning("checkpoint of step %d cannot be trusted, trying the one before: %s", entry.step, error)
    raise CheckpointError(
        "no checkpoint here can be trusted",
        where=entries[0].path.parent,
        limit="; ".join(reasons),
        fix="restore the files from a backup, or start anew in an empty directory",
    )


def load_tensors(
    directory: str | os.PathLike[str], step: int | None = None, names: Collection[str] | None = None
) -> dict[str, Tensor]:
    """Full tensors by name, on one process, without the model; checksums are verified first.

    Args:
        directory: a checkpoint directory.
        step: a committed step; None for the newest sound one.
        names: the tensors to load; None for all.

    Raises:
        CheckpointError: no such step or tensor, or the files are damaged.
    """
    checkpoint = Checkpoint.open(directory, step)
    return {name: checkpoint.load(name) for name in (checkpoint.shapes if names is None else names)}


def iter_row_blocks(
    directory: str | os.PathLike[str], step: int | None, name: str, rows_per_block: int
) -> Iterator[Tensor]:
    """The rows of one tensor in order, as [n, D] blocks, for tables larger than memory; see `Checkpoint.row_blocks`."""
    return Checkpoint.open(directory, step).row_blocks(name, rows_per_block)


def read_extra(directory: str | os.PathLike[str], step: int | None = None) -> dict[str, Any]:
    """The extra data of a step (None: of the newest one whose extra data is sound), without reading any tensor."""

    def verified(entry: Entry) -> dict[str, Any]:
        checkpoint = Checkpoint(entry)
        checkpoint.verify([layout.EXTRA_NAME])
        return checkpoint.extra()

    return first_sound(candidates(Path(directory), step), verified, strict=step is not None)


def read_commit(directory: str | os.PathLike[str], step: int) -> CommitRecord:
    """The commit record of a step: world size, fingerprints, versions, files."""
    return Checkpoint(candidates(Path(directory), step)[0]).record
