"""Encoded parquet rows in, batches out: from any cursor, on any number of ranks.

Letters: `B` rows, `S` id slots, `C` continuous features.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from tml.common.batch import Cursor
from tml.common.filesystem import glob_files
from tml.common.reader import DEFAULT_SHUFFLE_WINDOW_ROWS, ParquetReader, RowBatch, check_shares
from tml.projects.light_ranker.config import DataConfig, TrainDataConfig
from tml.projects.light_ranker.data.batch import RankerBatch
from tml.projects.light_ranker.data.column_check import column_check
from tml.projects.light_ranker.features.spec import FeatureSpec
from tml.projects.light_ranker.models.tables import BatchIds

# Rows of an evaluation that only looks are read in batches of this many.
_READ_ROWS = 200_000

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Slots(Protocol):
    """What a model makes of encoded ids; see `MlpSlots` and `LollySlots`."""

    def arrange(self, ids: np.ndarray, continuous: Tensor) -> BatchIds:
        """The ids of a batch from encoded rows int32 or int64 `[B, S]` and numbers float32 `[B, C]`."""


@dataclass(frozen=True)
class Share:
    """Which rows of each global batch are this rank's, and in which order an epoch goes.

    Args:
        batch_size: rows of a step on all ranks together.
        seed: of the order and of the rows that are kept.
        rank: this rank.
        num_ranks: all ranks.
    """

    batch_size: int
    seed: int = 0
    rank: int = 0
    num_ranks: int = 1


class RankerDataset:
    """A rank's batches of encoded rows.

    Ranks get equally many rows, as rows of weight zero fill up what is missing.

    Args:
        config: a data section. Training sections shuffle, keep a share of the rows, and never end; others are read once
            in file order.
        spec: the features.
        slots: of the model.
        share: this rank's part.

    Raises:
        ConfigError: the batch cannot be shared evenly among ranks.
        DataError: there are no such files, or a file is not as expected; while iterating, a value is out of range
            (naming file, row and feature).
    """

    def __init__(self, config: DataConfig, spec: FeatureSpec, slots: Slots, share: Share) -> None:
        self.spec, self._slots, self._share = spec, slots, share
        self._keep_rate = config.keep_rate if isinstance(config, TrainDataConfig) else 1.0
        self._columns = _Columns(spec)
        self._reader = open_reader(config, spec, share)
        self._rows_of_rank = share.batch_size // share.num_ranks

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch, the same on all ranks."""
        return self._reader.steps_per_epoch

    @property
    def num_rows(self) -> int:
        """Rows of an epoch on all ranks together, before any are left out by the keep rate."""
        return self._reader.num_rows

    def fingerprint(self) -> str:
        """The identity of the data's content."""
        return self._reader.fingerprint()

    def load_cursor(self, cursor: Cursor) -> None:
        """Make the next iteration start at `cursor`."""
        self._reader.load_cursor(cursor)

    def __iter__(self) -> Iterator[RankerBatch]:
        for rows in self._reader:
            yield self._batch(rows)

    def _batch(self, rows: RowBatch) -> RankerBatch:
        arrays = self._columns.arrays(rows)
        num_examples = rows.global_num_rows
        if self._keep_rate < 1.0:
            positions = np.arange(rows.global_first_row, rows.global_first_row + rows.global_num_rows)
            kept = keep_mask(positions, rows.epoch, self._share.seed, self._keep_rate)
            first = rows.first_row - rows.global_first_row
            arrays = arrays.take(np.flatnonzero(kept[first : first + rows.num_rows]))
            num_examples = int(kept.sum())
        num_real = len(arrays.weight)
        if self._share.num_ranks > 1 or num_real == 0:
            arrays = arrays.padded(max(self._rows_of_rank if self._share.num_ranks > 1 else 1, 1))
        return self._assemble(arrays, num_real, num_examples, rows.cursor)

    def _assemble(self, arrays: _Arrays, num_real: int, num_examples: int, cursor: Cursor) -> RankerBatch:
        continuous = torch.from_numpy(arrays.continuous)
        arranged = self._slots.arrange(arrays.ids, continuous)
        return RankerBatch(
            nodes=arranged.nodes,
            ids=arranged.ids,
            slot_mask=arranged.slot_mask,
            continuous=continuous,
            vectors=torch.from_numpy(arrays.vectors),
            labels=torch.from_numpy(arrays.labels),
            weight=torch.from_numpy(arrays.weight),
            group=torch.from_numpy(arrays.group),
            is_real=torch.arange(len(arrays.weight)) < num_real,
            num_examples=num_examples,
            cursor=cursor,
        )


