"""The HTTP service: one model, scored over JSON or Arrow.

    POST /score     see `bodies.py`
    GET  /health    {"status": "ok", "model": "<version>"}
    GET  /metrics   Prometheus text
    GET  /model     the signature

Everything has a bound: bytes of a body (while it arrives), candidates, requests at once, time. What is refused is
answered with `{"error": {"what", "where", "value", "limit", "fix"}}` and a status of 400 and above.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tml.common.errors import TmlError
from tml.projects.light_ranker.serving.bodies import (
    ARROW_TYPE,
    FORMATS,
    JSON_TYPE,
    Format,
    read_request,
    write_response,
)
from tml.projects.light_ranker.serving.limits import Gate, RequestError, ServiceLimits, Ticket
from tml.projects.light_ranker.serving.scorer import Scorer
from tml.projects.light_ranker.serving.service_metrics import CONTENT_TYPE, ServiceMetrics

logger = logging.getLogger(__name__)

_RETRY_SECONDS = 1
_UNPROCESSABLE, _TOO_LARGE, _UNSUPPORTED, _BUSY = 422, 413, 415, 503


class RankerService:
    """The requests' way through the service.

    Args:
        scorer: the model.
        limits: what is accepted.
        num_workers: requests scored at once, each with the scorer's own threads.
    """

    def __init__(self, scorer: Scorer, limits: ServiceLimits, num_workers: int) -> None:
        self.scorer, self.limits = scorer, limits
        self.version = scorer.signature.version
        self.metrics = ServiceMetrics(self.version)
        self.gate = Gate(limits.max_requests)
        self.workers = ThreadPoolExecutor(num_workers, thread_name_prefix="score")

    async def score(self, request: Request) -> Response:
        """POST /score."""
        with self.gate.admit() as ticket:
            form = _form(request)
            body = await self._body(request)
            deadline = time.monotonic() + self.limits.score_seconds
            answer = await self._in_thread(ticket, lambda: self._answer(body, form, deadline))
        return Response(answer, media_type=JSON_TYPE if form == "json" else ARROW_TYPE)

    async def health(self, _: Request) -> Response:
        """GET /health."""
        return JSONResponse({"status": "ok", "model": self.version})

    async def show_metrics(self, _: Request) -> Response:
        """GET /metrics."""
        return Response(self.metrics.text(self.gate.inside), headers={"content-type": CONTENT_TYPE})

    async def model(self, _: Request) -> Response:
        """GET /model."""
        return JSONResponse(self.scorer.signature.to_json())

    async def _body(self, request: Request) -> bytes:
        announced = request.headers.get("content-length", "0")
        if announced.isdecimal() and int(announced) > self.limits.max_body_bytes:
            raise self._too_large(int(announced))
        chunks, size = [], 0
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                async for chunk in request.stream():
                    size += len(chunk)
                    if size > self.limits.max_body_bytes:
                        raise self._too_large(size)
                    chunks.append(chunk)
        except TimeoutError:
            raise RequestError(
                408, "the body took too long to arrive", where="body", value=f"{size} bytes",
                limit=f"{self.limits.body_seconds:g} seconds", fix="send it at once",
            ) from None  # fmt: skip
        return b"".join(chunks)

    def _too_large(self, size: int) -> RequestError:
        return RequestError(
            _TOO_LARGE, "the body is too large", where="body", value=f"{size} bytes or more",
            limit=f"{self.limits.max_body_bytes} bytes",
            fix="send fewer candidates a request, or raise --max-body-bytes",
        )  # fmt: skip

    async def _in_thread(self, ticket: Ticket, work: Callable[[], bytes]) -> bytes:
        """The loop answers /health meanwhile. Who times out waits no longer, but the thread keeps its place."""
        future = self.workers.submit(work)
        ticket.keep()
        loop = asyncio.get_running_loop()
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(ticket.give_back))
        try:
            async with asyncio.timeout(self.limits.score_seconds):
                return await asyncio.shield(asyncio.wrap_future(future))
        except TimeoutError:
            future.cancel()
            raise self._too_slow() from None

    def _answer(self, body: bytes, form: Format, deadline: float) -> bytes:
        start = time.monotonic()
        if start > deadline:
            raise self._too_slow()
        request = read_request(body, form, self.limits.max_candidates)
        scores = self.scorer.score(request.user, request.candidates, request.top_k)
        answer = write_response(scores, form, self.version)
        self.metrics.scored(len(scores.probabilities), time.monotonic() - start)
        return answer

    def _too_slow(self) -> RequestError:
        return RequestError(
            _BUSY, "scoring took too long", limit=f"{self.limits.score_seconds:g} seconds",
            fix="try again after the time in Retry-After, or send fewer candidates",
        )  # fmt: skip


def build_app(scorer: Scorer, limits: ServiceLimits | None = None, num_workers: int = 2) -> Starlette:
    """The application that a server such as uvicorn runs.

    Args:
        scorer: the model.
        limits: what is accepted.
        num_workers: requests scored at once.
    """
    service = RankerService(scorer, limits or ServiceLimits(), num_workers)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        service.workers.shutdown(wait=False, cancel_futures=True)

    return Starlette(
        routes=[
            Route("/score", _counted(service, service.score), methods=["POST"]),
            Route("/health", _counted(service, service.health)),
            Route("/metrics", service.show_metrics),
            Route("/model", _counted(service, service.model)),
        ],
        exception_handlers={HTTPException: _http_error},  # type: ignore[dict-item]
        lifespan=lifespan,
    )


def _counted(
    service: RankerService, endpoint: Callable[[Request], Awaitable[Response]]
) -> Callable[[Request], Awaitable[Response]]:
    async def counted(request: Request) -> Response:
        try:
            response = await endpoint(request)
        except ClientDisconnect:
            response = Response(status_code=400)
        except Exception as error:
            response = _error_response(error)
        service.metrics.response(request.url.path, response.status_code)
        return response

    return counted


def _form(request: Request) -> Format:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    encoding = request.headers.get("content-encoding", "identity")
    if kind not in FORMATS or encoding != "identity":
        raise RequestError(
            _UNSUPPORTED, "a body of an unknown type", where="Content-Type, Content-Encoding",
            value=f"{kind}, {encoding}", limit=f"{' or '.join(FORMATS)}, not compressed",
        )  # fmt: skip
    return FORMATS[kind]


def _error_response(error: Exception) -> Response:
    if isinstance(error, RequestError):
        headers = {"retry-after": str(_RETRY_SECONDS)} if error.status == _BUSY else {}
        # Of a body that was not read to its end, the rest would be taken for the next request.
        headers |= {"connection": "close"} if error.status in (408, _TOO_LARGE) else {}
        return _error(error, error.status, headers)
    if isinstance(error, TmlError):
        return _error(error, _UNPROCESSABLE)
    logger.error("a request failed", exc_info=error)
    return _error(TmlError("the service failed", fix="see its log"), 500)


async def _http_error(request: Request, error: HTTPException) -> Response:
    limit = "POST /score, GET /health, GET /metrics, GET /model"
    where = f"{request.method} {request.url.path}"
    return _error(TmlError(str(error.detail).lower(), where=where, limit=limit), error.status_code, error.headers)


def _error(error: TmlError, status: int, headers: Any = None) -> Response:
    shown = {name: _plain(getattr(error, name)) for name in ("what", "where", "value", "limit", "fix")}
    body = json.dumps({"error": shown}).encode()
    return Response(body, status, headers, media_type=JSON_TYPE)


def _plain(value: object) -> str | None:
    if value is None:
        return None
    shown = value if isinstance(value, str) else repr(value)
    return shown if len(shown) <= 200 else shown[:197] + "..."
