"""Which rows of a table are taken, and which split each belongs to; a function of the seed and the row alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tml.common.errors import DataError
from tml.projects.light_ranker.data.files import unit_hash
from tml.projects.light_ranker.features.column_encoders import text_of
from tml.projects.light_ranker.features.config import FeatureConfig, RowFilterConfig
from tml.projects.light_ranker.features.lookup import finalise, hash_ids
from tml.projects.light_ranker.features.raw_columns import as_array, as_ids, value_type
from tml.projects.light_ranker.features.tables import Table

SPLITS = ("train", "valid", "test")
TRAIN = SPLITS.index("train")
_RECORD_DRAW, _SPLIT_DRAW, _FOLD_DRAW = 1, 2, 3  # draws for different ends are independent


@dataclass(frozen=True)
class RowBatch:
    """Rows that were taken.

    Args:
        columns: raw column name -> values [B].
        numbers: int64 [B], the rows' numbers in the file.
    """

    columns: dict[str, pa.Array]
    numbers: np.ndarray

    def filtered(self, keep: np.ndarray) -> RowBatch:
        """The rows where `keep` (bool [B])."""
        if keep.all():
            return self
        mask = pa.array(keep)
        return RowBatch({name: column.filter(mask) for name, column in self.columns.items()}, self.numbers[keep])


class RowSelection:
    """Takes rows of a file: a share of them, and those that pass the filters.

    Args:
        config: with the filters.
        keep_rate: share of rows.
        seed: of the draw.
    """

    def __init__(self, config: FeatureConfig, keep_rate: float, seed: int) -> None:
        self._filters, self._keep_rate, self._seed = config.filters.rows, keep_rate, seed

    def read(self, table: Table, columns: Sequence[str], counts: Counter[str]) -> Iterator[RowBatch]:
        """The rows of a file in batches; adds what was left out to `counts`, by reason."""
        needed = list(dict.fromkeys([*columns, *(rule.column for rule in self._filters)]))
        bad_lines = table.bad_lines
        for first_row, piece in table.batches(needed):
            counts["rows read"] += len(piece)
            numbers = np.arange(first_row, first_row + len(piece))
            batch = RowBatch({name: as_array(piece.column(name), table.path) for name in needed}, numbers)
            drawn = batch.filtered(self._drawn(table.path, numbers))
            counts["left out by keep rate"] += len(numbers) - len(drawn.numbers)
            for rule in self._filters:
                before = len(drawn.numbers)
                drawn = drawn.filtered(_passes(rule, drawn.columns[rule.column]))
                counts[f"left out by filter on {rule.column}"] += before - len(drawn.numbers)
            yield drawn
        if table.bad_lines > bad_lines:
            counts["lines with a wrong number of fields"] += table.bad_lines - bad_lines

    def _drawn(self, path: str, numbers: np.ndarray) -> np.ndarray:
        if self._keep_rate >= 1:
            return np.ones(len(numbers), bool)
        return row_draws(path, numbers, self._seed, _RECORD_DRAW) < self._keep_rate


def row_draws(path: str, numbers: np.ndarray, seed: int, purpose: int) -> np.ndarray:
    """A number in [0, 1) for each row, by file, row number, seed and purpose alone: float64 [B]."""
    key = np.uint64(int(unit_hash(f"{purpose}:{path}", seed) * 2**53))
    mixed = finalise(finalise(numbers.astype(np.uint64)) ^ (key << np.uint64(11)))
    return (mixed >> np.uint64(11)).astype(np.float64) / 2.0**53


def fold_draws(path: str, numbers: np.ndarray, seed: int) -> np.ndarray:
    """Numbers in [0, 1) that say the fold of each row in target encodings: float64 [B]."""
    return row_draws(path, numbers, seed, _FOLD_DRAW)


def _passes(rule: RowFilterConfig, column: pa.Array) -> np.ndarray:
    texts = (column.cast(pa.int8()) if pa.types.is_boolean(column.type) else column).cast(pa.string())
    if rule.matches is not None:
        matched = pc.match_substring_regex(texts, f"^(?:{rule.matches})$")
    else:
        matched = pc.is_in(texts, pa.array([text_of(value) for value in rule.equals or ()], pa.string()))
    found = pc.fill_null(matched, False).to_numpy(zero_copy_only=False)
    return ~found if rule.drop else found


class Splitter:
    """Tells the split of a row, as an index into `SPLITS`."""

    def columns(self) -> list[str]:
        """The columns that it looks at."""
        return []

    def assign(self, batch: RowBatch, path: str) -> np.ndarray:
        """int64 [B]."""
        raise NotImplementedError


class GivenSplit(Splitter):
    """The file says it."""

    def __init__(self, split_of_file: dict[str, int]) -> None:
        self._split_of_file = split_of_file

    def assign(self, batch: RowBatch, path: str) -> np.ndarray:
        """int64 [B], all the same."""
        return np.full(len(batch.numbers), self._split_of_file[path])


class RandomSplit(Splitter):
    """Drawn by shares; rows of one group stay together."""

    def __init__(self, fractions: Sequence[float], seed: int, group: str | None) -> None:
        self._bounds, self._seed, self._group = np.cumsum(fractions)[:-1], seed, group

    def columns(self) -> list[str]:
        """The group."""
        return [self._group] if self._group else []

    def assign(self, batch: RowBatch, path: str) -> np.ndarray:
        """int64 [B]."""
        if self._group is None:
            draws = row_draws(path, batch.numbers, self._seed, _SPLIT_DRAW)
        else:
            column = batch.columns[self._group]
            hashes = hash_ids(as_ids(column, value_type(column.type, path), path)).astype(np.int64)
            draws = row_draws("group", hashes, self._seed, _SPLIT_DRAW)
        return np.searchsorted(self._bounds, draws, side="right")


class TimeSplit(Splitter):
    """By a time column: rows before the first bound are for training, those from the second on for the test."""

    def __init__(self, column: str, bounds: Sequence[float]) -> None:
        self._column, self._bounds = column, np.asarray(bounds, np.float64)

    def columns(self) -> list[str]:
        """The time."""
        return [self._column]

    def assign(self, batch: RowBatch, path: str) -> np.ndarray:
        """int64 [B]."""
        times = times_of(batch.columns[self._column], f"{path}, column {self._column!r}")
        return np.searchsorted(self._bounds, times, side="right")


def times_of(column: pa.Array, where: str) -> np.ndarray:
    """Times as numbers that order them: float64 [B].

    Raises:
        DataError: a time is missing, or the column holds no times.
    """
    kind = column.type
    try:
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            column = _parsed_times(column)
        if pa.types.is_temporal(column.type):
            column = column.cast(pa.timestamp("us")).cast(pa.int64())
        times = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    except pa.ArrowException as error:
        raise DataError(
            "a column holds no times", where=where, value=str(error), limit="numbers, timestamps or ISO 8601 text",
            fix="split by another column",
        ) from None  # fmt: skip
    if np.isnan(times).any():
        raise DataError(
            "a time is missing", where=f"{where}, value {int(np.isnan(times).argmax())}",
            fix="filter such rows out, or split by another column",
        )  # fmt: skip
    return times


def _parsed_times(texts: pa.Array) -> pa.Array:
    try:
        return texts.cast(pa.float64())
    except pa.ArrowInvalid:
        return texts.cast(pa.timestamp("us"))
