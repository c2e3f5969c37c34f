"""Labels, weights and groups of rows.

Letters: `B` rows, `L` labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tml.projects.light_ranker.features import raw_columns
from tml.projects.light_ranker.features.column_encoders import text_of, value_at
from tml.projects.light_ranker.features.config import FeatureConfig, LabelConfig
from tml.projects.light_ranker.features.faults import RowFaults
from tml.projects.light_ranker.features.lookup import hash_ids


@dataclass(frozen=True)
class Targets:
    """What a model learns from.

    Args:
        labels: float32 [B, L].
        weight: float32 [B].
        group: int64 [B], or None without groups.
    """

    labels: np.ndarray
    weight: np.ndarray
    group: np.ndarray | None


class TargetReader:
    """Reads labels, weight and group by a feature config."""

    def __init__(self, config: FeatureConfig) -> None:
        self._config = config

    def columns(self) -> list[str]:
        """The raw columns it needs."""
        others = (self._config.weight.column, self._config.group)
        return [label.source for label in self._config.labels] + [name for name in others if name]

    def read(self, columns: dict[str, pa.Array], faults: RowFaults) -> Targets:
        """Targets of B rows; rows to leave out are noted in `faults`.

        Raises:
            DataError: a value is bad and `bad_values` says error.
        """
        labels = [self.read_label(label, columns[label.source], faults) for label in self._config.labels]
        stacked = np.stack(labels, axis=1).astype(np.float32)
        weight = self._weight(columns, stacked, faults)
        return Targets(stacked, weight, self._group(columns, faults))

    def read_label(self, label: LabelConfig, raw: pa.Array, faults: RowFaults) -> np.ndarray:
        """One label of B rows: float64 [B]; errors and rows to leave out as for `read`."""
        name = f"label {label.name!r} (column {label.source!r})"
        if label.positive is not None:
            values = _is_positive(raw, label)
        else:
            values, foreign = raw_columns.as_numbers(raw, faults.where(name))
            values = values.astype(np.float64)
            if foreign is not None:
                values[foreign] = np.inf
        if label.default is not None:
            values[np.isnan(values)] = label.default
        if label.kind == "binary":
            wrong, limit = (values != 0) & (values != 1), "0 or 1"
        else:
            wrong, limit = ~((values >= 0) & (values * label.scale < np.finfo(np.float32).max)), "finite, and 0 or more"
        if wrong.any():
            faults.report(
                wrong, self._config.bad_values.labels, "a label is missing or out of range", name,
                lambda row: value_at(raw, row), limit=limit,
                fix="mend the data, give the label a `default` for missing ones, or name its `positive` values",
                setting="labels",
            )  # fmt: skip
            values[wrong] = 0
        return values * label.scale

    def _weight(self, columns: dict[str, pa.Array], labels: np.ndarray, faults: RowFaults) -> np.ndarray:
        config = self._config.weight
        weight = np.ones(len(labels))
        name = f"weight (column {config.column!r})" if config.column else "weight"
        if config.column:
            weight = raw_columns.as_numbers(columns[config.column], faults.where(name))[0].astype(np.float64)
            if config.default is not None:
                weight[np.isnan(weight)] = config.default
        names = [label.name for label in self._config.labels]
        for engagement in config.engagements:
            weight = weight + engagement.difference * labels[:, names.index(engagement.label)]
        wrong = ~((weight >= 0) & (weight < np.finfo(np.float32).max))
        if wrong.any():
            faults.report(
                wrong, self._config.bad_values.weights, "a weight is missing, negative or not finite", name,
                lambda row: float(weight[row]), limit="finite, and 0 or more, after the engagements' differences",
                fix="mend the data, give the weight a `default`, or check weight.engagements", setting="weights",
            )  # fmt: skip
            weight[wrong] = 0
        return weight.astype(np.float32)

    def _group(self, columns: dict[str, pa.Array], faults: RowFaults) -> np.ndarray | None:
        column = self._config.group
        if column is None:
            return None
        raw, name = columns[column], f"group (column {column!r})"
        ids = raw_columns.as_ids(raw, raw_columns.value_type(raw.type, faults.where(name)), faults.where(name))
        if ids.missing is not None:
            faults.report(
                ids.missing, self._config.bad_values.rows, "a row has no group", name, lambda _: None,
                limit="a request or user for every row", fix="mend the data", setting="rows",
            )  # fmt: skip
        # Text becomes its hash: of 63 bits, so that two groups hardly ever share one.
        return ids.values if isinstance(ids.values, np.ndarray) else (hash_ids(ids) >> np.uint64(1)).astype(np.int64)


def _is_positive(raw: pa.Array, label: LabelConfig) -> np.ndarray:
    """1.0 for a positive value, 0.0 for any other, NaN for a missing one: float64 [B]."""
    if raw_columns.is_text(raw.type):
        found = pc.is_in(raw.cast(pa.string()), pa.array([text_of(value) for value in label.positive or ()]))
        missing = pc.is_null(raw).to_numpy(zero_copy_only=False)
        return np.where(missing, np.nan, found.to_numpy(zero_copy_only=False).astype(np.float64))
    numbers = raw_columns.as_numbers(raw, f"label {label.name!r}")[0].astype(np.float64)
    wanted = [raw_columns.parse_number(text_of(value)) for value in label.positive or ()]
    return np.where(np.isnan(numbers), np.nan, np.isin(numbers, [value for value in wanted if value is not None]))
