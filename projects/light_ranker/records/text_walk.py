"""Walks through maps of texts in many records at once, one item of each record per step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tml.common.errors import DataError
from tml.projects.light_ranker.records.cursors import Cursors
from tml.projects.light_ranker.records.thrift import I64, ThriftReader

_FEW = 24  # records; below, a step in numpy costs more than reading the records one by one

# rows, keys, values (None unless weighted), starts and lengths of texts.
Found = tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class TextKind:
    """How a map from ids to texts is laid out.

    Args:
        value: thrift type of the map's values.
        inner: element types of each value when that is a set or map of texts; empty when it is a text itself.
        weighted: a double follows each text.
    """

    value: int
    inner: tuple[int, ...] = ()
    weighted: bool = False

    @property
    def text_bytes(self) -> int:
        """Least bytes of a text with its length and weight."""
        return 12 if self.weighted else 4

    @property
    def key_bytes(self) -> int:
        """Bytes before the first text of a key: the key and the header of its set or map."""
        return 8 + (len(self.inner) + 4 if self.inner else 0)


class _Walk:
    """Cursors in one map each. What is left is counted: `keys_left` in the map, `texts_left` of the current key."""

    def __init__(self, cursors: Cursors, rows: np.ndarray, kind: TextKind) -> None:
        self.cursors, self.kind = cursors, kind
        item_bytes = kind.key_bytes + (0 if kind.inner else kind.text_bytes)
        self.rows, self.at, self.keys_left = cursors.open(rows, I64, kind.value, item_bytes=item_bytes)
        self.stop = cursors.stop[self.rows]
        self.texts_left = np.zeros(len(self.rows), np.int64)
        self.key = np.zeros(len(self.rows), np.int64)
        self._settle(np.ones(len(self.rows), bool))

    def step(self) -> Found:
        """Takes the next key where the last is used up, and then one text of every record that has one."""
        good = np.ones(len(self.rows), bool)
        self._take_keys(good)
        found = self._take_texts(good)
        self._settle(good)
        return found

    def _take_keys(self, good: np.ndarray) -> None:
        new = np.flatnonzero(self.texts_left == 0)
        at, kind, cursors = self.at[new], self.kind, self.cursors
        begin = at + kind.key_bytes
        fits = begin <= self.stop[new]
        count = np.ones(len(new), np.int64)
        if kind.inner:
            count = cursors.i32[begin - 4].astype(np.int64)
            fits &= (count >= 0) & (count * kind.text_bytes <= self.stop[new] - begin)
            for offset, element in enumerate(kind.inner):
                fits &= cursors.u8[at + 8 + offset] == element
        self.key[new] = cursors.i64[at]
        self.at[new] = begin
        self.texts_left[new] = np.where(fits, count, 0)
        self.keys_left[new] -= 1
        good[new] = fits

    def _take_texts(self, good: np.ndarray) -> Found:
        some = np.flatnonzero(self.texts_left)
        at, stop, cursors = self.at[some], self.stop[some], self.cursors
        length = cursors.i32[at].astype(np.int64)
        end = at + self.kind.text_bytes + length
        fits = (length >= 0) & (end <= stop)
        good[some] = fits
        self.at[some] = end
        self.texts_left[some] -= 1
        some, start, length = some[fits], at[fits] + 4, length[fits]
        weights = cursors.f64[start + length].astype(np.float64) if self.kind.weighted else None
        return self.rows[some], self.key[some], weights, start, length

    def _settle(self, good: np.ndarray) -> None:
        """Leaves the records that are bad or at the end of their map."""
        going = good & ((self.keys_left > 0) | (self.texts_left > 0))
        if going.all():
            return
        ended = good & ~going
        self.cursors.bad[self.rows[~good]] = True
        self.cursors.position[self.rows[ended]] = self.at[ended]
        for name in ("rows", "at", "stop", "key", "keys_left", "texts_left"):
            setattr(self, name, getattr(self, name)[going])

    def finish_alone(self) -> Found:
        """Reads the rest of each record by itself."""
        found: list[tuple[int, int, int, int]] = []
        weights: list[float] = []
        for i in range(len(self.rows)):
            row = int(self.rows[i])
            reader = ThriftReader(self.cursors.data, start=int(self.at[i]), stop=int(self.stop[i]))
            try:
                for key, start, length, weight in _texts_of(reader, self.kind, self, i):
                    found.append((row, key, start, length))
                    weights.append(weight)
            except DataError:
                self.cursors.bad[row] = True
            self.cursors.position[row] = reader.position
        rows, keys, starts, lengths = np.array(found, np.int64).reshape(-1, 4).T
        return rows, keys, np.array(weights, np.float64) if self.kind.weighted else None, starts, lengths


def walk_texts(cursors: Cursors, rows: np.ndarray, kind: TextKind) -> Iterator[Found]:
    """Reads the map that each of `rows` stands at, and moves each behind it; bad rows are marked."""
    walk = _Walk(cursors, rows, kind)
    while len(walk.rows) >= _FEW:
        yield walk.step()
    if len(walk.rows):
        yield walk.finish_alone()


def _texts_of(reader: ThriftReader, kind: TextKind, walk: _Walk, i: int) -> Iterator[tuple[int, int, int, float]]:
    """Key, start, length and weight of each text that is left in record `i`."""
    key, texts_left, keys_left = int(walk.key[i]), int(walk.texts_left[i]), int(walk.keys_left[i])
    while keys_left or texts_left:
        if not texts_left:
            key, keys_left = reader.i64(), keys_left - 1
            texts_left = reader.header(*kind.inner, item_bytes=kind.text_bytes) if kind.inner else 1
            continue
        length = reader.count(1)
        start = reader.take(length)
        yield key, start, length, reader.double() if kind.weighted else 0.0
        texts_left -= 1
