"""Target encoding: keys into what the label was in training rows with the same ones (Micci-Barreca, SIGKDD Explorations
3(1), 2001), cross-fitted so that no training row sees its own label.

Letters: `B` rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tml.common.errors import DataError
from tml.projects.light_ranker.features import raw_columns
from tml.projects.light_ranker.features.column_encoders import label_of
from tml.projects.light_ranker.features.config import FeatureConfig
from tml.projects.light_ranker.features.faults import RowFaults
from tml.projects.light_ranker.features.kinds import TargetEncodingConfig
from tml.projects.light_ranker.features.lookup import finalise, hash_ids
from tml.projects.light_ranker.features.raw_columns import Ids, Raw
from tml.projects.light_ranker.features.spec import LabelKind
from tml.projects.light_ranker.features.target_table import TargetSums, TargetTable

# Of a missing value and of one that is not of its key's type, among the hashes of values.
_MISSING, _FOREIGN, _START = (np.uint64(n) for n in (0x8F1BBCDC6A09E667, 0xCA62C1D6BB67AE85, 0x5BE0CD193C6EF372))


TARGET_ENCODING_DIM = 2


class TargetEncoder:
    """Two numbers per row: how far the label's smoothed mean lies from that of all rows, and log(1 + rows of the key).

    With the sum `s` and count `n` of the labels of a key, their mean `p` over all keys and the smoothing `a`, it is
    `m = (s + a * p) / (n + a)`: for a binary label the first number is `logit(m) - logit(p)`, for others `m - p` of
    log(1 + label). A key that was never seen has 0 and 0.

    Args:
        config: of the feature, with its types resolved.
        kind: of its label.
        table: its target table.
    """

    def __init__(self, config: TargetEncodingConfig, kind: LabelKind, table: TargetTable) -> None:
        self.table, self._kind, self._config, self._keys = table, kind, config, KeyReader(config)

    def encode(
        self, columns: Mapping[str, Raw], faults: RowFaults, out: np.ndarray, draws: np.ndarray | None = None
    ) -> None:
        """Fills `out`, float32 [B, 2].

        Args:
            columns: with those of the keys.
            draws: float64 [B], of training rows, as `rows.fold_draws` gives them; NaN for other rows.
        """
        folds = None if draws is None else folds_of(draws, self._config.folds)
        found = self.table.sums_of(self._keys.read(columns, faults), folds)
        out[:, 0] = _excess(found, self._config.smoothing, self._kind)
        out[:, 1] = np.log1p(found.counts)


class KeyReader:
    """The keys of a feature's rows.

    Args:
        config: of the feature, with its types resolved.
    """

    def __init__(self, config: TargetEncodingConfig) -> None:
        if len(config.types) != len(config.keys) or "auto" in config.types:
            raise ValueError(f"the types of {config.name!r} are not resolved")
        self._columns = [
            (key, kind, label_of(config.name, key)) for key, kind in zip(config.keys, config.types, strict=True)
        ]

    def read(self, columns: Mapping[str, Raw], faults: RowFaults) -> np.ndarray:
        """int64 [B]: a hash of the keys' values in their order; a missing one is a value of its own.

        Raises:
            DataError: a column holds no ids.
        """
        found: np.ndarray = np.full(1, _START)
        for key, kind, label in self._columns:
            ids = raw_columns.as_ids(columns[key], kind, faults.where(label))  # type: ignore[arg-type]
            found = finalise(found ^ _hashes(ids))
        return found.view(np.int64)


def folds_of(draws: np.ndarray, num_folds: int) -> np.ndarray:
    """The folds of rows by their draws from [0, 1): int64 [B], -1 where the draw is NaN."""
    return np.where(np.isnan(draws), -1.0, np.nan_to_num(draws) * num_folds).astype(np.int64)


def encoding_digest(config: TargetEncodingConfig, kind: LabelKind, table: TargetTable) -> str:
    """A digest in hex of all that the encoding depends on: the table, and the settings that read it."""
    settings = json.dumps([config.keys, config.types, config.folds, config.smoothing, kind])
    return hashlib.sha256(f"{settings} {table.digest}".encode()).hexdigest()


def load_target_tables(folder: Path, config: FeatureConfig, expected: Mapping[str, str]) -> dict[str, TargetTable]:
    """The target tables of a folder, by feature, each of a single fold: no training rows are encoded with them.

    Args:
        folder: holds `<feature>.parquet`.
        config: resolved.
        expected: feature -> digest of its encoding.

    Raises:
        DataError: a file is missing or damaged, or not the one that the data was encoded with.
    """
    tables = {}
    for feature in config.target_encodings():
        path = folder / f"{feature.name}.parquet"
        table = TargetTable.load(path)
        found = encoding_digest(feature, config.encoded_label(feature).kind, table)
        if found != expected.get(feature.name):
            raise DataError(
                "not the target table that the data was encoded with, or not its feature's settings", where=str(path),
                value=found, limit=expected.get(feature.name), fix="put the folder back as `prepare` wrote it",
            )  # fmt: skip
        tables[feature.name] = table.joined()
    return tables


def _excess(found: TargetSums, smoothing: float, kind: LabelKind) -> np.ndarray:
    """The first of the two numbers: float64 [B]."""
    mean = found.means
    smoothed = (found.sums + smoothing * mean) / (found.counts + smoothing)
    if kind == "nonnegative":
        return np.where(found.counts > 0, smoothed - mean, 0.0)
    # Where all labels are the same, they are so for every key.
    tells = (found.counts > 0) & (mean > 0) & (mean < 1)
    smoothed, mean = np.where(tells, smoothed, 0.5), np.where(tells, mean, 0.5)
    return np.log(smoothed / (1 - smoothed)) - np.log(mean / (1 - mean))


def _hashes(ids: Ids) -> np.ndarray:
    """uint64 [B]."""
    hashes = hash_ids(ids)
    if ids.foreign is not None:
        hashes[ids.foreign] = _FOREIGN
    if ids.missing is not None:
        hashes[ids.missing] = _MISSING
    return hashes
