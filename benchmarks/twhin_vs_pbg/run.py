"""tml's TwHIN against PyTorch-BigGraph (PBG): edges a second on the same graph with the same work, in one run.

    python benchmarks/twhin_vs_pbg/run.py                       # 2 M edges, three rounds: A B A B A B
    python benchmarks/twhin_vs_pbg/run.py --edges 200k --rounds 1

Equal by construction (settings.py): edges, epochs, dim, negatives of both kinds, softmax over translation and dot
product, row-wise Adagrad, learning rate, initial scale, processor cores (threads of tml, processes of PBG). Not
equal: the batch, which each system has at a size that suits it (--batch-size, --pbg-batch-size). PBG's workers update
shared tables without locks; tml's result does not depend on timing.

Rate = edges trained / seconds of training. The interval is
  tml: from before the first row is read to the end of the last step: reading, shuffling, checking, drawing negatives,
       forward, backward, update, logging and tracking. Without: imports, filling tables, the checkpoint at the end.
  PBG: what its own log counts for every epoch: reading and shuffling the edges ("io") and training. Without: imports,
       starting its workers (they are up before its clock starts), filling tables, the checkpoint after every epoch.
Whole-process time, with all of that, is reported beside it. Memory is that of all processes of a system together,
shared pages counted once. The figure to quote is the median of the ratios, round by round.

The last round's embeddings of both are ranked by tml's evaluation on the held-out test edges (filtered, both sides,
all candidates): a rate is worth something only if as much is learnt. Then tml trains once more with checkpoints on
the way (--points), which are ranked likewise: the time to PBG's final MRR is that of the first one that has it, its
edges divided by the rate of the rounds. Beside the rate stands its share of what the machine allows
(benchmarks/limits.py), probed before the first round.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from tml.benchmarks.harness import RUNS, argument_parser, circumstances, parse_count, write_record
from tml.benchmarks.limits import Limits, TwhinWork, measured_limits, share_of_limit
from tml.benchmarks.peers import pbg_versions, set_up_pbg
from tml.benchmarks.processes import run_measured
from tml.benchmarks.runs import TrainedRun, evaluate, planted_graph, train
from tml.benchmarks.turns import Measured, Runs, take_turns
from tml.benchmarks.twhin_vs_pbg.curve import Point, curve_report, learning_curve
from tml.benchmarks.twhin_vs_pbg.settings import Graph, Settings, pbg_config, twhin_config

HERE = Path(__file__).resolve().parent
WORK = RUNS / "twhin_vs_pbg"


def main() -> None:
    arguments = _parse_arguments()
    settings = _settings(arguments)
    python = set_up_pbg()
    graph = Graph.read(arguments.graph or planted_graph(arguments.edges))
    record: dict[str, Any] = {
        "circumstances": circumstances() | {"peers": {"PBG": pbg_versions(python)}},
        "settings": asdict(settings),
        "overrides": arguments.set,
        "graph": {"tables": graph.tables, "relations": graph.relations},
    }
    limits = measured_limits(settings.workers, settings.dim)
    ours, theirs = _Ours(settings, graph, arguments.set), _Pbg(settings, graph, python)
    runs = take_turns({"tml": ours.train, "PBG": theirs.train}, arguments.rounds, "edges")
    quality = {} if arguments.no_quality else {"tml": ours.quality(), "PBG": theirs.quality()}
    points = ours.curve(arguments.points) if quality and arguments.points else []
    record |= runs.record() | {
        "limits": asdict(limits),
        "quality": quality,
        "curve": [asdict(point) for point in points],
    }
    write_record(arguments.results, arguments.record, record, report(settings, graph, runs, limits, quality, points))


class _Ours:
    """tml's side."""

    def __init__(self, settings: Settings, graph: Graph, overrides: list[str]) -> None:
        self._graph, self._overrides, self._settings = graph, overrides, settings
        self._config = WORK / "tml.yaml"
        self._config.parent.mkdir(parents=True, exist_ok=True)
        self._config.write_text(yaml.safe_dump(twhin_config(settings, graph), sort_keys=False), encoding="utf-8")
        self._run: TrainedRun | None = None

    def train(self) -> Measured:
        threads = {"OMP_NUM_THREADS": str(self._settings.workers)}
        run = self._run = train(self._config, "twhin_vs_pbg/tml", self._overrides, threads)
        return Measured(run.num_edges, run.training_seconds, run.process)

    def quality(self) -> dict[str, float]:
        assert self._run is not None
        return evaluate(self._config, self._run, [*self._overrides, self._known])

    def curve(self, num_points: int) -> list[Point]:
        return learning_curve(self._config, "twhin_vs_pbg/curve", [*self._overrides, self._known], num_points)

    @property
    def _known(self) -> str:
        # The filter leaves out the validation edges too.
        return f"validation_data.data_root={self._graph.edges('valid')}"


