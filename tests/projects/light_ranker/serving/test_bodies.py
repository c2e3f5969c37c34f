import io
import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tml.projects.light_ranker.serving.bodies import read_request, write_response
from tml.projects.light_ranker.serving.limits import RequestError
from tml.projects.light_ranker.serving.scores import Scores

SCORES = Scores(np.float32([0.25, 0.5]), np.float32([3.0, 0.0]), np.array([1, 0]))


def arrow_body(table: pa.Table, user: dict | None = None, top_k: int | None = None, **options) -> bytes:
    metadata = {"user": json.dumps(user or {})} | ({} if top_k is None else {"top_k": str(top_k)})
    table, sink = table.replace_schema_metadata(metadata), io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return sink.getvalue()


def test_json_and_arrow_say_the_same():
    table = pa.table({"hour": [1.0, 2.0], "topics": [["a"], None]})
    asked = read_request(arrow_body(table, {"age": 3}, 2), "arrow", 10)
    assert asked.candidates.equals(table)
    assert (asked.user, asked.top_k, asked.num_candidates) == ({"age": 3}, 2, 2)
    body = json.dumps({"user": {"age": 3}, "candidates": table.to_pydict(), "top_k": 2}).encode()
    said = read_request(body, "json", 10)
    assert (said.user, said.top_k, said.num_candidates) == ({"age": 3}, 2, 2)
    assert said.candidates == table.to_pydict()


def test_answers_hold_scores_best_candidates_and_the_model():
    answer = json.loads(write_response(SCORES, "json", "v1"))
    assert answer == {"probabilities": [0.25, 0.5], "watch_time": [3.0, 0.0], "top_k": [1, 0], "model": "v1"}
    table = pa.ipc.open_stream(write_response(SCORES, "arrow", "v1")).read_all()
    assert table.to_pydict() == {"probability": [0.25, 0.5], "watch_time": [3.0, 0.0]}
    assert table.schema.metadata == {b"model": b"v1", b"top_k": b"[1, 0]"}
    assert "top_k" not in json.loads(write_response(Scores(SCORES.probabilities), "json", "v1"))


@pytest.mark.parametrize(
    ("body", "status", "what"),
    [
        (b"", 400, "no sound JSON"),
        (b"{", 400, "no sound JSON"),
        (b"\xff\xfe\x00", 400, "no sound JSON"),
        (b'{"candidates": [{"a": NaN}]}', 400, "no sound JSON"),
        (b'{"candidates": [{"a": Infinity}]}', 400, "no sound JSON"),
        (b"[" * 200_000, 400, "no sound JSON"),
        (b"1" * 10_000, 400, "no sound JSON"),
        (b"[]", 422, "must be an object"),
        (b"{}", 422, "candidates are missing"),
        (b'{"candidates": 3}', 422, "candidates are missing"),
        (b'{"candidates": [], "user": []}', 422, "user must be an object"),
        (b'{"candidates": [], "top_k": 0}', 422, "top_k"),
        (b'{"candidates": [], "top_k": true}', 422, "top_k"),
        (b'{"candidates": [], "topk": 1}', 422, "unknown key"),
        (b'{"candidates": [{}, {}, {}, {}]}', 413, "too many candidates"),
        (b'{"candidates": {"a": [1, 2, 3, 4]}}', 413, "too many candidates"),
    ],
)
def test_json_that_is_no_request_is_refused(body, status, what):
    with pytest.raises(RequestError, match=what) as caught:
        read_request(body, "json", 3)
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("body", "status", "what"),
    [
        (b"", 400, "no sound Arrow"),
        (b"garbage and more garbage", 400, "no sound Arrow"),
        (arrow_body(pa.table({"a": [1.0, 2.0]}))[:-30], 400, "no sound Arrow"),
        (arrow_body(pa.table({"a": [1.0, 2.0]}), compression="zstd"), 415, "compressed"),
        (arrow_body(pa.table({"a": pa.array(["x", "x"]).dictionary_encode()})), 415, "dictionary-encoded"),
        (arrow_body(pa.table({"a": [{"b": 1}]})), 422, "type that no feature has"),
        (arrow_body(pa.table({"a": pa.array([[[1]]])})), 422, "type that no feature has"),
        (arrow_body(pa.table({"a": pa.nulls(4)})), 413, "too many candidates"),
        (arrow_body(pa.table([[1], [2]], names=["a", "a"])), 422, "one name"),
    ],
)
def test_arrow_that_is_no_request_is_refused(body, status, what):
    with pytest.raises(RequestError, match=what) as caught:
        read_request(body, "arrow", 3)
    assert caught.value.status == status


def test_a_compressed_stream_is_refused_before_a_byte_is_decompressed():
    bomb = arrow_body(pa.table({"a": np.zeros(3_000_000)}), compression="zstd")
    assert len(bomb) < 100_000
    with pytest.raises(RequestError, match="compressed"):
        read_request(bomb, "arrow", 10_000_000)


def test_offsets_that_lead_outside_are_refused():
    body = bytearray(arrow_body(pa.table({"author": ["ann", "bob"]})))
    place = bytes(body).index(b"\x00\x00\x00\x00\x03\x00\x00\x00\x06\x00\x00\x00")
    body[place + 8 : place + 12] = b"\xff\xff\xff\x7f"
    with pytest.raises(RequestError, match="no sound Arrow"):
        read_request(bytes(body), "arrow", 10)


GOOD = arrow_body(pa.table({"hour": [1.0, None], "author": ["a", "b"], "topics": [["x"], []]}), {"age": 1.0}, 1)


def outcome(body: bytes, form: str) -> str:
    try:
        return "read" if read_request(body, form, 10).num_candidates <= 10 else "too many"
    except RequestError as error:
        return "refused" if 400 <= error.status < 500 else "failed"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_any_damage_of_an_arrow_stream_is_read_or_refused(damage):
    body = bytearray(GOOD)
    for place, value in damage:
        body[place] = value
    assert outcome(bytes(body), "arrow") in ("read", "refused")


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300), st.sampled_from(["json", "arrow"]))
def test_any_bytes_are_read_or_refused(body, form):
    assert outcome(body, form) in ("read", "refused")
