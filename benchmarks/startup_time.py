"""From the start of the process to the end of the first training step, part by part.

    python benchmarks/startup_time.py                       # five rounds
    python benchmarks/startup_time.py --edges 200k --rounds 1

A TwHIN run with a config of benchmarks/twhin_vs_pbg starts in a fresh process, imports included, and stops once its
first step is complete. The baseline is a process that imports torch and torchrec and ends: what no program on this
stack can do without. A ratio of 1 would be a start that costs no more than these imports.

Parts: interpreter (until the script's first line), imports, config, session (device, seeds, threads), build (data,
tables, model, optimizers), prepare (checkpoints, checks, pipeline), first step (its batch included). Memory is the peak
of the whole process, which also writes its checkpoint and ends; that is not timed.
"""

from __future__ import annotations

import argparse
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from tml.benchmarks.harness import (
    RUNS,
    Spread,
    argument_parser,
    circumstances,
    markdown_table,
    parse_count,
    write_record,
)
from tml.benchmarks.peers import run_worker
from tml.benchmarks.processes import run_measured
from tml.benchmarks.runs import planted_graph
from tml.benchmarks.startup_worker import STARTED_VARIABLE
from tml.benchmarks.turns import Measured, take_turns
from tml.benchmarks.twhin_vs_pbg.settings import Graph, Settings, twhin_config

HERE = Path(__file__).resolve().parent
WORK = RUNS / "startup_time"
BASELINE = "import torch, torchrec"


def main() -> None:
    arguments = _parse_arguments()
    graph = Graph.read(planted_graph(arguments.edges))
    WORK.mkdir(parents=True, exist_ok=True)
    config = WORK / "tml.yaml"
    config.write_text(yaml.safe_dump(twhin_config(Settings(), graph), sort_keys=False), encoding="utf-8")
    record: dict[str, Any] = {"circumstances": circumstances(), "overrides": arguments.set}
    starts: list[dict[str, float]] = []

    def ours() -> Measured:
        settings = [*arguments.set, f"training.save_dir={WORK / 'run'}", "training.overwrite_save_dir=true"]
        job = {"config": str(config), "overrides": settings}
        started = {STARTED_VARIABLE: repr(time.time())}
        ends, process = run_worker(HERE / "startup_worker.py", job, WORK / "tml", environment=started)
        starts.append(ends)
        return Measured(1, ends["first step"], process)

    def baseline() -> Measured:
        process = run_measured([sys.executable, "-c", BASELINE], WORK / "baseline.log")
        return Measured(1, process.wall_seconds, process)

    runs = take_turns({"tml": ours, BASELINE: baseline}, arguments.rounds, "starts")
    parts = [parts_of(ends) for ends in starts]
    rows = [{"part": name, "seconds": Spread.of([each[name] for each in parts]).shown(2)} for name in parts[0]]
    text = f"{sum(graph.tables.values()):,} nodes, dim {Settings().dim}.\n\n{runs.report()}\n\n{markdown_table(rows)}"
    write_record(arguments.results, arguments.record, record | runs.record() | {"parts": parts}, text)


def parts_of(ends: dict[str, float]) -> dict[str, float]:
    """Seconds of each part from the times at which they ended, in their order."""
    times = [0.0, *ends.values()]
    return dict(zip(ends, (after - before for before, after in pairwise(times)), strict=True))


def _parse_arguments() -> argparse.Namespace:
    parser = argument_parser(
        __doc__, "startup_time", rounds="starts of each, taking turns", default_rounds=5, overrides=True
    )
    parser.add_argument("--edges", type=parse_count, default=2_000_000, help="of the planted graph, such as 200k or 2m")
    return parser.parse_args()


if __name__ == "__main__":
    main()
