"""Fitting of discretizers: from a plan and a weighted sample to a fitted discretizer that is plain JSON.

    plan = DiscretizerPlan("tweet_age", "percentile", num_bins=20)
    fitted = plan.fit(values, weights)
    ids, present = DenseDiscretizer([fitted])(values.unsqueeze(1))

Letters: `n` values, `B` bins asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from tml.common.errors import ConfigError, DataError
from tml.common.modules.bin_boundaries import check_boundaries, clean_sample, mdlp_boundaries, percentile_boundaries

DiscretizerKind = Literal["percentile", "hashed_percentile", "hashing", "mdlp"]


@dataclass(frozen=True)
class DiscretizerPlan:
    """How one feature is to be discretised.

    Args:
        name: of the feature.
        kind: `percentile` (also called MDL) and `mdlp` number their bins; `hashed_percentile` and `hashing` hash
            (feature id, bin) into `2 ** output_bits` ids that features share.
        num_bins: bins to fit, at least 1; `mdlp` may find fewer.
        feature_id: int64, what the hashing kinds hash.
        output_bits: of the hashing kinds, 1 to 32.
    """

    name: str
    kind: DiscretizerKind
    num_bins: int = 20
    feature_id: int = 0
    output_bits: int = 22

    def __post_init__(self) -> None:
        where = f"discretizer of feature {self.name!r}"
        if self.kind not in get_args(DiscretizerKind):
            raise ConfigError("unknown kind", where=where, value=self.kind, limit=get_args(DiscretizerKind))
        if self.num_bins < 1:
            raise ConfigError("num_bins out of range", where=where, value=self.num_bins, limit="at least 1")
        if not 1 <= self.output_bits <= 32:
            raise ConfigError("output_bits out of range", where=where, value=self.output_bits, limit="1..32")

    @property
    def is_hashed(self) -> bool:
        """Whether ids are hashes in a space that features share, rather than numbers of the feature's own bins."""
        return self.kind in ("hashing", "hashed_percentile")

    @property
    def num_rows(self) -> int:
        """Rows that a table of this feature's ids needs: `2 ** output_bits` when hashed, else bins and row 0."""
        return 1 << self.output_bits if self.is_hashed else self.num_bins + 2

    def fit(
        self, values: npt.ArrayLike, weights: npt.ArrayLike | None = None, labels: npt.ArrayLike | None = None
    ) -> FittedDiscretizer:
        """Fit the boundaries; `labels` (classes, `[n]`) are needed by `mdlp` alone.

        Raises:
            ConfigError: `mdlp` without labels.
            DataError: see `percentile_boundaries` and `mdlp_boundaries`.
        """
        where = f"feature {self.name!r}"
        if self.kind != "mdlp":
            boundaries = percentile_boundaries(values, weights, self.num_bins, where)
        elif labels is None:
            raise ConfigError("mdlp bins are fitted to a label", where=where, fix="give labels, or use percentile bins")
        else:
            boundaries = mdlp_boundaries(values, labels, weights, self.num_bins, where)
        return FittedDiscretizer(self, tuple(boundaries.tolist()))


@dataclass(frozen=True)
class FittedDiscretizer:
    """A plan and its `num_bins + 1` boundaries, in ascending order; infinities stand at the ends."""

    plan: DiscretizerPlan
    boundaries: tuple[float, ...]

    def __post_init__(self) -> None:
        where = f"discretizer of feature {self.plan.name!r}"
        check_boundaries(np.asarray([self.boundaries], dtype=np.float64), where)
        if len(self.boundaries) != self.plan.num_bins + 1:
            raise DataError(
                "wrong number of boundaries", where=where, value=len(self.boundaries), limit=self.plan.num_bins + 1
            )

    def to_dict(self) -> dict[str, Any]:
        """The discretizer as plain JSON; infinities are the strings "inf" and "-inf"."""
        return asdict(self.plan) | {"boundaries": floats_to_json(self.boundaries)}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> FittedDiscretizer:
        """The inverse of `to_dict`.

        Raises:
            DataError: a key is missing, unknown or of the wrong type, or the boundaries do not ascend.
        """
        try:
            rest = dict(state)
            boundaries = tuple(float(value) for value in rest.pop("boundaries"))
            return cls(DiscretizerPlan(**rest), boundaries)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError("a discretizer's state cannot be read", where=str(error), value=dict(state)) from error


def fit_features(
    feature_ids: npt.NDArray[np.int64], values: npt.ArrayLike, weights: npt.ArrayLike | None = None, num_bins: int = 20
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Percentile boundaries of every feature of a sparse sample.

    Args:
        feature_ids: int64 `[n]`, the feature of each value.
        values: `[n]`; NaN entries are left out, and so are features that have no other.
        weights: `[n]`, that of the record an entry belongs to; None means ones.
        num_bins: B.

    Returns:
        The features, int64 `[features]` in ascending order, and their boundaries, float64 `[features, B + 1]`.

    Raises:
        DataError: see `percentile_boundaries`.
    """
    ids = np.asarray(feature_ids, dtype=np.int64)
    if ids.shape != np.shape(values):
        raise DataError("ids and values differ in length", where="sample", value=ids.shape, limit=np.shape(values))
    kept, mass, ids = clean_sample(values, weights, "sample", ids)
    order = np.argsort(ids, kind="stable")
    features, starts = np.unique(ids[order], return_index=True)
    groups = np.split(order, starts[1:]) if len(features) else []
    rows = [
        percentile_boundaries(kept[group], mass[group], num_bins, where=f"feature id {feature}")
        for feature, group in zip(features, groups, strict=True)
    ]
    return features, np.asarray(rows, dtype=np.float64).reshape(len(features), num_bins + 1)


def floats_to_json(values: npt.ArrayLike) -> list[float | str]:
    """Floats as plain JSON, which has no infinities: those become "inf" and "-inf", which `float` reads."""
    return [value if np.isfinite(value) else str(value) for value in np.asarray(values, dtype=np.float64).tolist()]
