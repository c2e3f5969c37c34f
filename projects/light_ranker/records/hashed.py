"""HashedDataRecord: records as parallel arrays of hashed keys and values, the form a sparse linear model reads.

Every present feature gives a key: binary and continuous features their id, others their id mixed with the value, so
that each value of a discrete or string feature has a weight of its own. The bytes are those of DataRecords.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Any

import numpy as np

from tml.common.errors import ConfigError, DataError
from tml.projects.light_ranker.records.columns import Entries, OnError, RecordColumns, decode_columns, stable_order
from tml.projects.light_ranker.records.feature_ids import feature_id, mix_discrete, mix_string, text_hashes
from tml.projects.light_ranker.records.targets import IdTable, read_labels, read_weights


class FeatureType(IntEnum):
    """The kind of a hashed feature; its field in a DataRecord."""

    BINARY = 1
    CONTINUOUS = 2
    DISCRETE = 3
    STRING = 4
    SPARSE_BINARY = 5
    SPARSE_CONTINUOUS = 6


class DecodeMode(IntEnum):
    """The key of a sparse continuous feature: the id of the text alone, or the feature's id mixed with the text."""

    HASH_VALUE_NAME = 0
    HASH_FEATURE_AND_VALUE_NAME = 1


@dataclass(frozen=True)
class HashedFields:
    """What to read of each record.

    A feature that is kept is not read as a label or weight too, and a label not as a weight.

    Args:
        keep: feature id -> code (the number of its group).
        labels, weights: feature ids, each a column of the batch.
        mode: the keys of sparse continuous features.
        default_label: of a record without the label, and of one that is NaN.
    """

    keep: Mapping[int, int]
    labels: Sequence[int] = ()
    weights: Sequence[int] = ()
    mode: DecodeMode = DecodeMode.HASH_VALUE_NAME
    default_label: float = 0.0

    def __post_init__(self) -> None:
        for name in ("labels", "weights"):
            ids = getattr(self, name)
            if len(set(ids)) != len(ids):
                raise ConfigError("an id comes twice", where=f"HashedFields.{name}", value=list(ids))

    @classmethod
    def from_names(
        cls,
        features: Iterable[str] | Mapping[str, int],
        labels: Sequence[str] = (),
        weights: Sequence[str] = (),
        mode: DecodeMode = DecodeMode.HASH_VALUE_NAME,
    ) -> HashedFields:
        """By names in place of ids; features without codes have code 0."""
        codes = features if isinstance(features, Mapping) else dict.fromkeys(features, 0)
        keep = {feature_id(name): code for name, code in codes.items()}
        return cls(keep, [feature_id(name) for name in labels], [feature_id(name) for name in weights], mode)


@dataclass(frozen=True)
class HashedBatch:
    """The kept features of B records, N in all, ordered by record, then by type and then as they lie in the record.

    Args:
        ids: int64 [N], row of the record.
        keys: int64 [N], the feature's id.
        transformed_keys: int64 [N], the id mixed with the value where the type calls for it.
        values: float64 [N]; 1 for types without a number.
        codes: int64 [N], the feature's group.
        types: int8 [N], `FeatureType`.
        labels: float32 [B, L].
        weights: float32 [B, W]; 0 where a record has none.
        numbers: int64 [B], each record's place among those given; bad ones that were skipped are missing.
    """

    ids: np.ndarray
    keys: np.ndarray
    transformed_keys: np.ndarray
    values: np.ndarray
    codes: np.ndarray
    types: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    numbers: np.ndarray

    @property
    def num_records(self) -> int:
        """B."""
        return len(self.numbers)

    def with_common(self, common: HashedBatch) -> HashedBatch:
        """With the features of another batch's only record before each record's own."""
        num = self.num_records
        ids = np.concatenate([np.repeat(np.arange(num), len(common.ids)), self.ids])
        order = stable_order(ids, num)
        arrays = {
            name: np.concatenate([np.tile(getattr(common, name), num), getattr(self, name)])[order]
            for name in ("keys", "transformed_keys", "values", "codes", "types")
        }
        return HashedBatch(ids[order], **arrays, labels=self.labels, weights=self.weights, numbers=self.numbers)


def decode_hashed(
    records: Sequence[bytes], fields: HashedFields, where: object = "records", on_error: OnError = "fail"
) -> HashedBatch:
    """Decodes many records to hashed features; a few thousand at a time are fastest.

    Binary and continuous features can be labels, continuous ones weights. Features with a NaN are left out; blobs and
    tensors are not read.

    Args:
        records: each the bytes of one record.
        fields: what to read.
        where: the file, for messages.
        on_error: "skip" leaves bad records out.

    Raises:
        DataError: a record is bad, a text whose id is wanted is no UTF-8, a label infinite or a weight not finite;
            names the record.
    """
    return hash_columns(decode_columns(records, where, on_error=on_error), fields, where, on_error)


