"""Many DataRecords decoded at once into flat arrays.

The records lie end to end in one buffer, and a cursor of its own walks through each of them. Every step moves all
cursors that stand at the same kind of thing with a few numpy calls, so that the cost of Python is shared by the batch.
What the codec refuses in a record is refused here too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np

from tml.common.errors import DataError
from tml.projects.light_ranker.records.codec import FIELDS, decode_record
from tml.projects.light_ranker.records.cursors import Cursors
from tml.projects.light_ranker.records.feature_ids import ragged_arange
from tml.projects.light_ranker.records.tensor_codec import read_sparse_tensor, read_tensor
from tml.projects.light_ranker.records.text_walk import TextKind, walk_texts
from tml.projects.light_ranker.records.thrift import DOUBLE, I64, MAP, SET, STOP, STRING, STRUCT, ThriftReader

OnError = Literal["fail", "skip"]

_NUMBER_OF = {name: number for number, (name, _) in FIELDS.items()}
_TYPE_OF = np.array([255] + [kind for _, kind in FIELDS.values()], np.uint8)

_TEXT_KINDS = {
    _NUMBER_OF["string"]: TextKind(STRING),
    _NUMBER_OF["sparse_binary"]: TextKind(SET, inner=(STRING,)),
    _NUMBER_OF["sparse_continuous"]: TextKind(MAP, inner=(STRING, DOUBLE), weighted=True),
    _NUMBER_OF["blobs"]: TextKind(STRING),
}


@dataclass(frozen=True)
class Entries:
    """The features of one kind in many records, ordered by record and then as they lie in it. N of them:

    Args:
        rows: int64 [N], the record.
        keys: int64 [N], the feature's id.
        values: [N], float64 or int64 (discrete), or None where the kind has no number.
        starts, lengths: int64 [N], where the text, blob or tensor lies in the buffer, or None. A sparse feature has an
            entry for each of its texts, and none when it has no text.
    """

    rows: np.ndarray
    keys: np.ndarray
    values: np.ndarray | None = None
    starts: np.ndarray | None = None
    lengths: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, index: np.ndarray) -> Entries:
        """Those of an index or mask."""
        return Entries.made_of(None if array is None else array[index] for array in self.arrays())

    def arrays(self) -> list[np.ndarray | None]:
        """In the order of the fields."""
        return [getattr(self, each.name) for each in fields(self)]

    @classmethod
    def made_of(cls, arrays: Iterable[Any]) -> Entries:
        """The inverse of `arrays`."""
        return cls(*arrays)


@dataclass(frozen=True)
class RecordColumns:
    """Decoded records.

    Args:
        data: the buffer with all records' bytes.
        numbers: int64 [num_records], each record's place among those given; bad ones that were skipped are missing.
        entries: kind of feature (the attribute of DataRecord) -> its entries; kinds that do not occur have none.
    """

    data: bytes
    numbers: np.ndarray
    entries: dict[str, Entries]

    @property
    def num_records(self) -> int:
        """Records decoded."""
        return len(self.numbers)

    def text(self, entries: Entries, i: int) -> bytes:
        """The bytes of a text, blob or tensor."""
        assert entries.starts is not None
        assert entries.lengths is not None
        return self.data[entries.starts[i] : entries.starts[i] + entries.lengths[i]]

    def without(self, rows: Sequence[int] | np.ndarray) -> RecordColumns:
        """The same without some records."""
        kept = np.ones(self.num_records, bool)
        kept[np.asarray(rows, np.int64)] = False
        renumbered = np.cumsum(kept) - 1
        entries = {}
        for kind, each in self.entries.items():
            chosen = each.at(kept[each.rows])
            entries[kind] = Entries(renumbered[chosen.rows], chosen.keys, chosen.values, chosen.starts, chosen.lengths)
        return RecordColumns(self.data, self.numbers[kept], entries)


def decode_columns(
    records: Sequence[bytes], where: object = "records", first: int = 0, on_error: OnError = "fail"
) -> RecordColumns:
    """Decodes many records; a few thousand at a time are fastest.

    Args:
        records: each the bytes of one record.
        where: the file, for messages.
        first: number of the first record in its file, for messages.
        on_error: "skip" leaves bad records out (their number is `len(records) - num_records`).

    Raises:
        DataError: a record is bad; names its number, the byte and the field.
    """
    decoder = _Decoder(records)
    decoder.run()
    bad = np.flatnonzero(decoder.bad)
    if len(bad) and on_error == "fail":
        number = int(bad[0])
        decode_record(records[number], where=f"{where}, record {first + number}")
        raise AssertionError(f"record {first + number} of {where} is refused in a batch but not alone")
    columns = decoder.columns()
    return columns.without(bad) if len(bad) else columns


class _Decoder(Cursors):
    """The cursors and what they have found so far."""

    def __init__(self, records: Sequence[bytes]) -> None:
        super().__init__(records)
        self._seen = np.zeros(len(records), np.uint16)
        self._found: dict[int, list[Entries]] = {number: [] for number in FIELDS}

    def run(self) -> None:
        """Decodes all fields. One pass does, unless records hold their fields in another order than the writer's."""
        active = np.arange(len(self.bad))
        while len(active):
            for number in FIELDS:
                active, numbers = self._field_headers(active)
                rows = active[numbers == number]
                if len(rows):
                    self._seen[rows] |= 1 << number
                    self.position[rows] += 3
                    self._field(number, rows)

    def columns(self) -> RecordColumns:
        """What was found, put in order."""
        entries = {name: _joined(self._found[number], len(self.bad)) for number, (name, _) in FIELDS.items()}
        return RecordColumns(self.data, np.arange(len(self.bad)), entries)

    def _field_headers(self, active: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rows that are not at their end and not bad, and the number of the field that each stands at."""
        active = active[~self.bad[active]]
        at, stop = self.position[active], self.stop[active]
        kind = self.u8[at]
        ended = (kind == STOP) & (at < stop)
        number = self.i16[at + 1].astype(np.int64)
        known = (number >= 1) & (number <= len(FIELDS))
        number = np.where(known, number, 0)
        good = known & (at + 3 <= stop) & (_TYPE_OF[number] == kind) & ((self._seen[active] >> number) & 1 == 0)
        self.bad[active[np.where(ended, at + 1 != stop, ~good)]] = True
        good &= ~ended
        return active[good], number[good]

    def _field(self, number: int, rows: np.ndarray) -> None:
        name = FIELDS[number][0]
        if number in _TEXT_KINDS:
            self._found[number] += [Entries(*arrays) for arrays in walk_texts(self, rows, _TEXT_KINDS[number])]
        elif name == "binary":
            self._numbers(number, rows, (I64,), None)
        elif name in ("continuous", "discrete"):
            kind, view = (DOUBLE, self.f64) if name == "continuous" else (I64, self.i64)
            self._numbers(number, rows, (I64, kind), view)
        else:
            self._tensors(number, rows)

    def _numbers(self, number: int, rows: np.ndarray, types: tuple[int, ...], view: np.ndarray | None) -> None:
        item_bytes = 8 * len(types)
        rows, begin, count = self.open(rows, *types, item_bytes=item_bytes)
        at = np.repeat(begin, count) + item_bytes * ragged_arange(count)
        values = None if view is None else view[at + 8].astype(view.dtype.newbyteorder("="))
        self._found[number].append(Entries(np.repeat(rows, count), self.i64[at].astype(np.int64), values))
        self.position[rows] = begin + item_bytes * count

    def _tensors(self, number: int, rows: np.ndarray) -> None:
        """Tensors are rare and deep: each is read alone, and its place kept."""
        read = read_tensor if FIELDS[number][0] == "tensors" else read_sparse_tensor
        found: list[tuple[int, int, int, int]] = []
        for row in rows.tolist():
            reader = ThriftReader(self.data, start=int(self.position[row]), stop=int(self.stop[row]))
            try:
                for _ in range(reader.header(I64, STRUCT, item_bytes=9)):
                    key, start = reader.i64(), reader.position
                    read(reader)
                    found.append((row, key, start, reader.position - start))
            except DataError:
                self.bad[row] = True
            self.position[row] = reader.position
        if found:
            row_of, keys, starts, lengths = np.array(found, np.int64).T
            self._found[number].append(Entries(row_of, keys, None, starts, lengths))


def _joined(parts: list[Entries], num_records: int) -> Entries:
    if not parts:
        return Entries(np.zeros(0, np.int64), np.zeros(0, np.int64))
    arrays: Any = zip(*(part.arrays() for part in parts), strict=True)
    joined = Entries.made_of(None if pieces[0] is None else np.concatenate(pieces) for pieces in arrays)
    if np.any(joined.rows[1:] < joined.rows[:-1]):
        joined = joined.at(stable_order(joined.rows, num_records))
    return joined


def stable_order(rows: np.ndarray, num_records: int) -> np.ndarray:
    """The order that sorts row numbers below `num_records` and keeps equal ones as they are."""
    # numpy sorts 16-bit integers by radix, several times as fast as wider ones.
    return np.argsort(rows.astype(np.uint16) if num_records <= 1 << 16 else rows, kind="stable")
