"""Feature importances by permutation: how much worse a model ranks when features tell of another example.

The values of a feature, or of all features of a group, are taken from one other example, drawn uniformly with
replacement; missing values travel too. `serial` does so for every feature; `tree` for groups of features with a common
prefix, and looks into a group only where the loss of performance is worth it.
"""

from __future__ import annotations

import json
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

import numpy as np

from tml.common.errors import ConfigError, DataError, NonFiniteError
from tml.common.filesystem import atomic_write
from tml.ml_logging import Progress

BASELINE = "None"
HEADER = ("Name", "Performance Drop", "Percent", "Performance")

Columns = Mapping[str, np.ndarray]  # encoded column -> values [B, ...]
Evaluate = Callable[[Columns], float]


@dataclass(frozen=True)
class ImportanceOptions:
    """How features are permuted.

    Args:
        algorithm: `serial` (one evaluation per feature) or `tree` (groups by prefix, breadth first).
        sensitivity: a group is looked into when it loses more than this fraction of the performance; -inf for always.
        split_on_period: prefixes end at periods; otherwise anywhere.
        larger_is_better: direction of the metric.
        seed: of the donors. All groups have the same donors, so that they differ by their features alone.
        extra_groups: name -> regular expressions; the features that match one fully are permuted together as well.
    """

    algorithm: Literal["serial", "tree"] = "tree"
    sensitivity: float = 0.03
    split_on_period: bool = False
    larger_is_better: bool = True
    seed: int = 0
    extra_groups: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Importance:
    """What a model loses without the features of a group.

    Args:
        name: of the feature; a prefix with `*`, or the name of an extra group; `None` for the unchanged rows.
        drop: loss of performance; positive when the metric gets worse, whatever its direction.
        percent: the same in percent of the performance on the unchanged rows.
        performance: the metric on the permuted rows.
        features: that were permuted.
    """

    name: str
    drop: float
    percent: float
    performance: float
    features: tuple[str, ...] = ()


def larger_is_better(metric: str) -> bool:
    """The direction that a metric's name tells: smaller is better for losses and errors."""
    last = re.split(r"[./]", metric)[-1]
    return not last.startswith("loss") and not re.search(r"(^|_)(loss|mse|mae|rmse|ece|error)$", last)


def permutation_importances(
    columns: Columns, features: Mapping[str, Sequence[str]], evaluate: Evaluate, options: ImportanceOptions
) -> list[Importance]:
    """Importances, the largest drop first; `None`, the unchanged rows, is among them.

    Args:
        columns: encoded rows, kept in memory and left unchanged; all of the same length B >= 2.
        features: feature -> its columns.
        evaluate: the performance on rows such as `columns`.
        options: algorithm, direction and seed.

    Raises:
        ConfigError: an extra group matches nothing or has the name of a feature.
        DataError: a feature's column is missing or there are fewer than two rows.
        NonFiniteError: the performance is NaN or infinite, or it is 0 where the tree compares with it.
    """
    run = _Permutations(columns, {name: tuple(of) for name, of in features.items()}, evaluate, options)
    groups = _extra_groups(run.features, options)
    serial = options.algorithm == "serial"
    found = run.of_groups((name, (name,)) for name in run.features) if serial else run.of_tree()
    return sorted([run.baseline, *found, *run.of_groups(groups.items())], key=lambda one: (-one.drop, one.name))


