"""The tensors that a DataRecord may hold, in the forms that the wire has for them, and their numpy arrays.

A dense tensor is either raw (the elements' own bytes, little endian) or a list (of doubles, integers, booleans or
strings, as thrift writes them). Which of the two it was is kept, so that a record is written as it was read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np

from tml.common.errors import DataError


class DataType(IntEnum):
    """Element type of a raw tensor."""

    FLOAT = 0
    DOUBLE = 1
    INT32 = 2
    INT64 = 3
    UINT8 = 4
    STRING = 5
    BYTE = 6
    BOOL = 7


class ListKind(IntEnum):
    """What a list tensor holds; the number is its field in the union GeneralTensor."""

    STRING = 2
    INT32 = 3
    INT64 = 4
    FLOAT = 5
    DOUBLE = 6
    BOOL = 7


RAW_DTYPES: dict[DataType, np.dtype[Any]] = {
    DataType.FLOAT: np.dtype("<f4"),
    DataType.DOUBLE: np.dtype("<f8"),
    DataType.INT32: np.dtype("<i4"),
    DataType.INT64: np.dtype("<i8"),
    DataType.UINT8: np.dtype("u1"),
    DataType.BYTE: np.dtype("i1"),
    DataType.BOOL: np.dtype("?"),
}
_RAW_TYPE_OF = {dtype: kind for kind, dtype in RAW_DTYPES.items()}
_LIST_DTYPES: dict[ListKind, np.dtype[Any]] = {
    ListKind.INT32: np.dtype("<i4"),
    ListKind.INT64: np.dtype("<i8"),
    ListKind.FLOAT: np.dtype("<f4"),
    ListKind.DOUBLE: np.dtype("<f8"),
    ListKind.BOOL: np.dtype("?"),
}


@dataclass(frozen=True)
class RawTensor:
    """A tensor as bytes.

    Args:
        dtype: of the elements.
        content: the elements, little endian, in C order.
        shape: None when the writer gave none: one dimension.
    """

    dtype: DataType
    content: bytes
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class ListTensor:
    """A tensor as a list of values.

    Args:
        kind: of the values; floats travel as doubles.
        values: in C order: str, int, float or bool.
        shape: None when the writer gave none: one dimension.
    """

    kind: ListKind
    values: tuple[str, ...] | tuple[int, ...] | tuple[float, ...] | tuple[bool, ...]
    shape: tuple[int, ...] | None = None


GeneralTensor = RawTensor | ListTensor


@dataclass(frozen=True)
class SparseTensor:
    """A tensor in coordinate form.

    Args:
        shape: of the dense tensor.
        indices: INT64 list of shape [num_values, num_dims].
        values: [num_values].
    """

    shape: tuple[int, ...]
    indices: ListTensor
    values: GeneralTensor


def tensor_of(array: np.ndarray) -> GeneralTensor:
    """The tensor that the original writes for an array: raw, and a list for strings.

    Raises:
        DataError: the element type has no place in a record.
    """
    array = np.asarray(array)
    shape = tuple(array.shape)
    if array.dtype.kind in "UO" and all(isinstance(value, str) for value in array.flat):
        return ListTensor(ListKind.STRING, tuple(str(value) for value in array.flat), shape)
    kind = _RAW_TYPE_OF.get(array.dtype.newbyteorder("<"))
    if kind is None:
        raise DataError(
            "array cannot become a tensor", where="tensor", value=str(array.dtype),
            limit=", ".join(dtype.name for dtype in RAW_DTYPES.values()) + " or strings", fix="convert the array first",
        )  # fmt: skip
    return RawTensor(kind, np.ascontiguousarray(array, RAW_DTYPES[kind]).tobytes(), shape)


def array_of(tensor: GeneralTensor, where: object = "tensor") -> np.ndarray:
    """The array of a tensor, [shape], of its own element type (objects for strings).

    Raises:
        DataError: the number of elements does not fit the shape, or the bytes are no whole elements.
    """
    if isinstance(tensor, ListTensor):
        dtype = _LIST_DTYPES.get(tensor.kind, np.dtype(object))
        with np.errstate(over="ignore"):  # a double beyond float32 becomes infinite, as in the original
            flat = np.array(tensor.values, dtype)
    elif tensor.dtype not in RAW_DTYPES:
        raise DataError("raw tensor of strings has no fixed layout", where=where, fix="write it as a list of strings")
    else:
        dtype = RAW_DTYPES[tensor.dtype]
        if len(tensor.content) % dtype.itemsize:
            raise DataError(
                "raw tensor ends within an element", where=where, value=f"{len(tensor.content)} bytes",
                limit=f"a multiple of {dtype.itemsize} ({dtype.name})",
            )  # fmt: skip
        flat = np.frombuffer(tensor.content, dtype)
    shape = tensor.shape if tensor.shape is not None else (len(flat),)
    if min(shape, default=0) < 0 or math.prod(shape) != len(flat):
        raise DataError(
            "tensor's shape does not fit its elements", where=where, value=shape, limit=f"{len(flat)} elements"
        )
    return flat.reshape(shape)
