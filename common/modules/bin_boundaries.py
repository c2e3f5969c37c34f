"""Bin boundaries of a continuous feature from a weighted sample.

Percentile bins ("MDL" in the original light ranker, which never computed a description length) hold equal shares of
the sample's weight. MDLP bins are the real thing, supervised: Fayyad and Irani (1993) split where a class label's
entropy falls by more than the split costs to describe.

Missing values (NaN) and rows of weight zero are left out of every fit. A boundary belongs to the bin below it: bins
are intervals `(a, b]`. Letters: `n` values, `B` bins asked for, `k` classes.
"""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
import numpy.typing as npt

from tml.common.errors import DataError

_MAX_CLASSES = 64


def percentile_boundaries(
    values: npt.ArrayLike, weights: npt.ArrayLike | None = None, num_bins: int = 20, where: str = "sample"
) -> npt.NDArray[np.float64]:
    """Boundaries that cut the sample's weight into `num_bins` equal shares.

    With values sorted and `W_i` the weight of the first i + 1 of them, value i stands at the fraction
    `(W_i - W_0) / (W_last - W_0)`. Boundary j is the value i whose half-open stretch `(fraction_i, fraction_i+1]` holds
    j / B; the first boundary is the smallest value, the last the largest. The original's own search finds the same
    value unless j / B meets a fraction exactly, where it goes to either side; here the stretch is always closed on the
    right. That is numpy's `quantile(sorted[:-1], j / B, weights=weights[1:], method="inverted_cdf")`.

    With fewer than B + 1 values these are the boundaries themselves, after -inf and followed by inf.

    Args:
        values: `[n]`, NaN where missing.
        weights: `[n]`, not negative; None means ones.
        num_bins: B.
        where: named in errors.

    Returns:
        float64 `[B + 1]`, ascending, repeated where many values are equal.

    Raises:
        DataError: an infinite value, a negative or non-finite weight, or lengths that differ.
    """
    kept, mass, _ = clean_sample(values, weights, where)
    order = np.argsort(kept, kind="stable")
    kept, mass = kept[order], mass[order]
    if len(kept) < num_bins + 1:
        return np.concatenate([[-np.inf], kept, np.full(num_bins - len(kept), np.inf)])
    passed = np.cumsum(mass)
    passed -= passed[0]
    # Multiplied before it is divided: exact hits stay exact for whole weights.
    shares = np.arange(num_bins + 1) * passed[-1] / num_bins
    index = np.maximum(np.searchsorted(passed, shares, side="left") - 1, 0)
    index[-1] = len(kept) - 1
    return kept[index]


# The original's name for percentile bins.
mdl_boundaries = percentile_boundaries


def mdlp_boundaries(
    values: npt.ArrayLike,
    labels: npt.ArrayLike,
    weights: npt.ArrayLike | None = None,
    num_bins: int = 20,
    where: str = "sample",
) -> npt.NDArray[np.float64]:
    """Supervised boundaries by entropy and minimum description length (Fayyad and Irani, IJCAI 1993).

    An interval of N rows is cut between two neighbouring values where the label's entropy falls most, if it falls by
    more than `(log2(N - 1) + log2(3^k - 2) - (k E - k1 E1 - k2 E2)) / N`, with k, k1, k2 the classes present in the
    interval and in its halves and E, E1, E2 their entropies. Cuts are halfway between the two values. When more than
    `num_bins` bins would pass, those cuts are made first that save most, N times the fall.

    Weights are scaled to a mean of one, so that N stays the number of rows, which is the evidence there is.

    Args:
        values: `[n]`, NaN where missing.
        labels: `[n]`, at most 64 classes, any whole numbers.
        weights: `[n]`, not negative; None means ones.
        num_bins: the most bins.
        where: named in errors.

    Returns:
        float64 `[num_bins + 1]`: -inf, the cuts in ascending order, then inf.

    Raises:
        DataError: as `percentile_boundaries`, or labels that are not classes.
    """
    classes = np.asarray(labels, dtype=np.float64)
    if classes.ndim != 1 or np.shape(values) != classes.shape:
        raise DataError("labels and values differ in length", where=where, value=classes.shape, limit=np.shape(values))
    kept, mass, classes = clean_sample(values, weights, where, classes)
    distinct, masses = _class_masses(kept, classes, mass, where)
    cuts = sorted(_best_first_cuts(masses, num_bins))
    points = np.asarray([_between(distinct[cut - 1], distinct[cut]) for cut in cuts], dtype=np.float64)
    return np.concatenate([[-np.inf], points, np.full(num_bins - len(points), np.inf)])


def check_boundaries(boundaries: npt.NDArray[np.floating[Any]], where: str) -> None:
    """Raises a DataError unless every row of `boundaries` ascends, without NaN."""
    if boundaries.ndim != 2 or boundaries.shape[1] == 0:
        raise DataError("boundaries have the wrong shape", where=where, value=boundaries.shape, limit="[features, 1..]")
    falls = np.argwhere(~(boundaries[:, 1:] >= boundaries[:, :-1]))
    if len(falls) or np.isnan(boundaries).any():
        row = int(falls[0][0]) if len(falls) else int(np.argwhere(np.isnan(boundaries))[0][0])
        raise DataError("boundaries do not ascend", where=f"{where}, row {row}", value=boundaries[row].tolist())


