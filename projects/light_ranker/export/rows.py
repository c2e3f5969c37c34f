"""Encoded rows for looking at an export: of a split, and made up so that every odd case occurs.

Letters: `B` rows, `S` id slots, `C` continuous features, `V` values of vectors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tml.common.filesystem import open_file
from tml.projects.light_ranker.features.spec import MISSING, PADDING, FeatureSpec, Side

_BATCH_ROWS = 8192


@dataclass(frozen=True)
class CheckRows:
    """Encoded rows.

    Args:
        spec: their features.
        ids: int64 `[B, S]`.
        continuous: float32 `[B, C]`, NaN where missing.
        vectors: float32 `[B, V]`.
        labels: float32 `[B, L]` in the order of `spec.labels`; `[B, 0]` if made up.
        weight: float32 `[B]`.
    """

    spec: FeatureSpec
    ids: NDArray[np.int64]
    continuous: NDArray[np.float32]
    vectors: NDArray[np.float32]
    labels: NDArray[np.float32]
    weight: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.ids)

    def inputs(self, side: Side) -> dict[str, NDArray[Any]]:
        """One side's inputs of the graph, those without columns too."""
        return {
            f"{side}_{kind}": np.ascontiguousarray(getattr(self, kind)[:, self.is_of_side(kind, side)])
            for kind in ("ids", "continuous", "vectors")
        }

    def is_of_side(self, kind: str, side: Side) -> NDArray[np.bool_]:
        """Which columns of `ids`, `continuous` or `vectors` belong to a side."""
        features = getattr(self.spec, kind)
        return np.array([feature.side == side for feature in features for _ in feature.columns()], dtype=bool)


def made_up_rows(spec: FeatureSpec, values: NDArray[np.float32], num_rows: int = 256, seed: int = 0) -> CheckRows:
    """Rows with missing and unknown ids, lists of all lengths, missing numbers, and numbers on the bins' boundaries.

    Args:
        spec: the features.
        values: float32 `[K, C]`, `K` values to try for each continuous feature, beside random ones.
        num_rows: B.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    ids = [_slots(feature.num_rows, feature.num_slots, num_rows, rng) for feature in spec.ids]
    shape = (num_rows, len(spec.continuous))
    numbers = rng.normal(scale=10.0 ** rng.integers(-2, 5, shape))
    tried = values[rng.integers(0, max(len(values), 1), shape), np.arange(shape[1])] if len(values) else numbers
    numbers = np.where(rng.random(shape) < 0.4, tried, numbers)
    return CheckRows(
        spec,
        np.concatenate(ids, axis=1) if ids else np.empty((num_rows, 0), np.int64),
        np.where(rng.random(shape) < 0.1, np.nan, numbers).astype(np.float32),
        rng.normal(size=(num_rows, spec.num_vector_values)).astype(np.float32),
        np.empty((num_rows, 0), np.float32),
        np.ones(num_rows, np.float32),
    )


def read_rows(files: Sequence[str], spec: FeatureSpec, max_rows: int | None = None) -> Iterator[CheckRows]:
    """The rows of encoded parquet files, a few thousand at a time.

    Args:
        files: of a split that `prepare` wrote.
        spec: the features.
        max_rows: stop after so many.
    """
    left = max_rows
    for name in files:
        with open_file(name) as file:
            for batch in pq.ParquetFile(file).iter_batches(_BATCH_ROWS, columns=list(spec.columns())):
                if left is not None:
                    batch, left = batch.slice(0, left), left - min(left, batch.num_rows)
                if batch.num_rows:
                    yield _rows(batch, spec)
                if left == 0:
                    return


def _rows(batch: pa.RecordBatch, spec: FeatureSpec) -> CheckRows:
    def joined(names: list[str], kind: type) -> NDArray:
        columns = [batch.column(name).to_numpy(zero_copy_only=False).astype(kind) for name in names]
        return np.stack(columns, axis=1) if columns else np.empty((batch.num_rows, 0), kind)

    groups = [
        [name for f in features for name in f.columns()] for features in (spec.ids, spec.continuous, spec.vectors)
    ]
    return CheckRows(
        spec,
        joined(groups[0], np.int64),
        joined(groups[1], np.float32),
        joined(groups[2], np.float32),
        joined([f"y.{label.name}" for label in spec.labels], np.float32),
        joined(["w"], np.float32)[:, 0],
    )


def _slots(num_table_rows: int, num_slots: int, num_rows: int, rng: np.random.Generator) -> NDArray[np.int64]:
    ids = rng.integers(0, num_table_rows, (num_rows, num_slots))
    ids[0], ids[-1] = MISSING, num_table_rows - 1
    lengths = rng.integers(1, num_slots + 1, num_rows)
    return np.where(np.arange(num_slots) < lengths[:, None], ids, PADDING)
