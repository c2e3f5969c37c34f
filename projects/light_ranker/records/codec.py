"""DataRecords as bytes and back: the body of a thrift struct in TBinaryProtocol, without a message around it.

    1 set<i64> binary                        6 map<i64, map<string, double>> sparse continuous
    2 map<i64, double> continuous            7 map<i64, binary> blobs
    3 map<i64, i64> discrete                 8 map<i64, GeneralTensor> tensors
    4 map<i64, string> string                9 map<i64, SparseTensor> sparse tensors
    5 map<i64, set<string>> sparse binary

Written records hold their fields in this order and leave out empty ones, as the original's writer does (which has no
sparse tensors). Such bytes are read and written again to the last bit. Of a key that comes twice in a map, the last
value holds.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from tml.common.errors import DataError
from tml.projects.light_ranker.records import thrift
from tml.projects.light_ranker.records.data_record import DataRecord, OrderedSet
from tml.projects.light_ranker.records.tensor_codec import (
    read_sparse_tensor,
    read_tensor,
    write_sparse_tensor,
    write_tensor,
)
from tml.projects.light_ranker.records.thrift import DOUBLE, I64, MAP, SET, STRING, STRUCT, ThriftReader

# Field number -> (attribute of DataRecord, thrift type).
FIELDS: dict[int, tuple[str, int]] = {
    1: ("binary", SET),
    2: ("continuous", MAP),
    3: ("discrete", MAP),
    4: ("string", MAP),
    5: ("sparse_binary", MAP),
    6: ("sparse_continuous", MAP),
    7: ("blobs", MAP),
    8: ("tensors", MAP),
    9: ("sparse_tensors", MAP),
}

_KEY = struct.Struct(">q")
_PAIRS = {DOUBLE: struct.Struct(">qd"), I64: struct.Struct(">qq")}


def decode_record(data: bytes, where: object = "record") -> DataRecord:
    """Reads a record.

    Args:
        data: the record's bytes and no more.
        where: the file and record, for messages.

    Raises:
        DataError: the bytes are cut off, follow another definition or are garbage; names the byte and the field.
    """
    reader = ThriftReader(data, where)
    record = read_record(reader)
    reader.end()
    return record


def read_record(reader: ThriftReader) -> DataRecord:
    """Reads a record where the reader stands."""
    record = DataRecord()
    for number in reader.fields(FIELDS):
        setattr(record, FIELDS[number][0], _READERS[number](reader))
    return record


def skip_record(reader: ThriftReader) -> None:
    """Moves over a record, checking it as `read_record` does but making nothing of it."""
    for number in reader.fields(FIELDS):
        _SKIPPERS[number](reader)


def encode_record(record: DataRecord) -> bytes:
    """The bytes of a record.

    Raises:
        DataError: a value is not of its feature's type or does not fit its size; names the kind of feature.
    """
    pieces: list[bytes] = []
    for number, (name, kind) in FIELDS.items():
        features = getattr(record, name)
        if features:
            pieces.append(thrift.field_header(kind, number))
            try:
                _WRITERS[number](features, pieces)
            except (struct.error, TypeError, AttributeError, ValueError, OverflowError) as error:
                raise DataError(
                    "record cannot be written", where=f"DataRecord.{name}", value=f"{type(error).__name__}: {error}",
                    limit="signed 64-bit ids and integers, numbers, valid text", fix="mend the feature's value",
                ) from error  # fmt: skip
    pieces.append(b"\0")
    return b"".join(pieces)


def _read_binary(reader: ThriftReader) -> OrderedSet[int]:
    return OrderedSet(reader.numbers(reader.header(I64, item_bytes=8), "q", 8))


def _read_pairs(kind: int) -> Callable[[ThriftReader], dict[int, Any]]:
    def read(reader: ThriftReader) -> dict[int, Any]:
        num_bytes = 16 * reader.header(I64, kind, item_bytes=16)
        begin = reader.take(num_bytes)
        return dict(_PAIRS[kind].iter_unpack(memoryview(reader.data)[begin : begin + num_bytes]))

    return read


def _read_map(value_type: int, value_bytes: int, value: Callable[[ThriftReader], Any]) -> Callable[..., dict[int, Any]]:
    def read(reader: ThriftReader) -> dict[int, Any]:
        return {reader.i64(): value(reader) for _ in range(reader.header(I64, value_type, item_bytes=8 + value_bytes))}

    return read


def _read_texts(reader: ThriftReader) -> OrderedSet[str]:
    return OrderedSet(reader.text() for _ in range(reader.header(STRING, item_bytes=4)))


def _read_weights(reader: ThriftReader) -> dict[str, float]:
    return {reader.text(): reader.double() for _ in range(reader.header(STRING, DOUBLE, item_bytes=12))}


_READERS: dict[int, Callable[[ThriftReader], Any]] = {
    1: _read_binary,
    2: _read_pairs(DOUBLE),
    3: _read_pairs(I64),
    4: _read_map(STRING, 4, ThriftReader.text),
    5: _read_map(SET, 5, _read_texts),
    6: _read_map(MAP, 6, _read_weights),
    7: _read_map(STRING, 4, ThriftReader.blob),
    8: _read_map(STRUCT, 1, read_tensor),
    9: _read_map(STRUCT, 1, read_sparse_tensor),
}


def _skip_numbers(*types: int) -> Callable[[ThriftReader], None]:
    def skip(reader: ThriftReader) -> None:
        item_bytes = 8 * len(types)
        reader.take(item_bytes * reader.header(*types, item_bytes=item_bytes))

    return skip


def _skip_map(value_type: int, value_bytes: int, value: Callable[[ThriftReader], Any]) -> Callable[..., None]:
    def skip(reader: ThriftReader) -> None:
        for _ in range(reader.header(I64, value_type, item_bytes=8 + value_bytes)):
            reader.take(8)
            value(reader)

    return skip


def _skip_text(reader: ThriftReader) -> None:
    reader.take(reader.count(1))


def _skip_texts(reader: ThriftReader) -> None:
    for _ in range(reader.header(STRING, item_bytes=4)):
        _skip_text(reader)


def _skip_weights(reader: ThriftReader) -> None:
    for _ in range(reader.header(STRING, DOUBLE, item_bytes=12)):
        _skip_text(reader)
        reader.take(8)


_SKIPPERS: dict[int, Callable[[ThriftReader], None]] = {
    1: _skip_numbers(I64),
    2: _skip_numbers(I64, DOUBLE),
    3: _skip_numbers(I64, I64),
    4: _skip_map(STRING, 4, _skip_text),
    5: _skip_map(SET, 5, _skip_texts),
    6: _skip_map(MAP, 6, _skip_weights),
    7: _skip_map(STRING, 4, _skip_text),
    8: _skip_map(STRUCT, 1, read_tensor),
    9: _skip_map(STRUCT, 1, read_sparse_tensor),
}


def _write_binary(features: OrderedSet[int], pieces: list[bytes]) -> None:
    pieces += (thrift.container_header(I64, count=len(features)), struct.pack(f">{len(features)}q", *features))


def _write_pairs(kind: int) -> Callable[[dict[int, Any], list[bytes]], None]:
    def write(features: dict[int, Any], pieces: list[bytes]) -> None:
        pieces.append(thrift.container_header(I64, kind, count=len(features)))
        pieces += [_PAIRS[kind].pack(key, value) for key, value in features.items()]

    return write


def _write_map(value_type: int, value: Callable[[Any], bytes]) -> Callable[[dict[int, Any], list[bytes]], None]:
    def write(features: dict[int, Any], pieces: list[bytes]) -> None:
        pieces.append(thrift.container_header(I64, value_type, count=len(features)))
        for key, item in features.items():
            pieces += (_KEY.pack(key), value(item))

    return write


def _texts(texts: OrderedSet[str]) -> bytes:
    return thrift.container_header(STRING, count=len(texts)) + b"".join(map(thrift.pack_text, texts))


def _weights(weights: dict[str, float]) -> bytes:
    items = (thrift.pack_text(text) + struct.pack(">d", weight) for text, weight in weights.items())
    return thrift.container_header(STRING, DOUBLE, count=len(weights)) + b"".join(items)


_WRITERS: dict[int, Callable[[Any, list[bytes]], None]] = {
    1: _write_binary,
    2: _write_pairs(DOUBLE),
    3: _write_pairs(I64),
    4: _write_map(STRING, thrift.pack_text),
    5: _write_map(SET, _texts),
    6: _write_map(MAP, _weights),
    7: _write_map(STRING, thrift.pack_blob),
    8: _write_map(STRUCT, write_tensor),
    9: _write_map(STRUCT, write_sparse_tensor),
}
