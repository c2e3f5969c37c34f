"""Raw columns of any origin, text or typed, as arrays of one kind: ids, numbers, and lists of either.

Letters: `n` values of a column, `m` items of all lists of a column.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tml.common.errors import DataError

ValueType = Literal["int", "string"]
Raw = Any  # a sequence, a NumPy array or an Arrow array, chunked or not

_EXACT_IN_FLOAT = 2.0**53


@dataclass(frozen=True)
class Ids:
    """Ids of one type.

    Args:
        values: int64 [n], or a large_string array [n]; anything where there is none.
        missing: bool [n], or None if none is missing.
        foreign: bool [n], ids that are not of the type, such as text among integers; None if there are none.
    """

    values: np.ndarray | pa.Array
    missing: np.ndarray | None = None
    foreign: np.ndarray | None = None


@dataclass(frozen=True)
class Lists:
    """Lists of one column: their joined items and their lengths (int64 [n]; a missing list has none)."""

    items: pa.Array | np.ndarray
    lengths: np.ndarray


def as_array(raw: Raw, where: str) -> pa.Array:
    """Any column as one Arrow array, without dictionary encoding.

    Raises:
        DataError: values of different kinds are mixed.
    """
    if isinstance(raw, pa.ChunkedArray):
        raw = raw.combine_chunks()
    if not isinstance(raw, pa.Array):
        raw = _from_python(raw, where)
    if pa.types.is_dictionary(raw.type):
        raw = raw.dictionary_decode()
    return raw


def _from_python(raw: Sequence[Any] | np.ndarray, where: str) -> pa.Array:
    if isinstance(raw, np.ndarray) and raw.ndim > 1:
        raw = list(raw)
    try:
        return pa.array(raw, from_pandas=True)
    except (pa.ArrowException, OverflowError) as error:
        raise DataError(
            "a column holds values of different kinds", where=where, value=str(error), limit="one kind of values",
            fix="give numbers, or text, or lists of them, with None for missing values",
        ) from None  # fmt: skip


def value_type(kind: pa.DataType, where: str) -> ValueType:
    """Which type ids of an Arrow type become.

    Raises:
        DataError: there are no ids of such a type.
    """
    kind = _item_type(kind)
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_floating(kind):
        return "int"
    if is_text(kind) or pa.types.is_null(kind) or pa.types.is_temporal(kind):
        return "string"
    raise DataError(
        "a column of this type cannot be ids", where=where, value=str(kind), limit="integers, booleans, text or dates"
    )


def is_text(kind: pa.DataType) -> bool:
    """Whether an Arrow type is text."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def is_list(kind: pa.DataType) -> bool:
    """Whether an Arrow type is a list."""
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _item_type(kind: pa.DataType) -> pa.DataType:
    if is_list(kind):
        kind = kind.value_type
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def as_ids(raw: Raw, kind: ValueType, where: str) -> Ids:
    """A column as ids of a type.

    Floats without a fraction count as integers, as data frames make them of integers with gaps.

    Raises:
        DataError: numbers with a fraction, or a type that has no ids.
    """
    if kind == "int" and isinstance(raw, np.ndarray) and raw.dtype.kind in "iu" and raw.dtype != np.uint64:
        return Ids(raw.astype(np.int64, copy=False))
    array = as_array(raw, where)
    if pa.types.is_floating(array.type):
        array = _whole_numbers(array, where)
    elif pa.types.is_boolean(array.type):
        array = array.cast(pa.int8())
    elif not (pa.types.is_integer(array.type) or is_text(array.type)):
        value_type(array.type, where)
        if is_list(array.type):
            raise _unexpected(array.type, where, "one id per row", "declare the feature with `kind: ids`")
        array = array.cast(pa.large_string())
    return _integers(array, where) if kind == "int" else _texts(array)


def _whole_numbers(array: pa.Array, where: str) -> pa.Array:
    numbers = array.cast(pa.float64()).to_numpy(zero_copy_only=False)
    missing = np.isnan(numbers)
    filled = np.where(missing, 0.0, numbers)
    wrong = (filled != np.floor(filled)) | (np.abs(filled) > _EXACT_IN_FLOAT)
    if wrong.any():
        row = int(wrong.argmax())
        raise DataError(
            "an id is a number with a fraction", where=f"{where}, value {row}", value=float(numbers[row]),
            limit="integers up to 2**53, or text",
            fix="declare the feature with `kind: continuous`, or write the column as integers or text",
        )  # fmt: skip
    return pa.array(filled.astype(np.int64), mask=missing)


