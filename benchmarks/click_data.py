"""Made-up clicks and watch times of Criteo's shape, with a planted truth, so that the best possible AUC is known.

    python benchmarks/click_data.py --rows 2m          # data/benchmarks/clicks-2000000-0

A row has 13 numbers `I1` to `I13` (log-normal, some of them often missing), 26 ids `C1` to `C26` (power laws over 10 to
1,000,000 values, correlated within a user's, an item's and a context's columns), `click`, and `watch_time` in seconds,
0 without a click. Its chance of a click is the sigmoid of

    intercept + sum of an effect of each id + products of hidden vectors of 40 pairs of columns
              + a curve of each number, or an effect of its being missing,

and the seconds watched, given a click, are log-normal around a mean that rises with the logit and with the item's ids.
Ids that a model sees a handful of times teach it nothing, so `meta.json` has two limits: the AUC of the true
probability, and the reachable AUC: of a model that knows all but the effects of ids seen in fewer than 20 training
rows.

Letters: `B` rows, `F` id columns, `J` number columns, `K` length of hidden vectors, `N` values of an id column.
The files are a function of rows and seed alone.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.special import expit, ndtr

from tml.benchmarks.harness import DATA, parse_count
from tml.projects.light_ranker.data.best_scores import BestScores

F, J, K = 26, 13, 4
NUM_PAIRS, NUM_FACTORS, ITEM = 40, 3, 1
SPLITS = (("train", 0.8), ("valid", 0.1), ("test", 0.1))
CLICK_RATE = 0.25
MIN_COUNT = 20  # training rows from which on an id's effects count as learnable
MAX_WATCH_SECONDS = 600.0
# Standard deviations of the parts of the logit.
SPREADS = {"ids": 1.0, "pairs": 0.7, "numbers": 0.7}
_CHUNK, _CALIBRATION_ROWS = 200_000, 200_000


class Drawn(NamedTuple):
    """Rows before their clicks: ids int32 [B, F]; numbers and what is behind them, float32 [B, J], NaN = missing."""

    ids: np.ndarray
    numbers: np.ndarray
    deviations: np.ndarray


class Truth:
    """The planted effects, and rows drawn from them."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng([seed, 0])
        self.sizes = rng.permutation(np.geomspace(10, 1_000_000, F).round().astype(np.int64))
        self.exponents = rng.uniform(0.85, 1.25, F)
        self.factors, self.shares = rng.integers(0, NUM_FACTORS, F), rng.uniform(0.2, 0.8, F)
        self.id_of_rank = [rng.permutation(size).astype(np.int32) for size in self.sizes]
        self.effects = [rng.standard_normal(size, np.float32) for size in self.sizes]
        self.hidden = [rng.standard_normal((size, K), np.float32) for size in self.sizes]
        self.watch_effects = [rng.standard_normal(size, np.float32) for size in self.sizes]
        self.pairs = _draw_pairs(rng, self.sizes)
        self.levels, self.widths = rng.uniform(0, 5, J), rng.uniform(0.5, 2.0, J)
        self.number_factors, self.number_shares = rng.integers(0, NUM_FACTORS, J), rng.uniform(0, 0.7, J)
        self.missing = np.where(rng.random(J) < 0.6, rng.uniform(0, 0.45, J), 0.0)
        self.is_whole = rng.random(J) < 0.6
        self.slopes, self.bends = rng.standard_normal(J), 0.4 * rng.standard_normal(J)
        self.missing_effects = 0.5 * rng.standard_normal(J)
        self._scale(self.draw(np.random.default_rng([seed, 1]), _CALIBRATION_ROWS))

    def draw(self, rng: np.random.Generator, num_rows: int) -> Drawn:
        """Ids and numbers of new rows."""
        factors = rng.standard_normal((NUM_FACTORS, num_rows), np.float32)
        ids = np.empty((num_rows, F), np.int32)
        for column in range(F):
            noise = _mixed(rng, factors[self.factors[column]], self.shares[column])
            ranks = _power_law_ranks(ndtr(noise), self.exponents[column], self.sizes[column])
            ids[:, column] = self.id_of_rank[column][ranks]
        numbers, deviations = np.empty((2, num_rows, J), np.float32)
        for column in range(J):
            noise = _mixed(rng, factors[self.number_factors[column]], self.number_shares[column])
            values = np.exp(self.levels[column] + self.widths[column] * noise)
            is_missing = rng.random(num_rows) < self.missing[column]
            numbers[:, column] = np.where(is_missing, np.nan, np.floor(values) if self.is_whole[column] else values)
            deviations[:, column] = np.where(is_missing, np.nan, noise)
        return Drawn(ids, numbers, deviations)

    def logits(self, rows: Drawn, known: list[np.ndarray] | None = None) -> np.ndarray:
        """[B]; `known`, bool [N] of each id column, leaves out the effects of the ids that are not."""
        parts = self._parts(rows, known)
        return self.intercept + sum(self.scales[name] * part for name, part in parts.items())

    def watch_means(self, rows: Drawn, logits: np.ndarray) -> np.ndarray:
        """Mean of the logarithm of the seconds watched, given a click: [B]."""
        return 2.5 + 0.35 * (logits - self.mean_logit) + 0.5 * self._watch_ids(rows) / self.watch_spread

    def _parts(self, rows: Drawn, known: list[np.ndarray] | None) -> dict[str, np.ndarray]:
        keep = None if known is None else [mask[rows.ids[:, column]] for column, mask in enumerate(known)]
        ids = np.zeros(len(rows.ids), np.float32)
        for column, effects in enumerate(self.effects):
            found = effects[rows.ids[:, column]]
            ids += found if keep is None else found * keep[column]
        pairs = np.zeros_like(ids)
        vectors = {column: self.hidden[column][rows.ids[:, column]] for pair in self.pairs for column in pair}
        for left, right in self.pairs:
            products = np.einsum("bk,bk->b", vectors[left], vectors[right])
            pairs += products if keep is None else products * (keep[left] & keep[right])
        z = rows.deviations
        curves = np.where(np.isnan(z), self.missing_effects, self.slopes * np.tanh(z) + self.bends * (z * z - 1))
        return {"ids": ids, "pairs": pairs, "numbers": curves.sum(1)}

    def _watch_ids(self, rows: Drawn) -> np.ndarray:
        items = np.flatnonzero(self.factors == ITEM)
        return sum((self.watch_effects[column][rows.ids[:, column]] for column in items), np.zeros(len(rows.ids)))

    def _scale(self, rows: Drawn) -> None:
        parts = self._parts(rows, None)
        self.scales = {name: spread / parts[name].std() for name, spread in SPREADS.items()}
        self.watch_spread = self._watch_ids(rows).std() or 1.0
        self.intercept = 0.0
        logits, low, high = self.logits(rows), -30.0, 30.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (low, middle) if expit(logits + middle).mean() > CLICK_RATE else (middle, high)
        self.intercept, self.mean_logit = low, float(logits.mean() + low)


