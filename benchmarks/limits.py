"""What this machine allows: rates of matrix products, of copies, and of rows at random places of a large table.

    python benchmarks/limits.py                                     # a minute
    python benchmarks/limits.py --threads 1 --table-rows 5m

Every rate is the best of some rounds, on all threads: the limit of the machine, not its average. Products and copies
are those that `tml plan --measure` probes (core/planning/probe.py): square matrices of 2,048, large enough for the
arithmetic to be all that counts; a copy counts the bytes read and those written. Rows have `--dim` float32 values; the
table is far larger than the caches. They are read and updated by a loop in C++ (limits_kernel.cpp) that asks for rows
ahead of time; without a compiler by torch's operations, and the record says so.

From them follows the limit of a TwHIN run (`twhin_limit`): the three products of each side (scores, their derivatives
by queries and by candidates; in-batch scores serve both sides where the operator allows), one read and one update of
every looked-up row, and nothing else: no reading of edges, no softmax, no sorting of ids. Threads that multiply do not
fetch rows meanwhile, so the two times add up. benchmarks/twhin_vs_pbg prints the share of it that a run reaches.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tml.benchmarks.harness import RUNS, argument_parser, circumstances, markdown_table, parse_count, write_record
from tml.benchmarks.processes import run_measured

if TYPE_CHECKING:
    import torch

_SCORE_PRODUCTS = 3
_SIDES = 2
_KINDS = ("float32", "bfloat16")


@dataclass(frozen=True)
class Limits:
    """The best rates seen.

    Attributes:
        threads: that worked together.
        fp32_flops: operations a second of float32 products; a multiplication and an addition are two.
        bf16_flops: of bfloat16 products.
        copy_bytes: bytes a second of a copy, those read and those written.
        dim: values of a row.
        gather_rows: rows a second read from random places and written in order.
        update_rows: rows a second read, changed and written at random places.
        row_kernel: whether rows were handled by the C++ loop, else by torch's operations.
    """

    threads: int
    fp32_flops: float
    bf16_flops: float
    copy_bytes: float
    dim: int
    gather_rows: float
    update_rows: float
    row_kernel: bool


@dataclass(frozen=True)
class TwhinWork:
    """What an edge costs.

    Attributes:
        dim: length of an embedding.
        in_batch: in-batch negatives a side, as many as a chunk has edges (64 if it is 0, as in the config).
        uniform: uniform negatives of a chunk and side.
        shared_in_batch: in-batch scores are made once for both sides, as under translation and dot product they can be.
    """

    dim: int
    in_batch: int
    uniform: int
    shared_in_batch: bool = False

    @property
    def flops(self) -> float:
        """Of an edge's products with the candidates of both sides."""
        candidates = (1 if self.shared_in_batch else _SIDES) * self.in_batch + _SIDES * self.uniform
        return _SCORE_PRODUCTS * 2.0 * candidates * self.dim

    @property
    def rows(self) -> float:
        """Looked up for an edge: both ends, and its share of its chunk's uniform negatives."""
        return _SIDES * (1 + self.uniform / (self.in_batch or 64))


def twhin_limit(limits: Limits, work: TwhinWork, bf16: bool = False) -> float:
    """Edges a second that a machine allows.

    Args:
        limits: of the machine; its rows may have another length, bytes are what counts.
        work: of an edge.
        bf16: whether products are in bfloat16.
    """
    products = work.flops / (limits.bf16_flops if bf16 else limits.fp32_flops)
    per_row = 1 / limits.gather_rows + 1 / limits.update_rows
    rows = work.rows * per_row * work.dim / limits.dim
    return 1 / (products + rows)


def share_of_limit(limits: Limits, work: TwhinWork, rate: float) -> str:
    """A sentence: which shares of the machine's limits a rate in edges a second is."""
    found = {kind: twhin_limit(limits, work, kind == "bfloat16") for kind in _KINDS}
    shares = [
        f"{rate / limit:.0%} of the limit with {kind} products ({limit:,.0f} edges/s)" for kind, limit in found.items()
    ]
    return (
        f"{rate:,.0f} edges/s are {' and '.join(shares)}: {work.flops / 1000:,.1f} thousand operations and "
        f"{work.rows:.1f} rows an edge on {limits.threads} threads."
    )


def measured_limits(threads: int, dim: int, table_rows: int = 2_000_000, seconds: float = 2.0) -> Limits:
    """The limits, probed in a process of its own.

    Args:
        threads: that work together.
        dim: values of a row.
        table_rows: of the table; it should be far larger than the caches.
        seconds: about, for each rate.
    """
    out = RUNS / "limits.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    arguments = ["--threads", threads, "--dim", dim, "--table-rows", table_rows, "--seconds", seconds, "--probe", out]
    run_measured(
        [sys.executable, str(Path(__file__).resolve()), *map(str, arguments)],
        RUNS / "limits.log",
        {"OMP_NUM_THREADS": str(threads)},
    )
    return Limits(**json.loads(out.read_text(encoding="utf-8")))