def _integers(array: pa.Array, where: str) -> Ids:
    foreign = None
    if not pa.types.is_integer(array.type):
        array, foreign = _parsed_integers(array.cast(pa.large_string()))
    missing = _nulls(array)
    try:
        values = pc.fill_null(array, 0).cast(pa.int64())
    except pa.ArrowInvalid as error:
        raise DataError("an id is too large", where=where, value=str(error), limit="below 2**63") from None
    return Ids(values.to_numpy(zero_copy_only=False), missing, foreign)


def _parsed_integers(texts: pa.Array) -> tuple[pa.Array, np.ndarray | None]:
    """Integers of texts, and which texts are none; only the canonical text of a number is taken for it."""
    digits = pc.utf8_ltrim(texts, "-")
    fits = pc.or_(pc.less(pc.utf8_length(digits), 19), pc.less_equal(digits, str(2**63 - 1)))
    is_number = pc.fill_null(pc.and_(pc.match_substring_regex(texts, r"^(0|-?[1-9][0-9]{0,18})$"), fits), False)
    numbers = pc.if_else(is_number, texts, pa.scalar(None, texts.type)).cast(pa.int64())
    foreign = pc.and_(pc.is_valid(texts), pc.invert(is_number)).to_numpy(zero_copy_only=False)
    return pc.if_else(pa.array(foreign), pa.scalar(0, pa.int64()), numbers), foreign if foreign.any() else None


def _texts(array: pa.Array) -> Ids:
    texts = array.cast(pa.large_string())
    missing = _nulls(texts)
    return Ids(pc.fill_null(texts, ""), missing)


def _nulls(array: pa.Array) -> np.ndarray | None:
    return pc.is_null(array).to_numpy(zero_copy_only=False) if array.null_count else None


def as_numbers(raw: Raw, where: str) -> tuple[np.ndarray, np.ndarray | None]:
    """A column as numbers.

    Returns:
        float64 or float32 [n] with NaN where missing, and which values were text that is no number (bool [n], or None).

    Raises:
        DataError: a type that has no numbers.
    """
    if isinstance(raw, np.ndarray) and raw.dtype.kind in "iufb" and raw.ndim == 1:
        return (raw if raw.dtype.kind == "f" else raw.astype(np.float64)), None
    array = as_array(raw, where)
    if is_text(array.type):
        return _parsed_numbers(array)
    kind = array.type
    if pa.types.is_boolean(kind):
        array = array.cast(pa.int8())
    elif pa.types.is_null(kind):
        return np.full(len(array), np.nan, np.float32), None
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        raise _unexpected(kind, where, "numbers", "declare the feature with another kind, or convert the column")
    if not pa.types.is_float32(array.type):
        array = array.cast(pa.float64(), safe=False)
    return array.to_numpy(zero_copy_only=False), None


def _parsed_numbers(texts: pa.Array) -> tuple[np.ndarray, np.ndarray | None]:
    trimmed = pc.utf8_trim_whitespace(texts)
    try:
        return trimmed.cast(pa.float64()).to_numpy(zero_copy_only=False), None
    except pa.ArrowInvalid:
        values = [parse_number(text) for text in trimmed.to_pylist()]
    numbers = np.array([np.nan if value is None else value for value in values])
    return numbers, np.array([value is None for value in values])


def parse_number(text: str | None) -> float | None:
    """The number that a text means, NaN for None, or None if it means none."""
    if text is None:
        return np.nan
    try:
        return float(text) if "_" not in text else None
    except ValueError:
        return None


def as_lists(raw: Raw, where: str, separator: str | None = None) -> Lists:
    """A column of lists; text is split at the separator, and empty parts are no items.

    Raises:
        DataError: the column holds no lists.
    """
    array = as_array(raw, where)
    if is_text(array.type):
        if separator is None:
            raise _unexpected(array.type, where, "lists", "name the `separator` that splits the text")
        array = pc.split_pattern(array, pattern=separator)
        return _without_empty_texts(array)
    if pa.types.is_null(array.type):
        return Lists(pa.array([], pa.large_string()), np.zeros(len(array), np.int64))
    if not is_list(array.type):
        raise _unexpected(array.type, where, "lists", "declare the feature as categorical or continuous")
    return Lists(array.flatten(), _lengths(array))


def _without_empty_texts(lists: pa.Array) -> Lists:
    items, lengths = lists.flatten(), _lengths(lists)
    full = pc.not_equal(items, "").to_numpy(zero_copy_only=False)
    rows = np.repeat(np.arange(len(lengths)), lengths)
    return Lists(items.filter(pa.array(full)), np.bincount(rows[full], minlength=len(lengths)))


def _lengths(lists: pa.Array) -> np.ndarray:
    return pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int64)


def _unexpected(kind: pa.DataType, where: str, limit: str, fix: str) -> DataError:
    return DataError("a column has the wrong type", where=where, value=str(kind), limit=limit, fix=fix)
