"""A batch is decoded as its records one by one are, and the same records are refused."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.projects.light_ranker.records.record_strategies import BYTES, RECORDS
from tml.common.errors import DataError
from tml.projects.light_ranker.records import text_walk
from tml.projects.light_ranker.records.codec import FIELDS, decode_record, encode_record
from tml.projects.light_ranker.records.columns import RecordColumns, decode_columns
from tml.projects.light_ranker.records.data_record import DataRecord
from tml.projects.light_ranker.records.tensor_codec import write_sparse_tensor, write_tensor


def _expected(records: Sequence[DataRecord]) -> dict[str, list[tuple]]:
    """Row, key and content of every entry, by the record objects."""
    found: dict[str, list[tuple]] = {name: [] for name, _ in FIELDS.values()}
    for row, record in enumerate(records):
        found["binary"] += [(row, key) for key in record.binary]
        for kind in ("continuous", "discrete"):
            found[kind] += [(row, key, value) for key, value in getattr(record, kind).items()]
        found["string"] += [(row, key, _bytes(text)) for key, text in record.string.items()]
        found["blobs"] += [(row, key, blob) for key, blob in record.blobs.items()]
        found["sparse_binary"] += [(row, k, _bytes(t)) for k, texts in record.sparse_binary.items() for t in texts]
        found["sparse_continuous"] += [
            (row, key, value, _bytes(text))
            for key, texts in record.sparse_continuous.items()
            for text, value in texts.items()
        ]
        found["tensors"] += [(row, key, write_tensor(tensor)) for key, tensor in record.tensors.items()]
        found["sparse_tensors"] += [(row, k, write_sparse_tensor(t)) for k, t in record.sparse_tensors.items()]
    return found


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _found(columns: RecordColumns) -> dict[str, list[tuple]]:
    found = {}
    for kind, entries in columns.entries.items():
        parts = [entries.rows.tolist(), entries.keys.tolist()]
        if entries.values is not None:
            parts.append(entries.values.tolist())
        if entries.starts is not None:
            parts.append([columns.text(entries, i) for i in range(len(entries))])
        found[kind] = list(zip(*parts, strict=True))
    return found


@given(st.lists(RECORDS, max_size=5), st.sampled_from([1, 24]), st.integers(1, 8))
@settings(max_examples=80, deadline=None)
def test_a_batch_holds_what_its_records_hold(records, few, copies):
    # `few` decides between steps through all records and one record after the other; copies fill the batch.
    records = records * copies
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_walk, "_FEW", few)
        columns = decode_columns([encode_record(record) for record in records])
    assert columns.num_records == len(records)
    assert _found(columns) == _expected(records)


@given(st.lists(BYTES | RECORDS.map(encode_record), max_size=12), st.sampled_from([1, 24]))
@settings(max_examples=150, deadline=None)
def test_a_batch_refuses_what_the_codec_refuses_and_keeps_the_rest(datas, few):
    good = []
    for number, data in enumerate(datas):
        try:
            good.append((number, decode_record(data)))
        except DataError:
            continue
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_walk, "_FEW", few)
        columns = decode_columns(datas, on_error="skip")
    assert columns.numbers.tolist() == [number for number, _ in good]
    assert repr(_last_values(_found(columns))) == repr(_last_values(_expected([record for _, record in good])))
    if len(good) < len(datas):
        first = min(set(range(len(datas))) - {number for number, _ in good})
        with pytest.raises(DataError, match=f"clicks.gz, record {100 + first}, byte"):
            decode_columns(datas, "clicks.gz", first=100)


def test_fields_in_another_order_are_read_too():
    binary, discrete = DataRecord(binary=[7]), DataRecord(discrete={5: 6})
    usual = encode_record(DataRecord(binary=[7], discrete={5: 6}, string={1: "x"}))
    turned = encode_record(discrete)[:-1] + encode_record(binary)
    columns = decode_columns([usual, turned, usual])
    assert columns.entries["binary"].rows.tolist() == [0, 1, 2]
    assert columns.entries["discrete"].rows.tolist() == [0, 1, 2]
    assert columns.entries["string"].rows.tolist() == [0, 2]


def test_a_length_beyond_the_record_does_not_reach_into_the_next():
    cut = b"\x0d\0\4\x0a\x0b\0\0\0\1" + struct.pack(">qi", 5, 3) + b"ab"
    columns = decode_columns([cut, encode_record(DataRecord(string={1: "xyz"}))] * 30, on_error="skip")
    assert columns.numbers.tolist() == list(range(1, 60, 2))
    assert {columns.text(columns.entries["string"], i) for i in range(30)} == {b"xyz"}


def test_no_records_are_no_columns():
    columns = decode_columns([])
    assert columns.num_records == 0
    assert not any(len(entries) for entries in columns.entries.values())


def _last_values(found: dict[str, list[tuple]]) -> dict[str, dict]:
    """What holds of keys and texts that come twice, which a damaged record may have."""
    places = {"binary": 2, "sparse_binary": 3}
    out = {}
    for kind, entries in found.items():
        if kind == "sparse_continuous":
            # Of a sparse feature that comes twice, a record keeps the second; a batch has the texts of both.
            out[kind] = {(row, key) for row, key, *_ in entries}
        elif kind == "sparse_binary":
            out[kind] = {(row, key) for row, key, _ in entries}
        else:
            out[kind] = {entry[: places.get(kind, 2)]: entry[2:] for entry in entries}
    return {kind: sorted(each) if isinstance(each, set) else each for kind, each in out.items()}
