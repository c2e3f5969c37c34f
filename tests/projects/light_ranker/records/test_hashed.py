"""Hashed batches follow the original's reader, told here once more in plain Python."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.projects.light_ranker.records.record_strategies import RECORDS
from tml.common.errors import ConfigError, DataError
from tml.projects.light_ranker.records.codec import encode_record
from tml.projects.light_ranker.records.data_record import DataRecord
from tml.projects.light_ranker.records.feature_ids import feature_id
from tml.projects.light_ranker.records.hashed import DecodeMode, FeatureType, HashedFields, decode_hashed
from tml.projects.light_ranker.records.requests import (
    BatchPredictionRequest,
    decode_hashed_request,
    encode_request,
)


def _wrapped(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def _with_text(key: int, text: str) -> int:
    hashed = 0
    for byte in text.encode():
        hashed = _wrapped(31 * hashed + byte, 32)
    return key ^ hashed


def _slow(record: DataRecord, fields: HashedFields) -> list[tuple]:
    """(key, transformed key, value, code, type) of each kept feature."""
    found = [(key, key, 1.0, FeatureType.BINARY) for key in record.binary]
    found += [(key, key, value, FeatureType.CONTINUOUS) for key, value in record.continuous.items()]
    found += [
        (key, key ^ _wrapped((17 + value) * 2654435761, 64), 1.0, FeatureType.DISCRETE)
        for key, value in record.discrete.items()
    ]
    found += [(key, _with_text(key, text), 1.0, FeatureType.STRING) for key, text in record.string.items()]
    for key, texts in record.sparse_binary.items():
        found += [(key, _with_text(key, text), 1.0, FeatureType.SPARSE_BINARY) for text in texts]
    for key, weights in record.sparse_continuous.items():
        for text, value in weights.items():
            by_value = fields.mode == DecodeMode.HASH_VALUE_NAME
            mixed = feature_id(text) if by_value else _with_text(key, text)
            found.append((key, mixed, value, FeatureType.SPARSE_CONTINUOUS))
    return [
        (key, mixed, value, fields.keep[key], kind)
        for key, mixed, value, kind in found
        if key in fields.keep and not math.isnan(value)
    ]


@given(st.lists(RECORDS, min_size=1, max_size=4), st.sampled_from(DecodeMode), st.data())
@settings(max_examples=80, deadline=None)
def test_a_batch_is_what_the_original_reads(records, mode, data):
    present = sorted({key for record in records for kind in vars(record).values() for key in kind})
    keep = {key: code for code, key in enumerate(present) if data.draw(st.booleans())}
    fields = HashedFields(keep, mode=mode)
    batch = decode_hashed([encode_record(record) for record in records], fields)
    expected = [(row, *each) for row, record in enumerate(records) for each in _slow(record, fields)]
    arrays = (batch.ids, batch.keys, batch.transformed_keys, batch.values, batch.codes, batch.types)
    assert list(zip(*(array.tolist() for array in arrays), strict=True)) == expected


def test_labels_and_weights_have_their_rules():
    records = [
        DataRecord.from_names(["click"], continuous={"seconds": 2.5, "weight": 0.5, "age": 1.0}),
        DataRecord.from_names(continuous={"seconds": math.nan, "age": math.nan, "click": 0.25}),
        DataRecord.from_names(["weight", "seconds"], discrete={"click": 7}),
    ]
    fields = HashedFields.from_names({"age": 3}, labels=["click", "seconds"], weights=["weight"])
    batch = decode_hashed([encode_record(record) for record in records], fields)
    # A label is a binary feature that is there or a continuous one; NaN, and any other kind, is no label: 0.
    assert batch.labels.tolist() == [[1.0, 2.5], [0.25, 0.0], [0.0, 1.0]]
    assert batch.weights.tolist() == [[0.5], [0.0], [0.0]]
    assert (batch.keys.tolist(), batch.codes.tolist(), batch.ids.tolist()) == ([feature_id("age")], [3], [0])
    other = decode_hashed([encode_record(records[1])], HashedFields({}, labels=[feature_id("age")], default_label=-1.0))
    assert other.labels.tolist() == [[-1.0]]


def test_a_feature_that_is_kept_is_no_label_and_a_label_no_weight():
    data = encode_record(DataRecord.from_names(["a"], continuous={"b": 2.0, "c": 3.0}))
    fields = HashedFields.from_names(["a", "b"], labels=["a", "c"], weights=["b", "c"])
    batch = decode_hashed([data], fields)
    assert batch.labels.tolist() == [[0.0, 3.0]]
    assert batch.weights.tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("name", ["y", "w"])
def test_an_infinite_target_is_refused_or_skipped(name):
    datas = [encode_record(DataRecord.from_names(continuous={name: value})) for value in (1.0, math.inf, 2.0)]
    fields = HashedFields.from_names([], labels=["y"], weights=["w"])
    with pytest.raises(DataError, match="clicks, record 1"):
        decode_hashed(datas, fields, "clicks")
    assert decode_hashed(datas, fields, on_error="skip").numbers.tolist() == [0, 2]


def test_a_weight_that_is_no_number_is_no_silent_nan():
    data = encode_record(DataRecord.from_names(continuous={"w": math.nan}))
    with pytest.raises(DataError, match="weight not finite"):
        decode_hashed([data], HashedFields.from_names([], weights=["w"]))


def test_a_name_that_is_no_text_is_refused_or_skipped():
    datas = [encode_record(DataRecord(sparse_continuous={5: {text: 1.0}})) for text in ("ok", "\udcff")]
    with pytest.raises(DataError, match="record 1, feature 5"):
        decode_hashed(datas, HashedFields({5: 0}))
    assert decode_hashed(datas, HashedFields({5: 0}), on_error="skip").numbers.tolist() == [0]
    # Where the name's own id is not asked for, its bytes will do.
    assert decode_hashed(datas, HashedFields({5: 0}, mode=DecodeMode.HASH_FEATURE_AND_VALUE_NAME)).num_records == 2


def test_labels_that_come_twice_are_refused():
    with pytest.raises(ConfigError, match=r"HashedFields\.labels"):
        HashedFields.from_names([], labels=["a", "a"])


def test_a_requests_common_features_come_first_in_every_row():
    common = DataRecord.from_names(continuous={"age": 30.0, "unread": 1.0})
    individual = [DataRecord.from_names(["seen"]), DataRecord(), DataRecord.from_names(["seen"], discrete={"hour": 3})]
    fields = HashedFields.from_names(["age", "seen", "hour"])
    batch = decode_hashed_request(encode_request(BatchPredictionRequest(individual, common)), fields)
    age, seen, hour = (feature_id(name) for name in ("age", "seen", "hour"))
    rows = [batch.keys[batch.ids == row].tolist() for row in range(3)]
    assert rows == [[age, seen], [age], [age, seen, hour]]
    assert batch.values.tolist() == [30.0, 1.0, 30.0, 30.0, 1.0, 1.0]
    assert np.all(np.diff(batch.ids) >= 0)
    alone = decode_hashed_request(encode_request(BatchPredictionRequest(individual)), fields)
    assert alone.keys.tolist() == [seen, seen, hour]
