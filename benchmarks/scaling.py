"""How cost grows: edges a second and memory of TwHIN training over edges, nodes, dim, negatives and batch.

    python benchmarks/scaling.py                    # about 12 minutes, and 5 more to make the graphs at first
    python benchmarks/scaling.py --quick            # small sizes, one round, a minute or two
    python benchmarks/scaling.py --only dim,batch   # some of the series
    python benchmarks/scaling.py --restart          # forget what was measured

One thing is varied at a time around one point: 2 M planted edges, 130,000 nodes, dim 128, 50 in-batch + 50 uniform
negatives a side, batch 20,000, translation + dot, softmax, row-wise Adagrad. With the edges the nodes grow in
proportion, as graphs do; the series of nodes has the same edges between more of them. Rounds go over all points in
turn, so that a slow hour of the machine does not fall on one series; medians are shown, and the ratio to the point in
the middle, which is measured in every round as well.

Rate and memory are those of benchmarks/twhin_vs_pbg: the whole training loop without imports and filling tables; the
peak of the process. A point trains one epoch, or a part of it where an edge costs more than in the middle, so that all
points take about as long; at least 20 steps.

Every measurement is written down at once, with its commit (runs/benchmarks/scaling.jsonl): a run that was stopped goes
on where it was, more `--rounds` add to those that are there, and those of another commit are measured again. The plot
(docs/scaling.svg) needs matplotlib: `pip install 'tml[plots]'`; without it there is the table.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import yaml

from tml.benchmarks.harness import (
    ROOT,
    RUNS,
    Spread,
    argument_parser,
    circumstances,
    commit,
    markdown_table,
    some_of,
    write_record,
)
from tml.benchmarks.limits import TwhinWork
from tml.benchmarks.runs import planted_graph, train
from tml.benchmarks.twhin_vs_pbg.settings import Graph, Settings, twhin_config

WORK = RUNS / "scaling"
_MIN_STEPS = 20


@dataclass(frozen=True)
class Point:
    """What is trained.

    Attributes:
        edges: of the planted graph.
        nodes: users and tweets together, ten users to three tweets.
        dim: length of an embedding.
        negatives: of an edge and side; half of them (the larger) in-batch, the others uniform. 1 is a uniform one.
        batch: edges of a step.
    """

    edges: int = 2_000_000
    nodes: int = 130_000
    dim: int = 128
    negatives: int = 100
    batch: int = 20_000

    @property
    def in_batch(self) -> int:
        """In-batch negatives a side."""
        return 0 if self.negatives == 1 else -(-self.negatives // 2)

    @property
    def uniform(self) -> int:
        """Uniform negatives of a chunk and side."""
        return self.negatives - self.in_batch


@dataclass(frozen=True)
class Cost:
    """One measurement.

    Attributes:
        rate: edges a second.
        peak_mib: of the process.
    """

    rate: float
    peak_mib: float


SERIES: dict[str, tuple[int, ...]] = {
    "edges": (200_000, 2_000_000, 20_000_000),
    "nodes": (10_000, 130_000, 1_000_000, 5_000_000),
    "dim": (32, 64, 128, 256, 512),
    "negatives": (1, 10, 100, 1_000),
    "batch": (1_000, 4_000, 20_000, 64_000),
}
QUICK = Point(edges=20_000, nodes=1_300, dim=32, negatives=20, batch=1_000)
QUICK_SERIES: dict[str, tuple[int, ...]] = {
    "edges": (10_000, 20_000),
    "nodes": (1_300, 5_200),
    "dim": (16, 32),
    "negatives": (1, 20),
    "batch": (500, 1_000),
}


def main() -> None:
    arguments = _parse_arguments()
    middle, series = (QUICK, QUICK_SERIES) if arguments.quick else (Point(), SERIES)
    series = {name: values for name, values in series.items() if name in (arguments.only or series)}
    log = Log(RUNS / ("scaling-quick.jsonl" if arguments.quick else "scaling.jsonl"), arguments.set, arguments.restart)
    record = {"circumstances": circumstances(), "middle": asdict(middle), "overrides": arguments.set}
    points = points_of(middle, series)
    rounds = 1 if arguments.quick else arguments.rounds
    for number in range(rounds):
        for point in points:
            if len(log.costs(point)) <= number:
                cost = measure(point, middle, arguments.set)
                log.add(point, cost)
                print(
                    f"round {number + 1}: {_named(point)}: {cost.rate:,.0f} edges/s, {cost.peak_mib:,.0f} MiB",
                    flush=True,
                )
    found = {point: log.costs(point) for point in points}
    record["points"] = [asdict(point) | {"costs": [asdict(cost) for cost in costs]} for point, costs in found.items()]
    plot = arguments.results / "scaling.svg" if arguments.quick else arguments.plot
    drawn = draw(middle, series, found, plot)
    text = report(middle, series, found)
    write_record(arguments.results, arguments.record, record, f"{text}\n\nPlot: {plot.name}." if drawn else text)


class Log:
    """Measurements of this commit and these overrides, kept in a file of JSON lines.

    Args:
        path: of the file; its folder is made.
        overrides: of the config.
        restart: forget what the file holds.
    """

    def __init__(self, path: Path, overrides: Sequence[str] = (), restart: bool = False) -> None:
        self._path, self._key = path, {"commit": commit(), "overrides": list(overrides)}
        path.parent.mkdir(parents=True, exist_ok=True)
        if restart:
            path.unlink(missing_ok=True)
        self._lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def costs(self, point: Point) -> list[Cost]:
        """What was measured of a point, oldest first."""
        wanted = self._key | {"point": asdict(point)}
        return [Cost(**line["cost"]) for line in self._lines if all(line[key] == wanted[key] for key in wanted)]

    def add(self, point: Point, cost: Cost) -> None:
        """Keep a measurement."""
        line = self._key | {"point": asdict(point), "cost": asdict(cost)}
        self._lines.append(line)
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def points_of(middle: Point, series: dict[str, tuple[int, ...]]) -> list[Point]:
    """The point in the middle, then those of every series, each once."""
    points = [varied(middle, name, value) for name, values in series.items() for value in values]
    return list(dict.fromkeys([middle, *points]))


def varied(middle: Point, name: str, value: int) -> Point:
    """The point of a series; with the edges the nodes grow."""
    if name == "edges":
        return replace(middle, edges=value, nodes=round(middle.nodes * value / middle.edges))
    return replace(middle, **{name: value})


def measure(point: Point, middle: Point, overrides: Sequence[str] = ()) -> Cost:
    """Train a point from its beginning in a fresh process."""
    nodes = table_sizes(point.nodes)
    # A graph of few edges leaves nodes out; the tables have rows for all, and uniform negatives are drawn from them.
    graph = replace(Graph.read(planted_graph(point.edges, nodes=nodes)), tables=nodes)
    settings = Settings(dim=point.dim, in_batch=point.in_batch, uniform=point.uniform, batch_size=point.batch)
    steps = num_steps(point, middle)
    body = twhin_config(settings, graph)
    body["training"] |= {"num_train_steps": steps, "num_epochs": None, "train_log_every_n": max(1, steps // 10)}
    config = WORK / "point.yaml"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(yaml.safe_dump(body, sort_keys=False), encoding="utf-8")
    run = train(config, "scaling/run", overrides)
    shutil.rmtree(run.save_dir)
    return Cost(run.num_edges / run.training_seconds, run.process.peak_bytes / 2**20)


def num_steps(point: Point, middle: Point) -> int:
    """Steps that take about as long as an epoch in the middle, at most an epoch of the point, at least some."""
    dearer = _work(point) / _work(middle)
    edges = point.edges if point.edges > middle.edges else min(point.edges, middle.edges / max(1.0, dearer))
    return max(_MIN_STEPS, round(edges / point.batch))


def _work(point: Point) -> float:
    # Rows are counted by their bytes too: a looked-up value costs about as much as ten operations.
    work = TwhinWork(point.dim, point.in_batch, point.uniform)
    return work.flops + 10 * work.rows * point.dim


def table_sizes(nodes: int) -> dict[str, int]:
    """Rows of the two tables."""
    users = round(nodes * 10 / 13)
    return {"user": users, "tweet": nodes - users}


def report(middle: Point, series: dict[str, tuple[int, ...]], found: dict[Point, list[Cost]]) -> str:
    """A table for each series, in Markdown."""
    base = Spread.of([cost.rate for cost in found[middle]]).median
    parts = [f"Around {_named(middle)}; medians (lowest to highest)."]
    for name, values in series.items():
        rows = []
        for value in values:
            costs = found[varied(middle, name, value)]
            rate, peak = Spread.of([cost.rate for cost in costs]), Spread.of([cost.peak_mib for cost in costs])
            row = {name: value, "edges/s": rate.shown(), "of the middle": rate.median / base}
            rows.append(row | {"us an edge": 1e6 / rate.median, "peak MiB": peak.shown()})
        parts.append(markdown_table(rows))
    return "\n\n".join(parts)


def draw(middle: Point, series: dict[str, tuple[int, ...]], found: dict[Point, list[Cost]], path: Path) -> bool:
    """Draw every series, rate above memory, as SVG; False where matplotlib is not installed."""
    try:
        import matplotlib as mpl
    except ImportError:
        print("no plot: matplotlib is not installed; pip install 'tml[plots]'", flush=True)
        return False
    mpl.use("svg")
    # The same figures give the same file, and its text stays text.
    mpl.rcParams.update({"svg.hashsalt": "tml", "svg.fonttype": "none", "font.size": 8})
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        2,
        len(series),
        figsize=(2.4 * len(series), 4.2),
        sharex="col",
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    for column, (name, values) in enumerate(series.items()):
        costs = [found[varied(middle, name, value)] for value in values]
        for row, field in enumerate(("rate", "peak_mib")):
            spreads = [Spread.of([getattr(cost, field) for cost in each]) for each in costs]
            medians = [spread.median for spread in spreads]
            errors = [
                [spread.median - spread.low for spread in spreads],
                [spread.high - spread.median for spread in spreads],
            ]
            axes[row][column].errorbar(values, medians, yerr=errors, marker="o", markersize=3, capsize=2)
            axes[row][column].set(xscale="log", yscale="log")
            axes[row][column].yaxis.set_major_formatter(lambda value, _: _short(value))
            axes[row][column].yaxis.set_minor_formatter(lambda value, _: _short(value) if _is_round(value) else "")
            axes[row][column].grid(visible=True, alpha=0.25)
        axes[1][column].set_xlabel(_LABELS[name])
        axes[1][column].set_xticks(values, [_short(value) for value in values], rotation=45)
        axes[1][column].xaxis.minorticks_off()
    axes[0][0].set_ylabel("edges/s")
    axes[1][0].set_ylabel("peak memory, MiB")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return True


_LABELS = {
    "edges": "edges, nodes in proportion",
    "nodes": "nodes",
    "dim": "embedding dim",
    "negatives": "negatives a side",
    "batch": "edges of a batch",
}


def _short(value: float) -> str:
    """200,000 as `200k`, 5,000,000 as `5M`."""
    for factor, letter in ((1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:g}{letter}"
    return f"{value:g}"


def _is_round(value: float) -> bool:
    """Whether its first digit is 2 or 5, and the others are 0."""
    return f"{value:.0e}"[0] in "25"


def _named(point: Point) -> str:
    return (
        f"{point.edges:,} edges, {point.nodes:,} nodes, dim {point.dim}, {point.in_batch} + {point.uniform} negatives "
        f"a side, batch {point.batch:,}"
    )


def _parse_arguments() -> argparse.Namespace:
    parser = argument_parser(__doc__, "scaling", rounds="measurements of every point", default_rounds=2, overrides=True)
    parser.add_argument("--quick", action="store_true", help="small sizes, one round; draws beside the record")
    parser.add_argument("--only", type=some_of(tuple(SERIES)), help=f"some of {','.join(SERIES)}")
    parser.add_argument("--restart", action="store_true", help="forget what was measured")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "scaling.svg", help="file to draw")
    return parser.parse_args()


if __name__ == "__main__":
    main()
