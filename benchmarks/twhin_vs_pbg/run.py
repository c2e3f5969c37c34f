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
all candidates): a rate is worth something only if as much is learnt.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from tml.benchmarks.harness import (
    RESULTS,
    ROOT,
    RUNS,
    Spread,
    circumstances,
    markdown_table,
    parse_count,
    ratios,
    write_record,
)
from tml.benchmarks.processes import run_measured
from tml.benchmarks.runs import TrainedRun, evaluate, planted_graph, train
from tml.benchmarks.twhin_vs_pbg.settings import Graph, Settings, pbg_config, twhin_config

HERE = Path(__file__).resolve().parent
WORK = RUNS / "twhin_vs_pbg"


@dataclass(frozen=True)
class Measured:
    """One training of one system."""

    num_edges: int
    training_seconds: float
    wall_seconds: float
    peak_mib: float

    @property
    def rate(self) -> float:
        """Edges a second."""
        return self.num_edges / self.training_seconds


def main() -> None:
    arguments = _parse_arguments()
    settings = _settings(arguments)
    python = set_up_pbg()
    graph = Graph.read(arguments.graph or planted_graph(arguments.edges))
    record: dict[str, Any] = {
        "circumstances": circumstances() | {"pbg_versions": _pbg_versions(python)},
        "settings": asdict(settings),
        "overrides": arguments.set,
        "graph": {"tables": graph.tables, "relations": graph.relations},
    }
    ours, theirs = _Ours(settings, graph, arguments.set), _Pbg(settings, graph, python)
    rounds = []
    for number in range(arguments.rounds):
        rounds.append((ours.train(), theirs.train()))
        mine, other = rounds[-1]
        print(f"round {number + 1}: tml {mine.rate:,.0f} edges/s, PBG {other.rate:,.0f}", flush=True)
    quality = {} if arguments.no_quality else {"tml": ours.quality(), "PBG": theirs.quality()}
    record |= {"rounds": [{"tml": asdict(a), "PBG": asdict(b)} for a, b in rounds], "quality": quality}
    ratio = record["rate_ratio"] = ratios(*([run.rate for run in runs] for runs in zip(*rounds, strict=True)))
    text = report(settings, graph, rounds, quality) + f"\n\ntml / PBG: {ratio.shown(2)}."
    write_record(arguments.results, "twhin_vs_pbg", record, text)


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
        return Measured(run.num_edges, run.training_seconds, run.process.wall_seconds, run.process.peak_bytes / 2**20)

    def quality(self) -> dict[str, float]:
        assert self._run is not None
        known = f"validation_data.data_root={self._graph.edges('valid')}"
        return evaluate(self._config, self._run, [*self._overrides, known])


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
        return Measured(**timing, wall_seconds=process.wall_seconds, peak_mib=process.peak_bytes / 2**20)

    def quality(self) -> dict[str, float]:
        from tml.benchmarks.twhin_vs_pbg.quality import pbg_metrics

        return pbg_metrics(self._graph, self._out)

    def _worker(self, task: str, *arguments: str) -> Any:
        command = [str(self._python), str(HERE / "pbg_worker.py"), task, *arguments]
        return run_measured(command, WORK / f"pbg-{task}.log")


def set_up_pbg() -> Path:
    """Make PBG's environment if it is missing, and return its Python."""
    subprocess.run([str(HERE / "setup_pbg.sh")], check=True)
    return ROOT / os.environ.get("TML_VENV_PBG", ".venv-pbg") / "bin" / "python"


def report(settings: Settings, graph: Graph, rounds: list[tuple[Measured, Measured]], quality: dict[str, Any]) -> str:
    """The result in Markdown."""
    rows = []
    for number, (mine, other) in enumerate(rounds, start=1):
        row = {"round": number, "tml edges/s": round(mine.rate), "PBG edges/s": round(other.rate)}
        rows.append(row | {"ratio": mine.rate / other.rate})
    ours, theirs = zip(*rounds, strict=True)
    summary = [_summary("tml", ours, quality), _summary("PBG", theirs, quality)]
    work = (
        f"{rounds[0][0].num_edges:,} edges trained, {sum(graph.tables.values()):,} nodes, "
        f"{len(graph.relations)} relations; dim {settings.dim}, {settings.in_batch} in-batch + {settings.uniform} "
        f"uniform negatives a side, {settings.num_epochs} epochs; batch {settings.batch_size:,} (tml), "
        f"{settings.pbg_batch_size:,} (PBG); {settings.workers} threads, {settings.workers} PBG workers."
    )
    return f"{work}\n\n{markdown_table(rows)}\n\nMedians (lowest to highest):\n\n{markdown_table(summary)}"


def _summary(name: str, runs: tuple[Measured, ...], quality: dict[str, Any]) -> dict[str, Any]:
    metrics = quality.get(name, {})
    return {
        "system": name,
        "edges/s": Spread.of([run.rate for run in runs]).shown(),
        "training s": Spread.of([run.training_seconds for run in runs]).shown(1),
        "whole process s": Spread.of([run.wall_seconds for run in runs]).shown(1),
        "peak MiB": Spread.of([run.peak_mib for run in runs]).shown(),
        "MRR": metrics.get("filtered.mrr"),
        "Hits@10": metrics.get("filtered.hits@10"),
    }


def _pbg_versions(python: Path) -> dict[str, str]:
    code = (
        "import json; from importlib.metadata import version;"
        "print(json.dumps({name: version(name) for name in ('torchbiggraph', 'torch', 'numpy', 'h5py')}))"
    )
    return json.loads(subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True).stdout)


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Settings()
    parser.add_argument("--edges", type=parse_count, default=2_000_000, help="of the planted graph, such as 200k or 2m")
    parser.add_argument("--graph", type=Path, help="folder of tml convert, instead of the planted graph")
    parser.add_argument("--rounds", type=int, default=3, help="trainings of each system, taking turns")
    parser.add_argument("--epochs", type=int, default=default.num_epochs)
    parser.add_argument("--dim", type=int, default=default.dim)
    parser.add_argument("--in-batch", type=int, default=default.in_batch, help="in-batch negatives a side")
    parser.add_argument("--global", type=int, default=default.uniform, help="uniform negatives a side")
    parser.add_argument("--batch-size", type=int, default=default.batch_size, help="edges of a step of tml")
    parser.add_argument("--pbg-batch-size", type=int, default=default.pbg_batch_size, help="PBG's default is 1000")
    parser.add_argument("--workers", type=int, default=default.workers, help="threads of tml, processes of PBG")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override a setting of tml's config"
    )
    parser.add_argument("--no-quality", action="store_true", help="do not rank the test edges at the end")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the record")
    return parser.parse_args()


if __name__ == "__main__":
    main()
