"""Scoring a table of any size: a few thousand rows at a time, the result whole or not at all.

Letters: `N` rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tml.common.errors import DataError, TmlError
from tml.common.filesystem import atomic_write
from tml.projects.light_ranker.serving.scorer import Scorer

_ROWS_AT_A_TIME = 8192


def score_table(scorer: Scorer, source: Path, target: Path, keep: Sequence[str] = ()) -> int:
    """Score every row of a parquet file, each a user and a candidate.

    Args:
        scorer: the model.
        source: raw features by column; others are left alone.
        target: file to write: `keep`, `probability`, and `watch_time` (seconds) if the model predicts it.
        keep: columns of the source to copy.

    Returns:
        N.

    Raises:
        DataError: the source is missing, no parquet, lacks a column to keep or every feature, or holds a bad value
            (naming its row).
    """
    file = _open(source)
    schema = _schema(file.schema_arrow, scorer, source, keep)
    columns = _columns_to_read(file.schema_arrow, scorer, source, keep)
    num_rows = 0
    with atomic_write(target) as sink, pq.ParquetWriter(sink, schema) as writer:
        for batch in file.iter_batches(_ROWS_AT_A_TIME, columns=columns):
            try:
                scores = scorer.score_rows(batch)
            except TmlError as error:
                where = f"{source}, {batch.num_rows} rows from row {num_rows} on: {error.where}"
                raise type(error)(
                    error.what, where=where, value=error.value, limit=error.limit, fix=error.fix
                ) from error
            found: dict[str, Any] = {name: batch.column(name) for name in keep}
            found["probability"] = scores.probabilities
            if scores.watch_time is not None:
                found["watch_time"] = scores.watch_time
            writer.write_batch(pa.record_batch(list(map(pa.array, found.values())), schema=schema))
            num_rows += batch.num_rows
    return num_rows


def _open(source: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(source)
    except (OSError, pa.ArrowException) as error:
        raise DataError("the table cannot be read", where=source, value=str(error), limit="a parquet file") from error


def _schema(given: pa.Schema, scorer: Scorer, source: Path, keep: Sequence[str]) -> pa.Schema:
    missing = [name for name in keep if name not in given.names]
    names = [name for name in ("probability", "watch_time") if name in scorer.signature.outputs]
    if missing or set(keep) & set(names):
        raise DataError(
            "a column cannot be kept", where=source, value=(missing or keep)[0],
            limit=f"one of {', '.join(given.names)}, but none that is called as a score",
        )  # fmt: skip
    scores = [pa.field(name, pa.float32()) for name in names]
    return pa.schema([*(given.field(name) for name in keep), *scores])


def _columns_to_read(given: pa.Schema, scorer: Scorer, source: Path, keep: Sequence[str]) -> list[str]:
    wanted = {feature.column for feature in scorer.signature.features}
    if not wanted & set(given.names):
        raise DataError(
            "the table holds none of the model's features", where=source, value=", ".join(given.names),
            limit=", ".join(sorted(wanted)),
        )  # fmt: skip
    return [name for name in given.names if name in wanted or name in keep]
