"""Encoded rows as parquet files that the reader reads fast: narrow types, row groups of one size, no dictionaries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tml.projects.light_ranker.features.encoder import EncodedRows
from tml.projects.light_ranker.features.labels import Targets
from tml.projects.light_ranker.features.spec import MISSING, UNKNOWN, FeatureSpec, IdFeature, VectorFeature


def to_table(spec: FeatureSpec, rows: EncodedRows, targets: Targets) -> pa.Table:
    """Encoded rows as a table of the columns of the spec."""
    parts = [rows.ids, rows.continuous, rows.vectors, targets.labels]
    columns = [part[:, place] for part in parts for place in range(part.shape[1])] + [targets.weight]
    if targets.group is not None:
        columns.append(targets.group)
    schema = pa.schema(spec.columns())
    arrays = [pa.array(column.astype(kind.type.to_pandas_dtype(), copy=False)) for column, kind in
              zip(columns, schema, strict=True)]  # fmt: skip
    return pa.Table.from_arrays(arrays, schema=schema)


class EncodedFile:
    """A file that is being written; it takes its name when it is closed, and never appears without rows.

    Args:
        path: of the file.
        spec: of its columns.
        row_group_size: rows.
        compression: lz4, zstd or none.
    """

    def __init__(self, path: Path, spec: FeatureSpec, row_group_size: int, compression: str) -> None:
        self._path, self._schema, self._row_group_size = path, pa.schema(spec.columns()), row_group_size
        self._compression = None if compression == "none" else compression
        self._part = path.with_name(path.name + ".part")
        self._pending: list[pa.Table] = []
        self._num_pending = 0
        self._writer: pq.ParquetWriter | None = None

    def write(self, table: pa.Table) -> None:
        """Appends rows."""
        self._pending.append(table)
        self._num_pending += len(table)
        while self._num_pending >= self._row_group_size:
            self._flush(self._row_group_size)

    def close(self) -> None:
        """Writes what is pending and gives the file its name."""
        if self._num_pending:
            self._flush(self._num_pending)
        if self._writer is not None:
            self._writer.close()
            self._part.replace(self._path)

    def _flush(self, num_rows: int) -> None:
        if self._writer is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # A null count of 0 in the statistics lets the reader find nulls before it decodes anything. The upper bytes
            # of numbers are much the same: with each byte of all numbers on its own, files are smaller and read faster.
            self._writer = pq.ParquetWriter(
                self._part,
                self._schema,
                compression=self._compression,
                use_dictionary=False,
                use_byte_stream_split=True,
                write_statistics=True,
            )
        pending = pa.concat_tables(self._pending)
        self._writer.write_table(pending.slice(0, num_rows).combine_chunks(), row_group_size=num_rows)
        self._num_pending -= num_rows
        self._pending = [pending.slice(num_rows)] if self._num_pending else []


class SplitCounts:
    """What the summary says about one split; adds up over files.

    Args:
        spec: of the columns.

    Attributes:
        values: plain JSON: counts and sums by name.
    """

    def __init__(self, spec: FeatureSpec) -> None:
        self._spec = spec
        self.values: dict[str, float] = {"rows": 0, "weight": 0.0}

    def add(self, table: pa.Table, truncated: dict[str, np.ndarray]) -> None:
        """Counts rows, missing and unknown ids, unseen keys, missing numbers, cut lists; sums labels and weights."""
        self._add("rows", len(table))
        self._add("weight", float(table.column("w").to_numpy().sum(dtype=np.float64)))
        for feature in self._spec.ids:
            self._add_ids(feature.name, [table.column(name).to_numpy() for name in feature.columns()])
        for encoding in self._encodings():
            counts = table.column(encoding.columns()[1]).to_numpy()
            self._add(f"unseen:{encoding.name}", int(np.count_nonzero(counts == 0)))
        for number in self._spec.continuous:
            missing = np.isnan(table.column(f"x.{number.name}").to_numpy())
            self._add(f"missing:{number.name}", int(np.count_nonzero(missing)))
        for name, cut in truncated.items():
            self._add(f"truncated:{name}", int(np.count_nonzero(cut)))
        for label in self._spec.labels:
            total = table.column(f"y.{label.name}").to_numpy().sum(dtype=np.float64)
            self._add(f"label:{label.name}", float(total))

    def add_values(self, values: dict[str, float]) -> None:
        """Adds what another file counted."""
        for key, value in values.items():
            self._add(key, value)

    def summary(self) -> dict[str, Any]:
        """The counts in words: rows, labels' means, and per feature what was missing, unknown or cut."""
        rows = int(self.values["rows"])
        if not rows:
            return {"rows": 0}
        features = {feature.name: self._id_summary(feature) for feature in self._spec.ids}
        features.update({f.name: {"missing": self._get(f"missing:{f.name}")} for f in self._spec.continuous})
        features.update({f.name: {"unseen": self._get(f"unseen:{f.name}")} for f in self._encodings()})
        labels = {label.name: round(self._get(f"label:{label.name}") / rows, 6) for label in self._spec.labels}
        mean_weight = round(self.values["weight"] / rows, 6)
        return {"rows": rows, "mean_label": labels, "mean_weight": mean_weight, "features": features}

    def _encodings(self) -> list[VectorFeature]:
        """The target encodings: the second value is log(1 + rows of the key)."""
        return [feature for feature in self._spec.vectors if feature.table_hash]

    def _id_summary(self, feature: IdFeature) -> dict[str, float]:
        missing, unknown, ids = (self._get(f"{what}:{feature.name}") for what in ("missing", "unknown", "ids"))
        summary = {"missing": missing, "unknown": unknown, "unknown_share": round(unknown / max(1, ids), 6)}
        return summary | ({"truncated_lists": self._get(f"truncated:{feature.name}")} if feature.num_slots > 1 else {})

    def _add_ids(self, name: str, slots: list[np.ndarray]) -> None:
        self._add(f"missing:{name}", int(np.count_nonzero(slots[0] == MISSING)))
        self._add(f"unknown:{name}", sum(int(np.count_nonzero(slot == UNKNOWN)) for slot in slots))
        self._add(f"ids:{name}", sum(int(np.count_nonzero(slot >= UNKNOWN)) for slot in slots))

    def _add(self, key: str, value: float) -> None:
        self.values[key] = self.values.get(key, 0) + value

    def _get(self, key: str) -> float:
        return self.values.get(key, 0)
