"""Requests as columns: what callers pass, checked against the model's features.

Letters: `N` rows.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tml.common.errors import DataError
from tml.projects.light_ranker.serving.signature import FeatureInfo

Candidates = Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Any]] | pa.Table | pa.RecordBatch
Columns = dict[str, Any]
# What may be asked for, by the column of a request; a column may serve several features.
Known = Mapping[str, Sequence[FeatureInfo]]

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
        Columns by feature, and `N`.

    Raises:
        DataError: an unknown feature, columns of different lengths, or a value of the wrong type, NaN or infinite.
    """
    if isinstance(rows, pa.Table | pa.RecordBatch):
        columns: Columns = {name: _combined(rows.column(name)) for name in rows.schema.names}
        num_rows = rows.num_rows
    elif isinstance(rows, Mapping):
        columns, num_rows = dict(rows), _common_length(rows, where)
    else:
        columns, num_rows = _by_column(rows, where), len(rows)
    for name, values in columns.items():
        if name not in features:
            raise _unknown(name, features, where)
        for feature in features[name]:
            _check_values(values, feature, where)
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


def _combined(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _unknown(name: str, features: Known, where: str) -> DataError:
    nearest = difflib.get_close_matches(str(name), features, n=1)
    return DataError(
        "the model has no such feature", where=where, value=name, limit=f"one of {', '.join(features) or 'none'}",
        fix=f"did you mean {nearest[0]!r}?" if nearest else "leave it out, or pass it on the side it belongs to",
    )  # fmt: skip


def _check_values(values: Any, feature: FeatureInfo, where: str) -> None:
    if isinstance(values, pa.Array):
        _check_arrow(values, feature, where)
    elif isinstance(values, np.ndarray) and values.dtype.kind in "iuf":
        _check_numpy(values, feature, where)
    else:
        for row, value in enumerate(values):
            if value is not None:
                _check_value(value, row, feature, where)


def _check_arrow(values: pa.Array, feature: FeatureInfo, where: str) -> None:
    if pa.types.is_null(values.type):
        return
    is_list = pa.types.is_list(values.type) or pa.types.is_large_list(values.type)
    is_list = is_list or pa.types.is_fixed_size_list(values.type)
    element = values.type.value_type if is_list else values.type
    if is_list != feature.dtype.startswith("list") or not _arrow_type_fits(element, feature):
        raise _wrong(feature, where, None, str(values.type))
    if pa.types.is_floating(element) and not is_list:
        bad = pc.invert(pc.fill_null(pc.is_finite(values), True))
        if pc.any(bad).as_py():
            row = pc.index(bad, True).as_py()
            raise _wrong(feature, where, row, values[row].as_py())
    elif is_list:
        for row, value in enumerate(values.to_pylist()):
            if value is not None:
                _check_value(value, row, feature, where)


def _arrow_type_fits(kind: pa.DataType, feature: FeatureInfo) -> bool:
    if feature.kind != "id":
        return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    if "int64" in feature.dtype:
        return pa.types.is_integer(kind)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _check_numpy(values: np.ndarray, feature: FeatureInfo, where: str) -> None:
    fits = values.dtype.kind in "iu" if feature.kind == "id" else True
    if not fits or values.ndim != 1 + feature.dtype.startswith("list") or feature.dtype.endswith("string"):
        raise _wrong(feature, where, None, f"array of {values.dtype}, {values.ndim} dimensions")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        row = int(np.argwhere(~np.isfinite(values))[0][0])
        raise _wrong(feature, where, row, values[row])


def _check_value(value: Any, row: int, feature: FeatureInfo, where: str) -> None:
    if not feature.dtype.startswith("list"):
        fits = _scalar_fits(value, feature)
    elif isinstance(value, list | tuple | np.ndarray):
        fits = all(_scalar_fits(item, feature) for item in value)
        fits = fits and (feature.kind != "vector" or len(value) == feature.size)
    else:
        fits = False
    if not fits:
        raise _wrong(feature, where, row, value)


def _scalar_fits(value: Any, feature: FeatureInfo) -> bool:
    if feature.kind != "id":
        return isinstance(value, (*_NUMBERS, bool)) and bool(abs(value) <= _LARGEST)
    if "int64" in feature.dtype:
        return isinstance(value, _INTEGERS) and not isinstance(value, bool) and -(2**63) <= value < 2**63
    return isinstance(value, str)


def _wrong(feature: FeatureInfo, where: str, row: int | None, value: Any) -> DataError:
    limits = {"id": feature.dtype, "continuous": "a finite number", "vector": f"{feature.size} finite numbers"}
    return DataError(
        "a value of the wrong type or range",
        where=f"{where}{'' if row is None else f', row {row}'}, feature {feature.column!r}",
        value=value,
        limit=f"{limits[feature.kind]}, or null for the default ({feature.default!r})",
        fix="pass a value of that type, or leave the feature out",
    )