def clean_sample(
    values: npt.ArrayLike, weights: npt.ArrayLike | None, where: str, other: npt.NDArray[Any] | None = None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], Any]:
    """The values that are present and have weight, their weights, and the same rows of `other`.

    Raises:
        DataError: an infinite value, a negative or non-finite weight, or lengths that differ.
    """
    values = np.asarray(values, dtype=np.float64)
    # `None` means float ones: the original made whole numbers of them and then failed to divide them in place.
    mass = np.ones_like(values) if weights is None else np.asarray(weights, dtype=np.float64)
    if values.ndim != 1 or mass.shape != values.shape:
        raise DataError("values and weights differ in length", where=where, value=mass.shape, limit=values.shape)
    _refuse(np.isinf(values), values, "value is infinite", "finite, or NaN where it is missing", where)
    _refuse(~np.isfinite(mass) | (mass < 0), mass, "weight cannot be used", "finite and not negative", where)
    keep = ~np.isnan(values) & (mass > 0)
    return values[keep], mass[keep], None if other is None else other[keep]


def _refuse(bad: npt.NDArray[np.bool_], values: npt.NDArray[np.float64], what: str, limit: str, where: str) -> None:
    if bad.any():
        row = int(np.argmax(bad))
        raise DataError(
            what, where=f"{where}, row {row}", value=float(values[row]), limit=limit, fix="repair or filter the data"
        )


def _class_masses(
    values: npt.NDArray[np.float64], labels: npt.NDArray[np.float64], mass: npt.NDArray[np.float64], where: str
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Distinct values `[u]`, and the weight of each class up to and without each of them, `[u + 1, k]`."""
    _refuse(labels != np.floor(labels), labels, "label is not a class", "whole numbers", where)
    classes, class_of = np.unique(labels, return_inverse=True)
    if len(classes) > _MAX_CLASSES:
        raise DataError(
            "too many classes", where=where, value=len(classes), limit=_MAX_CLASSES, fix="mdlp bins need a class label"
        )
    distinct, place = np.unique(values, return_inverse=True)
    masses = np.zeros((len(distinct) + 1, len(classes)))
    np.add.at(masses, (place + 1, class_of), mass / mass.mean() if len(mass) else mass)
    return distinct, np.cumsum(masses, axis=0)


def _best_first_cuts(masses: npt.NDArray[np.float64], num_bins: int) -> list[int]:
    """Indices of the distinct values before which an accepted cut lies, most profitable first."""
    cuts: list[int] = []
    waiting: list[tuple[float, int, int, int]] = []

    def consider(first: int, stop: int) -> None:
        found = _accepted_cut(masses, first, stop)
        if found is not None:
            heapq.heappush(waiting, (-found[1], found[0], first, stop))

    consider(0, len(masses) - 1)
    while waiting and len(cuts) < num_bins - 1:
        _, cut, first, stop = heapq.heappop(waiting)
        cuts.append(cut)
        consider(first, cut)
        consider(cut, stop)
    return cuts


def _accepted_cut(masses: npt.NDArray[np.float64], first: int, stop: int) -> tuple[int, float] | None:
    """The best cut of the distinct values `[first, stop)` and what it saves, if it passes the criterion."""
    if stop - first < 2:
        return None
    left = masses[first + 1 : stop] - masses[first]
    whole = masses[stop] - masses[first]
    right, total = whole - left, whole.sum()
    entropy, left_entropy, right_entropy = _entropy(whole), _entropy(left), _entropy(right)
    after = (left.sum(-1) * left_entropy + right.sum(-1) * right_entropy) / total
    best = int(np.argmin(after))
    fall = float(entropy - after[best])
    k, k_left, k_right = (_num_present(part) for part in (whole, left[best], right[best]))
    delta = np.log2(3.0**k - 2) - (k * entropy - k_left * left_entropy[best] - k_right * right_entropy[best])
    if total <= 1 or fall <= (np.log2(total - 1) + delta) / total:
        return None
    return first + 1 + best, total * fall


def _num_present(masses: npt.NDArray[np.float64]) -> int:
    # Differences of running sums leave rounding where nothing is.
    return int((masses > 1e-9 * max(masses.sum(), 1.0)).sum())


def _entropy(masses: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Entropy in bits over the last axis of masses that need not sum to one."""
    share = np.clip(masses / np.maximum(masses.sum(-1, keepdims=True), 1e-300), 0.0, 1.0)
    return -(share * np.log2(np.where(share > 0, share, 1.0))).sum(-1)


def _between(low: float, high: float) -> float:
    """Halfway, as a float32 that still has `low` at or below it and `high` above it."""
    middle = float(np.float32(low / 2 + high / 2))
    return middle if low <= middle < high else float(low)
