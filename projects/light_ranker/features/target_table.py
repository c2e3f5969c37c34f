"""Target tables: what the labels of training rows came to by key and fold; counted out of core, kept as parquet.

`targets/<feature>.parquet` holds key (int64: a hash of the key's values, ascending) and for each fold `f` of the
training rows `sum.<f>` and `count.<f>` (int64); its metadata holds the same of all keys together. Sums are those of the
label, or of log(1 + label) if it may be any number, in units of 2**-24: whole numbers add up to the same in any order,
and what other folds hold is the difference of two of them, exactly.

Letters: `B` rows, `K` keys, `F` folds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tml.common.errors import DataError
from tml.common.filesystem import open_file
from tml.projects.light_ranker.features.kinds import TargetEncodingConfig
from tml.projects.light_ranker.features.spec import LabelKind

if TYPE_CHECKING:
    import duckdb  # serving does without

TARGET_COUNTS_SCHEMA = pa.schema(
    [("feature", pa.int32()), ("key", pa.int64()), ("fold", pa.int32()), ("sum", pa.int64()), ("count", pa.int64())]
)
UNIT = 2.0**-24
_BATCH_ROWS = 1 << 17
_TOTALS = b"tml.totals"


@dataclass(frozen=True)
class TargetSums:
    """Of the training rows that count for each of B rows.

    Args:
        sums, counts: float64 [B], of labels, and of rows with the row's key; 0 for a key that was never seen.
        means: float64 [B], of the labels of all keys; NaN if no row counts.
    """

    sums: np.ndarray
    counts: np.ndarray
    means: np.ndarray


class TargetTable:
    """Sums and counts by key and fold.

    Args:
        keys: int64 [K], ascending.
        sums, counts: int64 [K, F]; sums in units of `UNIT`.
        total_sums, total_counts: int64 [F], of all training rows, those of keys that are left out too.
        where: the file they come from, for messages.
        digest: of the table in hex; None: to be computed.

    Raises:
        DataError: keys are not ascending, or a key has no rows or more than there are.
    """

    def __init__(
        self,
        keys: np.ndarray,
        sums: np.ndarray,
        counts: np.ndarray,
        totals: tuple[np.ndarray, np.ndarray],
        where: str,
        digest: str | None = None,
    ) -> None:
        if (keys[1:] <= keys[:-1]).any():
            raise _damaged(where, "the keys are not in ascending order")
        if (counts < 0).any() or (counts.sum(axis=1) < 1).any() or (counts.sum(axis=0) > totals[1]).any():
            raise _damaged(where, "the counts of keys and those of all rows contradict each other")
        self._keys, self._totals, self._where = keys, totals, where
        # The row behind the last stands for keys that are not there.
        self._sums, self._counts = (np.pad(part, ((0, 1), (0, 0))) for part in (sums, counts))
        self._key_sums, self._key_counts = self._sums.sum(axis=1), self._counts.sum(axis=1)
        self.digest = self._digest() if digest is None else digest

    @classmethod
    def load(cls, path: str | Path) -> TargetTable:
        """Reads a target table.

        Raises:
            DataError: it is missing or damaged.
        """
        with open_file(path) as file:
            try:
                table = pq.read_table(file)
                totals = json.loads(table.schema.metadata[_TOTALS])
                sums, counts = (np.array(totals[name], np.int64) for name in ("sums", "counts"))
                columns = {
                    name: [table.column(f"{name}.{fold}").to_numpy() for fold in range(len(counts))]
                    for name in ("sum", "count")
                }
                found = {name: np.stack(parts, axis=1) for name, parts in columns.items()}
                keys = table.column("key").to_numpy()
                if any(part.dtype != np.int64 for part in (keys, *found.values())) or sums.shape != counts.shape:
                    raise ValueError("numbers are missing, or not whole")
            except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
                raise _damaged(str(path), str(error)) from None
        return cls(keys, found["sum"], found["count"], (sums, counts), str(path))

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def num_folds(self) -> int:
        """F."""
        return self._counts.shape[1]

    def joined(self) -> TargetTable:
        """The same as a single fold, which takes less memory and will do for rows that are not of the training."""
        sums, counts = (part.sum(keepdims=True) for part in self._totals)
        columns = (self._key_sums[:-1, None], self._key_counts[:-1, None])
        return TargetTable(self._keys, *columns, (sums, counts), self._where, self.digest)

    def sums_of(self, keys: np.ndarray, folds: np.ndarray | None = None) -> TargetSums:
        """What the training rows hold for rows of these keys.

        Args:
            keys: int64 [B].
            folds: int64 [B], of training rows, for which the rows of their fold do not count; -1 for other rows. None:
                all are others.
        """
        place = self._places(keys)
        sums, counts = self._key_sums[place], self._key_counts[place]
        total_sums, total_counts = (np.full(len(keys), part.sum()) for part in self._totals)
        if folds is not None:
            own, fold = folds >= 0, np.maximum(folds, 0)
            sums -= np.where(own, self._sums[place, fold], 0)
            counts -= np.where(own, self._counts[place, fold], 0)
            total_sums -= np.where(own, self._totals[0][fold], 0)
            total_counts -= np.where(own, self._totals[1][fold], 0)
        means = np.full(len(keys), np.nan)
        np.divide(total_sums * UNIT, total_counts, out=means, where=total_counts > 0)
        return TargetSums(sums * UNIT, counts.astype(np.float64), means)

    def _places(self, keys: np.ndarray) -> np.ndarray:
        """The place of each key, K where it is not there: int64 [B]."""
        if not len(self):
            return np.zeros(len(keys), np.int64)
        place = np.minimum(np.searchsorted(self._keys, keys), len(self) - 1)
        return np.where(self._keys[place] == keys, place, len(self))

    def _digest(self) -> str:
        digest = hashlib.sha256(str(self.num_folds).encode())
        for part in (self._keys, self._sums[:-1], self._counts[:-1], *self._totals):
            digest.update(np.ascontiguousarray(part, "<i8").tobytes())
        return digest.hexdigest()


def label_units(label: np.ndarray, kind: LabelKind) -> np.ndarray:
    """What is added up of labels, in units of `UNIT`: int64 [B]."""
    values = label if kind == "binary" else np.log1p(label)
    return np.rint(values / UNIT).astype(np.int64)


def count_targets(feature: int, keys: np.ndarray, folds: np.ndarray, units: np.ndarray) -> pa.Table:
    """Sums and counts of a batch by key and fold, for `write_target_table`: a table of `TARGET_COUNTS_SCHEMA`.

    Args:
        feature: its number.
        keys: int64 [B].
        folds: int64 [B].
        units: int64 [B], of `label_units`.
    """
    order = np.lexsort((folds, keys))
    keys, folds, units = keys[order], folds[order], units[order]
    first = np.ones(len(keys), bool)
    first[1:] = (keys[1:] != keys[:-1]) | (folds[1:] != folds[:-1])
    starts = np.flatnonzero(first)
    sums = np.add.reduceat(units, starts) if len(starts) else units
    columns = [
        np.full(len(starts), feature, np.int32),
        keys[starts],
        folds[starts].astype(np.int32),
        sums,
        np.diff(starts, append=len(keys)),
    ]
    return pa.table(columns, schema=TARGET_COUNTS_SCHEMA)


def write_target_table(
    db: duckdb.DuckDBPyConnection, counts: Sequence[str], feature: int, config: TargetEncodingConfig, target: Path
) -> dict[str, Any]:
    """Adds the counts of one feature up and writes its target table.

    Args:
        db: a database that may use the disk.
        counts: parquet files of `TARGET_COUNTS_SCHEMA`.
        feature: the feature's number in them.
        config: of the feature.
        target: the file to write.

    Returns:
        `size`: keys of the table, `left_out`: keys that are too rare, `mean`: of what is added up of all rows.
    """
    names = {"files": list(counts), "feature": feature}
    rows = "FROM read_parquet($files) WHERE feature = $feature"
    by_fold = db.execute(f"SELECT fold, sum(sum)::BIGINT, sum(count)::BIGINT {rows} GROUP BY fold", names).fetchall()
    totals = np.zeros((2, config.folds), np.int64)
    for fold, *found in by_fold:
        totals[:, fold] = found
    [(distinct,)] = db.execute(f"SELECT count(DISTINCT key) {rows}", names).fetchall()
    columns = ", ".join(
        f"coalesce(sum({what}) FILTER (WHERE fold = {fold}), 0)::BIGINT"
        for what in ("sum", "count")
        for fold in range(config.folds)
    )
    reader = db.sql(
        f"SELECT key, {columns} {rows} GROUP BY key HAVING sum(count) >= $least ORDER BY key",
        params={**names, "least": config.min_count},
    ).to_arrow_reader(_BATCH_ROWS)
    size = _write(target, config.folds, totals, reader)
    return {"size": size, "left_out": distinct - size, "mean": _mean(totals)}


def _mean(totals: np.ndarray) -> float | None:
    sums, counts = totals.sum(axis=1).tolist()
    return round(sums * UNIT / counts, 6) if counts else None


def _write(target: Path, num_folds: int, totals: np.ndarray, batches: pa.RecordBatchReader) -> int:
    names = ["key", *(f"{what}.{fold}" for what in ("sum", "count") for fold in range(num_folds))]
    metadata = {_TOTALS: json.dumps({"sums": totals[0].tolist(), "counts": totals[1].tolist()}).encode()}
    schema = pa.schema([(name, pa.int64()) for name in names], metadata)
    target.parent.mkdir(parents=True, exist_ok=True)
    part, size = target.with_name(target.name + ".part"), 0
    with pq.ParquetWriter(part, schema, compression="zstd", use_dictionary=False) as writer:
        for batch in batches:
            writer.write_table(pa.Table.from_arrays(batch.columns, schema=schema))
            size += len(batch)
    part.replace(target)
    return size


def _damaged(where: str, why: str) -> DataError:
    return DataError("a target table is damaged", where=where, value=why, fix="prepare the data again")
