"""Reads parquet files in global batches: every row exactly once per epoch, in an order that does not depend on the
number of ranks.

Letters: `G` rows of a global batch, `W` ranks, `r` this rank.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import count, pairwise

import numpy as np
import pyarrow as pa

from tml.common.batch import Cursor
from tml.common.errors import CheckpointError, ConfigError, DataError
from tml.common.reader.column_blocks import Blocks, Columns, columns_of, empty_blocks, joined_columns
from tml.common.reader.order import ORDER_VERSION, EpochOrder, Segment, Window, cut_segments
from tml.common.reader.parquet_file import ParquetDataFile, numpy_dtype, open_data_file
from tml.ml_logging import get_logger

_FOOTER_THREADS = 8
DEFAULT_SHUFFLE_WINDOW_ROWS = 1_000_000

# Refuses columns by an error; the function turns an index into them into "file, row N".
Check = Callable[[Columns, Callable[[int], str]], None]


@dataclass(frozen=True, eq=False)
class RowBatch:
    """This rank's rows of one global batch.

    Args:
        columns: name to array `[num_rows]` that belongs to the batch alone; a column of an array of the columns of its
            type, see `joined`.
        first_row: epoch position of this rank's first row.
        num_rows: rows of this rank; 0 on some ranks of a short last batch.
        global_first_row: epoch position of the global batch's first row.
        global_num_rows: rows on all ranks together; never 0.
        epoch: counted from 0.
        cursor: the place after this global batch; after the last one of an epoch, the start of the next.
    """

    columns: Columns
    first_row: int
    num_rows: int
    global_first_row: int
    global_num_rows: int
    epoch: int
    cursor: Cursor

    def joined(self, names: Sequence[str], dtype: np.dtype) -> np.ndarray:
        """Columns side by side `[num_rows, len(names)]`; nothing is copied for neighbours of one type."""
        return joined_columns(self.columns, names, dtype, self.num_rows)


class ParquetReader:
    """An iterable over this rank's share of every global batch.

    The order of an epoch is a function of (seed, epoch), see `EpochOrder`. Step `s` takes positions `[s*G, (s+1)*G)` of
    it, cut at the epoch's end, and rank `r` of them the contiguous share that begins at `s*G + r*G/W`. All ranks make
    the same number of steps.

    Each rank decodes whole windows and keeps its own rows. One background thread decodes the next window while the
    current one is consumed, so about two windows of fewer than `shuffle_window_rows` + the largest row group's rows are
    in memory, each at the width of `columns` and 8 bytes a row, plus one row group while it is decoded: some 80 MB for
    a million rows of three int64.

    Every `iter(reader)` starts again at the loaded cursor (or the beginning), and iterators are independent of each
    other.

    Args:
        files: paths or URLs; read in the order of their names. Files without rows are skipped with a warning.
        columns: name and type of the columns to read: integers, floats or bool. A narrower type in a file is widened.
        global_batch_size: `G`, a multiple of `world_size`.
        rank: `r`.
        world_size: `W`.
        seed: not negative.
        shuffle: False reads in file order.
        shuffle_window_rows: rows that are shuffled among each other, at least.
        num_epochs: None never ends.
        offset: rows left out at the front of all files laid end to end, before shuffling.
        limit: rows used after them; None uses the rest.
        prefetch: False decodes in the caller's thread.
        use_threads: True lets pyarrow decode columns in parallel.
        check: called with the columns of every piece of a file as it is decoded, in the thread that decodes.

    Raises:
        ConfigError: an argument is out of range.
        DataError: a file is missing, corrupt or has the wrong columns, or no row is left. While iterating: a file has
            changed or vanished, cannot be decoded, holds nulls, or is refused by `check`.
    """

    def __init__(
        self,
        files: Sequence[str],
        columns: Mapping[str, pa.DataType],
        *,
        global_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        shuffle_window_rows: int = DEFAULT_SHUFFLE_WINDOW_ROWS,
        num_epochs: int | None = 1,
        offset: int = 0,
        limit: int | None = None,
        prefetch: bool = True,
        use_threads: bool = False,
        check: Check | None = None,
    ) -> None:
        _check_at_least(0, seed=seed, offset=offset)
        _check_at_least(1, global_batch_size=global_batch_size, shuffle_window_rows=shuffle_window_rows)
        _check_at_least(1, limit=limit, num_epochs=num_epochs, columns=len(columns))
        self.global_batch_size = global_batch_size
        self.num_epochs = num_epochs
        self.columns = dict(columns)
        self._dtypes = {name: numpy_dtype(kind) for name, kind in columns.items()}
        self._offset, self._limit = offset, limit
        self._prefetch, self._use_threads, self._check = prefetch, use_threads, check
        self._files = _open_files(files, self.columns)
        segments = cut_segments([file.row_group_rows for file in self._files], offset, limit)
        self._order = EpochOrder(segments, seed=seed, shuffle=shuffle, window_rows=shuffle_window_rows)
        self._check_any_row()
        self._start = Cursor(0, 0)
        self._set_rank(rank, world_size)

    @property
    def num_rows(self) -> int:
        """Rows of an epoch, on all ranks together."""
        return self._order.num_rows

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch, the same on all ranks; the last may be short."""
        return -(-self.num_rows // self.global_batch_size)

    def fingerprint(self) -> str:
        """SHA-256 in hex of what is read and in which order: names, sizes and footers of the files in order, columns,
        offset and limit, and the version of the order.

        Directories and times of change have no part in it, so a copy of the data has the same fingerprint.
        """
        files = [(file.name, file.size, file.metadata.num_rows, file.footer_hash) for file in self._files]
        columns = sorted((name, str(kind)) for name, kind in self.columns.items())
        text = json.dumps([files, columns, self._offset, self._limit, ORDER_VERSION])
        return hashlib.sha256(text.encode()).hexdigest()

    def load_cursor(self, cursor: Cursor) -> None:
        """Makes iteration start at a cursor: the next batch begins with its row.

        The cursor may come from any world size. With another `global_batch_size` the rest of its epoch is cut into
        batches from the cursor on, so no row is lost or repeated; files, seed, shuffle and window must be the same.

        Raises:
            CheckpointError: the cursor lies outside the data.
        """
        self._start = checked_cursor(cursor, self.num_rows)

    def for_rank(self, rank: int, world_size: int) -> ParquetReader:
        """The same reader for another rank, at the same cursor, without opening the files again."""
        other = copy.copy(self)
        other._set_rank(rank, world_size)
        return other

    def locate(self, epoch: int, position: int) -> tuple[str, int]:
        """(file, row in the file) of the row at a position of an epoch's order, for error messages."""
        if not 0 <= position < self.num_rows:
            raise DataError("no such position in an epoch", value=position, limit=f"0 <= position < {self.num_rows}")
        file, row = self._order.locate(epoch, position)
        return self._files[file].path, row

    def __iter__(self) -> Iterator[RowBatch]:
        jobs = self._decode_jobs(self._start)
        with closing(_prefetched(jobs) if self._prefetch else _one_by_one(jobs)) as windows:
            rows = _RowStream(windows, self._dtypes)
            for epoch in self._epochs(self._start):
                first = self._start.row if epoch == self._start.epoch else 0
                for global_first_row in range(first, self.num_rows, self.global_batch_size):
                    yield self._batch(rows, epoch, global_first_row)

    def _batch(self, rows: _RowStream, epoch: int, global_first_row: int) -> RowBatch:
        stop = min(global_first_row + self.global_batch_size, self.num_rows)
        share = self.global_batch_size // self._world_size
        first_row = min(global_first_row + self._rank * share, stop)
        num_rows = min(first_row + share, stop) - first_row
        return RowBatch(
            columns=rows.take(num_rows),
            first_row=first_row,
            num_rows=num_rows,
            global_first_row=global_first_row,
            global_num_rows=stop - global_first_row,
            epoch=epoch,
            cursor=_normalised(Cursor(epoch, stop), self.num_rows),
        )

    def _epochs(self, start: Cursor) -> Iterator[int]:
        return iter(count(start.epoch) if self.num_epochs is None else range(start.epoch, self.num_epochs))

    def _decode_jobs(self, start: Cursor) -> Iterator[Callable[[], _DecodedWindow]]:
        use_threads = True  # nobody trains before the first window is there: all cores may decode it
        for epoch in self._epochs(start):
            first_row = start.row if epoch == start.epoch else 0
            for window in self._order.windows(epoch):
                if window.stop_position > first_row:
                    yield partial(self._decode, epoch, window, first_row, use_threads)
                    use_threads = self._use_threads

    def _decode(self, epoch: int, window: Window, first_row: int, use_threads: bool) -> _DecodedWindow:
        """A window, and this rank's rows of it; `first_row` is where the epoch's first batch begins."""
        rows = self._own_rows(epoch, window, first_row)
        blocks = empty_blocks(self._dtypes, window.num_rows)
        unshuffled = columns_of(self._dtypes, blocks)
        for file, placed in _by_file(window).items():
            with self._files[file].open(self.columns, use_threads) as opened:
                for start, segment in placed:
                    columns = opened.read(segment.row_group, segment.start, segment.stop)
                    if self._check is not None:
                        self._check(columns, partial(_place, self._files[file].path, segment.file_row + segment.start))
                    for name, values in columns.items():
                        unshuffled[name][start : start + segment.num_rows] = values
        return _DecodedWindow(blocks, rows)

    def _own_rows(self, epoch: int, window: Window, first_row: int) -> np.ndarray:
        """Places in the window of this rank's rows, in the epoch's order."""
        rows = self._order.row_permutation(epoch, window)
        if self._world_size == 1:
            return rows[max(first_row - window.first_position, 0) :]
        positions = np.arange(window.first_position, window.stop_position) - first_row
        rank = positions % self.global_batch_size // (self.global_batch_size // self._world_size)
        return rows[(positions >= 0) & (rank == self._rank)]

    def _set_rank(self, rank: int, world_size: int) -> None:
        _check_at_least(1, world_size=world_size)
        if not 0 <= rank < world_size:
            raise ConfigError("rank out of range", where="reader", value=rank, limit=f"0 <= rank < {world_size}")
        check_shares(self.global_batch_size, world_size, where="reader, global_batch_size")
        self._rank, self._world_size = rank, world_size

    def _check_any_row(self) -> None:
        if self.num_rows == 0:
            raise DataError(
                "no rows to read",
                where=", ".join(file.path for file in self._files[:3]) or "all files are empty",
                value=f"offset={self._offset}, limit={self._limit}",
                limit=f"at least one row; the files hold {sum(file.metadata.num_rows for file in self._files)}",
                fix="check the file list, or lower offset",
            )


@dataclass(frozen=True, eq=False)
class _DecodedWindow:
    """The columns of a window in file order, and the places of this rank's rows in the epoch's order.

    Columns of a type lie side by side, so that a row in a random place is a few cache lines rather than one a column.
    Rows are put in order when they are taken: done for the whole window at once, the first batch would wait for it.
    """

    blocks: Blocks
    rows: np.ndarray


class _RowStream:
    """Takes any number of rows off a stream of windows."""

    def __init__(self, windows: Iterator[_DecodedWindow], dtypes: Mapping[str, np.dtype]) -> None:
        self._windows = windows
        self._dtypes = dtypes
        self._current: _DecodedWindow | None = None
        self._used, self._size = 0, 0

    def take(self, num_rows: int) -> Columns:
        taken = empty_blocks(self._dtypes, num_rows)
        filled = 0
        while filled < num_rows:
            if self._used == self._size:
                self._next_window()
            assert self._current is not None
            num = min(num_rows - filled, self._size - self._used)
            rows = self._current.rows[self._used : self._used + num]
            for dtype, block in taken.items():
                np.take(self._current.blocks[dtype], rows, axis=0, out=block[filled : filled + num], mode="clip")
            filled, self._used = filled + num, self._used + num
        return columns_of(self._dtypes, taken)

    def _next_window(self) -> None:
        self._current = None  # let go before the next one comes
        self._current = next(self._windows)
        self._used, self._size = 0, len(self._current.rows)


def _prefetched(jobs: Iterator[Callable[[], _DecodedWindow]]) -> Generator[_DecodedWindow, None, None]:
    """Results of the jobs in order, one job ahead of the consumer; a job's exception is raised in its turn."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="tml-reader") as pool:
        pending = [pool.submit(job) for job in _first(jobs)]
        while pending:
            window = pending.pop().result()
            pending = [pool.submit(job) for job in _first(jobs)]
            yield window


def _one_by_one(jobs: Iterator[Callable[[], _DecodedWindow]]) -> Generator[_DecodedWindow, None, None]:
    for job in jobs:
        yield job()


def _first(jobs: Iterator[Callable[[], _DecodedWindow]]) -> list[Callable[[], _DecodedWindow]]:
    return [job for job in [next(jobs, None)] if job is not None]


def _place(path: str, first_row: int, index: int) -> str:
    return f"{path}, row {first_row + index}"


def _by_file(window: Window) -> dict[int, list[tuple[int, Segment]]]:
    """For each file, its segments with the row of the window at which each begins; so a file is opened once a
    window."""
    placed: dict[int, list[tuple[int, Segment]]] = {}
    start = 0
    for segment in window.segments:
        placed.setdefault(segment.file, []).append((start, segment))
        start += segment.num_rows
    return placed


def _open_files(paths: Sequence[str], columns: Mapping[str, pa.DataType]) -> list[ParquetDataFile]:
    ordered = sorted(str(path) for path in paths)
    if not ordered:
        raise DataError("no data files", where="reader", limit="at least one file", fix="check the path pattern")
    for path, following in pairwise(ordered):
        if path == following:
            raise DataError("file is listed twice", where=path, fix="list each file once, or its rows count double")
    with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
        files = list(pool.map(lambda path: open_data_file(path, columns), ordered))
    for file in files:
        if file.metadata.num_rows == 0:
            get_logger(__name__).warning("skipping %s: it holds no rows", file.path)
    return [file for file in files if file.metadata.num_rows > 0]


def check_shares(global_batch_size: int, world_size: int, where: str) -> None:
    """Refuses a batch that ranks cannot share evenly.

    Args:
        global_batch_size: rows of all ranks together.
        world_size: ranks.
        where: path of the setting, for the message.

    Raises:
        ConfigError: says which size would do.
    """
    if global_batch_size % world_size:
        raise ConfigError(
            "a batch cannot be shared evenly among the ranks",
            where=where,
            value=global_batch_size,
            limit=f"a multiple of {world_size} ranks",
            fix=f"use {-(-global_batch_size // world_size) * world_size}, or another number of ranks",
        )


def checked_cursor(cursor: Cursor, num_rows: int) -> Cursor:
    """The cursor, moved to the next epoch if at the end of one; `CheckpointError` if it lies outside the data."""
    if cursor.epoch < 0 or not 0 <= cursor.row <= num_rows:
        raise CheckpointError(
            "cursor lies outside the data",
            where="reader",
            value=cursor,
            limit=f"epoch >= 0, 0 <= row <= {num_rows}",
            fix="resume with the files, offset and limit of the run that wrote the checkpoint",
        )
    return _normalised(cursor, num_rows)


def _normalised(cursor: Cursor, num_rows: int) -> Cursor:
    return Cursor(cursor.epoch + 1, 0) if cursor.row == num_rows else cursor


def _check_at_least(minimum: int, **values: int | None) -> None:
    for name, value in values.items():
        if value is not None and value < minimum:
            raise ConfigError("setting is too small", where=f"reader, {name}", value=value, limit=f">= {minimum}")
