"""What the workers of other systems share; it runs in their environments, without tml.

A worker is told what to read and what to build by a JSON file, see settings.py. The rows are decoded and scaled once,
to arrays in memory, before its clock starts; it leaves `timing.json` and `predictions.npz` in the job's folder.
"""

import json
import time
from pathlib import Path

import numpy as np

MAX_DEVIATION = 10.0


class Rows:
    """Encoded rows in memory: ids int32 [B, F], numbers float32 [B, 2 J], click and log watch time float32 [B]."""

    def __init__(self, folder: Path, job: dict, limit: int | None = None) -> None:
        import pyarrow.parquet as pq

        table = pq.read_table(folder, columns=[*job["id_columns"], *job["number_columns"], *job["label_columns"]])
        columns = {name: table[name].to_numpy()[:limit] for name in table.column_names}
        self.ids = np.stack([columns[name] for name in job["id_columns"]], axis=1).astype(np.int32)
        self.numbers = np.stack([columns[name] for name in job["number_columns"]], axis=1).astype(np.float32)
        labels = [columns[name].astype(np.float32) for name in job["label_columns"]]
        self.click = labels[0]
        self.log_watch_time = np.log1p(labels[1]) if len(labels) > 1 else None

    def __len__(self) -> int:
        return len(self.click)

    def targets(self) -> dict:
        """What each output learns."""
        watch = {} if self.log_watch_time is None else {"watch_time": self.log_watch_time}
        return {"click": self.click} | watch

    def order(self, seed: int | None) -> np.ndarray:
        """Places of all rows: as they are, or shuffled if there is a seed."""
        places = np.arange(len(self))
        if seed is not None:
            np.random.default_rng(seed).shuffle(places)
        return places


class Clock:
    """Rows and seconds from the end of the first call of the training step to the end of the last one."""

    def __init__(self) -> None:
        self._calls: list[tuple[float, int]] = []

    def tick(self, num_rows: int) -> None:
        """A call has ended; so many rows are trained by now."""
        now = (time.perf_counter(), num_rows)
        self._calls = [*self._calls[:1], now]

    def timing(self) -> dict:
        """What `timing.json` says."""
        if len(self._calls) < 2:
            raise SystemExit(f"{self._calls[0][1]} rows are trained in one call: give more rows")
        (start, before), (end, after) = self._calls
        return {"num_examples": after - before, "training_seconds": end - start}


def scale(train: np.ndarray, others: list[np.ndarray]) -> list[np.ndarray]:
    """Logarithms with the training rows' mean 0 and deviation 1, then a mark of each missing value, which is 0."""
    logs = np.log1p(train)
    mean, deviation = np.nanmean(logs, axis=0, dtype=np.float64), np.nanstd(logs, axis=0, dtype=np.float64)
    scaled = []
    for values in (train, *others):
        numbers = np.clip((np.log1p(values) - mean) / deviation, -MAX_DEVIATION, MAX_DEVIATION)
        missing = np.isnan(numbers)
        scaled.append(np.concatenate([np.where(missing, 0, numbers), missing], axis=1).astype(np.float32))
    return scaled


def read_rows(job: dict) -> tuple[Rows, Rows]:
    """Training and test rows, their numbers scaled."""
    data = Path(job["data"])
    train, test = Rows(data / "train", job, job["max_examples"]), Rows(data / "test", job)
    train.numbers, test.numbers = scale(train.numbers, [test.numbers])
    return train, test


def leave(job: dict, clock: Clock, scores: np.ndarray, test: Rows) -> None:
    """Write timing and predictions: any scores [B] that rank the clicks of the test rows."""
    out = Path(job["out"])
    out.mkdir(parents=True, exist_ok=True)
    (out / "timing.json").write_text(json.dumps(clock.timing()))
    np.savez(out / "predictions.npz", scores=scores.astype(np.float64), labels=test.click)
