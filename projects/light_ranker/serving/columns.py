"""Requests as columns: what callers pass, checked against the model's features.

Whole columns are checked at once; only after a fault are values looked at one by one, to name the first bad one.

Letters: `N` rows.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tml.common.errors import DataError
from tml.projects.light_ranker.serving.signature import FeatureInfo

Candidates: TypeAlias = Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Any]] | pa.Table | pa.RecordBatch
Columns = dict[str, Any]
# What may be asked for, by the column of a request; a column may serve several features.
Known = Mapping[str, Sequence[FeatureInfo]]

_IDS = ("id", "key")
_INTEGERS, _NUMBERS = (int, np.integer), (int, float, np.integer, np.floating)
_LARGEST = float(np.finfo(np.float32).max)


def by_column(features: Iterable[FeatureInfo]) -> Known:
    """Features by the column that a request passes them in."""
    found: dict[str, list[FeatureInfo]] = {}
    for feature in features:
        found.setdefault(feature.column, []).append(feature)
    return found


def row_columns(row: Mapping[str, Any], features: Known) -> Columns:
    """One row's features as columns of one value.

    Raises:
        DataError: as in `columns_of`.
    """
    if not isinstance(row, Mapping):
        raise DataError("features must come by name", where="user", value=row, limit="a mapping of feature to value")
    return columns_of([row], features, "user")[0]


def columns_of(rows: Candidates, features: Known, where: str = "candidates") -> tuple[Columns, int]:
    """Rows as columns, every value of a type that its feature can take.

    Args:
        rows: one mapping per row, or one sequence per feature, or an Arrow table.
        features: those that may be named, by their column.
        where: for messages.

    Returns:
        Arrow arrays by column, and `N`.

    Raises:
        DataError: an unknown feature, columns of different lengths, or a value of the wrong type, NaN or infinite,
            or a null within a vector.
    """
    if isinstance(rows, pa.Table | pa.RecordBatch):
        given: dict[str, Any] = {name: rows.column(name) for name in rows.schema.names}
        num_rows = rows.num_rows
    elif isinstance(rows, Mapping):
        given, num_rows = dict(rows), _common_length(rows, where)
    else:
        given, num_rows = _by_column(rows, where), len(rows)
    columns = {}
    for name, values in given.items():
        if name not in features:
            raise _unknown(name, features, where)
        columns[name] = _checked(values, features[name], where)
    return columns, num_rows


def _by_column(rows: Sequence[Mapping[str, Any]], where: str) -> Columns:
    if isinstance(rows, str | bytes) or not isinstance(rows, Sequence):
        raise DataError("candidates are no rows", where=where, value=rows, limit="a list of mappings, columns, a table")
    names: dict[str, None] = {}
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise DataError("features must come by name", where=f"{where}, row {number}", value=row, limit="a mapping")
        names.update(dict.fromkeys(row))
    return {name: [row.get(name) for row in rows] for name in names}


def _common_length(columns: Mapping[str, Sequence[Any]], where: str) -> int:
    lengths = {}
    for name, values in columns.items():
        if isinstance(values, str | bytes | Mapping) or not hasattr(values, "__len__"):
            raise DataError(
                "a column is no list", where=f"{where}, feature {name!r}", value=values, limit="one value per row"
            )
        lengths[name] = len(values)
    if len(set(lengths.values())) > 1:
        raise DataError("columns differ in length", where=where, value=lengths, limit="one value per row in each")
    return next(iter(lengths.values()), 0)


def _unknown(name: str, features: Known, where: str) -> DataError:
    nearest = difflib.get_close_matches(str(name), features, n=1)
    return DataError(
        "the model has no such feature", where=where, value=name, limit=f"one of {', '.join(features) or 'none'}",
        fix=f"did you mean {nearest[0]!r}?" if nearest else "leave it out, or pass it on the side it belongs to",
    )  # fmt: skip


def _checked(values: Any, features: Sequence[FeatureInfo], where: str) -> pa.Array:
    """The values as one array, if every feature of the column can take them; else the error names the first bad one."""
    array = _as_array(values)
    for feature in features:
        if array is None or not _fits(array, feature):
            # As they were given: an array of integers and numbers would show all of them as numbers.
            one_by_one = values.to_pylist() if isinstance(values, pa.Array | pa.ChunkedArray) else values
            for row, value in enumerate(one_by_one):
                if value is not None:
                    _check_value(value, row, feature, where)
            raise _wrong(feature, where, None, "values of several types" if array is None else str(array.type))
    return array


def _as_array(values: Any) -> pa.Array | None:
    """One array of the type that the values have themselves; None if they have no common one."""
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if not isinstance(values, pa.Array):
        try:
            values = pa.array(list(values) if isinstance(values, np.ndarray) and values.ndim > 1 else values)
        except (pa.ArrowException, ValueError, TypeError, OverflowError):
            return None
    return values.dictionary_decode() if pa.types.is_dictionary(values.type) else values


def _fits(array: pa.Array, feature: FeatureInfo) -> bool:
    kind, is_list = array.type, feature.dtype.startswith("list")
    if pa.types.is_null(kind):
        return True
    if is_list:
        if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
            return False
        lengths = pc.list_value_length(array) if feature.kind == "vector" else None
        if lengths is not None and not pc.all(pc.equal(lengths, feature.size)).as_py():
            return len(array) == array.null_count
        array, kind = array.flatten(), kind.value_type
        if feature.kind == "vector" and array.null_count:
            return False  # as in a table, a vector is missing as a whole or not at all
    if feature.kind in _IDS:
        texts = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        return pa.types.is_null(kind) or (pa.types.is_integer(kind) if "int64" in feature.dtype else texts)
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return True
    # Neither NaN nor infinity is at most the largest float32; null is left out.
    return pa.types.is_floating(kind) and pc.all(pc.less_equal(pc.abs(array), _LARGEST)).as_py() is not False


def _check_value(value: Any, row: int, feature: FeatureInfo, where: str) -> None:
    if not feature.dtype.startswith("list"):
        fits = _scalar_fits(value, feature)
    elif isinstance(value, list | tuple | np.ndarray):
        is_vector = feature.kind == "vector"
        fits = all(_scalar_fits(item, feature) or (item is None and not is_vector) for item in value)
        fits = fits and (not is_vector or len(value) == feature.size)
    else:
        fits = False
    if not fits:
        raise _wrong(feature, where, row, value)


def _scalar_fits(value: Any, feature: FeatureInfo) -> bool:
    if feature.kind not in _IDS:
        return isinstance(value, (*_NUMBERS, bool)) and bool(abs(value) <= _LARGEST)  # type: ignore[operator]
    if "int64" in feature.dtype:
        return isinstance(value, _INTEGERS) and not isinstance(value, bool) and -(2**63) <= int(value) < 2**63
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _wrong(feature: FeatureInfo, where: str, row: int | None, value: Any) -> DataError:
    limits = {"continuous": "a finite number", "vector": f"{feature.size} finite numbers"}
    return DataError(
        "a value of the wrong type or range",
        where=f"{where}{'' if row is None else f', row {row}'}, feature {feature.column!r}",
        value=value,
        limit=f"{limits.get(feature.kind, feature.dtype)}, or null for the default ({feature.default!r})",
        fix="pass a value of that type, or leave the feature out",
    )
