"""Metrics of a finished run: a short table for the log, all of them in a file beside the checkpoints."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping

from tml.common.device import rank
from tml.common.filesystem.atomic import write_json
from tml.common.tracking.record import ExperimentRecord
from tml.ml_logging import get_logger

logger = get_logger(__name__)

_SHOWN = ("rce", "uncalibrated_rce", "roc_auc", "pr_auc", "ece", "uncalibrated_ece", "watch_time_mse", "ndcg@10")


def report_metrics(
    save_dir: str, split: str, step: int, metrics: Mapping[str, float], measured: Mapping[str, object] | None = None
) -> None:
    """Log the main metrics, write all of them to `save_dir/<split>_metrics.json` and to the run's record, on rank 0.

    Args:
        save_dir: of the run.
        split: validation or test.
        step: of the model.
        metrics: by name.
        measured: what was measured on what, so that it need not be measured again.
    """
    if rank() != 0:
        return
    shown = ", ".join(f"{name} {metrics[name]:.4f}" for name in _SHOWN if name in metrics)
    logger.info("%s rows at step %d: %s", split, step, shown)
    path = metrics_path(save_dir, split)
    plain = {name: value if math.isfinite(value) else None for name, value in sorted(metrics.items())}
    write_json(path, {"split": split, "step": step, "measured": dict(measured or {}), "metrics": plain})
    ExperimentRecord(save_dir).evaluation(step, metrics, split=split)
    logger.info("all metrics are in %s", path)


def is_reported(save_dir: str, split: str, measured: Mapping[str, object]) -> bool:
    """Whether `report_metrics` has written the metrics of just this."""
    try:
        with open(metrics_path(save_dir, split), encoding="utf-8") as file:
            return bool(json.load(file).get("measured") == dict(measured))
    except (FileNotFoundError, ValueError, AttributeError):
        return False


def metrics_path(save_dir: str, split: str) -> str:
    """Where the metrics of a split are written."""
    return os.path.join(save_dir, f"{split}_metrics.json")
