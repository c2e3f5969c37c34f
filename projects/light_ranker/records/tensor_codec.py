"""Tensors of a DataRecord as thrift bytes.

A GeneralTensor is a union: a struct with one field, whose number says which kind of tensor it is.

    1 RawTypedTensor {1 i32 DataType, 2 binary content, 3 optional list<i64> shape}
    2 String, 3 Int32, 4 Int64, 5 Float, 6 Double, 7 Bool: {1 list of values, 2 optional list<i64> shape}

A SparseTensor is a union of one kind so far, 1 COO {1 list<i64> shape, 2 Int64Tensor indices, 3 GeneralTensor values}.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from tml.projects.light_ranker.records import thrift
from tml.projects.light_ranker.records.tensors import (
    DataType,
    GeneralTensor,
    ListKind,
    ListTensor,
    RawTensor,
    SparseTensor,
)
from tml.projects.light_ranker.records.thrift import BOOL, DOUBLE, I32, I64, LIST, STRING, STRUCT, Fields, ThriftReader

_RAW = 1
# List kind -> (thrift type, bytes of an element, code of an element in `struct`).
_ELEMENTS = {
    ListKind.INT32: (I32, 4, "i"),
    ListKind.INT64: (I64, 8, "q"),
    ListKind.FLOAT: (DOUBLE, 8, "d"),
    ListKind.DOUBLE: (DOUBLE, 8, "d"),
    ListKind.BOOL: (BOOL, 1, "B"),
}
_GENERAL: Fields = {_RAW: ("raw tensor", STRUCT), **{kind: (f"{kind.name} tensor", STRUCT) for kind in ListKind}}
_RAW_FIELDS: Fields = {1: ("data type", I32), 2: ("content", STRING), 3: ("shape", LIST)}
_LIST_FIELDS: Fields = {1: ("values", LIST), 2: ("shape", LIST)}
_SPARSE: Fields = {1: ("COO tensor", STRUCT)}
_COO_FIELDS: Fields = {1: ("shape", LIST), 2: ("indices", STRUCT), 3: ("values", STRUCT)}


def read_tensor(reader: ThriftReader) -> GeneralTensor:
    """Reads a GeneralTensor where the reader stands."""
    return _union(reader, _GENERAL, lambda kind: _read_raw(reader) if kind == _RAW else _read_list(reader, kind))


def read_sparse_tensor(reader: ThriftReader) -> SparseTensor:
    """Reads a SparseTensor where the reader stands."""
    return _union(reader, _SPARSE, lambda kind: _read_coo(reader))


def write_tensor(tensor: GeneralTensor) -> bytes:
    """The bytes of a GeneralTensor."""
    if isinstance(tensor, RawTensor):
        content = thrift.pack_blob(tensor.content)
        inner = (_field(I32, 1, struct.pack(">i", tensor.dtype)), _field(STRING, 2, content), _shape(3, tensor.shape))
        return _struct(_field(STRUCT, _RAW, _struct(*inner)))
    return _struct(_field(STRUCT, tensor.kind, _list_body(tensor)))


def write_sparse_tensor(tensor: SparseTensor) -> bytes:
    """The bytes of a SparseTensor."""
    indices, values = _list_body(tensor.indices), write_tensor(tensor.values)
    inner = (_shape(1, tensor.shape), _field(STRUCT, 2, indices), _field(STRUCT, 3, values))
    return _struct(_field(STRUCT, 1, _struct(*inner)))


def _union(reader: ThriftReader, known: Fields, read: Callable[[int], Any]) -> Any:
    found = [read(kind) for kind in reader.fields(known)]
    if len(found) != 1:
        raise reader.fault("tensor is not of exactly one kind", len(found), "1")
    return found[0]


def _read_raw(reader: ThriftReader) -> RawTensor:
    found: dict[int, Any] = {}
    for number in reader.fields(_RAW_FIELDS):
        found[number] = (_data_type, ThriftReader.blob, _dims)[number - 1](reader)
    _require(reader, found, 1, 2)
    return RawTensor(found[1], found[2], found.get(3))


def _read_list(reader: ThriftReader, kind: int) -> ListTensor:
    found: dict[int, Any] = {}
    for number in reader.fields(_LIST_FIELDS):
        found[number] = _values(reader, ListKind(kind)) if number == 1 else _dims(reader)
    _require(reader, found, 1)
    return ListTensor(ListKind(kind), found[1], found.get(2))


def _read_coo(reader: ThriftReader) -> SparseTensor:
    found: dict[int, Any] = {}
    for number in reader.fields(_COO_FIELDS):
        if number == 2:
            found[number] = _read_list(reader, ListKind.INT64)
        else:
            found[number] = _dims(reader) if number == 1 else read_tensor(reader)
    _require(reader, found, 1, 2, 3)
    return SparseTensor(found[1], found[2], found[3])


def _values(reader: ThriftReader, kind: ListKind) -> tuple[Any, ...]:
    if kind == ListKind.STRING:
        return tuple(reader.text() for _ in range(reader.header(STRING, item_bytes=4)))
    element, item_bytes, code = _ELEMENTS[kind]
    values = reader.numbers(reader.header(element, item_bytes=item_bytes), code, item_bytes)
    if kind != ListKind.BOOL:
        return values
    if any(value > 1 for value in values):
        raise reader.fault("boolean is neither 0 nor 1", max(values), "0 or 1")
    return tuple(map(bool, values))


def _data_type(reader: ThriftReader) -> DataType:
    number = reader.i32()
    try:
        return DataType(number)
    except ValueError:
        raise reader.fault("element type is unknown", number, f"0 to {max(DataType)}") from None


def _dims(reader: ThriftReader) -> tuple[int, ...]:
    return reader.numbers(reader.header(I64, item_bytes=8), "q", 8)


def _require(reader: ThriftReader, found: dict[int, Any], *numbers: int) -> None:
    missing = [number for number in numbers if number not in found]
    if missing:
        raise reader.fault("tensor lacks a field", missing, f"fields {numbers}")


def _list_body(tensor: ListTensor) -> bytes:
    if tensor.kind == ListKind.STRING:
        element, items = STRING, b"".join(map(thrift.pack_text, tensor.values))  # type: ignore[arg-type]
    else:
        element, _, code = _ELEMENTS[tensor.kind]
        items = struct.pack(f">{len(tensor.values)}{code}", *tensor.values)
    values = thrift.container_header(element, count=len(tensor.values)) + items
    return _struct(_field(LIST, 1, values), _shape(2, tensor.shape))


def _shape(number: int, shape: tuple[int, ...] | None) -> bytes:
    if shape is None:
        return b""
    return _field(LIST, number, thrift.container_header(I64, count=len(shape)) + struct.pack(f">{len(shape)}q", *shape))


def _field(kind: int, number: int, value: bytes) -> bytes:
    return thrift.field_header(kind, number) + value


def _struct(*fields: bytes) -> bytes:
    return b"".join(fields) + b"\0"
