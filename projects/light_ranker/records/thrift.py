"""The pieces of thrift's TBinaryProtocol that records need: a reader that believes nothing, and a writer.

Numbers are big endian. Every length is checked against the bytes that are left before anything is made of it, nesting
is as deep as the record's own definition and no deeper, and fields that the definition does not know are refused, so
that reading takes time and memory in proportion to the bytes given.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any

from tml.common.errors import DataError

STOP, BOOL, BYTE, DOUBLE, I16, I32, I64, STRING, STRUCT, MAP, SET, LIST = 0, 2, 3, 4, 6, 8, 10, 11, 12, 13, 14, 15

_I16, _I32, _I64, _DOUBLE = struct.Struct(">h"), struct.Struct(">i"), struct.Struct(">q"), struct.Struct(">d")

# Field number -> (its name in messages, its type).
Fields = Mapping[int, tuple[str, int]]


class ThriftReader:
    """A cursor over bytes.

    Args:
        data: the buffer.
        where: the file and record, for messages.
        start, stop: the part of the buffer to read.

    Raises:
        DataError: from every method, when the bytes are cut off or are not what they should be; names the byte
            (counted from `start`), the field and `where`.
    """

    def __init__(self, data: bytes, where: object = "record", start: int = 0, stop: int | None = None) -> None:
        self.data = data
        self.position = self.start = start
        self.stop = len(data) if stop is None else stop
        self.where = where
        self.field = "the field header"

    def fault(self, what: str, value: object = None, limit: object = None) -> DataError:
        """An error at the current byte."""
        place = f"{self.where}, byte {self.position - self.start}, {self.field}"
        return DataError(what, where=place, value=value, limit=limit, fix="write the data again, or skip bad records")

    def take(self, num_bytes: int) -> int:
        """Moves over bytes that must be there; returns where they begin."""
        begin = self.position
        if num_bytes > self.stop - begin:
            raise self.fault("record is cut off", f"{self.stop - begin} bytes are left", f"{num_bytes} are needed")
        self.position = begin + num_bytes
        return begin

    def i16(self) -> int:
        """A 16-bit integer."""
        return _I16.unpack_from(self.data, self.take(2))[0]

    def i32(self) -> int:
        """A 32-bit integer."""
        return _I32.unpack_from(self.data, self.take(4))[0]

    def i64(self) -> int:
        """A 64-bit integer."""
        return _I64.unpack_from(self.data, self.take(8))[0]

    def double(self) -> float:
        """A 64-bit float."""
        return _DOUBLE.unpack_from(self.data, self.take(8))[0]

    def blob(self) -> bytes:
        """A length and so many bytes."""
        length = self.count(1)
        begin = self.take(length)
        return self.data[begin : begin + length]

    def text(self) -> str:
        """A string; bytes that are no UTF-8 become surrogate escapes."""
        return self.blob().decode("utf-8", "surrogateescape")

    def count(self, item_bytes: int) -> int:
        """A number of items, none of which is shorter than `item_bytes`."""
        number = self.i32()
        if number < 0 or number * item_bytes > self.stop - self.position:
            self.position -= 4
            raise self.fault(
                "length is impossible",
                number,
                f"0 to {(self.stop - self.position - 4) // item_bytes}, by the bytes left",
            )
        return number

    def header(self, *types: int, item_bytes: int) -> int:
        """The header of a list, set or map of the given element types; returns the number of items."""
        begin = self.take(len(types))
        found = tuple(self.data[begin : begin + len(types)])
        if found != types:
            self.position = begin
            raise self.fault("elements have the wrong type", found, f"thrift types {types}")
        return self.count(item_bytes)

    def numbers(self, number: int, code: str, item_bytes: int) -> tuple[Any, ...]:
        """`number` items that `struct` reads as `code`."""
        return struct.unpack_from(f">{number}{code}", self.data, self.take(number * item_bytes))

    def fields(self, known: Fields) -> Iterator[int]:
        """The field numbers of a struct, each with the cursor at its value, up to the stop byte.

        Any field may be missing, none may come twice, and all must be known and of the known type.
        """
        seen: set[int] = set()
        while True:
            self.field = "the field header"
            kind = self.data[self.take(1)]
            if kind == STOP:
                return
            number = self.i16()
            if number not in known:
                self.position -= 3
                raise self.fault("field is unknown", number, f"one of {', '.join(map(str, known))}")
            name, expected = known[number]
            if kind != expected or number in seen:
                self.position -= 3
                what = "field comes twice" if number in seen else "field has the wrong type"
                raise self.fault(f"{what}: {name}", kind, f"once, as thrift type {expected}")
            seen.add(number)
            self.field = f"field {name}"
            yield number

    def end(self) -> None:
        """Checks that nothing is left."""
        if self.position != self.stop:
            raise self.fault("bytes follow the end of the record", self.stop - self.position, "none")


def field_header(kind: int, number: int) -> bytes:
    """The header of a struct's field."""
    return struct.pack(">Bh", kind, number)


def container_header(*types: int, count: int) -> bytes:
    """The header of a list or set (one element type) or of a map (two)."""
    return bytes(types) + _I32.pack(count)


def pack_blob(data: bytes) -> bytes:
    """A length and the bytes."""
    return _I32.pack(len(data)) + data


def pack_text(text: str) -> bytes:
    """A string; surrogate escapes become the bytes they came from."""
    return pack_blob(text.encode("utf-8", "surrogateescape"))
