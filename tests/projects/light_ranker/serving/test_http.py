import asyncio
import json
import socket
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import httpx
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from tests.projects.light_ranker.export.tiny_ranker import CANDIDATES, USER
from tests.projects.light_ranker.serving.test_bodies import arrow_body
from tml.common.errors import ConfigError
from tml.projects.light_ranker.serving.bodies import ARROW_TYPE
from tml.projects.light_ranker.serving.http import build_app
from tml.projects.light_ranker.serving.limits import ServiceLimits
from tml.projects.light_ranker.serving.server import make_server

LIMITS = ServiceLimits(max_body_bytes=20_000, max_candidates=50, max_requests=2, body_seconds=0.3, score_seconds=5.0)
REQUEST = {"user": USER, "candidates": CANDIDATES, "top_k": 2}


@pytest.fixture(scope="module")
def client(served):
    with TestClient(build_app(served.scorer, LIMITS, 1), raise_server_exceptions=False) as client:
        yield client


class SlowScorer:
    """The real scorer behind a door that the test opens."""

    def __init__(self, scorer):
        self._scorer, self.signature, self.door = scorer, scorer.signature, threading.Event()
        self.started = threading.Semaphore(0)

    def score(self, *arguments):
        self.started.release()
        assert self.door.wait(10)
        return self._scorer.score(*arguments)


def error_of(response) -> dict:
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert set(error) == {"what", "where", "value", "limit", "fix"}
    return error


def test_json_is_answered_with_what_the_scorer_says(client, served):
    answer = client.post("/score", json=REQUEST).json()
    expected = served.scorer.score(USER, CANDIDATES, 2)
    np.testing.assert_allclose(answer["probabilities"], expected.probabilities, rtol=1e-6)
    np.testing.assert_allclose(answer["watch_time"], expected.watch_time, rtol=1e-6)
    assert answer["top_k"] == expected.top_k.tolist()
    assert answer["model"] == served.scorer.signature.version


def test_arrow_is_answered_with_arrow(client, served):
    table = pa.table({name: [row.get(name) for row in CANDIDATES] for name in CANDIDATES[0]})
    response = client.post("/score", content=arrow_body(table, USER, 2), headers={"content-type": ARROW_TYPE})
    assert response.headers["content-type"] == ARROW_TYPE
    found, expected = pa.ipc.open_stream(response.content).read_all(), served.scorer.score(USER, CANDIDATES, 2)
    np.testing.assert_array_equal(found["probability"], expected.probabilities)
    assert json.loads(found.schema.metadata[b"top_k"]) == expected.top_k.tolist()


def test_health_model_and_metrics(client, served):
    assert client.get("/health").json() == {"status": "ok", "model": served.scorer.signature.version}
    assert client.get("/model").json() == json.loads((served.folder / "signature.json").read_text())
    before = client.get("/metrics").text
    client.post("/score", json=REQUEST)
    text = client.get("/metrics").text
    name = 'tml_light_ranker_requests_total{path="/score",status="200"} '

    def value(text, start):
        return float(next((line[len(start) :] for line in text.splitlines() if line.startswith(start)), 0))

    assert value(text, name) == value(before, name) + 1
    assert value(text, "tml_light_ranker_candidates_total ") == value(before, "tml_light_ranker_candidates_total ") + 3
    count = value(text, "tml_light_ranker_score_seconds_count ")
    assert count == value(text, 'tml_light_ranker_score_seconds_bucket{le="+Inf"} ') > 0
    assert value(text, "tml_light_ranker_requests_in_progress ") == 0
    for line in text.splitlines():
        assert line.startswith("# ") or len(line.rsplit(" ", 1)) == 2


@pytest.mark.parametrize(
    ("options", "status", "what"),
    [
        ({"content": b"{"}, 400, "no sound JSON"),
        ({"json": []}, 422, "must be an object"),
        ({"json": {"candidates": [{"hour": "x"}]}}, 422, "wrong type"),
        ({"json": {"candidates": [{"hours": 1}]}}, 422, "no such feature"),
        ({"json": {"candidates": [{}] * 51}}, 413, "too many candidates"),
        ({"content": b" " * 20_001}, 413, "too large"),
        ({"content": b"x", "headers": {"content-type": "text/plain"}}, 415, "unknown type"),
        ({"content": b"x", "headers": {"content-encoding": "gzip"}}, 415, "unknown type"),
        ({"content": b"x", "headers": {"content-type": ARROW_TYPE}}, 400, "no sound Arrow"),
    ],
)
def test_every_fault_is_an_error_with_its_parts_and_the_service_goes_on(client, options, status, what):
    headers = {"content-type": "application/json"} | options.pop("headers", {})
    response = client.post("/score", headers=headers, **options)
    assert response.status_code == status
    assert what in error_of(response)["what"]
    assert client.post("/score", json=REQUEST).status_code == 200


def test_unknown_paths_and_methods_are_errors_of_the_same_kind(client):
    for response, status in ((client.get("/"), 404), (client.get("/score"), 405), (client.post("/health"), 405)):
        assert response.status_code == status
        assert "POST /score" in error_of(response)["limit"]