def hash_columns(
    columns: RecordColumns, fields: HashedFields, where: object = "records", on_error: OnError = "fail"
) -> HashedBatch:
    """As `decode_hashed`, of records that are decoded already."""
    keep = IdTable(list(fields.keep))
    if fields.mode == DecodeMode.HASH_VALUE_NAME:
        columns = _without_bad_names(columns, keep, where, on_error)
    labels = read_labels(columns, fields.labels, fields.keep)
    labels = np.where(np.isnan(labels), fields.default_label, labels).astype(np.float32)
    weights = read_weights(columns, fields.weights, {*fields.keep, *fields.labels}).astype(np.float32)
    faulty = np.flatnonzero(~np.isfinite(np.hstack([labels, weights])).all(axis=1))
    if len(faulty):
        if on_error == "skip":
            return hash_columns(columns.without(faulty), fields, where, on_error)
        number, value = columns.numbers[faulty[0]], (*labels[faulty[0]].tolist(), *weights[faulty[0]].tolist())
        raise DataError(
            "label is infinite or weight not finite", where=f"{where}, record {number}", value=value,
            limit="finite numbers", fix="mend the record, or skip bad records",
        )  # fmt: skip
    codes = np.array(list(fields.keep.values()), np.int64)
    parts = [_kept(columns, kind, keep, codes, fields.mode) for kind in FeatureType]
    joined = [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
    order = stable_order(joined[0], columns.num_records)
    rows, keys, transformed, values, kept, types = (array[order] for array in joined)
    return HashedBatch(rows, keys, transformed, values, kept, types, labels, weights, columns.numbers)


def _kept(
    columns: RecordColumns, kind: FeatureType, keep: IdTable, codes: np.ndarray, mode: DecodeMode
) -> tuple[np.ndarray, ...]:
    """ids, keys, transformed keys, values, codes and types of one kind of feature."""
    entries = columns.entries[kind.name.lower()]
    place = keep.find(entries.keys)
    chosen = place >= 0
    if kind in (FeatureType.CONTINUOUS, FeatureType.SPARSE_CONTINUOUS) and entries.values is not None:
        chosen &= ~np.isnan(entries.values)
    entries, place = entries.at(chosen), place[chosen]
    has_weights = entries.values is not None and kind != FeatureType.DISCRETE
    values: Any = entries.values if has_weights else np.ones(len(entries))
    types = np.full(len(entries), kind, np.int8)
    return entries.rows, entries.keys, _transformed(columns, kind, entries, mode), values, codes[place], types


def _transformed(columns: RecordColumns, kind: FeatureType, entries: Entries, mode: DecodeMode) -> np.ndarray:
    if kind in (FeatureType.BINARY, FeatureType.CONTINUOUS) or not len(entries):
        return entries.keys
    if kind == FeatureType.DISCRETE:
        assert entries.values is not None
        return mix_discrete(entries.keys, entries.values)
    if kind == FeatureType.SPARSE_CONTINUOUS and mode == DecodeMode.HASH_VALUE_NAME:
        return np.array([_name_id(columns.text(entries, i)) for i in range(len(entries))], np.int64)
    data = np.frombuffer(columns.data, np.uint8)
    assert entries.starts is not None
    assert entries.lengths is not None
    return mix_string(entries.keys, text_hashes(data, entries.starts, entries.lengths))


@lru_cache(maxsize=1 << 16)
def _name_id(name: bytes) -> int | None:
    """The id of a name, or None if it is no UTF-8."""
    try:
        return feature_id(name.decode("utf-8"))
    except UnicodeDecodeError:
        return None


def _without_bad_names(columns: RecordColumns, keep: IdTable, where: object, on_error: OnError) -> RecordColumns:
    entries = columns.entries["sparse_continuous"]
    entries = entries.at(keep.find(entries.keys) >= 0)
    bad = [i for i in range(len(entries)) if _name_id(columns.text(entries, i)) is None]
    if not bad:
        return columns
    if on_error == "skip":
        return columns.without(entries.rows[bad])
    raise DataError(
        "a name is not valid text",
        where=f"{where}, record {columns.numbers[entries.rows[bad[0]]]}, feature {entries.keys[bad[0]]}",
        value=columns.text(entries, bad[0]), limit="UTF-8", fix="mend the name at its source, or skip bad records",
    )  # fmt: skip
