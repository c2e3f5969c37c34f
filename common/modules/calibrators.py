"""Isotonic calibration of probabilities after training: fitted by scikit-learn, applied by a layer that exports.

The original's rule (`IsotonicCalibrator` of twml): the pool-adjacent-violators fit over the sorted predictions is
thinned to `num_bins` points, the weighted means of consecutive samples, through which the layer interpolates.

Letters: `n` samples, `B` bins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tml.common.errors import DataError
from tml.common.modules.sorted_search import count_below, padded_rows

# A plateau at 0 or 1 would make the log loss of one unlucky row infinite.
_LEAST_PROBABILITY = 1e-6


class Isotonic(nn.Module):
    """Piecewise-linear interpolation through points with ascending x and y.

    Before the first point and after the last the end values hold; where points share an x, the first one's y is taken.
    Outputs are cut to [0, 1]. NaN stays NaN.

    Args:
        xs: raw predictions, ascending.
        ys: what they are worth, ascending, as many.

    Raises:
        DataError: no points, different numbers of them, values that are not finite or that descend.
    """

    xs: Tensor
    ys: Tensor
    search_rows: Tensor

    def __init__(self, xs: npt.ArrayLike, ys: npt.ArrayLike) -> None:
        super().__init__()
        x, y = np.asarray(xs, dtype=np.float64), np.asarray(ys, dtype=np.float64)
        if x.ndim != 1 or not len(x) or x.shape != y.shape:
            raise DataError("calibration points do not pair up", where="Isotonic", value=(x.shape, y.shape))
        for name, points in (("x", x), ("y", y)):
            if not np.isfinite(points).all() or (np.diff(points) < 0).any():
                raise DataError(
                    "calibration points do not ascend", where=f"Isotonic, {name}", value=points.tolist(),
                    limit="finite and ascending", fix="fit the calibration again",
                )  # fmt: skip
        self.register_buffer("xs", torch.from_numpy(x).to(torch.float32))
        self.register_buffer("ys", torch.from_numpy(y).to(torch.float32))
        self.register_buffer("search_rows", padded_rows(self.xs.unsqueeze(0)), persistent=False)

    def forward(self, predictions: Tensor) -> Tensor:
        """Calibrated probabilities, float32 of the shape of `predictions`."""
        x = predictions.to(self.xs.dtype)
        right = count_below(self.search_rows, torch.zeros_like(x, dtype=torch.int64), x)
        left = torch.clamp(right - 1, min=0)
        right = torch.clamp(right, max=len(self.xs) - 1)
        low, width = self.xs[left], self.xs[right] - self.xs[left]
        # Both neighbours are one point at the ends, where the share has to be 0 rather than 0 / 0.
        share = torch.where(width > 0, (x - low) / torch.where(width > 0, width, 1.0), 0.0)
        y = self.ys[left] + share * (self.ys[right] - self.ys[left])
        return torch.where(torch.isnan(x), x, torch.clamp(y, 0.0, 1.0))

    def to_dict(self) -> dict[str, list[float]]:
        """The points as plain JSON: `{"x": [...], "y": [...]}`."""
        return {"x": self.xs.tolist(), "y": self.ys.tolist()}

    @classmethod
    def from_dict(cls, state: Mapping[str, Sequence[float]]) -> Isotonic:
        """The inverse of `to_dict`.

        Raises:
            DataError: a key is missing, or the points are not usable.
        """
        try:
            return cls(np.asarray(state["x"], dtype=np.float64), np.asarray(state["y"], dtype=np.float64))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError("a calibration cannot be read", where=repr(error), value=dict(state)) from error


def fit_isotonic(
    predictions: npt.ArrayLike,
    labels: npt.ArrayLike,
    weights: npt.ArrayLike | None = None,
    num_bins: int = 22,
    similar_bins: bool = False,
    anchored: bool = False,
) -> Isotonic:
    """Fit the calibration of one output.

    Samples are sorted by prediction, scikit-learn's isotonic regression runs over their labels, and each of `num_bins`
    stretches of consecutive samples becomes the point (mean prediction, mean fitted value). Samples of equal prediction
    are put in descending order of label, so that the regression pools them, as its own estimator does with equal x.
    Samples of weight zero are left out.

    Args:
        predictions: raw probabilities `[n]`.
        labels: `[n]`.
        weights: `[n]`, not negative; None means ones.
        num_bins: B, at most n.
        similar_bins: bins of equal size, give or take one; otherwise `n // B`, and the last takes the rest.
        anchored: for probabilities: let the function begin at (0, 0) and end at (1, 1). Otherwise it is flat beyond the
            means of the first and the last bin, which makes one of the highest predictions if bins are few.

    Raises:
        DataError: lengths differ, a value is not finite, a weight is negative, or there are fewer samples than bins.
    """
    # Imported late: scikit-learn takes a second to load, and serving a fitted calibration does not need it.
    from sklearn.isotonic import isotonic_regression

    x, y, mass = _clean(predictions, labels, weights)
    if not 1 <= num_bins <= len(x):
        raise DataError(
            "number of bins out of range", where="isotonic calibration", value=num_bins,
            limit=f"1..{len(x)}, the number of samples", fix="lower the number of bins or give more samples",
        )  # fmt: skip
    order = np.lexsort((-y, x))
    x, y, mass = x[order], y[order], mass[order]
    fitted = isotonic_regression(y, sample_weight=mass)
    starts = _bin_starts(len(x), num_bins, similar_bins)
    total = np.add.reduceat(mass, starts)
    xs, ys = (np.add.reduceat(column * mass, starts) / total for column in (x, fitted))
    if anchored:
        xs, ys = np.concatenate([[0.0], xs, [1.0]]), np.concatenate([[0.0], ys, [1.0]])
    # Means of equal numbers may differ in their last bit; the order is known.
    return Isotonic(np.maximum.accumulate(xs), np.maximum.accumulate(ys))


def choose_num_bins(
    predictions: npt.ArrayLike,
    labels: npt.ArrayLike,
    weights: npt.ArrayLike | None,
    candidates: Sequence[int],
    anchored: bool = False,
    num_folds: int = 5,
) -> int:
    """The number of bins whose calibration has the least log loss on samples that it was not fitted on.

    Every fold holds every `num_folds`-th sample in the order of the predictions, so no draw is needed and folds are
    alike. Candidates that are more than the samples of a fit are left out.

    Args:
        predictions: raw probabilities `[n]`.
        labels: `[n]`, 0 or 1.
        weights: `[n]`, not negative; None means ones.
        candidates: numbers of bins.
        anchored: see `fit_isotonic`.
        num_folds: parts of the samples; each is held out once.

    Raises:
        DataError: as of `fit_isotonic`, or there are too few samples for every candidate.
    """
    x, y, mass = _clean(predictions, labels, weights)
    order = np.lexsort((-y, x))
    x, y, mass = x[order], y[order], mass[order]
    folds = np.arange(len(x)) % num_folds
    smallest = len(x) - int(np.bincount(folds, minlength=num_folds).max(initial=0))
    possible = sorted(number for number in set(candidates) if number <= smallest)
    if not possible:
        raise DataError(
            "too few samples to choose the number of bins", where="isotonic calibration", value=len(x),
            limit=f"{min(candidates, default=0)} or more in {num_folds - 1} of {num_folds} parts",
            fix="give one number of bins, or more samples",
        )  # fmt: skip

    def held_out_loss(num_bins: int) -> float:
        total = 0.0
        for fold in range(num_folds):
            held = folds == fold
            fitted = fit_isotonic(x[~held], y[~held], mass[~held], num_bins, anchored=anchored)
            found = fitted(torch.from_numpy(x[held])).double().numpy().clip(_LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)
            total -= float((mass[held] * np.where(y[held] > 0, np.log(found), np.log1p(-found))).sum())
        return total

    return min(possible, key=held_out_loss)


def _bin_starts(num_samples: int, num_bins: int, similar_bins: bool) -> npt.NDArray[np.int64]:
    step = num_samples // num_bins
    if similar_bins:
        return np.linspace(0, num_samples - step, num=num_bins, dtype=np.int64)
    return np.arange(num_bins, dtype=np.int64) * step


def _clean(
    predictions: npt.ArrayLike, labels: npt.ArrayLike, weights: npt.ArrayLike | None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    x, y = np.asarray(predictions, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    mass = np.ones_like(x) if weights is None else np.asarray(weights, dtype=np.float64)
    if x.ndim != 1 or not x.shape == y.shape == mass.shape:
        raise DataError(
            "samples differ in length", where="isotonic calibration", value=(x.shape, y.shape, mass.shape), limit="[n]"
        )
    for name, column, bad in (
        ("prediction", x, ~np.isfinite(x)),
        ("label", y, ~np.isfinite(y)),
        ("weight", mass, ~(np.isfinite(mass) & (mass >= 0))),
    ):
        if bad.any():
            row = int(np.argmax(bad))
            raise DataError(
                f"{name} cannot be used", where=f"isotonic calibration, row {row}", value=float(column[row]),
                limit="finite, weights not negative", fix="look for bad input or a diverged model",
            )  # fmt: skip
    kept = mass > 0
    return x[kept], y[kept], mass[kept]
