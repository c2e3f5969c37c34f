"""What tml has learnt after each part of its training, and when it knows as much as the other system in the end."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tml.benchmarks.harness import markdown_table
from tml.benchmarks.processes import run_measured
from tml.benchmarks.runs import rows_of, step_size, train
from tml.core.config import load_config
from tml.projects.twhin.config import TwhinConfig


@dataclass(frozen=True)
class Point:
    """One checkpoint on the way.

    Attributes:
        num_edges: trained by then, each time they were seen.
        mrr: filtered, of the test edges.
    """

    num_edges: int
    mrr: float


def learning_curve(config: Path, name: str, overrides: Sequence[str], num_points: int) -> list[Point]:
    """Train once more with checkpoints at equal distances, and rank the test edges under each of them.

    The time of a point is not taken here, where checkpoints are written, but from the rounds that are compared.

    Args:
        config: of the run.
        name: of its folder below runs/benchmarks; removed afterwards.
        overrides: of the config; those of evaluation too.
        num_points: checkpoints, about; the last one is the end of training.
    """
    loaded = load_config(TwhinConfig, config, overrides)
    epoch_rows, batch_size = rows_of(loaded.train_data.data_root), step_size(loaded)
    num_steps = -(-epoch_rows // batch_size) * (loaded.training.num_epochs or 1)
    kept = ["training.checkpoint_max_to_keep=null", f"training.checkpoint_every_n={max(1, num_steps // num_points)}"]
    run = train(config, name, [*overrides, *kept])
    command = [sys.executable, "-m", "tml.projects.twhin.run", "--config", str(config), "--task", "only_evaluate"]
    settings = [*overrides, f"training.save_dir={run.save_dir}", "training.eval_timeout_in_s=1"]
    run_measured([*command, *settings], run.save_dir.with_name(run.save_dir.name + "-evaluation.log"))
    found = [json.loads(line) for line in (run.save_dir / "evaluations.jsonl").read_text().splitlines()]
    shutil.rmtree(run.save_dir)
    points = [Point(edges_after(line["step"], epoch_rows, batch_size), line["filtered.mrr"]) for line in found]
    return sorted(points, key=lambda point: point.num_edges)


def edges_after(step: int, epoch_rows: int, batch_size: int) -> int:
    """Edges trained in so many steps; the last batch of an epoch may be short."""
    epochs, steps = divmod(step, -(-epoch_rows // batch_size))
    return epochs * epoch_rows + steps * batch_size


def edges_to_reach(points: Sequence[Point], mrr: float) -> int | None:
    """Edges trained at the first point with at least this MRR; None if none has it."""
    return next((point.num_edges for point in points if point.mrr >= mrr), None)


def curve_report(points: Sequence[Point], rate: float, their_mrr: float, their_seconds: float) -> str:
    """The curve in Markdown, and the time to the other system's final MRR.

    Args:
        points: of tml.
        rate: edges a second of tml.
        their_mrr: of the other system at its end.
        their_seconds: of its training.
    """
    rows = [{"edges": p.num_edges, "seconds": round(p.num_edges / rate, 1), "MRR": round(p.mrr, 4)} for p in points]
    edges = edges_to_reach(points, their_mrr)
    if edges is None:
        verdict = f"tml does not reach PBG's final MRR of {their_mrr:.4f}."
    else:
        seconds = edges / rate
        verdict = (
            f"PBG's final MRR of {their_mrr:.4f}: PBG after {their_seconds:.1f} s, tml at the latest after "
            f"{seconds:.1f} s, {seconds / their_seconds:.2f} of PBG's time."
        )
    return f"tml along the way:\n\n{markdown_table(rows)}\n\n{verdict}"
