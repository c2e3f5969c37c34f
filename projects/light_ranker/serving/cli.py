"""`tml light-ranker score` and `tml light-ranker serve`: an exported ranker at work."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tml.common.errors import ConfigError

if TYPE_CHECKING:
    from tml.projects.light_ranker.serving.scorer import Scorer

ExportDir = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of an exported ranker.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads that score one request.")]
Int8 = Annotated[bool, typer.Option(help="Use the graph in 8 bits.")]


def score_command(
    folder: ExportDir,
    input: Annotated[Path | None, typer.Option(help="Parquet table: a user and a candidate in each row.")] = None,
    out: Annotated[Path | None, typer.Option(help="Parquet table to write: the scores, row by row.")] = None,
    keep: Annotated[
        list[str] | None, typer.Option(help="Column of the input to write beside the scores, repeated.")
    ] = None,
    threads: Threads = 2,
    int8: Int8 = False,
) -> None:
    """Score a table, or one request from standard input: {"user": {...}, "candidates": [...], "top_k": 10}."""
    from tml.projects.light_ranker.serving.scorer import Scorer
    from tml.projects.light_ranker.serving.table import score_table

    if (input is None) != (out is None):
        raise ConfigError("--input and --out go together", value=f"--input {input}, --out {out}")
    if input is None and keep:
        raise ConfigError("--keep belongs to --input", value=keep)
    scorer = Scorer(folder, threads, int8=int8)
    if input is None:
        _score_request(scorer)
        return
    assert out is not None
    num_rows = score_table(scorer, input, out, keep or ())
    typer.echo(f"{num_rows:,} rows scored to {out}")


def serve_command(
    folder: ExportDir,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all of the machine's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8080,
    threads: Threads = 2,
    workers: Annotated[int, typer.Option(min=1, help="Requests scored at once, each with its own threads.")] = 1,
    max_body_bytes: Annotated[int, typer.Option(min=1, help="Size of a request's body.")] = 8 * 2**20,
    max_candidates: Annotated[int, typer.Option(min=1, help="Candidates of a request.")] = 10_000,
    max_requests: Annotated[int, typer.Option(min=1, help="Requests at once; more are told to come again.")] = 32,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds to wait for a request's scores.")] = 2.0,
    int8: Int8 = False,
) -> None:
    """Serve an exported ranker over HTTP: POST /score, GET /health, /metrics, /model. There is no access control."""
    from tml.projects.light_ranker.serving.limits import ServiceLimits
    from tml.projects.light_ranker.serving.scorer import Scorer
    from tml.projects.light_ranker.serving.server import serve

    limits = ServiceLimits(
        max_body_bytes=max_body_bytes,
        max_candidates=max_candidates,
        max_requests=max_requests,
        score_seconds=timeout,
    )
    scorer = Scorer(folder, threads, int8=int8)
    serve(scorer, host, port, limits, workers)


def _score_request(scorer: Scorer) -> None:
    from tml.projects.light_ranker.serving.bodies import read_request, write_response

    request = read_request(sys.stdin.buffer.read(), "json", sys.maxsize)
    scores = scorer.score(request.user, request.candidates, request.top_k)
    typer.echo(json.dumps(json.loads(write_response(scores, "json", scorer.signature.version)), indent=1))