class _Permutations:
    def __init__(
        self, columns: Columns, features: dict[str, tuple[str, ...]], evaluate: Evaluate, options: ImportanceOptions
    ) -> None:
        _check_columns(columns, features)
        self.columns, self.features, self.evaluate, self.options = columns, features, evaluate, options
        num_rows = len(next(iter(columns.values())))
        # Never the example itself: an offset of 1 to B - 1, drawn with replacement.
        offsets = np.random.default_rng(options.seed).integers(1, num_rows, size=num_rows)
        self.donors = (np.arange(num_rows) + offsets) % num_rows
        performance = self._performance(columns, BASELINE)
        self.baseline = Importance(BASELINE, 0.0, 0.0, performance)

    def of_groups(self, groups: Iterable[tuple[str, Sequence[str]]]) -> list[Importance]:
        """One importance per group (name, features)."""
        listed = list(groups)
        with Progress(len(listed), "permuting features", "groups") as progress:
            return [self._of_group(name, members, progress) for name, members in listed]

    def of_tree(self) -> list[Importance]:
        """Importances of prefixes and of the features below the sensitive ones, breadth first."""
        if self.baseline.performance == 0:
            raise NonFiniteError(
                "the tree has nothing to compare drops with", where="performance on unchanged rows", value=0.0,
                fix="use the serial algorithm or another metric",
            )  # fmt: skip
        found: list[Importance] = []
        waiting = deque(_children(tuple(self.features), "", self.options.split_on_period))
        with Progress(None, "permuting groups of features", "groups") as progress:
            while waiting:
                prefix, members = waiting.popleft()
                alone = len(members) == 1
                one = self._of_group(members[0] if alone else f"{prefix}*", members, progress)
                found.append(one)
                if not alone and one.drop / abs(self.baseline.performance) > self.options.sensitivity:
                    waiting.extend(_children(members, prefix, self.options.split_on_period))
        return found

    def _of_group(self, name: str, members: Sequence[str], progress: Progress) -> Importance:
        permuted = dict(self.columns)
        for column in {column for feature in members for column in self.features[feature]}:
            permuted[column] = self.columns[column][self.donors]
        performance = self._performance(permuted, name)
        drop = self.baseline.performance - performance
        drop = drop if self.options.larger_is_better else -drop
        progress.update(1)
        percent = 100 * drop / abs(self.baseline.performance) if self.baseline.performance else float("nan")
        return Importance(name, drop, percent, performance, tuple(members))

    def _performance(self, columns: Columns, name: str) -> float:
        performance = float(self.evaluate(columns))
        if not np.isfinite(performance):
            raise NonFiniteError(
                "performance is no finite number", where=f"permuted features {name!r}", value=performance,
                fix="take more examples, of both classes, or another metric",
            )  # fmt: skip
        return performance


def _children(members: Sequence[str], prefix: str, on_period: bool) -> list[tuple[str, tuple[str, ...]]]:
    """The two or more groups below a prefix, each with its own longer prefix, in order of their first feature."""
    groups: dict[str, list[str]] = {}
    for name in members:
        groups.setdefault(_longer(name, prefix, on_period), []).append(name)
    if len(groups) == 1 and len(members) > 1:
        return _children(members, next(iter(groups)), on_period)
    return [(start if on_period else _shared_prefix(group), tuple(group)) for start, group in groups.items()]


def _shared_prefix(names: Sequence[str]) -> str:
    first, last = min(names), max(names)
    length = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[:length]


def _longer(name: str, prefix: str, on_period: bool) -> str:
    if not on_period:
        return name[: len(prefix) + 1]
    end = name.find(".", len(prefix))
    return name if end < 0 else name[: end + 1]


def _check_columns(columns: Columns, features: Mapping[str, Sequence[str]]) -> None:
    if not features or not columns:
        raise DataError("there are no features to permute", limit="at least one")
    for feature, of in features.items():
        lost = [column for column in of if column not in columns]
        if lost:
            raise DataError("column of a feature is missing", where=f"feature {feature!r}", value=lost[0])
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise DataError("columns differ in length", value=lengths)
    if min(lengths.values()) < 2:
        raise DataError("too few rows to permute", value=min(lengths.values()), limit="at least 2")


def _extra_groups(features: Mapping[str, object], options: ImportanceOptions) -> dict[str, tuple[str, ...]]:
    groups = {}
    for name, patterns in options.extra_groups.items():
        where = f"extra group {name!r}"
        if name in features or name == BASELINE:
            raise ConfigError("extra group has the name of a feature", where=where, fix="rename the group")
        try:
            matchers = [re.compile(pattern) for pattern in patterns]
        except re.error as error:
            raise ConfigError("not a regular expression", where=where, value=error.pattern, limit=str(error)) from None
        members = tuple(feature for feature in features if any(m.fullmatch(feature) for m in matchers))
        if not members:
            raise ConfigError("extra group matches no feature", where=where, value=list(patterns))
        groups[name] = members
    return groups


def write_importances(importances: Sequence[Importance], path: str | os.PathLike[str]) -> None:
    """Write a table for people (`path`, tab-separated) and the same as JSON (`path` with the ending .json)."""
    with atomic_write(path, "w") as file:
        file.write("\t".join(HEADER) + "\n")
        for one in importances:
            file.write(f"{one.name}\t{one.drop!r}\t{one.percent!r}\t{one.performance!r}\n")
    with atomic_write(os.path.splitext(os.fspath(path))[0] + ".json", "w") as file:
        # JSON has no NaN: a percent of a performance of 0 is null.
        json.dump([{**asdict(one), "percent": _or_null(one.percent)} for one in importances], file, indent=1)


def _or_null(number: float) -> float | None:
    return number if np.isfinite(number) else None
