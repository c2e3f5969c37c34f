"""Requests and responses are thrift's own, and garbage is an error."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.projects.light_ranker.records.record_strategies import BYTES, RECORDS
from tests.projects.light_ranker.records.thrift_spec import Request, Response, thrift_bytes, thrift_record
from tml.common.errors import DataError
from tml.projects.light_ranker.records.codec import decode_record, encode_record
from tml.projects.light_ranker.records.data_record import DataRecord
from tml.projects.light_ranker.records.requests import (
    BatchPredictionRequest,
    BatchPredictionResponse,
    decode_request,
    decode_response,
    encode_request,
    encode_response,
    split_request,
)
from tml.projects.light_ranker.records.tensors import array_of


@given(st.lists(RECORDS, max_size=3), st.none() | RECORDS)
@settings(max_examples=40, deadline=None)
def test_requests_and_responses_are_those_of_a_thrift_library(records, common):
    request, response = BatchPredictionRequest(records, common), BatchPredictionResponse(records)
    theirs = [thrift_record(record) for record in records]
    data = encode_request(request)
    assert data == thrift_bytes(Request(individual=theirs, common=common and thrift_record(common)))
    assert encode_response(response) == thrift_bytes(Response(predictions=theirs))
    assert decode_request(data) == request
    assert decode_response(encode_response(response)) == response
    individual, shared = split_request(data)
    assert [decode_record(each) for each in individual] == records
    assert (shared and decode_record(shared)) == common


@given(BYTES, st.sampled_from([b"", b"\x0f\0\1\x0c\0\0\0\1", b"\x0c\0\2"]))
@settings(max_examples=100, deadline=None)
def test_garbage_is_a_data_error_and_nothing_else(data, head):
    for read in (decode_request, decode_response, split_request):
        try:
            assert read(head + data + b"\0") is not None
        except DataError:
            continue


def test_a_request_of_a_million_empty_records_is_refused_before_they_are_made():
    data = b"\x0f\0\1\x0c" + struct.pack(">i", 1_000_000) + bytes(1_000_001)
    for read in (decode_request, decode_response, split_request):
        with pytest.raises(DataError, match=r"too many records[^$]*1000000[^$]*100,000"):
            read(data)


def test_a_row_holds_the_common_features_and_its_own():
    common = DataRecord(binary=[1], continuous={2: 0.5, 3: 1.0})
    request = BatchPredictionRequest([DataRecord(binary=[4], continuous={3: 7.0}), DataRecord()], common)
    first, second = request.rows()
    assert (list(first.binary), first.continuous) == ([1, 4], {2: 0.5, 3: 7.0})
    assert second == common
    assert BatchPredictionRequest([first]).rows() == [first]


def test_predictions_as_numbers_are_continuous_features():
    response = BatchPredictionResponse.from_values([11, 12], np.array([[0.25, 2.0], [0.5, 3.0], [0.75, 4.0]]))
    again = decode_response(encode_response(response))
    assert [record.continuous for record in again.predictions] == [
        {11: 0.25, 12: 2.0}, {11: 0.5, 12: 3.0}, {11: 0.75, 12: 4.0},
    ]  # fmt: skip
    with pytest.raises(DataError, match=r"\[batch, 2\]"):
        BatchPredictionResponse.from_values([11, 12], np.zeros((3, 1)))


def test_predictions_as_tensors_are_slices():
    scores = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    response = BatchPredictionResponse.from_tensors({9: scores, 8: np.array([1, 2])})
    again = decode_response(encode_response(response))
    assert [array_of(record.tensors[9]).tolist() for record in again.predictions] == scores.tolist()
    assert [array_of(record.tensors[8]).tolist() for record in again.predictions] == [1, 2]
    with pytest.raises(DataError, match="number of rows"):
        BatchPredictionResponse.from_tensors({9: scores, 8: np.zeros(3)})


def test_a_response_is_a_message_body():
    data = encode_response(BatchPredictionResponse([DataRecord()]))
    assert data == b"\x0f\0\1\x0c\0\0\0\1" + encode_record(DataRecord()) + b"\0"
