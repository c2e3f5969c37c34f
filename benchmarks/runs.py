"""What benchmarks do with tml: make data with its commands, train in a process of its own, and read what it wrote."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tml.benchmarks.harness import DATA, RUNS
from tml.benchmarks.processes import Finished, run_measured
from tml.common.tracking.json_lines import read_metrics
from tml.core.config import load_config, load_document
from tml.projects.twhin.config import TwhinConfig
from tml.projects.twhin.data.sample_graph import GraphParameters

_TRAIN = [sys.executable, "-m", "tml.projects.twhin.run"]
_TML = [sys.executable, "-m", "tml.projects.cli"]
HELD_OUT = 10_000


@dataclass(frozen=True)
class TrainedRun:
    """A run that has ended.

    Attributes:
        save_dir: its folder.
        process: wall time and peak memory of the whole process.
        num_edges: edges trained, each time they were seen.
        training_seconds: from before the first row is read to the end of the last step; evaluations are left out.
    """

    save_dir: Path
    process: Finished
    num_edges: int
    training_seconds: float

    def metrics(self, split: str = "test") -> dict[str, float]:
        """The final metrics of a split."""
        from tml.core.held_out import metrics_path

        return json.loads(Path(metrics_path(str(self.save_dir), split)).read_text(encoding="utf-8"))["metrics"]


def real_data(name: str) -> Path:
    """A folder of real data under the environment variable TML_DATA.

    Raises:
        SystemExit: it is not there.
    """
    root = os.environ.get("TML_DATA")
    if not root:
        raise SystemExit(f"this benchmark needs real data: set TML_DATA to the folder that holds {name}/")
    folder = Path(root) / name
    if not folder.is_dir():
        raise SystemExit(f"there is no {folder}: TML_DATA must hold {name}/")
    return folder


def run_tml(arguments: Sequence[str | Path], log: Path) -> Finished:
    """A command of `tml` in a process of its own.

    Args:
        arguments: of the command, its name first.
        log: file that takes what it prints.
    """
    return run_measured([*_TML, *map(str, arguments)], log)


def convert(arguments: Sequence[str | Path], out: Path, again: bool = False) -> None:
    """`tml convert`, which does nothing if the same conversion is there already.

    Args:
        arguments: of the command.
        out: folder to make.
        again: replace another conversion that lies there, such as one of files in another place; refused otherwise.
    """
    command = ["convert", *arguments, "--out", out, *(["--overwrite"] if again else [])]
    run_tml(command, out.parent / f"{out.name}.log")


def planted_graph(num_edges: int, seed: int = 0, nodes: Mapping[str, int] | None = None) -> Path:
    """A converted sample graph with 10,000 validation and 10,000 test edges (a twentieth of a small graph).

    Args:
        num_edges: all of them.
        seed: of the graph.
        nodes: users (`user`) and tweets (`tweet`); by default in proportion to the edges.

    Returns:
        a folder of `tml convert`, kept under data/benchmarks.
    """
    usual = GraphParameters(num_edges).resolved()
    if nodes == {"user": usual.num_users, "tweet": usual.num_tweets}:
        nodes = None
    folder = DATA / "-".join(map(str, ["planted", num_edges, seed, *(nodes or {}).values()]))
    edges, graph = folder / "edges.parquet", folder / "graph"
    size = ["--users", str(nodes["user"]), "--tweets", str(nodes["tweet"])] if nodes else []
    command = ["sample-graph", "--edges", str(num_edges), *size, "--seed", str(seed), "--format", "parquet"]
    run_tml([*command, "--out", folder], folder.parent / f"{folder.name}.log")
    held_out = min(HELD_OUT, num_edges // 20) / num_edges
    fractions = f"{1 - 2 * held_out},{held_out},{held_out}"
    convert([edges, "--typed-ids", ":", "--split-fractions", fractions, "--seed", str(seed)], graph)
    return graph


def data_folder(config: Path, overrides: Sequence[str] = ()) -> Path:
    """The folder of `tml convert` that a config trains on: its training edges are in `<folder>/edges/train`.

    The config may not be valid yet: its relations may be a file of that folder.
    """
    data = load_document(config, overrides).data
    folder = Path(data["train_data"]["data_root"])
    if folder.parts[-2:] != ("edges", "train"):
        raise SystemExit(f"train_data.data_root is {folder}; a benchmark makes data only in <folder>/edges/train")
    return folder.parents[1]


def train(
    config: Path, name: str, overrides: Sequence[str] = (), environment: Mapping[str, str] | None = None
) -> TrainedRun:
    """Train a config from its beginning in a fresh process, into runs/benchmarks/NAME."""
    save_dir = RUNS / name
    settings = [*overrides, f"training.save_dir={save_dir}", "training.overwrite_save_dir=true"]
    process = run_measured([*_TRAIN, "--config", str(config), *settings], RUNS / f"{name}.log", environment=environment)
    loaded = load_config(TwhinConfig, config, settings)
    lines = read_metrics(str(save_dir / "metrics.jsonl"))
    return TrainedRun(save_dir, process, *trained(lines, rows_of(loaded.train_data.data_root), step_size(loaded)))


def evaluate(config: Path, run: TrainedRun, overrides: Sequence[str] = ()) -> dict[str, float]:
    """Rank the test edges under a finished run's last checkpoint, in a process of its own."""
    command = [*_TRAIN, "--config", str(config), "--task", "evaluate", *overrides]
    log = run.save_dir.parent / f"{run.save_dir.name}-evaluation.log"
    run_measured([*command, f"training.save_dir={run.save_dir}"], log)
    return run.metrics()


def trained(lines: Sequence[Mapping[str, Any]], epoch_rows: int, batch_size: int) -> tuple[int, float]:
    """Edges and seconds of training by the lines of metrics.jsonl.

    The clock starts before the first row is read and stops at the last step's line. Between two lines it is that of
    their time stamps, so logging counts; after an evaluation, whose time is left out, it is that of the logged rate.

    Args:
        lines: of metrics.jsonl.
        epoch_rows: edges of an epoch.
        batch_size: edges of a full step; the last one of an epoch may be short.

    Raises:
        SystemExit: nothing was logged.
    """
    steps_per_epoch = -(-epoch_rows // batch_size)
    num_edges, seconds, last_time = 0, 0.0, None
    for line in lines:
        if "train/examples_per_s" not in line:
            last_time = None
            continue
        epochs, steps = divmod(line["step"], steps_per_epoch)
        seen = epochs * epoch_rows + steps * batch_size
        by_rate = (seen - num_edges) / line["train/examples_per_s"]
        seconds += by_rate if last_time is None else line["time"] - last_time
        num_edges, last_time = seen, line["time"]
    if not num_edges:
        raise SystemExit("the run logged no step: metrics.jsonl has no line with train/examples_per_s")
    return num_edges, seconds


def rows_of(data_root: str) -> int:
    """Edges in the files of a data root."""
    from tml.projects.twhin.data.dataset import edge_files

    return sum(pq.read_metadata(file).num_rows for file in edge_files(data_root))


def step_size(config: TwhinConfig) -> int:
    """Edges of a full step on one rank."""
    return config.train_data.batch_size(1) * config.training.gradient_accumulation
