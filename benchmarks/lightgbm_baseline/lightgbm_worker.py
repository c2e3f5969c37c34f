"""The side of LightGBM: runs in the environment that setup_lightgbm.sh makes, without tml.

lightgbm_worker.py JOB.json        train on the job's rows for each of its seeds; writes <out>/<seed>.npz

A classifier of the click and, if the job names a watch time, a regression of log(1 + seconds). Both stop when the
validation rows no longer gain, and predict the test rows with their best number of trees.
"""

import json
import sys
from pathlib import Path

import numpy as np

SPLITS = ("train", "valid", "test")
MAX_TREES, PATIENCE = 2_000, 50


def read_rows(job: dict) -> dict:
    """float64 [B, features] of each split: numbers, NaN = missing, then codes of categories, -1 = not in training."""
    import pyarrow.parquet as pq

    tables = {split: pq.read_table(job[split]) for split in SPLITS}
    columns = {split: [numbers(table[name]) for name in job["numbers"]] for split, table in tables.items()}
    for name in job["categories"]:
        known = np.unique(texts(tables["train"][name]))
        for split, table in tables.items():
            columns[split].append(codes(texts(table[name]), known))
    return {split: np.stack(found, axis=1) for split, found in columns.items()}


def read_label(job: dict, name: str) -> dict:
    """float64 [B] of each split."""
    import pyarrow.parquet as pq

    return {split: numbers(pq.read_table(job[split], columns=[name])[name]) for split in SPLITS}


def numbers(column) -> np.ndarray:
    """float64 [B], NaN for nulls."""
    return column.to_numpy(zero_copy_only=False).astype(np.float64)


def texts(column) -> np.ndarray:
    """str [B]."""
    return column.to_numpy(zero_copy_only=False).astype(str)


def codes(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Places in `known`, which is sorted; -1 for values that are not there."""
    places = np.minimum(np.searchsorted(known, values), len(known) - 1)
    return np.where(known[places] == values, places, -1).astype(np.float64)


def fit_and_predict(job: dict, rows: dict, targets: dict, objective: str, seed: int) -> np.ndarray:
    """Predictions of the test rows."""
    import lightgbm as lgb

    first = len(job["numbers"])
    categories = list(range(first, first + len(job["categories"])))
    train = lgb.Dataset(rows["train"], targets["train"], categorical_feature=categories)
    valid = lgb.Dataset(rows["valid"], targets["valid"], reference=train)
    parameters = {"objective": objective, "seed": seed, "verbose": -1} | job["parameters"]
    stop = lgb.early_stopping(PATIENCE, verbose=False)
    return lgb.train(parameters, train, MAX_TREES, valid_sets=[valid], callbacks=[stop]).predict(rows["test"])


def main() -> None:
    """The command line."""
    job = json.loads(Path(sys.argv[1]).read_text())
    rows, click = read_rows(job), read_label(job, job["click"])
    seconds = read_label(job, job["watch_time"]) if job["watch_time"] else None
    out = Path(job["out"])
    out.mkdir(parents=True, exist_ok=True)
    for seed in job["seeds"]:
        found = {"probability": fit_and_predict(job, rows, click, "binary", seed), "click": click["test"]}
        if seconds is not None:
            logs = {split: np.log1p(values) for split, values in seconds.items()}
            found["log_seconds"] = fit_and_predict(job, rows, logs, "regression", seed)
            found["seconds"] = seconds["test"]
        np.savez(out / f"{seed}.npz", **found)


if __name__ == "__main__":
    main()
