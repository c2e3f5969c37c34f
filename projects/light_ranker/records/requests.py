"""BatchPredictionRequest and BatchPredictionResponse: what a prediction server of the original is asked and answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tml.common.errors import DataError
from tml.projects.light_ranker.records import thrift
from tml.projects.light_ranker.records.codec import encode_record, read_record, skip_record
from tml.projects.light_ranker.records.data_record import DataRecord
from tml.projects.light_ranker.records.hashed import HashedBatch, HashedFields, decode_hashed
from tml.projects.light_ranker.records.tensors import tensor_of
from tml.projects.light_ranker.records.thrift import LIST, STRUCT, Fields, ThriftReader

# An empty record is one byte on the wire and a kilobyte in memory, so the number of bytes does not bound a request.
MAX_RECORDS = 100_000

_REQUEST: Fields = {1: ("individual features", LIST), 2: ("common features", STRUCT)}
_RESPONSE: Fields = {1: ("predictions", LIST)}


@dataclass
class BatchPredictionRequest:
    """Candidates to score.

    Args:
        individual: one record for each candidate.
        common: features that all candidates share (the user's), or None.
    """

    individual: list[DataRecord] = field(default_factory=list)
    common: DataRecord | None = None

    def rows(self) -> list[DataRecord]:
        """Each candidate's record with the common features before its own."""
        if self.common is None:
            return self.individual
        return [record.merged_over(self.common) for record in self.individual]


@dataclass
class BatchPredictionResponse:
    """One record of predictions for each candidate, in the request's order."""

    predictions: list[DataRecord] = field(default_factory=list)

    @classmethod
    def from_values(cls, keys: Sequence[int], values: np.ndarray) -> BatchPredictionResponse:
        """Predictions as continuous features.

        Args:
            keys: [K], feature ids.
            values: float [B, K].
        """
        values = np.asarray(values, np.float64)
        if values.ndim != 2 or values.shape[1] != len(keys):
            raise DataError("predictions have the wrong shape", value=values.shape, limit=f"[batch, {len(keys)}]")
        return cls([DataRecord(continuous=dict(zip(keys, row, strict=True))) for row in values.tolist()])

    @classmethod
    def from_tensors(cls, tensors: Mapping[int, np.ndarray]) -> BatchPredictionResponse:
        """Predictions as dense tensors: feature id -> [B, ...], of which each candidate gets its slice [...]."""
        sizes = {len(array) for array in tensors.values()}
        if len(sizes) != 1:
            raise DataError("tensors differ in their number of rows", value=sorted(sizes), limit="one number")
        return cls(
            [DataRecord(tensors={key: tensor_of(a[row]) for key, a in tensors.items()}) for row in range(sizes.pop())]
        )


def decode_request(data: bytes, where: object = "request") -> BatchPredictionRequest:
    """Reads a request; `DataError` as `decode_record`."""
    reader, request = ThriftReader(data, where), BatchPredictionRequest()
    for number in reader.fields(_REQUEST):
        if number == 1:
            request.individual = _read_records(reader)
        else:
            request.common = read_record(reader)
    reader.end()
    return request


def encode_request(request: BatchPredictionRequest) -> bytes:
    """The bytes of a request; `DataError` as `encode_record`."""
    common = b"" if request.common is None else thrift.field_header(STRUCT, 2) + encode_record(request.common)
    return _records_field(request.individual) + common + b"\0"


def decode_response(data: bytes, where: object = "response") -> BatchPredictionResponse:
    """Reads a response; `DataError` as `decode_record`."""
    reader, response = ThriftReader(data, where), BatchPredictionResponse()
    for _ in reader.fields(_RESPONSE):
        response.predictions = _read_records(reader)
    reader.end()
    return response


def encode_response(response: BatchPredictionResponse) -> bytes:
    """The bytes of a response; `DataError` as `encode_record`."""
    return _records_field(response.predictions) + b"\0"


def decode_hashed_request(data: bytes, fields: HashedFields, where: object = "request") -> HashedBatch:
    """Reads a request as hashed features: the common features of the request first in every row, then its own.

    Labels and weights are those of the individual records. `DataError` as `decode_hashed`.
    """
    individual, common = split_request(data, where)
    batch = decode_hashed(individual, fields, where)
    if common is None:
        return batch
    return batch.with_common(decode_hashed([common], fields, f"{where}, common features"))


def split_request(data: bytes, where: object = "request") -> tuple[list[bytes], bytes | None]:
    """The bytes of a request's individual records, and of its common one or None; `DataError` as `decode_record`."""
    reader = ThriftReader(data, where)
    individual: list[bytes] = []
    common = None
    for number in reader.fields(_REQUEST):
        if number == 1:
            individual = [_record_bytes(reader) for _ in range(_num_records(reader))]
        else:
            common = _record_bytes(reader)
    reader.end()
    return individual, common


def _record_bytes(reader: ThriftReader) -> bytes:
    begin = reader.position
    skip_record(reader)
    return reader.data[begin : reader.position]


def _num_records(reader: ThriftReader) -> int:
    number = reader.header(STRUCT, item_bytes=1)
    if number > MAX_RECORDS:
        raise reader.fault("too many records", number, f"{MAX_RECORDS:,}")
    return number


def _read_records(reader: ThriftReader) -> list[DataRecord]:
    return [read_record(reader) for _ in range(_num_records(reader))]


def _records_field(records: list[DataRecord]) -> bytes:
    header = thrift.field_header(LIST, 1) + thrift.container_header(STRUCT, count=len(records))
    return header + b"".join(map(encode_record, records))