def test_a_fault_of_the_service_is_a_500_that_tells_nothing_of_its_inside(client, served, monkeypatch, caplog):
    monkeypatch.setattr(served.scorer, "score", lambda *arguments: 1 / 0)
    response = client.post("/score", json=REQUEST)
    assert response.status_code == 500
    assert "division" not in response.text
    assert "ZeroDivisionError" in caplog.text
    monkeypatch.undo()
    assert client.post("/score", json=REQUEST).status_code == 200


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FEATURE = st.sampled_from(["hour", "author", "topics", "image", "tweet_id", "likes"])
REQUESTS = st.fixed_dictionaries(
    {"candidates": st.lists(st.dictionaries(FEATURE, JSON, max_size=3), max_size=4) | st.dictionaries(FEATURE, JSON)},
    optional={"user": st.dictionaries(st.sampled_from(["age", "country", "taste", "interests"]), JSON), "top_k": JSON},
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(JSON | REQUESTS)
def test_any_json_is_scored_or_refused_with_a_reason(client, body):
    text = json.dumps(body)
    response = client.post("/score", content=text, headers={"content-type": "application/json"})
    if response.status_code == 200:
        found = np.array(response.json()["probabilities"])
        assert ((found >= 0) & (found <= 1)).all()
    else:
        assert response.status_code in (413, 422)
        assert error_of(response)["what"]


def test_overload_is_refused_at_once_while_health_answers(served):
    slow = SlowScorer(served.scorer)
    app = build_app(slow, LIMITS, 1)

    async def scenario():
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            waiting = [asyncio.create_task(client.post("/score", json=REQUEST)) for _ in range(2)]
            await asyncio.to_thread(slow.started.acquire)
            refused = await client.post("/score", json=REQUEST)
            health = await client.get("/health")
            in_progress = (await client.get("/metrics")).text
            slow.door.set()
            served_after_all = [(await task).status_code for task in waiting]
            again = await client.post("/score", json=REQUEST)
            return refused, health, in_progress, served_after_all, again

    refused, health, in_progress, served_after_all, again = asyncio.run(scenario())
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "1"
    assert error_of(refused)["limit"] == "2 at once"
    assert health.status_code == 200
    assert "requests_in_progress 2" in in_progress
    assert served_after_all == [200, 200]
    assert again.status_code == 200


def test_who_waits_too_long_is_told_so_but_its_place_is_kept_until_the_thread_is_done(served):
    slow = SlowScorer(served.scorer)
    app = build_app(slow, replace(LIMITS, score_seconds=0.2, max_requests=1), 1)

    async def scenario():
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            late = await client.post("/score", json=REQUEST)
            meanwhile = await client.post("/score", json=REQUEST)
            slow.door.set()
            for _ in range(100):
                if "in_progress 0" in (await client.get("/metrics")).text:
                    break
                await asyncio.sleep(0.02)
            return late, meanwhile, await client.post("/score", json=REQUEST)

    late, meanwhile, after = asyncio.run(scenario())
    assert (late.status_code, meanwhile.status_code, after.status_code) == (503, 503, 200)
    assert "took too long" in error_of(late)["what"]
    assert "busy" in error_of(meanwhile)["what"]


@contextmanager
def running(scorer, limits=LIMITS):
    """A real server on a free port of the loopback."""
    server = make_server(scorer, "127.0.0.1", 0, limits, 1)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield server, server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


def said(port: int, data: bytes, seconds: float = 3.0) -> bytes:
    """What the server answers to raw bytes."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
        connection.sendall(data)
        answer = b""
        try:
            while part := connection.recv(65536):
                answer += part
        except TimeoutError:
            pass
        return answer


def test_a_body_is_measured_while_it_arrives_and_not_after(served):
    head = b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    chunk = b"1000\r\n" + b" " * 0x1000 + b"\r\n"
    with running(served.scorer) as (_, port):
        # No end of the body is ever sent.
        assert b" 413 " in said(port, head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 6).split(b"\r\n")[0]
        assert b" 413 " in said(port, head + b"Content-Length: 999999999\r\n\r\n").split(b"\r\n")[0]
        assert b" 408 " in said(port, head + b"Content-Length: 100\r\n\r\n{").split(b"\r\n")[0]
        assert b" 400 " in said(port, b"\x16\x03\x01 this is no HTTP\r\n\r\n").split(b"\r\n")[0]
        assert httpx.post(f"http://127.0.0.1:{port}/score", json=REQUEST).status_code == 200


def test_a_stop_lets_requests_in_progress_finish(served):
    slow = SlowScorer(served.scorer)
    with running(slow) as (server, port):
        answers = []
        asker = threading.Thread(
            target=lambda: answers.append(httpx.post(f"http://127.0.0.1:{port}/score", json=REQUEST, timeout=10))
        )
        asker.start()
        slow.started.acquire()
        server.should_exit = True
        time.sleep(0.2)
        slow.door.set()
        asker.join(10)
    assert [answer.status_code for answer in answers] == [200]


def test_limits_must_be_positive():
    with pytest.raises(ConfigError, match="max_requests"):
        ServiceLimits(max_requests=0)