class _Pbg:
    """PBG's side."""

    def __init__(self, settings: Settings, graph: Graph, python: Path) -> None:
        self._graph, self._python = graph, python
        self._out, self._job, data = WORK / "pbg", WORK / "pbg.json", graph.folder / "pbg"
        config = pbg_config(settings, graph, data, WORK / "pbg-checkpoint")
        self._job.write_text(json.dumps({"config": config, "out": str(self._out)}, indent=1), encoding="utf-8")
        self._worker("prepare", str(graph.folder), str(data), json.dumps(graph.tables))

    def train(self) -> Measured:
        process = self._worker("train", str(self._job))
        timing = json.loads((self._out / "timing.json").read_text(encoding="utf-8"))
        return Measured(timing["num_edges"], timing["training_seconds"], process)

    def quality(self) -> dict[str, float]:
        from tml.benchmarks.twhin_vs_pbg.quality import pbg_metrics

        return pbg_metrics(self._graph, self._out)

    def _worker(self, task: str, *arguments: str) -> Any:
        command = [str(self._python), str(HERE / "pbg_worker.py"), task, *arguments]
        return run_measured(command, WORK / f"pbg-{task}.log")


def report(
    settings: Settings,
    graph: Graph,
    runs: Runs,
    limits: Limits,
    quality: dict[str, dict[str, float]],
    points: list[Point],
) -> str:
    """The result in Markdown; `quality` is empty and `points` are none where they were not asked for."""
    num_edges = runs.by_name["tml"][0].amount
    work = (
        f"{num_edges:,} edges trained, {sum(graph.tables.values()):,} nodes, "
        f"{len(graph.relations)} relations; dim {settings.dim}, {settings.in_batch} in-batch + {settings.uniform} "
        f"uniform negatives a side, {settings.num_epochs} epochs; batch {settings.batch_size:,} (tml), "
        f"{settings.pbg_batch_size:,} (PBG); {settings.workers} threads, {settings.workers} PBG workers."
    )
    learnt = {name: {"MRR": m.get("filtered.mrr"), "Hits@10": m.get("filtered.hits@10")} for name, m in quality.items()}
    ours = runs.seconds("tml").median
    of_edge = TwhinWork(settings.dim, settings.in_batch, settings.uniform, shared_in_batch=True)
    parts = [work, runs.report(learnt), f"tml: {share_of_limit(limits, of_edge, num_edges / ours)}"]
    if points:
        theirs = runs.seconds("PBG").median
        parts.append(curve_report(points, num_edges / ours, quality["PBG"]["filtered.mrr"], theirs))
    return "\n\n".join(parts)


def _settings(arguments: argparse.Namespace) -> Settings:
    return Settings(
        dim=arguments.dim,
        in_batch=arguments.in_batch,
        uniform=getattr(arguments, "global"),
        num_epochs=arguments.epochs,
        workers=arguments.workers,
        batch_size=arguments.batch_size,
        pbg_batch_size=arguments.pbg_batch_size,
    )


def _parse_arguments() -> argparse.Namespace:
    parser = argument_parser(__doc__, "twhin_vs_pbg", rounds="trainings of each system, taking turns", overrides=True)
    default = Settings()
    parser.add_argument("--edges", type=parse_count, default=2_000_000, help="of the planted graph, such as 200k or 2m")
    parser.add_argument("--graph", type=Path, help="folder of tml convert, instead of the planted graph")
    parser.add_argument("--epochs", type=int, default=default.num_epochs)
    parser.add_argument("--dim", type=int, default=default.dim)
    parser.add_argument("--in-batch", type=int, default=default.in_batch, help="in-batch negatives a side")
    parser.add_argument("--global", type=int, default=default.uniform, help="uniform negatives a side")
    parser.add_argument("--batch-size", type=int, default=default.batch_size, help="edges of a step of tml")
    parser.add_argument("--pbg-batch-size", type=int, default=default.pbg_batch_size, help="PBG's default is 1000")
    parser.add_argument("--workers", type=int, default=default.workers, help="threads of tml, processes of PBG")
    parser.add_argument("--no-quality", action="store_true", help="do not rank the test edges at the end")
    parser.add_argument("--points", type=int, default=8, help="of the way to PBG's MRR; 0 for none")
    return parser.parse_args()


if __name__ == "__main__":
    main()
