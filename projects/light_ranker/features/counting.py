"""The first pass over the rows: values of vocabularies and labels of target encodings are counted, and the times of a
split found, on the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tml.common.workspace import Workspace
from tml.projects.light_ranker.features.column_encoders import IdValues
from tml.projects.light_ranker.features.config import FeatureConfig
from tml.projects.light_ranker.features.encoder import TARGETS_FOLDER, VOCAB_FOLDER, id_features
from tml.projects.light_ranker.features.faults import RowFaults
from tml.projects.light_ranker.features.inputs import Inputs
from tml.projects.light_ranker.features.kinds import CategoricalConfig, IdsConfig, TargetEncodingConfig
from tml.projects.light_ranker.features.labels import TargetReader
from tml.projects.light_ranker.features.prepare_options import PrepareOptions
from tml.projects.light_ranker.features.resolve import check_types
from tml.projects.light_ranker.features.rows import (
    TRAIN,
    GivenSplit,
    RandomSplit,
    RowBatch,
    Splitter,
    TimeSplit,
    fold_draws,
    times_of,
)
from tml.projects.light_ranker.features.target_encoder import KeyReader, folds_of
from tml.projects.light_ranker.features.target_table import (
    TARGET_COUNTS_SCHEMA,
    count_targets,
    label_units,
    write_target_table,
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
        self._targets = config.target_encodings()
        self._labels = TargetReader(config)

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

    def count(self, splitter: Splitter) -> None:
        """Counts what vocabularies and target tables are made of, in the training rows."""
        if not self._counted and not self._targets:
            return
        for number, path in enumerate(self._inputs.paths):
            if self._options.split_fractions is not None or self._inputs.split_of_file[path] == TRAIN:
                self._workspace.stage(
                    f"count-{number}", lambda n=number, p=path: self._count_file(n, p, splitter)  # type: ignore[misc]
                )  # fmt: skip

    def vocabularies(self, result: Path) -> dict[str, dict[str, Any]]:
        """Writes `vocab/` into the result folder; gives size, values left out and pretrained table, by feature."""
        written = {}
        for number, feature in enumerate(id_features(self._config)):
            if feature.vocabulary is not None or feature.pretrained is not None:
                target = result / VOCAB_FOLDER / f"{feature.name}.parquet"
                written[str(feature.name)] = self._workspace.stage(
                    f"vocab-{number}", lambda f=feature, t=target: self._vocabulary(f, t)  # type: ignore[misc]
                )  # fmt: skip
        return written

    def target_tables(self, result: Path) -> dict[str, dict[str, Any]]:
        """Writes `targets/` into the result folder; gives size, keys left out and mean label, by feature."""
        written = {}
        for number, feature in enumerate(self._targets):
            target = result / TARGETS_FOLDER / f"{feature.name}.parquet"
            written[feature.name] = self._workspace.stage(
                f"target-{number}", lambda n=number, f=feature, t=target: self._target_table(n, f, t)  # type: ignore[misc]
            )  # fmt: skip
        return written

    def _count_file(self, number: int, path: str, splitter: Splitter) -> dict[str, Any]:
        counted = [feature.source for feature in self._counted]
        for encoding in self._targets:
            counted += [*encoding.keys, self._config.encoded_label(encoding).source]
        columns = list(dict.fromkeys(counted + splitter.columns()))
        check_types(list(self._config.features), self._inputs.schema(path), path)
        with (
            self._writer("counts", number, COUNTS_SCHEMA) as ids,
            self._writer("target-counts", number, TARGET_COUNTS_SCHEMA) as targets,
        ):
            for batch in self._inputs.rows(path, columns):
                train = batch.filtered(splitter.assign(batch, path) == TRAIN)
                for place, feature in enumerate(self._counted):
                    ids.write_table(self._counts(place, feature, train, path))
                for place, encoding in enumerate(self._targets):
                    targets.write_table(self._target_counts(place, encoding, train, path))
        return {}

    def _writer(self, folder: str, number: int, schema: pa.Schema) -> pq.ParquetWriter:
        return pq.ParquetWriter(self._folder(folder) / f"{number}.parquet", schema, compression="zstd")

    def _target_counts(self, place: int, feature: TargetEncodingConfig, batch: RowBatch, path: str) -> pa.Table:
        """Of the rows whose label is good; bad ones are an error, or left out of the encoded rows too."""
        label, faults = self._config.encoded_label(feature), RowFaults(len(batch.numbers), path, batch.numbers, True)
        units = label_units(self._labels.read_label(label, batch.columns[label.source], faults), label.kind)
        keys = KeyReader(feature).read(batch.columns, faults)
        folds = folds_of(fold_draws(path, batch.numbers, self._options.seed), feature.folds)
        good = slice(None) if faults.good is None else faults.good
        return count_targets(place, keys[good], folds[good], units[good])

    def _target_table(self, number: int, feature: TargetEncodingConfig, target: Path) -> dict[str, Any]:
        with self._database() as db:
            return write_target_table(db, _paths(self._folder("target-counts")), number, feature, target)

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


def _paths(folder: Path) -> list[str]:
    return [str(path) for path in sorted(folder.glob("*.parquet"))]
