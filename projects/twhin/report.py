"""Metrics of a finished run: a short table for the log, all of them in a file beside the checkpoints."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

from tml.common.device import rank
from tml.common.filesystem import atomic_write
from tml.ml_logging import get_logger

logger = get_logger(__name__)

_SHOWN = ("filtered.mrr", "filtered.hits@1", "filtered.hits@3", "filtered.hits@10", "filtered.mr", "auc")


def report_metrics(save_dir: str, split: str, step: int, metrics: Mapping[str, float]) -> None:
    """Log the main metrics and write all of them to `save_dir/<split>_metrics.json`, on rank 0."""
    if rank() != 0:
        return
    shown = {key: value for key, value in metrics.items() if key.split(".", 1)[-1] in _SHOWN or key in _SHOWN}
    logger.info("%s edges at step %d: %s", split, step, ", ".join(f"{k} {v:.4f}" for k, v in shown.items()))
    path = metrics_path(save_dir, split)
    with atomic_write(path, "w") as file:
        json.dump({"split": split, "step": step, "metrics": dict(metrics)}, file, indent=1, sort_keys=True)
    logger.info("all metrics are in %s", path)


def metrics_path(save_dir: str, split: str) -> str:
    """Where the metrics of a split are written."""
    return os.path.join(save_dir, f"{split}_metrics.json")
