"""DataRecords as the columns of an Arrow table. Letters: `B` records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from tml.common.errors import DataError
from tml.projects.light_ranker.records.columns import Entries, OnError, RecordColumns, decode_columns
from tml.projects.light_ranker.records.feature_ids import ragged_arange
from tml.projects.light_ranker.records.table_config import FeatureColumn, RecordTableConfig
from tml.projects.light_ranker.records.targets import read_labels, read_weights
from tml.projects.light_ranker.records.tensor_codec import read_tensor
from tml.projects.light_ranker.records.tensors import array_of
from tml.projects.light_ranker.records.thrift import ThriftReader

_TYPES = {
    "binary": pa.bool_(),
    "continuous": pa.float64(),
    "discrete": pa.int64(),
    "string": pa.string(),
    "sparse_binary": pa.list_(pa.string()),
    "sparse_continuous": pa.map_(pa.string(), pa.float64()),
    "blob": pa.binary(),
}
_ENTRIES_OF = {"blob": "blobs", "tensor": "tensors"}


@dataclass
class RowCounts:
    """What became of records on their way into a table.

    Args:
        rows: written.
        skipped_records: bad records left out.
        missing_labels: labels that were missing or NaN and got the default.
        missing_weights: records without a weight, which got 0.
    """

    rows: int = 0
    skipped_records: int = 0
    missing_labels: int = 0
    missing_weights: int = 0


def arrow_type(feature: FeatureColumn) -> pa.DataType:
    """The type of a feature's column."""
    return pa.list_(pa.type_for_alias(feature.dtype)) if feature.type == "tensor" else _TYPES[feature.type]


def table_schema(config: RecordTableConfig) -> pa.Schema:
    """The columns: features, labels, weight."""
    targets = config.all_columns[len(config.features) :]
    columns = [(feature.column_name, arrow_type(feature)) for feature in config.features]
    return pa.schema([*columns, *((target.column_name, pa.float64()) for target in targets)])


def table_of(
    records: Sequence[bytes],
    config: RecordTableConfig,
    where: object = "records",
    first: int = 0,
    on_error: OnError = "fail",
) -> tuple[pa.Table, RowCounts]:
    """A table of many records; a few thousand at a time are fastest.

    A binary feature is true or false; any other that a record lacks is null, as are NaN values. A sparse feature
    without texts counts as missing. A tensor is flattened. A label is 1 for a binary feature, a continuous feature's
    value, and else the default; a record without the weight has weight 0, as in the original.

    Args:
        records: each the bytes of one record.
        config: the columns.
        where, first: the file and the number of the first record in it, for messages.
        on_error: "skip" leaves out bad records: bytes that cannot be decoded, texts that are no UTF-8, tensors that do
            not fit the column, infinite labels, and weights that are negative or not finite.

    Raises:
        DataError: a record is bad; names its number and the feature.
    """
    columns = decode_columns(records, where, first, on_error)
    bad = _bad_rows(columns, config)
    if bad and on_error == "fail":
        row = min(bad)
        feature, what, value = bad[row]
        raise DataError(
            what, where=f"{where}, record {first + columns.numbers[row]}, feature {feature!r}", value=value,
            fix="mend the record, or skip bad records",
        )  # fmt: skip
    if bad:
        columns = columns.without(sorted(bad))
    arrays = [_array(columns, feature) for feature in config.features]
    labels = read_labels(columns, [label.key for label in config.labels])
    missing = np.isnan(labels)
    arrays += [pa.array(column) for column in np.where(missing, config.default_label, labels).T]
    counts = RowCounts(columns.num_records, len(records) - columns.num_records, int(missing.sum()))
    if config.weight is not None:
        arrays.append(pa.array(read_weights(columns, [config.weight.key])[:, 0]))
        present = np.unique(_entries(columns, "continuous", config.weight.key).rows)
        counts.missing_weights = columns.num_records - len(present)
    return pa.Table.from_arrays(arrays, schema=table_schema(config)), counts


# Row -> (feature, what is wrong, the value).
_Bad = dict[int, tuple[str, str, object]]


def _bad_rows(columns: RecordColumns, config: RecordTableConfig) -> _Bad:
    bad: _Bad = {}
    for feature in config.features:
        if feature.type in ("string", "sparse_binary", "sparse_continuous"):
            bad.update(_bad_texts(columns, feature))
        elif feature.type == "tensor":
            bad.update(_bad_tensors(columns, feature))
    for label in config.labels:
        values = read_labels(columns, [label.key])[:, 0]
        rows = np.flatnonzero(np.isinf(values))
        bad.update({int(row): (label.name, "label is infinite", values[row]) for row in rows})
    if config.weight is not None:
        values = read_weights(columns, [config.weight.key])[:, 0]
        rows = np.flatnonzero(~((values >= 0) & np.isfinite(values)))
        bad.update({int(row): (config.weight.name, "weight is negative or not finite", values[row]) for row in rows})
    return bad


def _bad_texts(columns: RecordColumns, feature: FeatureColumn) -> _Bad:
    entries = _entries(columns, feature.type, feature.key)
    try:
        _texts(columns, entries).validate(full=True)
    except pa.ArrowInvalid:
        texts = ((int(entries.rows[i]), columns.text(entries, i)) for i in range(len(entries)))
        return {row: (feature.name, "text is no UTF-8", text) for row, text in texts if not _is_text(text)}
    return {}


