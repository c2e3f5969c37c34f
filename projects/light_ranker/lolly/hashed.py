"""A lolly model as the weights of `lolly_lr`: a vector of `2 ** bits` weights, indexed by hashed ids, and back to text.

A present binary feature looks up the low bits of its id; a discretised one the hash of these bits and its bucket. The
original sorts buckets by `-lo` and negates values, so that its intervals `(a, b]` become the text's `[lo, hi)`: the
index of a bucket is the number of buckets above it. The rows here are the same, without negating anything.

Every value has a bucket in such a model. Where the text has none (and raises an error), the weight is 0; the buckets
that fill the gaps have rows of their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tml.common.errors import ConfigError, DataError
from tml.common.modules.hashing import hash_bins, limit_bits
from tml.ml_logging import get_logger
from tml.projects.light_ranker.lolly.model import Bucket, LollyModel
from tml.projects.light_ranker.records.feature_ids import feature_id

logger = get_logger(__name__)

MAX_BITS = 32


@dataclass(frozen=True)
class HashedBins:
    """The intervals of a discretised feature, from the lowest to the highest.

    Args:
        boundaries: between the intervals, ascending, K of them.
        rows: of the weights of the K + 1 intervals.
    """

    boundaries: tuple[float, ...]
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Collision:
    """A weight that several features share.

    Args:
        row: of the weight vector.
        owners: what looks it up: `feature`, or `feature[lo, hi)`.
        weights: what each of them should weigh.
    """

    row: int
    owners: tuple[str, ...]
    weights: tuple[float, ...]

    @property
    def harmless(self) -> bool:
        """Whether all owners agree, so that scores are right until training pulls them apart."""
        return len(set(self.weights)) == 1


@dataclass(frozen=True)
class HashedLolly:
    """Weights of `lolly_lr`.

    Args:
        num_bits: ids are hashed into `2 ** num_bits` weights.
        bias: of the score.
        weight: float64 [2 ** num_bits].
        presence: binary feature -> its row.
        bins: discretised feature -> its intervals `[a, b)`.
        collisions: rows with several owners.
    """

    num_bits: int
    bias: float
    weight: np.ndarray
    presence: Mapping[str, int]
    bins: Mapping[str, HashedBins]
    collisions: tuple[Collision, ...]

    def negated_boundaries(self) -> tuple[np.ndarray, np.ndarray]:
        """The original's form of the bins, for a `HashingDiscretizer` over sparse entries whose values are negated.

        Returns:
            int64 [F], the discretised features' ids in `num_bits` bits, and float64 [F, P], `-lo` of every bucket in
            ascending order, padded with inf; P is the largest number of buckets.
        """
        ids = np.array([feature_row(feature, self.num_bits) for feature in self.bins], dtype=np.int64)
        most = max((len(bins.rows) for bins in self.bins.values()), default=1)
        boundaries = np.full((len(ids), most), math.inf)
        for row, bins in zip(boundaries, self.bins.values(), strict=True):
            # The lowest bucket begins at -inf: its boundary is one of the infinite ones.
            row[: len(bins.boundaries)] = -np.array(bins.boundaries[::-1])
        return ids, boundaries


def feature_row(feature: str, num_bits: int) -> int:
    """The row of a feature that counts by its presence."""
    return int(limit_bits(np.array(feature_id(feature), dtype=np.int64), num_bits))


def bin_rows(feature: str, num_boundaries: int, num_bits: int, left_closed: bool) -> tuple[int, ...]:
    """The rows of a feature's intervals, from the lowest to the highest.

    The original counts the boundaries below a value; in a model of a lolly text, where values are negated, those above.

    Args:
        feature: its name.
        num_boundaries: K, finite ones.
        num_bits: of the rows.
        left_closed: intervals `[a, b)` of a lolly text, instead of the fitted `(a, b]`.

    Returns:
        K + 1 rows.
    """
    codes = np.arange(num_boundaries + 1, dtype=np.int64)
    rows = hash_bins(np.array(feature_row(feature, num_bits), dtype=np.int64), codes, num_bits)
    return tuple(int(row) for row in (rows[::-1] if left_closed else rows))


def hash_lolly(model: LollyModel, num_bits: int, on_collision: Literal["refuse", "warn"] = "refuse") -> HashedLolly:
    """The weights that score as the text does.

    Args:
        model: the text.
        num_bits: 1 to 32; the original's `input_size_bits`.
        on_collision: what to do if two features need different weights in one row. With `warn` the last one stays, as
            in the original, and scores of rows with either feature are wrong.

    Raises:
        ConfigError: `num_bits` is out of range.
        DataError: hashes collide, or a weight overflows float32.
    """
    if not 1 <= num_bits <= MAX_BITS:
        raise ConfigError("input_size_bits is out of range", value=num_bits, limit=f"1 to {MAX_BITS}")
    covered = {feature: cover(buckets) for feature, buckets in model.discretized.items()}
    presence = {feature: feature_row(feature, num_bits) for feature in model.binary}
    bins = {
        feature: HashedBins(
            tuple(bucket.lo for bucket in buckets[1:]), bin_rows(feature, len(buckets) - 1, num_bits, left_closed=True)
        )
        for feature, buckets in covered.items()
    }
    weight = np.zeros(1 << num_bits)
    owners: dict[int, list[tuple[str, float]]] = {}
    for row, owner, value in _weights(model, covered, presence, bins):
        weight[row] = value
        owners.setdefault(row, []).append((owner, value))
    _check_float32(model.bias, weight, model.source)
    collisions = tuple(
        Collision(row, tuple(owner for owner, _ in found), tuple(value for _, value in found))
        for row, found in owners.items()
        if len(found) > 1
    )
    _report(collisions, num_bits, model.source, on_collision)
    return HashedLolly(num_bits, model.bias, weight, presence, bins, collisions)


def cover(buckets: Sequence[Bucket]) -> tuple[Bucket, ...]:
    """The buckets of a feature, with buckets of weight 0 in their gaps, below and above: from -inf to inf."""
    covered: list[Bucket] = []
    end = -math.inf
    for bucket in buckets:
        if end < bucket.lo:
            covered.append(Bucket(end, bucket.lo, 0.0))
        covered.append(bucket)
        end = bucket.hi
    if end < math.inf:
        covered.append(Bucket(end, math.inf, 0.0))
    return tuple(covered)


def lolly_of_weights(
    name: str,
    bias: float,
    weight: np.ndarray,
    presence: Mapping[str, int],
    bins: Mapping[str, HashedBins],
    left_closed: bool,
) -> LollyModel:
    """The text model of trained weights: for every feature, and every interval of it, range and weight.

    Fitted intervals `(a, b]` are written as `[lo, hi)` from the next float32 after `a` to the next after `b`, which
    holds the same float32 values. Intervals that hold no number are left out.

    Args:
        name: of the model.
        bias: of the score.
        weight: [2 ** bits], any float type; only the rows that are looked up are read.
        presence: binary feature -> row.
        bins: discretised feature -> intervals; boundaries are float32 numbers unless `left_closed`.
        left_closed: intervals are `[a, b)` if True, else `(a, b]`.
    """
    binary = {feature: float(weight[row]) for feature, row in presence.items()}
    discretized = {feature: tuple(_buckets(intervals, weight, left_closed)) for feature, intervals in bins.items()}
    return LollyModel(name, float(bias), binary, discretized)


def _buckets(bins: HashedBins, weight: np.ndarray, left_closed: bool) -> Iterator[Bucket]:
    inner = [edge if left_closed else _next_float32(edge) for edge in bins.boundaries]
    edges = [-math.inf, *inner, math.inf]
    for lo, hi, row in zip(edges[:-1], edges[1:], bins.rows, strict=True):
        if lo < hi:
            yield Bucket(lo, hi, float(weight[row]))


def _next_float32(edge: float) -> float:
    return edge if math.isinf(edge) else float(np.nextafter(np.float32(edge), np.float32(np.inf)))


def _weights(
    model: LollyModel,
    covered: Mapping[str, Sequence[Bucket]],
    presence: Mapping[str, int],
    bins: Mapping[str, HashedBins],
) -> Iterator[tuple[int, str, float]]:
    for feature, value in model.binary.items():
        yield presence[feature], feature, value
    for feature, buckets in covered.items():
        for bucket, row in zip(buckets, bins[feature].rows, strict=True):
            yield row, f"{feature}[{bucket.lo:g}, {bucket.hi:g})", bucket.weight


def _check_float32(bias: float, weight: np.ndarray, source: str) -> None:
    largest = max(abs(bias), float(np.abs(weight).max()))
    limit = float(np.finfo(np.float32).max)
    if largest > limit:
        raise DataError(
            "weight of a lolly model is too large for float32", where=source, value=largest,
            limit=f"at most {limit:g}",
        )  # fmt: skip


def _report(collisions: Sequence[Collision], num_bits: int, source: str, on_collision: str) -> None:
    harmful = [collision for collision in collisions if not collision.harmless]
    if len(harmful) < len(collisions):
        logger.warning(
            "%s: %d rows of equal weight are shared by several features or buckets, which training cannot tell apart",
            source, len(collisions) - len(harmful),
        )  # fmt: skip
    if not harmful:
        return
    error = DataError(
        "hashes of a lolly model collide, so that its scores would be wrong",
        where=f"{source}, {len(harmful)} rows of 2 ** {num_bits}",
        value="; ".join(" and ".join(collision.owners) for collision in harmful[:3]),
        limit="one weight per row",
        fix="raise model.lolly_lr.input_size_bits" if num_bits < MAX_BITS else "rename one of the features",
    )
    if on_collision == "refuse":
        raise error
    logger.warning("%s", error)