def click_data(num_rows: int, seed: int = 0) -> Path:
    """A folder of sample clicks, made if it is not there: `{train,valid,test}.parquet` and `meta.json`."""
    folder = DATA / f"clicks-{num_rows}-{seed}"
    if not (folder / "meta.json").is_file():
        make_clicks(num_rows, folder, seed)
    return folder


def make_clicks(num_rows: int, out: Path, seed: int = 0) -> dict[str, Any]:
    """Write sample clicks; `out` appears when they are complete.

    Returns:
        the content of `meta.json`: rows of each split, `vocab` (values of each id column, which are 0, 1, ...), how
        many of them were seen in training, and the limits on the test rows.
    """
    if num_rows < 10:
        raise SystemExit(f"{num_rows} rows cannot be split in {len(SPLITS)}: make at least 10")
    unfinished = out.with_name(out.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    truth, sizes = Truth(seed), {name: int(num_rows * share) for name, share in SPLITS}
    sizes["train"] += num_rows - sum(sizes.values())
    counts = [np.zeros(size, np.int64) for size in truth.sizes]
    best, reachable = BestScores(MAX_WATCH_SECONDS), BestScores(MAX_WATCH_SECONDS)
    for split, (name, size) in enumerate(sizes.items()):
        known = [seen >= MIN_COUNT for seen in counts]
        with pq.ParquetWriter(unfinished / f"{name}.parquet", _SCHEMA, compression="zstd") as writer:
            for rows, labels in _chunks(truth, [seed, 2, split], size):
                writer.write_table(_table(rows, labels), row_group_size=100_000)
                if name == "train":
                    counts = [_counted(rows.ids[:, column], seen) for column, seen in enumerate(counts)]
                elif name == "test":
                    best.add(labels.click, expit(labels.logits), labels.watch_time, labels.watch_means)
                    nearly = expit(truth.logits(rows, known))
                    reachable.add(labels.click, nearly, labels.watch_time, labels.watch_means)
    meta = {"rows": sizes, "seed": seed, "vocab": truth.sizes.tolist()}
    meta |= {"ids_seen": [int((seen > 0).sum()) for seen in counts], "best_on_test": best.result()}
    meta["reachable_auc"] = reachable.result()["auc"]
    (unfinished / "meta.json").write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(out, ignore_errors=True)
    unfinished.rename(out)
    return meta


class Labels(NamedTuple):
    """What happened, [B] each: clicks (bool), seconds watched, and the truth behind them."""

    click: np.ndarray
    watch_time: np.ndarray
    logits: np.ndarray
    watch_means: np.ndarray


def _chunks(truth: Truth, seeds: list[int], num_rows: int) -> Iterator[tuple[Drawn, Labels]]:
    for number, start in enumerate(range(0, num_rows, _CHUNK)):
        rng = np.random.default_rng([*seeds, number])
        rows = truth.draw(rng, min(_CHUNK, num_rows - start))
        logits = truth.logits(rows)
        means = truth.watch_means(rows, logits)
        click = rng.random(len(logits)) < expit(logits)
        seconds = np.exp(means + BestScores.WATCH_SPREAD * rng.standard_normal(len(logits)))
        watch_time = np.where(click, np.minimum(seconds, MAX_WATCH_SECONDS), 0.0).astype(np.float32)
        yield rows, Labels(click, watch_time, logits, means)


def _table(rows: Drawn, labels: Labels) -> pa.Table:
    columns = [labels.click.astype(np.int8), labels.watch_time, *rows.numbers.T, *rows.ids.T]
    return pa.table([np.ascontiguousarray(values) for values in columns], schema=_SCHEMA)


_SCHEMA = pa.schema(
    [("click", pa.int8()), ("watch_time", pa.float32())]
    + [(f"I{column + 1}", pa.float32()) for column in range(J)]
    + [(f"C{column + 1}", pa.int32()) for column in range(F)]
)


def _draw_pairs(rng: np.random.Generator, sizes: np.ndarray) -> list[tuple[int, int]]:
    """Columns that interact, mostly those of few values, whose hidden vectors can be learnt."""
    chances = 1 / np.log10(sizes)
    pairs: dict[tuple[int, int], None] = {}
    while len(pairs) < NUM_PAIRS:
        left, right = sorted(rng.choice(F, 2, replace=False, p=chances / chances.sum()).tolist())
        pairs[left, right] = None
    return list(pairs)


def _mixed(rng: np.random.Generator, factor: np.ndarray, share: float) -> np.ndarray:
    return share * factor + np.sqrt(1 - share**2) * rng.standard_normal(len(factor))


def _power_law_ranks(uniform: np.ndarray, exponent: float, size: int) -> np.ndarray:
    """Ranks in [0, size) whose density falls like `rank ** -exponent`, by the inverse of its distribution function."""
    power = 1 - exponent
    if abs(power) > 1e-3:
        places = (1 + uniform * ((size + 1.0) ** power - 1)) ** (1 / power)
    else:
        places = (size + 1.0) ** uniform
    return np.clip(places.astype(np.int64) - 1, 0, size - 1)


def _counted(ids: np.ndarray, seen: np.ndarray) -> np.ndarray:
    return seen + np.bincount(ids, minlength=len(seen))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=parse_count, default=2_000_000, help="of all splits, such as 200k or 2m")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder to make or replace (default: one under data/benchmarks)")
    arguments = parser.parse_args()
    if arguments.out is None:
        folder = click_data(arguments.rows, arguments.seed)
    else:
        folder = arguments.out
        make_clicks(arguments.rows, folder, arguments.seed)
    print(f"{folder}\n{(folder / 'meta.json').read_text(encoding='utf-8')}", end="")


if __name__ == "__main__":
    main()
