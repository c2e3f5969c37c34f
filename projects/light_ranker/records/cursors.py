"""A buffer of records end to end, and a cursor in each of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_PADDING = 32  # bytes that may be looked at beyond the end before they are found not to be there


class Cursors:
    """Positions in B records, of which any subset is moved at once.

    Attributes:
        data: the records' bytes, and padding.
        position, stop: int64 [B], where each cursor stands in `data`, at most `stop`, where its record ends.
        bad: bool [B], records found to be bad; their cursors stand still.
        u8, i16, i32, i64, f64: the big-endian number that begins at each byte of `data`.
    """

    def __init__(self, records: Sequence[bytes]) -> None:
        lengths = np.fromiter(map(len, records), np.int64, len(records))
        self.data = b"".join((*records, bytes(_PADDING)))
        self.stop = np.cumsum(lengths)
        self.position = self.stop - lengths
        self.bad = np.zeros(len(records), bool)
        self.u8 = np.frombuffer(self.data, np.uint8)
        self.i16, self.i32, self.i64, self.f64 = (
            np.ndarray((len(self.data) - int(code[-1]) + 1,), code, self.data, strides=(1,))
            for code in (">i2", ">i4", ">i8", ">f8")
        )

    def open(self, rows: np.ndarray, *types: int, item_bytes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Reads the headers of containers; rows whose header is bad are marked and left out.

        Returns:
            the rows left, the position of each one's first item, and its number of items.
        """
        at = self.position[rows]
        begin = at + len(types) + 4
        count = self.i32[at + len(types)].astype(np.int64)
        good = (count >= 0) & (count * item_bytes <= self.stop[rows] - begin)
        for offset, kind in enumerate(types):
            good &= self.u8[at + offset] == kind
        self.bad[rows[~good]] = True
        return rows[good], begin[good], count[good]
