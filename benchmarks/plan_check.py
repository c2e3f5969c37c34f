"""`tml plan` held against training: predicted and reached edges a second on this machine, for some shapes of work.

    python benchmarks/plan_check.py                         # three rounds of three shapes, about ten minutes
    python benchmarks/plan_check.py --edges 200k --rounds 1

For every shape and round, `tml plan --measure` probes the machine and predicts in a process of its own, then the same
config is trained for an epoch of the planted graph; so both see the machine in the same mood. The rate of training is
that of benchmarks/twhin_vs_pbg: the whole loop without imports and filling tables. The figure to quote is the median of
planned / trained, and how far the shapes lie apart: a model of the right kind is as near for all of them.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict
from functools import partial
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
from tml.benchmarks.runs import planted_graph, run_tml, train
from tml.benchmarks.turns import Measured, Runs, take_turns
from tml.benchmarks.twhin_vs_pbg.settings import Graph, Settings, twhin_config

WORK = RUNS / "plan_check"

# What an edge costs differs by five times between them, and in what: products, rows, or the host's work.
SHAPES = {
    "dim 128, 50 + 50": Settings(dim=128, in_batch=50, uniform=50, batch_size=20_000),
    "dim 64, 50 + 50": Settings(dim=64, in_batch=50, uniform=50, batch_size=20_000),
    "dim 128, 50 + 450": Settings(dim=128, in_batch=50, uniform=450, batch_size=20_000),
}


def main() -> None:
    arguments = _parse_arguments()
    graph = Graph.read(arguments.graph or planted_graph(arguments.edges))
    machines = _this_machine()
    where = circumstances()
    found: dict[str, Runs] = {}
    phases: dict[str, Any] = {}
    for name, settings in SHAPES.items():
        print(name, flush=True)
        config = _write(f"{_file_name(name)}.yaml", twhin_config(settings, graph))
        contestants = {
            "planned": partial(_plan, config, machines, arguments.set, phases, name),
            "trained": partial(_train, config, arguments.set, settings.workers),
        }
        found[name] = take_turns(contestants, arguments.rounds, "edges")
    rows = [
        {"shape": name}
        | {f"{kind} edges/s": Spread.of(runs.rates(kind)).shown() for kind in ("planned", "trained")}
        | {"planned / trained": runs.ratio("planned", "trained").shown(2)}
        for name, runs in found.items()
    ]
    text = f"{markdown_table(rows)}\n\nPhases of the last plans, in ms:\n\n{_phase_table(phases)}"
    record = {
        "circumstances": where,
        "settings": {name: asdict(settings) for name, settings in SHAPES.items()},
        "overrides": arguments.set,
        "graph": {"tables": graph.tables, "relations": graph.relations},
        "shapes": {name: runs.record() for name, runs in found.items()},
        "phases": phases,
    }
    write_record(arguments.results, arguments.record, record, text)


def _plan(config: Path, machines: Path, overrides: list[str], phases: dict[str, Any], name: str) -> Measured:
    """A prediction as if it had been measured: an epoch's edges and seconds."""
    log = WORK / "plan.json"
    run_tml(["plan", "--config", config, "--machines", machines, "--measure", "--json", *overrides], log)
    text = log.read_text(encoding="utf-8")
    plan = json.loads(text[text.index("{\n") :])
    phases[name] = {phase["name"]: 1e3 * phase["seconds"] for phase in plan["step"]["phases"]}
    return Measured(plan["num_examples"], plan["epoch_seconds"])


def _train(config: Path, overrides: list[str], workers: int) -> Measured:
    run = train(config, "plan_check/run", overrides, {"OMP_NUM_THREADS": str(workers)})
    return Measured(run.num_edges, run.training_seconds, run.process)


def _this_machine() -> Path:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return _write("machines.yaml", {"chief": {"mem": memory, "cpu": len(os.sched_getaffinity(0))}})


def _write(name: str, values: dict[str, Any]) -> Path:
    path = WORK / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return path


def _file_name(shape: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in shape)


def _phase_table(phases: dict[str, dict[str, float]]) -> str:
    names = dict.fromkeys(name for of_shape in phases.values() for name in of_shape)
    return markdown_table([{"phase": n} | {shape: found.get(n, 0.0) for shape, found in phases.items()} for n in names])


def _parse_arguments() -> argparse.Namespace:
    parser = argument_parser(
        __doc__, "plan_check", rounds="plans and trainings of each shape, taking turns", overrides=True
    )
    parser.add_argument("--edges", type=parse_count, default=2_000_000, help="of the planted graph, such as 200k or 2m")
    parser.add_argument("--graph", type=Path, help="folder of tml convert, instead of the planted graph")
    return parser.parse_args()


if __name__ == "__main__":
    main()
