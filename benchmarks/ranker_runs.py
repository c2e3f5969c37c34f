"""What benchmarks do with the light ranker: encode rows, train in a process of its own, predict, and score predictions.

All models of a benchmark, ours or not, are scored by `click_scores` and `watch_scores`, on the same rows; the areas and
losses are scikit-learn's.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml

from tml.benchmarks.harness import RUNS
from tml.benchmarks.processes import Finished, run_measured
from tml.benchmarks.runs import trained
from tml.common.tracking.json_lines import read_metrics
from tml.core.config import load_config
from tml.projects.light_ranker.config import LightRankerConfig

_RANKER = [sys.executable, "-m", "tml.projects.light_ranker.run"]
_TML = [sys.executable, "-m", "tml.projects.cli"]
_BINS_OF_ERROR = 15


@dataclass(frozen=True)
class RankerTraining:
    """A training that has ended.

    Attributes:
        save_dir: its folder.
        process: wall time of calibration and training, and the larger one's peak memory.
        num_examples: rows trained, each time they were seen.
        training_seconds: from before the first row is read to the end of the last step; evaluations are left out.
    """

    save_dir: Path
    process: Finished
    num_examples: int
    training_seconds: float


@dataclass(frozen=True)
class Predicted:
    """What a model says of rows, and what happened: [B] each.

    Attributes:
        probability: of a click; or any score that ranks clicks, where only the AUC is asked for.
        click: 0 or 1.
        log_seconds: predicted log(1 + seconds); None if the model does not say.
        seconds: watched; None if they are not known.
        calibrated: probabilities after isotonic calibration; None without one.
    """

    probability: np.ndarray
    click: np.ndarray
    log_seconds: np.ndarray | None = None
    seconds: np.ndarray | None = None
    calibrated: np.ndarray | None = None


def add_seed_options(parser: argparse.ArgumentParser, what: str) -> None:
    """`--seeds` and `--first-seed`; settings are chosen with other seeds than those that are reported."""
    parser.add_argument("--seeds", type=int, default=5, help=what)
    parser.add_argument("--first-seed", type=int, default=10, help="the others follow it")


def seeds_of(arguments: argparse.Namespace) -> range:
    """The seeds that the options of `add_seed_options` ask for."""
    return range(arguments.first_seed, arguments.first_seed + arguments.seeds)


def mean_and_deviation(values: Sequence[float], digits: int) -> str:
    """`mean ± standard deviation` over seeds, that of a sample; the mean alone of one value."""
    shown = f"{statistics.fmean(values):,.{digits}f}"
    return f"{shown} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else shown


def prepare(features: Mapping[str, Any] | Path, arguments: Sequence[str | Path], out: Path) -> Path:
    """`tml light-ranker prepare`, which does nothing if the same preparation is there already.

    Args:
        features: the feature config, or its file.
        arguments: of the command: `--train FILE` and others.
        out: folder to make; what another preparation left there is replaced.

    Returns:
        `out`.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    path = features if isinstance(features, Path) else write_yaml(out.parent / f"{out.name}.features.yaml", features)
    command = [*_TML, "light-ranker", "prepare", "--features", str(path), *map(str, arguments)]
    run_measured([*command, "--out", str(out), "--overwrite"], out.parent / f"{out.name}.log")
    return out


