"""`tml light-ranker sample-clicks`: made-up requests, candidates, clicks and watch times with a planted truth.

A request is one user who sees some items. The chance of a click is the sigmoid of

    intercept + user bias + item bias + <user taste, item style> + 0.7 * shared topics + age and quality of the item,

where a missing quality has an effect of its own; the seconds watched, given a click, are log-normal around a mean that
rises with the logit. `meta.json` holds the best values that any model can reach on the test rows.

Letters: `B` rows, `U` users, `I` items, `K` length of tastes and styles, `T` topics.
The files are a function of the parameters alone, and memory is bounded by the users, the items and a chunk of rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from tml.common.errors import ConfigError
from tml.common.filesystem import write_text
from tml.common.workspace import Workspace
from tml.projects.light_ranker.data.best_scores import BestScores

SPLITS = (("train", 0.8), ("valid", 0.1), ("test", 0.1))
FORMATS = ("parquet", "csv")
MAX_WATCH_SECONDS = 600.0
K, NUM_TOPICS, NUM_COUNTRIES = 8, 60, 12
_START, _DAYS = 1_767_225_600, 14  # 1 January 2026, in seconds
_CHUNK_REQUESTS, _CALIBRATION = 12_000, 10**9
_MISSING_SHARES = {"quality": 0.15, "age": 0.2, "country": 0.1}
_PUBLISHED = (*(split for split, _ in SPLITS), "truth", "features.yaml")

FEATURES = """\
# Features of `tml light-ranker sample-clicks`.
features:
  - {name: user_id, kind: categorical, side: user, vocabulary: {min_count: 2}}
  - {name: country, kind: categorical, side: user}
  - {name: age, kind: continuous, side: user}
  - {name: interests, kind: ids, side: user, max_length: 4, pooling: mean%(separator)s}
  - {name: item_id, kind: categorical, side: candidate, vocabulary: {min_count: 2}}
  - {name: author, kind: categorical, side: candidate, hashed: {num_buckets: 5000}}
  - {name: topics, kind: ids, side: candidate, max_length: 4, pooling: mean%(separator)s}
  - {name: item_age_hours, kind: continuous, side: candidate}
  - {name: quality, kind: continuous, side: candidate, transform: z_score, discretizer: {kind: percentile}}
%(style)slabels:
  - {name: click, kind: binary}
  - {name: watch_time, kind: nonnegative}
