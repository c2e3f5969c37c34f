"""Finds ids in an Arrow array by hash and binary search: 12 to 16 bytes an id, no Python object per id."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_BASE = 0x9E3779B97F4A7C15  # odd, so it has an inverse modulo 2**64
_INVERSE = pow(_BASE, -1, 2**64)
_SLICE = 1 << 18  # strings hashed at a time


class IdIndex:
    """A sorted index over ids.

    Args:
        ids: int64 or large_string, without nulls.
    """

    def __init__(self, ids: pa.Array) -> None:
        self._ids = ids
        keys = _keys(ids)
        order = np.argsort(keys, kind="stable")
        self._keys = keys[order]
        self._order = order.astype(np.int32) if len(order) < 2**31 else order

    def find(self, queries: pa.Array) -> np.ndarray:
        """The place of each query (same type as the ids), or -1: int64 [n]."""
        keys = _keys(queries)
        places = np.searchsorted(self._keys, keys)
        found = np.full(len(keys), -1, np.int64)
        open_queries = np.arange(len(keys))
        # One round settles all but different strings of one hash; each further round steps along such a run.
        while len(open_queries):
            at = places[open_queries]
            inside = at < len(self._keys)
            open_queries, at = open_queries[inside], at[inside]
            same = self._keys[at] == keys[open_queries]
            open_queries, at = open_queries[same], at[same]
            rows = self._order[at].astype(np.int64)
            equal = self._equal(rows, queries, open_queries)
            found[open_queries[equal]] = rows[equal]
            open_queries = open_queries[~equal]
            places[open_queries] += 1
        return found

    def first_duplicate(self) -> tuple[int, int] | None:
        """Two rows with the same id, or None."""
        places = np.flatnonzero(self._keys[1:] == self._keys[:-1])
        for place in places:
            run = [int(self._order[place])]
            while place + 1 < len(self._keys) and self._keys[place + 1] == self._keys[place]:
                place += 1
                run.append(int(self._order[place]))
            for row in run[1:]:
                if self._ids[row] == self._ids[run[0]]:
                    return run[0], row
        return None

    def nearest_integers(self, number: int, k: int) -> list[int]:
        """The `k` ids nearest in value, for integer ids."""
        middle = int(np.searchsorted(self._keys, number))
        around = self._keys[max(0, middle - k) : middle + k]
        return sorted((int(value) for value in around), key=lambda value: (abs(value - number), value))[:k]

    def _equal(self, rows: np.ndarray, queries: pa.Array, places: np.ndarray) -> np.ndarray:
        equal = pc.equal(self._ids.take(pa.array(rows)), queries.take(pa.array(places)))
        return equal.to_numpy(zero_copy_only=False).astype(bool)


def string_buffers(strings: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Offsets (int64 [n + 1]) and bytes (uint8) of a large_string array; offsets count from the start of the bytes."""
    _, offsets, data = strings.buffers()
    if offsets is None:
        return np.zeros(1, np.int64), np.empty(0, np.uint8)
    first = strings.offset
    places = np.frombuffer(offsets, np.int64)[first : first + len(strings) + 1]
    return places, np.empty(0, np.uint8) if data is None else np.frombuffer(data, np.uint8)


def _keys(ids: pa.Array) -> np.ndarray:
    """Sort keys: the integers themselves, or 64-bit hashes of strings."""
    if pa.types.is_integer(ids.type):
        return ids.to_numpy()
    parts = [_string_hashes(ids.slice(start, _SLICE)) for start in range(0, len(ids), _SLICE)]
    return np.concatenate(parts) if parts else np.empty(0, np.uint64)


def _string_hashes(strings: pa.Array) -> np.ndarray:
    """Polynomial hashes modulo 2**64, uint64 [n], of all strings at once.

    With running totals P of byte * base**place over the joined bytes, the hash of bytes [a, b) is
    (P[b] - P[a]) / base**a; it is finished with a multiply and shift, and with the length.
    """
    offsets, data = string_buffers(strings)
    start = offsets[0]
    joined = data[start : offsets[-1]].astype(np.uint64) + np.uint64(1)
    total = np.concatenate([np.zeros(1, np.uint64), np.cumsum(joined * _powers(_BASE, len(joined)), dtype=np.uint64)])
    begin, end = offsets[:-1] - start, offsets[1:] - start
    unscaled = (total[end] - total[begin]) * _powers(_INVERSE, len(joined) + 1)[begin]
    mixed = (unscaled ^ (unscaled >> np.uint64(32))) * np.uint64(_BASE)
    return mixed ^ (mixed >> np.uint64(29)) ^ (end - begin).astype(np.uint64)


def _powers(base: int, count: int) -> np.ndarray:
    steps = np.full(count, base, np.uint64)
    steps[:1] = 1
    return np.cumprod(steps, dtype=np.uint64)