def write_yaml(path: Path, content: Mapping[str, Any]) -> Path:
    """Write a file, keys in their order, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(dict(content), sort_keys=False), encoding="utf-8")
    return path


def train_only(config: Path, name: str, overrides: Sequence[str], environment: Mapping[str, str]) -> RankerTraining:
    """Calibrate and train from the beginning, each in a fresh process, into runs/benchmarks/NAME; nothing else."""
    save_dir = RUNS / name
    shutil.rmtree(save_dir, ignore_errors=True)
    settings = [*overrides, f"training.save_dir={save_dir}"]
    phases = [
        run_measured(
            [*_RANKER, "--config", str(config), "--task", task, *settings], RUNS / f"{name}-{task}.log", environment
        )
        for task in ("calibrate", "train")
    ]
    process = Finished(sum(p.wall_seconds for p in phases), max(p.peak_bytes for p in phases))
    loaded = load_config(LightRankerConfig, config, settings)
    rows = rows_of(loaded.train_data.data_root)
    step = loaded.train_data.batch_size(1) * loaded.training.gradient_accumulation
    return RankerTraining(save_dir, process, *trained(read_metrics(str(save_dir / "metrics.jsonl")), rows, step))


def train_all(config: Path, name: str, overrides: Sequence[str] = ()) -> Path:
    """Every phase from the beginning in a fresh process; returns its folder, runs/benchmarks/NAME."""
    save_dir = RUNS / name
    shutil.rmtree(save_dir, ignore_errors=True)
    settings = [*overrides, f"training.save_dir={save_dir}"]
    run_measured([*_RANKER, "--config", str(config), *settings], RUNS / f"{name}.log")
    return save_dir


def test_metrics(save_dir: Path) -> dict[str, float]:
    """What the run itself measured on its test rows."""
    from tml.core.held_out import metrics_path

    return json.loads(Path(metrics_path(str(save_dir), "test")).read_text(encoding="utf-8"))["metrics"]


def rows_of(data_root: str | Path) -> int:
    """Encoded rows in the files of a data root."""
    from tml.projects.light_ranker.data.dataset import data_files

    return sum(pq.read_metadata(file).num_rows for file in data_files(str(data_root)))


def predict(save_dir: Path, split: Path) -> Predicted:
    """The trained model of a run on encoded rows, in their order.

    Args:
        save_dir: of the run.
        split: folder of encoded rows.
    """
    import torch

    from tml.common.modules.calibrators import Isotonic
    from tml.core.custom_training_loop import evaluate
    from tml.projects.light_ranker.config import DataConfig
    from tml.projects.light_ranker.phases import RankerRun, load_trained

    found = load_trained(save_dir)
    run = RankerRun(found.config, torch.device("cpu"), found.spec, None, found.model.slots, found.model)
    kept = _KeptOutputs()
    evaluate(found.model, run.dataset(DataConfig(data_root=str(split))), kept, run.device)
    outputs = {name: torch.cat(values).double().numpy() for name, values in kept.kept.items()}
    calibrated = None
    if found.isotonic is not None:
        isotonic = Isotonic.from_dict(found.isotonic["click"])
        calibrated = isotonic(torch.from_numpy(outputs["probabilities"]).float()).double().numpy()
    log_seconds, label = outputs.get("watch_time_prediction"), outputs.get("watch_time_label")
    seconds = None if label is None else np.expm1(label)
    return Predicted(outputs["probabilities"], outputs["labels"], log_seconds, seconds, calibrated)


class _KeptOutputs:
    """Keeps a model's outputs; stands in for metrics."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.kept: dict[str, list[Any]] = {}

    def update(self, outputs: Mapping[str, Any]) -> None:
        for name, values in outputs.items():
            self.kept.setdefault(name, []).append(values.cpu())

    def compute(self) -> dict[str, Any]:
        return {}


def auc(click: np.ndarray, score: np.ndarray) -> float:
    """Area under the ROC curve, ties half."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(click, score))


def rce(click: np.ndarray, probability: np.ndarray) -> float:
    """Relative cross-entropy in percent: how much less the log loss is than that of the rows' own click rate."""
    from sklearn.metrics import log_loss

    blind = np.full(len(click), click.mean())
    return 100 * (1 - float(log_loss(click, probability, labels=[0, 1]) / log_loss(click, blind, labels=[0, 1])))


def calibration_error(click: np.ndarray, probability: np.ndarray, num_bins: int = _BINS_OF_ERROR) -> float:
    """Expected calibration error: the mean over rows of |click rate - mean probability| in bins of equal width."""
    bins = np.minimum((probability * num_bins).astype(np.int64), num_bins - 1)
    difference = np.bincount(bins, click - probability, minlength=num_bins)
    return float(np.abs(difference).sum() / len(click))


def click_scores(predicted: Predicted, calibrated: bool = True) -> dict[str, float]:
    """AUC of the model's own order; RCE and expected calibration error of its probabilities, calibrated if asked for
    and there is a calibration."""
    shown = predicted.calibrated if calibrated and predicted.calibrated is not None else predicted.probability
    return {
        "AUC": auc(predicted.click, predicted.probability),
        "RCE": rce(predicted.click, shown),
        "ECE": calibration_error(predicted.click, shown),
    }


def watch_scores(predicted: Predicted) -> dict[str, float | None]:
    """Mean squared error of log(1 + seconds), and mean absolute error in seconds of its inverse."""
    if predicted.log_seconds is None or predicted.seconds is None:
        return {"log1p MSE": None, "MAE s": None}
    log_seconds = np.maximum(predicted.log_seconds, 0.0)
    return {
        "log1p MSE": float(np.mean((log_seconds - np.log1p(predicted.seconds)) ** 2)),
        "MAE s": float(np.mean(np.abs(np.expm1(log_seconds) - predicted.seconds))),
    }
