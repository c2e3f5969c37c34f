"""One encoder per kind of feature: a raw column into its part of the encoded rows.

Letters: `B` rows, `m` items of all lists, `K` slots of a multi-valued feature, `V` values of a vector.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tml.common.errors import DataError
from tml.projects.light_ranker.features import raw_columns
from tml.projects.light_ranker.features.config import BadValuesConfig
from tml.projects.light_ranker.features.faults import RowFaults
from tml.projects.light_ranker.features.kinds import CategoricalConfig, ContinuousConfig, IdsConfig, Value, VectorConfig
from tml.projects.light_ranker.features.lookup import IdentityLookup, Lookup, find_rows
from tml.projects.light_ranker.features.raw_columns import Ids, Raw, ValueType
from tml.projects.light_ranker.features.spec import MISSING, PADDING


class IdValues:
    """Ids of a feature in their type, with what stands for missing values taken into account.

    Args:
        config: of the feature, with its type resolved.
    """

    def __init__(self, config: CategoricalConfig | IdsConfig) -> None:
        if config.type == "auto":
            raise ValueError(f"the type of {config.name!r} is not resolved")
        self.type: ValueType = config.type
        self.label = label_of(config.name, config.source)
        self._missing_values = _of_type(config.missing_values, self.type)
        default = [] if config.default is None else [config.default]
        self._default = _of_type(default, self.type)
        if len(self._default) != len(default):
            raise DataError(
                "a default is not of its feature's type", where=self.label, value=config.default, limit=self.type
            )

    def read(self, raw: Raw, where: str) -> Ids:
        """The ids; `missing` tells which are missing after all."""
        ids = raw_columns.as_ids(raw, self.type, where)
        if not self._missing_values and not self._default:
            return ids
        missing = np.zeros(len(ids.values), bool) if ids.missing is None else ids.missing.copy()
        for value in self._missing_values:
            missing |= _equal(ids.values, value)
        if not self._default or not missing.any():
            return Ids(ids.values, missing, ids.foreign)
        return Ids(_filled(ids.values, missing, self._default[0]), None, ids.foreign)

    def read_lists(self, raw: Raw, where: str, separator: str | None, num_rows: int) -> tuple[Ids, np.ndarray]:
        """The ids of all lists, and the row of each: int64 [m]."""
        lists = raw_columns.as_lists(raw, where, separator)
        return self.read(lists.items, where), np.repeat(np.arange(num_rows), lists.lengths)


class IdEncoder:
    """One id per row."""

    def __init__(self, config: CategoricalConfig, lookup: Lookup, actions: BadValuesConfig) -> None:
        self.column, self._values, self._lookup, self._actions = config.source, IdValues(config), lookup, actions

    def encode(self, raw: Raw, faults: RowFaults, out: np.ndarray) -> None:
        """Fills `out`, int64 [B, 1]."""
        ids = self._values.read(raw, faults.where(self._values.label))
        if isinstance(self._lookup, IdentityLookup):
            _check_inside(ids, None, self._lookup, self._actions, self._values.label, faults)
        out[:, 0] = find_rows(self._lookup, ids)


class IdListEncoder:
    """A list of ids per row: its first `K` items; missing items are left out, an empty list is missing."""

    def __init__(self, config: IdsConfig, lookup: Lookup, actions: BadValuesConfig) -> None:
        self.column, self._separator = config.source, config.separator
        self._values, self._lookup, self._actions = IdValues(config), lookup, actions

    def encode(self, raw: Raw, faults: RowFaults, out: np.ndarray) -> np.ndarray | None:
        """Fills `out`, int64 [B, K]; gives which lists were cut off (bool [B]), or None if none was."""
        where = faults.where(self._values.label)
        ids, row_of_item = self._values.read_lists(raw, where, self._separator, len(out))
        if isinstance(self._lookup, IdentityLookup):
            _check_inside(ids, row_of_item, self._lookup, self._actions, self._values.label, faults, len(out))
        rows = find_rows(self._lookup, ids)
        present = rows != MISSING
        rows, row_of_item = rows[present], row_of_item[present]
        lengths = np.bincount(row_of_item, minlength=len(out))
        place = np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        inside = place < out.shape[1]
        out[:] = PADDING
        out[:, 0] = MISSING
        out[row_of_item[inside], place[inside]] = rows[inside]
        return None if inside.all() else lengths > out.shape[1]


class NumberEncoder:
    """A number per row; NaN means missing."""

    def __init__(self, config: ContinuousConfig, actions: BadValuesConfig) -> None:
        self.column, self._action = config.source, actions.numbers
        self._label = label_of(config.name, config.source)
        self._missing_values, self._default = _numbers_of(config.missing_values), config.default

    def encode(self, raw: Raw, faults: RowFaults, out: np.ndarray) -> None:
        """Fills `out`, float32 [B]."""
        numbers, foreign = raw_columns.as_numbers(raw, faults.where(self._label))
        with np.errstate(over="ignore"):
            out[:] = numbers  # beyond float32's range it becomes infinite
        wrong = np.isinf(out)
        if foreign is not None:
            wrong |= foreign
        if wrong.any():
            if self._action != "missing":
                _report_numbers(wrong, self._action, self._label, raw, faults)
            out[wrong] = np.nan
        for value in self._missing_values:
            out[numbers == value] = np.nan
        if self._default is not None:
            out[np.isnan(out)] = self._default


class VectorEncoder:
    """A dense vector per row. A missing one becomes the default, and so do values that stand for a missing number; any
    other element that is no finite number, null and NaN too, is a bad number."""

    def __init__(self, config: VectorConfig, actions: BadValuesConfig) -> None:
        self.column, self._action, self._default = config.source, actions.numbers, config.default
        self._label = label_of(config.name, config.source)
        self._missing_values = _numbers_of(config.missing_values)

    def encode(self, raw: Raw, faults: RowFaults, out: np.ndarray) -> None:
        """Fills `out`, float32 [B, V]; raises DataError for a vector of another length."""
        lists = raw_columns.as_lists(raw, faults.where(self._label))
        given = lists.lengths > 0
        wrong = given & (lists.lengths != out.shape[1])
        if wrong.any():
            row = int(wrong.argmax())
            raise DataError(
                "a vector has the wrong length", where=faults.where(self._label, row), value=int(lists.lengths[row]),
                limit=f"dim: {out.shape[1]}", fix="mend the data, or dim in features.yaml",
            )  # fmt: skip
        numbers, _ = raw_columns.as_numbers(lists.items, faults.where(self._label))  # null and text are NaN
        for value in self._missing_values:
            numbers = np.where(numbers == value, self._default, numbers)
        out[:] = self._default
        with np.errstate(over="ignore"):
            out[given] = numbers.reshape(-1, out.shape[1])
        bad = ~np.isfinite(out)
        if bad.any():
            if self._action != "missing":
                faults.report(
                    bad.any(axis=1), self._action, "a vector holds an element that is no finite number", self._label,
                    lambda row: value_at(raw, row), limit=f"{out.shape[1]} finite numbers, or null for all",
                    fix="mend the data, or give missing_values or bad_values.numbers: missing in features.yaml",
                    setting="numbers",
                )  # fmt: skip
            out[bad] = self._default


def label_of(name: str | None, column: str) -> str:
    """How messages call a feature or label."""
    return f"feature {name!r}" if name == column else f"feature {name!r} (column {column!r})"


def value_at(raw: Raw, row: int) -> object:
    """One raw value, for messages."""
    value = raw[row]
    return value.as_py() if isinstance(value, pa.Scalar) else getattr(value, "item", lambda: value)()


def _report_numbers(wrong: np.ndarray, action: str, label: str, raw: Raw, faults: RowFaults) -> None:
    faults.report(
        wrong, action, "a number is infinite or no number", label, lambda row: value_at(raw, row),
        limit="finite numbers; a missing one is null, NaN or empty", fix="mend the data", setting="numbers",
    )  # fmt: skip


def _check_inside(
    ids: Ids,
    row_of_item: np.ndarray | None,
    lookup: IdentityLookup,
    actions: BadValuesConfig,
    label: str,
    faults: RowFaults,
    num_rows: int = 0,
) -> None:
    outside = lookup.outside(ids)
    if ids.missing is not None:
        outside = outside & ~ids.missing
    if actions.ids == "unknown" or not outside.any():
        return
    item = int(outside.argmax())
    value = "text that is no integer" if ids.foreign is not None and ids.foreign[item] else int(ids.values[item])
    wrong = outside if row_of_item is None else np.bincount(row_of_item[outside], minlength=num_rows) > 0
    faults.report(
        wrong, actions.ids, "an id is out of range", label, lambda _: value, limit=f"0 <= id < {lookup.num_ids}",
        fix="raise num_ids, or use a vocabulary or hashing", setting="ids",
    )  # fmt: skip


def _of_type(values: list[Value], kind: ValueType) -> list[int | str]:
    """Values in a feature's type, without those that have none in it."""
    if kind == "string":
        return [text_of(value) for value in values]
    numbers = [value for value in values if not isinstance(value, str) or value.lstrip("-").isdigit()]
    return [int(value) for value in numbers if float(value).is_integer()]


def text_of(value: Value) -> str:
    """A value of the config as the text that a column would hold."""
    return str(int(value)) if isinstance(value, bool | float) and float(value).is_integer() else str(value)


def _numbers_of(values: list[Value]) -> list[float]:
    numbers = (raw_columns.parse_number(value) if isinstance(value, str) else float(value) for value in values)
    return [number for number in numbers if number is not None]


def _equal(values: np.ndarray | pa.Array, value: int | str) -> np.ndarray:
    if isinstance(values, np.ndarray):
        return values == value
    return pc.equal(values, pa.scalar(value, values.type)).to_numpy(zero_copy_only=False)


def _filled(values: np.ndarray | pa.Array, missing: np.ndarray, value: int | str) -> np.ndarray | pa.Array:
    if isinstance(values, np.ndarray):
        return np.where(missing, value, values)
    return pc.if_else(pa.array(missing), pa.scalar(value, values.type), values)
