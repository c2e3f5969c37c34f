"""The order in which an epoch's rows are read: a function of (seed, epoch) alone.

Row groups (cut to the rows in use, then called segments) are permuted, consecutive ones are gathered into windows, and
the rows of a window are permuted among themselves. The first windows of a run are smaller, since training waits for the
first of them. Ranks, batch sizes and worker threads have no part in it, so a place in the order ("position", counted in
rows of all ranks) means the same on any world size.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

_ROW_GROUPS = 0  # first word of the spawn keys, so that the two kinds of draw never share a stream
_ROWS = 1
# To be raised with every change of the order: a run cannot go on in another one.
ORDER_VERSION = 2
# The first window of a run has this share of the rows of a full one, and the next ones double it.
_FIRST_SHARE = 8


@dataclass(frozen=True)
class Segment:
    """Rows `[start, stop)` of one row group.

    Args:
        file: index of the file.
        row_group: index of the row group in the file.
        start: first row in use, counted from the row group's first row.
        stop: end of the rows in use, counted likewise.
        file_row: row of the file at which the row group begins.
    """

    file: int
    row_group: int
    start: int
    stop: int
    file_row: int

    @property
    def num_rows(self) -> int:
        """Rows in use."""
        return self.stop - self.start


@dataclass(frozen=True)
class Window:
    """Segments that are decoded and shuffled together.

    Args:
        index: number of the window in its epoch.
        first_position: the epoch position of its first row.
        segments: in the order in which they lie in the window before rows are permuted.
    """

    index: int
    first_position: int
    segments: tuple[Segment, ...]

    @property
    def num_rows(self) -> int:
        """Rows of all segments."""
        return sum(segment.num_rows for segment in self.segments)

    @property
    def stop_position(self) -> int:
        """The epoch position after its last row."""
        return self.first_position + self.num_rows


class EpochOrder:
    """The order of rows in every epoch.

    The permutations come from numpy's PCG64 and `Generator.permutation`; a test pins their values, because a numpy that
    drew differently would silently break the resumption of older runs.

    Args:
        segments: in file order; none of them empty.
        seed: not negative.
        shuffle: False keeps file order (and still gathers windows).
        window_rows: a window takes segments until it has at least this many rows, so it has fewer than `window_rows`
            plus the largest segment's. The last window of an epoch may be smaller, and the first three of epoch 0 ask
            for an eighth, a quarter and half as many.
    """

    def __init__(self, segments: Sequence[Segment], *, seed: int, shuffle: bool, window_rows: int) -> None:
        self.num_rows = sum(segment.num_rows for segment in segments)
        self._segments = tuple(segments)
        self._seed = seed
        self._shuffle = shuffle
        self._window_rows = window_rows

    def windows(self, epoch: int) -> Iterator[Window]:
        """The windows of an epoch in the order of reading; together they hold every row once."""
        gathered: list[Segment] = []
        index, first_position, gathered_rows = 0, 0, 0
        for segment in self._permuted_segments(epoch):
            gathered.append(segment)
            gathered_rows += segment.num_rows
            if gathered_rows >= self._least_rows(epoch, index):
                yield Window(index, first_position, tuple(gathered))
                index, first_position = index + 1, first_position + gathered_rows
                gathered, gathered_rows = [], 0
        if gathered:
            yield Window(index, first_position, tuple(gathered))

    def _least_rows(self, epoch: int, index: int) -> int:
        share = min(2**index, _FIRST_SHARE) if epoch == 0 else _FIRST_SHARE
        return max(self._window_rows * share // _FIRST_SHARE, 1)

    def row_permutation(self, epoch: int, window: Window) -> np.ndarray:
        """Row of the window (before shuffling) at each of its positions: int64 `[window.num_rows]`."""
        if not self._shuffle:
            return np.arange(window.num_rows)
        return self._generator(epoch, _ROWS, window.index).permutation(window.num_rows)

    def locate(self, epoch: int, position: int) -> tuple[int, int]:
        """(index of the file, row of the file) at a position of an epoch; `position` must be in `[0, num_rows)`."""
        window = next(window for window in self.windows(epoch) if position < window.stop_position)
        row = int(self.row_permutation(epoch, window)[position - window.first_position])
        starts = [0, *accumulate(segment.num_rows for segment in window.segments)]
        which = bisect_right(starts, row) - 1
        segment = window.segments[which]
        return segment.file, segment.file_row + segment.start + row - starts[which]

    def _permuted_segments(self, epoch: int) -> Sequence[Segment]:
        if not self._shuffle:
            return self._segments
        return [self._segments[i] for i in self._generator(epoch, _ROW_GROUPS).permutation(len(self._segments))]

    def _generator(self, epoch: int, *key: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence(self._seed, spawn_key=(epoch, *key))))


def cut_segments(row_group_rows: Sequence[Sequence[int]], offset: int, limit: int | None) -> list[Segment]:
    """Segments of the rows `[offset, offset + limit)` of all files laid end to end.

    Args:
        row_group_rows: for each file, the rows of each of its row groups.
        offset: rows left out at the front.
        limit: rows taken after them; None takes the rest.

    Returns:
        Segments in file order without empty ones; the list is empty when no row is left.
    """
    stop = None if limit is None else offset + limit
    segments = []
    first = 0  # of the row group, in rows of all files
    for file, groups in enumerate(row_group_rows):
        file_row = 0
        for row_group, num_rows in enumerate(groups):
            begin = max(offset - first, 0)
            end = num_rows if stop is None else min(stop - first, num_rows)
            if begin < end:
                segments.append(Segment(file, row_group, begin, end, file_row))
            file_row += num_rows
            first += num_rows
    return segments
