"""What the columns of encoded rows may hold; checked once, as files are decoded, where file and row are still known.

Letters: `B` rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from tml.common.errors import DataError
from tml.common.reader import Check
from tml.projects.light_ranker.features.spec import FeatureSpec


def column_check(spec: FeatureSpec) -> Check:
    """For `ParquetReader`: raises `DataError` of the first value out of range, naming file, row, column and limit."""
    return partial(_refuse_bad_values, _allowed_values(spec))


@dataclass(frozen=True)
class _Allowed:
    """Which values of a column are good: bool `[B]` from `[B]`; and that in words."""

    good: Callable[[np.ndarray], np.ndarray]
    limit: str


def _allowed_values(spec: FeatureSpec) -> dict[str, _Allowed]:
    allowed = {}
    for feature in spec.ids:
        for slot, name in enumerate(feature.columns()):
            # The first slot of a feature always holds an id; the others may be padding.
            allowed[name] = _ids_from(-1 if slot else 0, feature.num_rows)
    finite = _Allowed(np.isfinite, "a finite number")
    finite_or_nan = _Allowed(lambda values: ~np.isinf(values), "a finite number or NaN")
    allowed |= {name: finite_or_nan for one in spec.continuous for name in one.columns()}
    allowed |= {name: finite for one in spec.vectors for name in one.columns()}
    binary = _Allowed(lambda values: (values == 0) | (values == 1), "0 or 1")
    nonnegative = _Allowed(lambda values: np.isfinite(values) & (values >= 0), "a finite number of 0 or more")
    allowed |= {f"y.{label.name}": binary if label.kind == "binary" else nonnegative for label in spec.labels}
    return allowed | {"w": _Allowed(nonnegative.good, "a finite weight of 0 or more")}


def _ids_from(least: int, num_rows: int) -> _Allowed:
    limit = f"{least} <= id < {num_rows}, the rows of its table"
    return _Allowed(lambda ids: (ids >= least) & (ids < num_rows), limit)


def _refuse_bad_values(
    allowed: Mapping[str, _Allowed], columns: Mapping[str, np.ndarray], locate: Callable[[int], str]
) -> None:
    for name, one in allowed.items():
        good = one.good(columns[name])
        if good.all():
            continue
        row = int(good.argmin())
        raise DataError(
            "a value is out of range", where=f"{locate(row)}, column {name}", value=columns[name][row].item(),
            limit=one.limit, fix="prepare the data again with the features of this run",
        )  # fmt: skip
