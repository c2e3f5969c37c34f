"""The first pass over the rows: values of vocabularies are counted, and the times of a split found, on the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tml.common.workspace import Workspace
from tml.projects.light_ranker.features.column_encoders import IdValues
from tml.projects.light_ranker.features.config import CategoricalConfig, FeatureConfig, IdsConfig
from tml.projects.light_ranker.features.encoder import VOCAB_FOLDER, id_features
from tml.projects.light_ranker.features.inputs import Inputs
from tml.projects.light_ranker.features.prepare_options import PrepareOptions
from tml.projects.light_ranker.features.resolve import check_types
from tml.projects.light_ranker.features.rows import (
    SPLITS,
    GivenSplit,
    RandomSplit,
    RowBatch,
    Splitter,
    TimeSplit,
    times_of,
)
from tml.projects.light_ranker.features.vocabulary import COUNTS_SCHEMA, copy_pretrained, count_ids, write_vocabulary

_TIMES_SCHEMA = pa.schema([("time", pa.float64()), ("count", pa.int64())])


class FirstPass:
    """Counts what the encoding needs to know; each file leaves its mark in the workspace.

    Args:
        config: resolved.
        inputs: the files.
        options: the split and the memory limit.
        workspace: of the preparation.
    """

    def __init__(self, config: FeatureConfig, inputs: Inputs, options: PrepareOptions, workspace: Workspace) -> None:
        self._config, self._inputs, self._options, self._workspace = config, inputs, options, workspace
        self._counted = [feature for feature in id_features(config) if feature.vocabulary is not None]
        self._values = {str(feature.name): IdValues(feature) for feature in self._counted}

    def splitter(self) -> Splitter:
        """The split that the options ask for."""
        shares, column = self._options.split_fractions, self._options.split_time
        if shares is None:
            return GivenSplit(self._inputs.split_of_file)
        if column is None:
            return RandomSplit(shares, self._options.seed, self._config.group)
        first, second = np.cumsum(shares)[:-1].tolist()
        bounds = self._workspace.stage("times", lambda: self._time_bounds(column, first, second))
        return TimeSplit(column, [np.inf if bound is None else bound for bound in bounds])

    def _time_bounds(self, column: str, first: float, second: float) -> list[float | None]:
        """The first times of validation and test: the earliest that at least a share of the rows lie before."""
        folder = self._folder("times")
        for number, path in enumerate(self._inputs.paths):
            with pq.ParquetWriter(folder / f"{number}.parquet", _TIMES_SCHEMA) as writer:
                for batch in self._inputs.rows(path, [column]):
                    where = f"{path}, column {column!r}"
                    times, counts = np.unique(times_of(batch.columns[column], where), return_counts=True)
                    writer.write_table(pa.table([times, counts], schema=_TIMES_SCHEMA))
        with self._database() as db:
            bounds = db.execute(
                "WITH t AS (SELECT time, sum(count) AS n FROM read_parquet($files) GROUP BY time), "
                "b AS (SELECT time, sum(n) OVER (ORDER BY time) - n AS before, sum(n) OVER () AS total FROM t) "
                "SELECT min(time) FILTER (before >= $first * total), "
                "min(time) FILTER (before >= $second * total) FROM b",
                {"files": _paths(folder), "first": first, "second": second},
            ).fetchone()
        return list(bounds or (None, None))

    def vocabularies(self, splitter: Splitter, result: Path) -> dict[str, dict[str, Any]]:
        """Writes `vocab/` into the result folder; gives size, values left out and pretrained table, by feature."""
        if self._counted:
            self._folder("counts")
            for number, path in enumerate(self._inputs.paths):
                if self._options.split_fractions is not None or self._inputs.split_of_file[path] == _TRAIN:
                    self._workspace.stage(
                        f"count-{number}", lambda n=number, p=path: self._count_file(n, p, splitter)  # type: ignore[misc]
                    )  # fmt: skip
        written = {}
        for number, feature in enumerate(id_features(self._config)):
            if feature.vocabulary is not None or feature.pretrained is not None:
                target = result / VOCAB_FOLDER / f"{feature.name}.parquet"
                written[str(feature.name)] = self._workspace.stage(
                    f"vocab-{number}", lambda f=feature, t=target: self._vocabulary(f, t)  # type: ignore[misc]
                )  # fmt: skip
        return written

    def _count_file(self, number: int, path: str, splitter: Splitter) -> dict[str, Any]:
        columns = list(dict.fromkeys([feature.source for feature in self._counted] + splitter.columns()))
        check_types(list(self._config.features), self._inputs.schema(path), path)
        target = self._folder("counts") / f"{number}.parquet"
        with pq.ParquetWriter(target, COUNTS_SCHEMA, compression="zstd") as writer:
            for batch in self._inputs.rows(path, columns):
                train = batch.filtered(splitter.assign(batch, path) == _TRAIN)
                for place, feature in enumerate(self._counted):
                    writer.write_table(self._counts(place, feature, train, path))
        return {}

    def _counts(self, place: int, feature: CategoricalConfig | IdsConfig, batch: RowBatch, path: str) -> pa.Table:
        values, raw = self._values[str(feature.name)], batch.columns[feature.source]
        where = f"{path}, {values.label}"
        if isinstance(feature, IdsConfig):
            return count_ids(place, values.read_lists(raw, where, feature.separator, len(batch.numbers))[0])
        return count_ids(place, values.read(raw, where))

    def _vocabulary(self, feature: CategoricalConfig | IdsConfig, target: Path) -> dict[str, Any]:
        if feature.pretrained is not None:
            size, kind, embedding = copy_pretrained(feature.pretrained, target)
            return {"size": size, "type": kind, "embedding": embedding}
        assert feature.vocabulary is not None
        assert feature.type != "auto"
        with self._database() as db:
            counts, place = _paths(self._folder("counts")), self._counted.index(feature)
            return write_vocabulary(db, counts, place, feature.type, feature.vocabulary, target)

    def _database(self) -> duckdb.DuckDBPyConnection:
        folder = str(self._workspace.work / "duckdb")
        return duckdb.connect(config={"memory_limit": self._options.memory_limit, "temp_directory": folder})

    def _folder(self, name: str) -> Path:
        folder = self._workspace.work / name
        folder.mkdir(exist_ok=True)
        return folder


_TRAIN = SPLITS.index("train")


def _paths(folder: Path) -> list[str]:
    return [str(path) for path in sorted(folder.glob("*.parquet"))]