def probe(threads: int, dim: int, table_rows: int, seconds: float) -> Limits:
    """The limits, in this process; arguments as of `measured_limits`."""
    import torch

    from tml.core.planning.probe import copy_rate, product_rate

    torch.set_num_threads(threads)
    gather, update, row_kernel = _rows_a_second(threads, dim, table_rows, seconds)
    return Limits(
        threads=threads,
        fp32_flops=product_rate(torch.float32, seconds),
        bf16_flops=product_rate(torch.bfloat16, seconds),
        copy_bytes=copy_rate(seconds),
        dim=dim,
        gather_rows=gather,
        update_rows=update,
        row_kernel=row_kernel,
    )


def _rows_a_second(threads: int, dim: int, table_rows: int, seconds: float) -> tuple[float, float, bool]:
    import torch

    from tml.common.native.compiler import compiled
    from tml.core.planning.probe import fastest_seconds

    table = torch.ones(table_rows, dim)
    count = min(100_000, table_rows)
    # Each pass goes to other rows: the caches know nothing of them.
    every = torch.randperm(table_rows)
    rows, passes = torch.zeros(count, dim), max(1, table_rows // count)
    turn = 0

    def places() -> torch.Tensor:
        nonlocal turn
        turn = (turn + 1) % passes
        return every[turn * count : (turn + 1) * count]

    library = compiled(Path(__file__).resolve().with_name("limits_kernel.cpp"))
    if library is None:
        gather = lambda: torch.index_select(table, 0, places(), out=rows)  # noqa: E731
        update = lambda: table.index_add_(0, places(), rows)  # noqa: E731
    else:
        gather = _call(library.tml_probe_gather, table, places, rows, threads)
        update = _call(library.tml_probe_update, table, places, rows, threads)
    found = [count / fastest_seconds(action, seconds) for action in (gather, update)]
    return found[0], found[1], library is not None


def _call(
    function: Callable[..., None],
    table: torch.Tensor,
    places: Callable[[], torch.Tensor],
    rows: torch.Tensor,
    threads: int,
) -> Callable[[], None]:
    def call() -> None:
        chosen = places()
        function(
            ctypes.c_void_p(table.data_ptr()),
            ctypes.c_void_p(chosen.data_ptr()),
            ctypes.c_void_p(rows.data_ptr()),
            ctypes.c_int64(len(chosen)),
            ctypes.c_int64(table.shape[1]),
            ctypes.c_int(threads),
        )

    return call


def main() -> None:
    arguments = _parse_arguments()
    if arguments.probe:
        found = probe(arguments.threads, arguments.dim, arguments.table_rows, arguments.seconds)
        arguments.probe.write_text(json.dumps(asdict(found)), encoding="utf-8")
        return
    record = {"circumstances": circumstances()}
    limits = measured_limits(arguments.threads, arguments.dim, arguments.table_rows, arguments.seconds)
    write_record(arguments.results, arguments.record, record | {"limits": asdict(limits)}, report(limits))


def report(limits: Limits) -> str:
    """The rates, and what they allow a TwHIN run, in Markdown."""
    rows = [
        {"what": "float32 products", "rate": f"{limits.fp32_flops / 1e9:,.0f} GFLOP/s"},
        {"what": "bfloat16 products", "rate": f"{limits.bf16_flops / 1e9:,.0f} GFLOP/s"},
        {"what": "copy (read + written)", "rate": f"{limits.copy_bytes / 1e9:,.1f} GB/s"},
        {"what": f"random rows of {limits.dim}, read", "rate": _row_rate(limits.gather_rows)},
        {"what": f"random rows of {limits.dim}, updated", "rate": _row_rate(limits.update_rows)},
    ]
    allowed = []
    for dim, in_batch, uniform in ((64, 50, 50), (128, 50, 50), (128, 50, 0), (128, 100, 500), (256, 50, 50)):
        work = TwhinWork(dim, in_batch, uniform, shared_in_batch=True)
        row = {"dim": dim, "negatives a side": f"{in_batch} + {uniform}"}
        row |= {f"edges/s, {kind}": round(twhin_limit(limits, work, kind == "bfloat16")) for kind in _KINDS}
        allowed.append(row)
    by = "a C++ loop" if limits.row_kernel else "torch's operations, as there is no compiler"
    return (
        f"{limits.threads} threads, the best of some rounds; rows by {by}.\n\n{markdown_table(rows)}\n\n"
        "What that allows a TwHIN run (in-batch + uniform negatives; translation and dot product, whose in-batch "
        f"scores serve both sides):\n\n{markdown_table(allowed)}"
    )


def _row_rate(rate: float) -> str:
    return f"{rate / 1e6:,.1f} M/s ({1e9 / rate:,.0f} ns)"


def _parse_arguments() -> argparse.Namespace:
    parser = argument_parser(__doc__, "limits")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--threads", type=int, default=cores, help="that work together (default: all cores)")
    parser.add_argument("--dim", type=int, default=128, help="values of a row")
    parser.add_argument("--table-rows", type=parse_count, default=2_000_000, help="of the table, such as 2m")
    parser.add_argument("--seconds", type=float, default=3.0, help="about, for each rate")
    parser.add_argument("--probe", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