def open_reader(config: DataConfig, spec: FeatureSpec, share: Share) -> ParquetReader:
    """The encoded rows of a section.

    Raises:
        ConfigError, DataError: as `RankerDataset`.
    """
    check_shares(share.batch_size, share.num_ranks, where="global_batch_size")
    training = isinstance(config, TrainDataConfig)
    window = config.shuffle_window_rows if isinstance(config, TrainDataConfig) else DEFAULT_SHUFFLE_WINDOW_ROWS
    return ParquetReader(
        data_files(config.data_root),
        spec.columns(),
        global_batch_size=share.batch_size,
        rank=share.rank,
        world_size=share.num_ranks,
        seed=share.seed,
        shuffle=isinstance(config, TrainDataConfig) and config.shuffle,
        shuffle_window_rows=window,
        num_epochs=None if training else 1,
        offset=config.offset,
        limit=config.limit,
        check=column_check(spec),
    )


def count_rows(config: DataConfig, spec: FeatureSpec) -> int:
    """The rows of a section, every one of them checked; errors as `RankerDataset`."""
    plain = DataConfig(data_root=config.data_root, offset=config.offset, limit=config.limit)
    reader = open_reader(plain, spec, Share(_READ_ROWS))
    for _ in reader:
        pass
    return reader.num_rows


def data_files(data_root: str) -> list[str]:
    """The parquet files of a folder or glob pattern, in order of name."""
    is_pattern = any(mark in data_root for mark in "*?[") or data_root.endswith(".parquet")
    return glob_files(data_root if is_pattern else f"{data_root.rstrip('/')}/*.parquet")


def keep_mask(positions: np.ndarray, epoch: int, seed: int, rate: float) -> np.ndarray:
    """bool: which positions of an epoch are kept; a function of its arguments alone, so that a resumed run agrees."""
    start = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0]
    mixed = (positions.astype(np.uint64) + start) * _GOLDEN
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (mixed ^ (mixed >> np.uint64(31))) < np.uint64(min(int(rate * 2.0**64), 2**64 - 1))


@dataclass
class _Arrays:
    """The rows of a batch as numpy arrays; shapes as in `RankerBatch`, ids `[B, S]` still in encoded form, int32 where
    all tables are small enough."""

    ids: np.ndarray
    continuous: np.ndarray
    vectors: np.ndarray
    labels: np.ndarray
    weight: np.ndarray
    group: np.ndarray

    def take(self, chosen: np.ndarray) -> _Arrays:
        return _Arrays(**{name: array[chosen] for name, array in vars(self).items()})

    def padded(self, num_rows: int) -> _Arrays:
        missing = max(num_rows - len(self.weight), 0)
        grown = {
            name: np.concatenate([array, np.zeros((missing, *array.shape[1:]), array.dtype)])
            for name, array in vars(self).items()
        }
        return _Arrays(**grown)


class _Columns:
    """Joins the columns of a spec into arrays."""

    def __init__(self, spec: FeatureSpec) -> None:
        self._spec = spec
        self._ids = [name for feature in spec.ids for name in feature.columns()]
        types = spec.columns()
        self._id_type = np.result_type(np.int32, *(types[name].to_pandas_dtype() for name in self._ids))
        self._continuous = [name for feature in spec.continuous for name in feature.columns()]
        self._vectors = [name for feature in spec.vectors for name in feature.columns()]
        self._labels = [f"y.{label.name}" for label in spec.labels]

    def arrays(self, rows: RowBatch) -> _Arrays:
        float32 = np.dtype(np.float32)
        return _Arrays(
            ids=rows.joined(self._ids, self._id_type),
            continuous=rows.joined(self._continuous, float32),
            vectors=rows.joined(self._vectors, float32),
            labels=rows.joined(self._labels, float32),
            weight=rows.columns["w"],
            group=rows.columns["group"] if self._spec.has_group else np.zeros(rows.num_rows, np.int64),
        )
