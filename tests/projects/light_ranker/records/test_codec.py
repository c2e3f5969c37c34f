"""A record's bytes are thrift's own, survive a round trip to the last bit, and garbage is an error that says where."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings

from tests.projects.light_ranker.records.record_strategies import BYTES, RECORDS
from tests.projects.light_ranker.records.thrift_spec import Record, thrift_bytes, thrift_read, thrift_record
from tml.common.errors import DataError
from tml.projects.light_ranker.records.codec import decode_record, encode_record, skip_record
from tml.projects.light_ranker.records.data_record import DataRecord, OrderedSet
from tml.projects.light_ranker.records.feature_ids import feature_id
from tml.projects.light_ranker.records.tensors import DataType, ListKind, ListTensor, RawTensor, array_of, tensor_of
from tml.projects.light_ranker.records.thrift import ThriftReader


@given(RECORDS)
@settings(max_examples=60, deadline=None)
def test_the_bytes_are_those_of_a_thrift_library(record):
    data = encode_record(record)
    assert data == thrift_bytes(thrift_record(record))
    theirs, expected = thrift_read(Record, data), thrift_record(record)
    assert all(_as_sets(getattr(theirs, kind)) == _as_sets(getattr(expected, kind)) for kind in vars(expected))


@given(RECORDS)
@settings(max_examples=60, deadline=None)
def test_reading_and_writing_undo_each_other_in_every_bit(record):
    data = encode_record(record)
    again = decode_record(data)
    assert again == record
    assert encode_record(again) == data
    assert list(again.binary) == list(record.binary)


def test_the_bytes_of_a_small_record_worked_by_hand():
    record = DataRecord(binary=[258], continuous={-1: 1.0}, string={3: "é"})
    assert encode_record(record) == bytes.fromhex(
        "0e 00 01 0a 00 00 00 01 00 00 00 00 00 00 01 02 "
        "0d 00 02 0a 04 00 00 00 01 ff ff ff ff ff ff ff ff 3f f0 00 00 00 00 00 00 "
        "0d 00 04 0a 0b 00 00 00 01 00 00 00 00 00 00 00 03 00 00 00 02 c3 a9 00"
    )
    assert encode_record(DataRecord()) == b"\0"


def test_special_numbers_and_bytes_that_are_no_text_survive():
    bits = struct.pack(">q", 0x7FF8_0000_0000_1234)  # a NaN with a payload
    data = b"\x0d\0\2\x0a\4\0\0\0\1" + bytes(8) + bits + b"\x0d\0\4\x0a\x0b\0\0\0\1" + bytes(8) + b"\0\0\0\2\xff\xfe\0"
    record = decode_record(data)
    assert np.isnan(record.continuous[0])
    assert encode_record(record) == data


@given(BYTES)
@settings(max_examples=150, deadline=None)
def test_garbage_is_a_data_error_and_nothing_else(data):
    place = "part-3.gz, record 7"
    try:
        record = decode_record(data, place)
    except DataError:
        with pytest.raises(DataError, match=f"{place}, byte "):
            decode_record(data, place)
        with pytest.raises(DataError):
            _skip_all(data)
    else:
        assert decode_record(encode_record(record)) == record or "nan" in repr(record)
        _skip_all(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cut off[^$]*byte 0"),
        (b"\x0e\0\1\x0a\x7f\xff\xff\xff", r"length is impossible[^$]*byte 4, field binary[^$]*2147483647[^$]*0 to 0"),
        (b"\x0e\0\1\x0a\xff\xff\xff\xff", r"length is impossible[^$]*-1"),
        (b"\x0e\0\1\x0a\0\0\0\1\0\0", "length is impossible"),
        (b"\x0d\0\x0a\0", "field is unknown[^$]*10[^$]*1, 2, 3"),
        (b"\x0f\0\1\x0a\0\0\0\0\0", "field has the wrong type: binary[^$]*15"),
        (b"\x0e\0\1\x0b\0\0\0\0\0", r"elements have the wrong type[^$]*\(11,\)"),
        (b"\x0e\0\1\x0a\0\0\0\0\x0e\0\1\x0a\0\0\0\0\0", "field comes twice: binary"),
        (b"\0\0", "bytes follow the end"),
        (b"\x0d\0\x08\x0a\x0c\0\0\0\1" + bytes(8) + b"\0\0", "not of exactly one kind"),
        (b"\x0d\0\x08\x0a\x0c\0\0\0\1" + bytes(8) + b"\x0c\0\1\0\0\0", "tensor lacks a field"),
        (b"\x0d\0\x08\x0a\x0c\0\0\0\1" + bytes(8) + b"\x0c\0\1\x08\0\1\0\0\0\x09", "element type is unknown[^$]*9"),
        (b"\x0d\0\x08\x0a\x0c\0\0\0\1" + bytes(8) + b"\x0c\0\7\x0f\0\1\x02\0\0\0\1\2", "neither 0 nor 1"),
    ],
)
def test_bad_bytes_say_what_is_wrong(data, message):
    with pytest.raises(DataError, match=message):
        decode_record(data)


@pytest.mark.parametrize(
    "record",
    [
        DataRecord(binary=[2**63]),
        DataRecord(discrete={1: 1.5}),
        DataRecord(continuous={1: "x"}),
        DataRecord(string={1: "\ud800"}),
        DataRecord(string={"age": "x"}),
        DataRecord(tensors={1: "tensor"}),
    ],
)
def test_a_value_that_does_not_fit_cannot_be_written(record):
    with pytest.raises(DataError, match=r"record cannot be written\s+where: DataRecord\."):
        encode_record(record)


def test_features_may_be_given_by_name():
    record = DataRecord.from_names(["seen"], continuous={"age": 2.0}, sparse_binary={"topics": ["a", "b", "a"]})
    assert record.binary == {feature_id("seen")}
    assert record.continuous == {feature_id("age"): 2.0}
    assert list(record.sparse_binary[feature_id("topics")]) == ["a", "b"]


def test_an_ordered_set_is_a_set_in_order():
    found = OrderedSet([3, 1, 3, 2])
    found.discard(1)
    found.add(0)
    assert list(found) == [3, 2, 0]
    assert found == {0, 2, 3}
    assert 2 in found
    assert repr(found) == "OrderedSet([3, 2, 0])"


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "int64", "uint8", "int8", "bool", ">f4"])
def test_arrays_become_raw_tensors_and_come_back(dtype):
    array = np.arange(6).reshape(2, 3).astype(dtype)
    tensor = tensor_of(array)
    assert isinstance(tensor, RawTensor)
    again = array_of(tensor)
    assert (again == array).all()
    assert (again.shape, again.dtype) == ((2, 3), array.dtype.newbyteorder("<"))


def test_lists_become_arrays_of_their_kind():
    assert array_of(ListTensor(ListKind.FLOAT, (0.1, 1e300), (2, 1))).tolist() == [[float(np.float32(0.1))], [np.inf]]
    assert array_of(tensor_of(np.array([["a"], ["b"]]))).tolist() == [["a"], ["b"]]


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (RawTensor(DataType.FLOAT, bytes(7)), "within an element"),
        (RawTensor(DataType.FLOAT, bytes(8), (3,)), r"does not fit[^$]*\(3,\)[^$]*2 elements"),
        (RawTensor(DataType.FLOAT, bytes(8), (-1, -2)), "does not fit"),
        (RawTensor(DataType.UINT8, b"", (2**62, 2**62, 0, 4, -1)), "does not fit"),
        (RawTensor(DataType.STRING, b"ab"), "no fixed layout"),
        (ListTensor(ListKind.BOOL, (True,), (2,)), "does not fit"),
    ],
)
def test_a_tensor_at_odds_with_its_shape_is_refused(tensor, message):
    with pytest.raises(DataError, match=message):
        array_of(tensor)


def test_an_array_without_a_place_in_records_is_refused():
    with pytest.raises(DataError, match="complex128"):
        tensor_of(np.zeros(2, complex))


def _skip_all(data: bytes) -> None:
    reader = ThriftReader(data)
    skip_record(reader)
    reader.end()


def _as_sets(features: object) -> object:
    """thriftpy2 reads sets as sets or lists, by version."""
    if isinstance(features, dict):
        return {key: sorted(v) if isinstance(v, set | list) else v for key, v in features.items()}
    return sorted(features) if isinstance(features, set | list) else features
