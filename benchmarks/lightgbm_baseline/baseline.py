"""LightGBM on a benchmark's rows, in an environment of its own; left out by name where it cannot be installed."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tml.benchmarks.harness import ROOT
from tml.benchmarks.processes import run_measured
from tml.benchmarks.ranker_runs import Predicted

HERE = Path(__file__).resolve().parent
# Sound for some ten thousand rows; the number of trees is found on the validation rows.
PARAMETERS = {
    "learning_rate": 0.03,
    "num_leaves": 31,
    "min_data_in_leaf": 50,
    "feature_fraction": 0.8,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "lambda_l2": 5.0,
    "cat_smooth": 20.0,
    "num_threads": 2,
}


@dataclass(frozen=True)
class Columns:
    """Columns of a table: numbers and categories that LightGBM sees, and what it predicts."""

    numbers: tuple[str, ...]
    categories: tuple[str, ...]
    click: str = "click"
    watch_time: str | None = "watch_time"


def set_up_lightgbm() -> Path | None:
    """Make LightGBM's environment if it is missing, and return its Python; None if it cannot be made."""
    try:
        subprocess.run([str(HERE / "setup_lightgbm.sh")], check=True)
    except subprocess.CalledProcessError:
        print("LightGBM is left out: its environment cannot be made (see above)", flush=True)
        return None
    return ROOT / os.environ.get("TML_VENV_LIGHTGBM", ".venv-lightgbm") / "bin" / "python"


def run_lightgbm(python: Path, data: Path, columns: Columns, seeds: Sequence[int], out: Path) -> dict[int, Predicted]:
    """Train and predict the test rows once for each seed.

    Args:
        python: of `set_up_lightgbm`.
        data: folder of `{train,valid,test}.parquet`, raw rows.
        columns: what is read of them.
        seeds: of LightGBM's draws of rows and features.
        out: folder to write.
    """
    job = {split: str(data / f"{split}.parquet") for split in ("train", "valid", "test")}
    job |= {"numbers": columns.numbers, "categories": columns.categories, "click": columns.click}
    job |= {"watch_time": columns.watch_time, "parameters": PARAMETERS, "seeds": list(seeds), "out": str(out)}
    out.mkdir(parents=True, exist_ok=True)
    path = out / "job.json"
    path.write_text(json.dumps(job, indent=1), encoding="utf-8")
    run_measured([str(python), str(HERE / "lightgbm_worker.py"), str(path)], out / "worker.log")
    return {seed: _read(out / f"{seed}.npz") for seed in seeds}


def _read(path: Path) -> Predicted:
    with np.load(path) as found:
        return Predicted(**found)
