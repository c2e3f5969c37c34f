"""A lolly model in memory: weights by feature name, and the score of a raw row."""

from __future__ import annotations

import dataclasses
import itertools
import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tml.common.errors import DataError


class NoBucketError(DataError, LookupError):
    """A discretised feature has a value that none of its buckets holds."""


@dataclass(frozen=True)
class Bucket:
    """The weight of the values `lo <= value < hi`."""

    lo: float
    hi: float
    weight: float


@dataclass(frozen=True)
class LollyModel:
    """A linear model over present and discretised features.

    A value that is None, NaN or False counts as absent; any other value of a binary feature, 0 too, as present.

    Args:
        name: first field of every line.
        bias: of the score.
        binary: weight of each feature that counts when it is present.
        discretized: buckets of each discretised feature; sorted by `lo` when the model is made.
        source: for messages.

    Raises:
        DataError: buckets of a feature overlap, hold no number or are missing, or a feature is both binary and
            discretised.
    """

    name: str
    bias: float
    binary: Mapping[str, float]
    discretized: Mapping[str, tuple[Bucket, ...]]
    source: str = dataclasses.field(default="lolly model", compare=False)

    def __post_init__(self) -> None:
        ordered = {
            feature: tuple(sorted(buckets, key=lambda bucket: (bucket.lo, bucket.hi)))
            for feature, buckets in self.discretized.items()
        }
        object.__setattr__(self, "discretized", ordered)
        for feature, buckets in ordered.items():
            self._check(feature, buckets)

    def score(self, row: Mapping[str, Any]) -> float:
        """The logit of one row: feature name -> value. Features the model does not know are ignored.

        The terms are added without rounding in between (`math.fsum`), so their order does not matter.

        Raises:
            NoBucketError: no bucket holds a value.
        """
        terms = [self.bias]
        terms += [weight for feature, weight in self.binary.items() if is_present(row.get(feature))]
        for feature in self.discretized:
            value = row.get(feature)
            if is_present(value):
                terms.append(self.bucket(feature, float(value)).weight)  # type: ignore[arg-type]
        return math.fsum(terms)

    def bucket(self, feature: str, value: float) -> Bucket:
        """The bucket of a discretised feature that holds a value.

        Raises:
            NoBucketError: there is none.
        """
        buckets = self.discretized[feature]
        place = bisect_right(buckets, value, key=lambda bucket: bucket.lo) - 1
        if place < 0 or not value < buckets[place].hi:
            raise self.no_bucket(feature, value)
        return buckets[place]

    def score_columns(self, columns: Mapping[str, np.ndarray], num_rows: int) -> np.ndarray:
        """Logits of a table.

        Args:
            columns: feature name -> values, float or bool [B], absent where NaN or False; a missing column is absent.
            num_rows: B.

        Returns:
            float64 [B]; equal to `score` of each row but for the rounding of the sum.

        Raises:
            NoBucketError: no bucket holds a value.
        """
        logits = np.full(num_rows, self.bias, dtype=np.float64)
        for feature, weight in self.binary.items():
            if feature in columns:
                logits += np.where(present_rows(columns[feature]), weight, 0.0)
        for feature, buckets in self.discretized.items():
            if feature in columns:
                present = present_rows(columns[feature])
                logits += self._bucket_weights(feature, buckets, columns[feature].astype(np.float64), present)
        return logits

    def in_float32(self) -> LollyModel:
        """The model with its bias, weights and bounds rounded to float32, as a model of the trainer holds them.

        Buckets that rounding leaves empty are dropped: no float32 value falls into them.
        """
        rounded = {
            feature: tuple(bucket for bucket in map(_bucket_in_float32, buckets) if bucket.lo < bucket.hi)
            for feature, buckets in self.discretized.items()
        }
        binary = {feature: float(np.float32(weight)) for feature, weight in self.binary.items()}
        return LollyModel(self.name, float(np.float32(self.bias)), binary, rounded, self.source)

    def feature_names(self) -> Iterator[str]:
        """All features: binary ones, then discretised ones."""
        yield from self.binary
        yield from self.discretized

    def no_bucket(self, feature: str, value: float, row: int | None = None) -> NoBucketError:
        """The error of a value that no bucket of the feature holds."""
        spans = ", ".join(f"[{bucket.lo:g}, {bucket.hi:g})" for bucket in self.discretized[feature])
        place = "" if row is None else f", row {row}"
        return NoBucketError(
            "no bucket of the lolly model holds the value", where=f"{self.source}, feature {feature!r}{place}",
            value=value, limit=spans, fix="leave the value out, or add buckets from -inf to inf",
        )  # fmt: skip

    def _bucket_weights(
        self, feature: str, buckets: tuple[Bucket, ...], values: np.ndarray, present: np.ndarray
    ) -> np.ndarray:
        lows, highs, weights = (np.array([getattr(b, name) for b in buckets]) for name in ("lo", "hi", "weight"))
        place = np.searchsorted(lows, values, side="right") - 1
        outside = present & ((place < 0) | (values >= highs[place]))
        if outside.any():
            row = int(np.flatnonzero(outside)[0])
            raise self.no_bucket(feature, float(values[row]), row)
        return np.where(present, weights[place], 0.0)

    def _check(self, feature: str, buckets: tuple[Bucket, ...]) -> None:
        where = f"{self.source}, feature {feature!r}"
        if not buckets:
            raise DataError("discretised lolly feature without a bucket that holds a number", where=where)
        if feature in self.binary:
            raise DataError("lolly feature is both binary and discretised", where=where, fix="keep one of the two")
        for bucket in buckets:
            if not bucket.lo < bucket.hi:
                raise DataError("lolly bucket holds no number", where=where, value=bucket, limit="lo < hi")
        for left, right in itertools.pairwise(buckets):
            if right.lo < left.hi:
                raise DataError(
                    "lolly buckets overlap", where=where, value=(left, right), limit="lo <= value < hi, each value once"
                )


def is_present(value: object) -> bool:
    """Whether a value counts: not None, not False, not NaN."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    return value is not None and value == value


def present_rows(values: np.ndarray) -> np.ndarray:
    """bool [B]: `is_present` of a column."""
    return values if values.dtype == np.bool_ else ~np.isnan(values)


def _bucket_in_float32(bucket: Bucket) -> Bucket:
    return Bucket(*(float(np.float32(number)) for number in (bucket.lo, bucket.hi, bucket.weight)))