def _is_text(text: bytes) -> bool:
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _bad_tensors(columns: RecordColumns, feature: FeatureColumn) -> _Bad:
    entries = _entries(columns, "tensors", feature.key)
    bad: _Bad = {}
    for i in range(len(entries)):
        try:
            _tensor(columns, entries, i, feature)
        except DataError as error:
            bad[int(entries.rows[i])] = (feature.name, error.what, error.value)
    return bad


def _entries(columns: RecordColumns, kind: str, key: int) -> Entries:
    entries = columns.entries[_ENTRIES_OF.get(kind, kind)]
    return entries.at(entries.keys == key)


def _array(columns: RecordColumns, feature: FeatureColumn) -> pa.Array:
    entries = _entries(columns, feature.type, feature.key)
    return _ARRAYS[feature.type](columns, entries, feature)


def _last_of_row(columns: RecordColumns, entries: Entries) -> np.ndarray:
    """The last entry of each record, or -1, int64 [B]."""
    place = np.full(columns.num_records, -1)
    place[entries.rows] = np.arange(len(entries))
    return place


def _flags(columns: RecordColumns, entries: Entries, feature: FeatureColumn) -> pa.Array:
    return pa.array(_last_of_row(columns, entries) >= 0)


def _numbers(columns: RecordColumns, entries: Entries, feature: FeatureColumn) -> pa.Array:
    dtype = np.float64 if feature.type == "continuous" else np.int64
    if entries.values is None or not len(entries):
        return pa.nulls(columns.num_records, arrow_type(feature))
    place = _last_of_row(columns, entries)
    values = np.where(place >= 0, entries.values[place], 0).astype(dtype)
    return pa.array(values, mask=(place < 0) | (values != values))


def _single_texts(columns: RecordColumns, entries: Entries, feature: FeatureColumn) -> pa.Array:
    place = _last_of_row(columns, entries)
    return _texts(columns, entries, arrow_type(feature)).take(pa.array(place, mask=place < 0))


def _text_lists(columns: RecordColumns, entries: Entries, feature: FeatureColumn) -> pa.Array:
    offsets, missing = _list_offsets(columns, entries.rows)
    return pa.ListArray.from_arrays(offsets, _texts(columns, entries), mask=missing)


def _text_maps(columns: RecordColumns, entries: Entries, feature: FeatureColumn) -> pa.Array:
    if entries.values is not None:
        entries = entries.at(~np.isnan(entries.values))
    offsets, missing = _list_offsets(columns, entries.rows)
    values = np.zeros(0) if entries.values is None else entries.values
    return pa.MapArray.from_arrays(offsets, _texts(columns, entries), pa.array(values), mask=missing)


def _tensor_lists(columns: RecordColumns, entries: Entries, feature: FeatureColumn) -> pa.Array:
    place = _last_of_row(columns, entries)
    values = [None if i < 0 else _tensor(columns, entries, int(i), feature) for i in place]
    return pa.array(values, arrow_type(feature))


_ARRAYS: dict[str, Callable[[RecordColumns, Entries, FeatureColumn], pa.Array]] = {
    "binary": _flags,
    "continuous": _numbers,
    "discrete": _numbers,
    "string": _single_texts,
    "blob": _single_texts,
    "sparse_binary": _text_lists,
    "sparse_continuous": _text_maps,
    "tensor": _tensor_lists,
}


def _texts(columns: RecordColumns, entries: Entries, kind: pa.DataType = _TYPES["string"]) -> pa.Array:
    """An array of the entries' bytes; strings are not checked."""
    if entries.starts is None or entries.lengths is None:
        return pa.array([], kind)
    data = np.frombuffer(columns.data, np.uint8)
    joined = data[np.repeat(entries.starts, entries.lengths) + ragged_arange(entries.lengths)]
    offsets = np.concatenate([[0], np.cumsum(entries.lengths)]).astype(np.int32)
    return pa.Array.from_buffers(kind, len(entries), [None, pa.py_buffer(offsets), pa.py_buffer(joined)])


def _list_offsets(columns: RecordColumns, rows: np.ndarray) -> tuple[pa.Array, pa.Array]:
    """Where each record's items begin, int32 [B + 1], and which records have none."""
    lengths = np.bincount(rows, minlength=columns.num_records)
    return pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)), pa.array(lengths == 0)


def _tensor(columns: RecordColumns, entries: Entries, i: int, feature: FeatureColumn) -> np.ndarray:
    """A tensor's elements in the type of the column, [number of elements].

    Raises:
        DataError: shape and elements disagree, or an element has no equal in the column's type.
    """
    found = array_of(read_tensor(ThriftReader(columns.text(entries, i)))).reshape(-1)
    target = np.dtype(feature.dtype)
    if found.dtype.kind not in "fiub" or (found.dtype.kind == "f" and target.kind != "f"):
        raise DataError("tensor is of another kind than its column", value=f"{found.dtype}, not {target}")
    with np.errstate(over="ignore", invalid="ignore"):
        cast = found.astype(target)
        is_float = found.dtype.kind == "f"
        lost = np.isinf(cast) != np.isinf(found) if is_float else cast.astype(found.dtype) != found
    if lost.any():
        raise DataError(f"element does not fit {target}", value=found[lost][0].item())
    return cast
