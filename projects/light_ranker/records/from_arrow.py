"""Rows of an Arrow table as DataRecords."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from tml.common.errors import DataError
from tml.core.config.base_config import did_you_mean
from tml.projects.light_ranker.records.codec import encode_record
from tml.projects.light_ranker.records.columns import OnError
from tml.projects.light_ranker.records.data_record import DataRecord, OrderedSet
from tml.projects.light_ranker.records.table_config import FeatureColumn, LabelColumn, NamedId, RecordTableConfig
from tml.projects.light_ranker.records.tensors import tensor_of
from tml.projects.light_ranker.records.to_arrow import arrow_type


class _BadValueError(Exception):
    """A value that no record can hold."""


def records_of(
    table: pa.Table | pa.RecordBatch,
    config: RecordTableConfig,
    where: object = "table",
    first: int = 0,
    on_error: OnError = "fail",
) -> list[bytes]:
    """The records of a table's rows, as bytes; the reverse of `to_arrow.table_of`.

    Nulls, NaN values, false flags, labels with the default value and weights of 0 are left out of the record, where
    reading gives them back.

    Args:
        table: with the columns of the config; others are not looked at.
        config: the columns.
        where, first: the file and the number of the first row in it, for messages.
        on_error: "skip" leaves out rows with a bad label (other than 0 or 1 where binary, or infinite) or weight
            (negative or not finite). Their number is `table.num_rows - len(records)`.

    Raises:
        DataError: a column is missing or of a type that cannot become the feature's; a row is bad.
    """
    check_columns(table.schema.names, config, where)
    records = [DataRecord() for _ in range(table.num_rows)]
    bad: dict[int, DataError] = {}
    for column in config.all_columns:
        values = _values(table, column, where)
        put = _putter(column, config)
        for row, value in enumerate(values):
            if value is None:
                continue
            try:
                put(records[row], value)
            except _BadValueError as fault:
                bad[row] = DataError(
                    str(fault), where=f"{where}, row {first + row}, column {column.column_name!r}", value=value,
                    fix="mend the row, or skip bad rows",
                )  # fmt: skip
    if bad and on_error == "fail":
        raise bad[min(bad)]
    return [encode_record(record) for row, record in enumerate(records) if row not in bad]


def check_columns(names: Sequence[str], config: RecordTableConfig, where: object) -> None:
    """Refuses a table that lacks a column of the config; `DataError` names it and the nearest there is."""
    for column in config.all_columns:
        if column.column_name not in names:
            raise DataError(
                f"column is missing{did_you_mean(column.column_name, names)}", where=where, value=column.column_name,
                limit="every column of the config", fix="mend the config, or rename the column",
            )  # fmt: skip


def _values(table: pa.Table | pa.RecordBatch, column: NamedId, where: object) -> list[Any]:
    found = table.column(column.column_name)
    expected = arrow_type(column) if isinstance(column, FeatureColumn) else pa.float64()
    if pa.types.is_boolean(expected) and pa.types.is_integer(found.type):
        expected = pa.int64()  # 0 and 1 will do, and nothing else: Arrow would take 2 for true
    try:
        if pa.types.is_boolean(expected) and not pa.types.is_boolean(found.type):
            raise pa.ArrowInvalid("neither flags nor integers")
        return found.cast(expected).to_pylist()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(
            "column cannot become the feature", where=f"{where}, column {column.column_name!r}",
            value=f"{found.type}: {error}", limit=f"{expected}, or a type that widens to it",
            fix="write the column in that type, or change the feature's",
        ) from None  # fmt: skip


def _putter(column: NamedId, config: RecordTableConfig) -> Callable[[DataRecord, Any], None]:
    """Puts a value that is not null into a record."""
    key = column.key
    if isinstance(column, FeatureColumn):
        put = _PUT[column.type]
        return lambda record, value: put(record, key, value, column)
    if isinstance(column, LabelColumn):
        return lambda record, value: _put_label(record, key, value, column, config.default_label)
    return lambda record, value: _put_weight(record, key, value)


def _put_label(record: DataRecord, key: int, value: float, label: LabelColumn, default: float) -> None:
    if math.isnan(value) or value == default:
        return
    if label.type == "continuous":
        if math.isinf(value):
            raise _BadValueError("label is infinite")
        record.continuous[key] = value
    elif value == 1:
        record.binary.add(key)
    else:
        raise _BadValueError("binary label is neither 0 nor 1")


def _put_weight(record: DataRecord, key: int, value: float) -> None:
    if not 0 <= value < math.inf:
        raise _BadValueError("weight is negative or not finite")
    if value:
        record.continuous[key] = value


def _put_flag(record: DataRecord, key: int, value: bool | int, feature: FeatureColumn) -> None:
    if value not in (0, 1):
        raise _BadValueError("flag is neither 0 nor 1")
    if value:
        record.binary.add(key)


def _put_number(record: DataRecord, key: int, value: float, feature: FeatureColumn) -> None:
    if not math.isnan(value):
        record.continuous[key] = value


def _put_integer(record: DataRecord, key: int, value: int, feature: FeatureColumn) -> None:
    record.discrete[key] = value


def _put_string(record: DataRecord, key: int, value: str, feature: FeatureColumn) -> None:
    record.string[key] = value


def _put_blob(record: DataRecord, key: int, value: bytes, feature: FeatureColumn) -> None:
    record.blobs[key] = value


def _put_texts(record: DataRecord, key: int, value: list[str | None], feature: FeatureColumn) -> None:
    texts = OrderedSet(text for text in value if text is not None)
    if texts:
        record.sparse_binary[key] = texts


def _put_weights(record: DataRecord, key: int, value: list[tuple[str, float | None]], feature: FeatureColumn) -> None:
    weights = {text: weight for text, weight in value if weight is not None and not math.isnan(weight)}
    if weights:
        record.sparse_continuous[key] = weights


def _put_tensor(record: DataRecord, key: int, value: list[float | None], feature: FeatureColumn) -> None:
    if None in value:
        raise _BadValueError("tensor has a missing element")
    record.tensors[key] = tensor_of(np.array(value, feature.dtype))


_PUT: dict[str, Callable[[DataRecord, int, Any, FeatureColumn], None]] = {
    "binary": _put_flag,
    "continuous": _put_number,
    "discrete": _put_integer,
    "string": _put_string,
    "blob": _put_blob,
    "sparse_binary": _put_texts,
    "sparse_continuous": _put_weights,
    "tensor": _put_tensor,
}
