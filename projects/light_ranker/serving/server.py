"""The service as a process: uvicorn around the application, until it is told to stop."""

from __future__ import annotations

import uvicorn

from tml.projects.light_ranker.serving.http import build_app
from tml.projects.light_ranker.serving.limits import ServiceLimits
from tml.projects.light_ranker.serving.scorer import Scorer


def serve(scorer: Scorer, host: str, port: int, limits: ServiceLimits, num_workers: int) -> None:
    """Serve until SIGINT or SIGTERM; requests in progress are answered first.

    Args:
        scorer: the model.
        host: address to listen on.
        port: to listen on.
        limits: what is accepted.
        num_workers: requests scored at once.
    """
    make_server(scorer, host, port, limits, num_workers).run()


def make_server(scorer: Scorer, host: str, port: int, limits: ServiceLimits, num_workers: int) -> uvicorn.Server:
    """The server that `serve` runs; arguments as there."""
    config = uvicorn.Config(
        build_app(scorer, limits, num_workers),
        host=host,
        port=port,
        log_level="info",
        access_log=False,
        # Beyond the requests that wait behind the gate: for /health and /metrics, and to refuse politely.
        limit_concurrency=limits.max_connections,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=int(limits.shutdown_seconds),
        server_header=False,
    )
    return uvicorn.Server(config)