group: request_id
"""
_STYLE = f"  - {{name: style, kind: vector, side: candidate, dim: {K}}}\n"


@dataclass(frozen=True)
class ClickParameters:
    """What sample clicks are a function of.

    Args:
        num_rows: shown items, over all splits.
        candidates: items of a request.
        num_users, num_items: 0 derives them from the number of rows.
        click_rate: share of clicks.
        seed: of all draws.
    """

    num_rows: int
    candidates: int = 10
    num_users: int = 0
    num_items: int = 0
    click_rate: float = 0.2
    seed: int = 0

    def resolved(self) -> ClickParameters:
        """With all sizes filled in.

        Raises:
            ConfigError: a size or share is out of range.
        """
        _require(self.candidates >= 1, "--candidates", self.candidates, "at least 1")
        _require(self.num_rows >= 20 * self.candidates, "--rows", self.num_rows, f"at least {20 * self.candidates}")
        _require(0.001 <= self.click_rate <= 0.9, "--click-rate", self.click_rate, "between 0.001 and 0.9")
        _require(self.seed >= 0, "--seed", self.seed, "0 or more")
        users = self.num_users or min(1_000_000, max(50, self.num_rows // 100))
        items = self.num_items or min(1_000_000, max(50, self.num_rows // 200))
        _require(min(users, items) >= 1, "--users, --items", (users, items), "at least 1")
        return ClickParameters(self.num_rows, self.candidates, users, items, self.click_rate, self.seed)


def sample_clicks(
    parameters: ClickParameters, out: Path, file_format: str = "parquet", *, overwrite: bool = False
) -> dict[str, Any]:
    """Writes `{train,valid,test}/part-0.<format>` in the order of time, `features.yaml`, the true click probabilities
    of the test rows (`truth/test.parquet`), and `meta.json`, last.

    Nothing is done when the same data is there already.

    Returns:
        the content of `meta.json`: rows, click rates, and the best AUC, log loss, RCE and watch-time error of the test.

    Raises:
        ConfigError: parameters are out of range, or `out` holds something else.
    """
    _require(file_format in FORMATS, "--format", file_format, f"one of {', '.join(FORMATS)}")
    parameters = parameters.resolved()
    plan = {"parameters": asdict(parameters), "format": file_format}
    workspace = Workspace(out, _PUBLISHED, work=".sample", what="sample of clicks")
    if not workspace.begin(plan, overwrite):
        return workspace.meta()
    planted, first, splits = _Planted(parameters), 0, {}
    best = BestScores(MAX_WATCH_SECONDS)
    num_requests = -(-parameters.num_rows // parameters.candidates)
    for split, share in SPLITS:
        stop = num_requests if split == "test" else first + round(num_requests * share)
        writer = _SplitWriter(workspace.result, split, file_format)
        for chunk in planted.chunks(first, stop):
            writer.write(chunk)
            if split == "test":
                best.add(chunk.click, chunk.probability, chunk.watch_time, chunk.watch_mean)
        splits[split] = writer.close()
        first = stop
    csv = file_format == "csv"
    text = FEATURES % {"separator": ", separator: '|'" if csv else "", "style": "" if csv else _STYLE}
    write_text(workspace.result / "features.yaml", text)
    workspace.publish({"splits": splits, "best_on_test": best.result(), "plan": plan})
    return dict(json.loads((out / "meta.json").read_text(encoding="utf-8")))


@dataclass(frozen=True)
class _Chunk:
    """Rows with what is behind them: click [B], probability [B], watch time [B], mean of its logarithm [B]."""

    table: pa.Table
    click: np.ndarray
    probability: np.ndarray
    watch_time: np.ndarray
    watch_mean: np.ndarray


class _Planted:
    """Users and items with hidden properties, and rows drawn by them."""

    def __init__(self, parameters: ClickParameters) -> None:
        self.parameters = parameters
        rng = np.random.default_rng(parameters.seed)
        users, items = parameters.num_users, parameters.num_items
        self.num_requests = -(-parameters.num_rows // parameters.candidates)
        self.taste = (rng.normal(size=(users, K)) / K**0.25).astype(np.float32)
        self.style = (rng.normal(size=(items, K)) / K**0.25).astype(np.float32)
        self.user_bias, self.item_bias = rng.normal(0, 0.5, users), rng.normal(0, 0.7, items)
        self.interests, self.topics = (_topic_lists(rng, size) for size in (users, items))
        self.quality, self.born = rng.normal(size=items), rng.uniform(-240, 24 * _DAYS, items)
        self.user_age, self.country = rng.normal(35, 12, users).clip(13, 90), rng.integers(0, NUM_COUNTRIES, users)
        self.author = rng.integers(0, max(10, items // 8), items)
        self.missing = {
            name: rng.random(items if name == "quality" else users) < share for name, share in _MISSING_SHARES.items()
        }
        self.intercept = 0.0
        self.intercept = self._find_intercept()

    def chunks(self, first: int, stop: int) -> Iterator[_Chunk]:
        """The rows of requests `[first, stop)`, where the last request may be short."""
        for start in range(first, stop, _CHUNK_REQUESTS):
            requests = np.arange(start, min(stop, start + _CHUNK_REQUESTS))
            rows = min(len(requests) * self.parameters.candidates, self.parameters.num_rows - self._rows_before(start))
            yield self._chunk(requests, rows)

    def _rows_before(self, request: int) -> int:
        return request * self.parameters.candidates

    def _draw(self, requests: np.ndarray, num_rows: int) -> tuple[Any, ...]:
        """A generator; then request, user, item and hours since the start of each row: [B] each."""
        rng = np.random.default_rng([self.parameters.seed, 1, int(requests[0])])
        users = (self.parameters.num_users * rng.random(len(requests)) ** 1.5).astype(np.int64)
        request = np.repeat(requests, self.parameters.candidates)[:num_rows]
        items = (self.parameters.num_items * rng.random(num_rows) ** 2.5).astype(np.int64)
        hours = request / self.num_requests * 24 * _DAYS
        return rng, request, np.repeat(users, self.parameters.candidates)[:num_rows], items, hours

    def _logits(self, users: np.ndarray, items: np.ndarray, hours: np.ndarray) -> np.ndarray:
        match = np.einsum("bk,bk->b", self.taste[users], self.style[items])
        topics = self.topics[items][:, None, :]
        shared = (self.interests[users][:, :, None] == topics) & (topics >= 0)
        quality = np.where(self.missing["quality"][items], -0.6, 0.6 * np.tanh(self.quality[items]))
        freshness = -0.25 * np.log1p(self._age_hours(items, hours) / 24)
        bias = self.user_bias[users] + self.item_bias[items]
        return self.intercept + bias + match + 0.7 * shared.sum(axis=(1, 2)) + quality + freshness

    def _age_hours(self, items: np.ndarray, hours: np.ndarray) -> np.ndarray:
        return np.maximum(hours - self.born[items], 0.0)

    def _find_intercept(self) -> float:
        requests = np.arange(_CALIBRATION, _CALIBRATION + 2_000)
        _, _, users, items, _ = self._draw(requests, len(requests) * self.parameters.candidates)
        hours = np.linspace(0, 24 * _DAYS, len(users))
        logits, low, high = self._logits(users, items, hours), -30.0, 30.0
        for _ in range(50):
            middle = (low + high) / 2
            too_many = _sigmoid(logits + middle).mean() > self.parameters.click_rate
            low, high = (low, middle) if too_many else (middle, high)
        return low

    def _chunk(self, requests: np.ndarray, num_rows: int) -> _Chunk:
        rng, request, users, items, hours = self._draw(requests, num_rows)
        logits = self._logits(users, items, hours)
        probability = _sigmoid(logits)
        click = rng.random(num_rows) < probability
        watch_mean = 2.5 + 0.35 * (logits - self.intercept) + 0.3 * self.style[items, 0]
        watched = np.minimum(
            np.exp(watch_mean + BestScores.WATCH_SPREAD * rng.standard_normal(num_rows)), MAX_WATCH_SECONDS
        )
        watch_time = np.where(click, watched, 0.0).astype(np.float32)
        columns = {
            "request_id": pa.array(request),
            "time": pa.array(_START + (hours * 3600).astype(np.int64)),
            "user_id": _names("u", users),
            "country": _names("country", self.country[users], self.missing["country"][users]),
            "age": pa.array(np.round(self.user_age[users]), mask=self.missing["age"][users]),
            "interests": _topic_column(self.interests[users]),
            "item_id": pa.array(1_000_003 + 7 * items),
            "author": _names("a", self.author[items]),
            "topics": _topic_column(self.topics[items]),
            "item_age_hours": pa.array(self._age_hours(items, hours).round(2)),
            "quality": pa.array(self.quality[items].round(4), mask=self.missing["quality"][items]),
            "style": pa.FixedSizeListArray.from_arrays(pa.array(self.style[items].reshape(-1)), K),
            "click": pa.array(click.astype(np.int8)),
            "watch_time": pa.array(watch_time),
        }
        return _Chunk(pa.table(columns), click, probability, watch_time, watch_mean)


class _SplitWriter:
    """Writes one split: a file of rows, and for the test a file of the true probabilities."""

    def __init__(self, folder: Path, split: str, file_format: str) -> None:
        self._path, self._format = folder / split / f"part-0.{file_format}", file_format
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._truth_path = folder / "truth" / "test.parquet" if split == "test" else None
        self._writer: Any = None
        self._truth: pq.ParquetWriter | None = None
        self._rows = self._clicks = 0

    def write(self, chunk: _Chunk) -> None:
        """Appends rows."""
        table = _as_text(chunk.table) if self._format == "csv" else chunk.table
        if self._writer is None:
            make = pacsv.CSVWriter if self._format == "csv" else pq.ParquetWriter
            self._writer = make(self._path, table.schema)
        self._writer.write_table(table)
        if self._truth_path is not None:
            truth = pa.table({"click_probability": chunk.probability})
            if self._truth is None:
                self._truth_path.parent.mkdir(exist_ok=True)
                self._truth = pq.ParquetWriter(self._truth_path, truth.schema)
            self._truth.write_table(truth)
        self._rows += len(table)
        self._clicks += int(np.count_nonzero(chunk.click))

    def close(self) -> dict[str, Any]:
        """Closes the files; gives rows and the share of clicks."""
        for writer in (self._writer, self._truth):
            if writer is not None:
                writer.close()
        return {"rows": self._rows, "click_rate": round(self._clicks / max(1, self._rows), 6)}


def _topic_lists(rng: np.random.Generator, size: int) -> np.ndarray:
    """Up to four topics each, without repetition; -1 pads: int64 [size, 4]."""
    topics = (NUM_TOPICS * rng.random((size, 4)) ** 1.5).astype(np.int64)
    keep = np.arange(4) < rng.integers(0, 5, size)[:, None]
    repeated = np.stack([(topics[:, :k] == topics[:, k : k + 1]).any(axis=1) for k in range(4)], axis=1)
    return np.where(keep & ~repeated, topics, -1)


def _topic_column(topics: np.ndarray) -> pa.Array:
    present = topics >= 0
    offsets = np.concatenate([[0], np.cumsum(present.sum(axis=1))])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), _names("topic", topics[present]))


def _names(prefix: str, numbers: np.ndarray, missing: np.ndarray | None = None) -> pa.Array:
    names = pc.binary_join_element_wise(prefix, pa.array(numbers).cast(pa.string()), "")
    return names if missing is None else pc.if_else(pa.array(missing), pa.scalar(None, pa.string()), names)


def _as_text(table: pa.Table) -> pa.Table:
    """Lists joined with '|'; dense vectors do not go into text."""
    for name in ("interests", "topics"):
        table = table.set_column(table.column_names.index(name), name, pc.binary_join(table.column(name), "|"))
    return table.drop_columns(["style"])


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-logits))


def _require(condition: bool, where: str, value: object, limit: str) -> None:
    if not condition:
        raise ConfigError("sample clicks cannot be made", where=where, value=value, limit=limit)
