"""How far predicted probabilities lie from the shares of positives that come true.

Letters: `M` bins.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tml.common.errors import ConfigError
from tml.core.metrics.base import OutputMetric
from tml.core.metrics.kept_rows import KeptRowsMetric
from tml.core.metrics.probabilities import check_probabilities


class ExpectedCalibrationError(OutputMetric):
    """The weighted mean, over bins of equal width, of the distance between mean prediction and mean label.

    Naeini et al., "Obtaining Well Calibrated Probabilities Using Bayesian Binning" (AAAI 2015). Bin m holds
    `(m - 1) / M < p <= m / M`, the first one zero too. Where all probabilities are small they share one or two bins:
    there `EqualMassCalibrationError` says more.

    Undefined without weight.

    Args:
        num_bins: M.
        prediction: output with the probabilities.
        settings: see `OutputMetric`.
    """

    higher_is_better = False
    bins: Tensor

    def __init__(self, num_bins: int = 15, prediction: str = "probabilities", **settings: Any) -> None:
        super().__init__(**settings)
        self.num_bins = _at_least_one(num_bins)
        self.prediction = prediction
        self.add_state("bins", torch.zeros(num_bins, 3, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, outputs: Mapping[str, Any]) -> None:
        """Adds a batch."""
        predictions, labels, weights = self.select(outputs, self.prediction, "labels")
        check_probabilities(predictions, f"{self._place()}, output {self.prediction!r}")
        place = (predictions.to(torch.float64) * self.num_bins).ceil().to(torch.int64).clamp(min=1) - 1
        self.bins += _bin_sums(predictions, labels, weights, place, self.num_bins).to(self.device)

    def compute(self) -> Tensor:
        """Returns the error, 0..1, float64."""
        return _distance(self.bins) if self.bins[:, 0].sum() > 0 else self.undefined("the total weight is zero")


class EqualMassCalibrationError(KeptRowsMetric):
    """The expected calibration error over bins of equal weight, which rare events fill as well as common ones.

    Rows are put in order of their prediction; bin m holds those whose middle lies in the m-th M-th of the total weight.
    Equal predictions are not parted, so the order of rows does not matter. Keeps all rows; see `KeptRowsMetric`.

    Undefined without weight.

    Args:
        num_bins: M.
        prediction: output with the probabilities.
        settings: see `OutputMetric`.
    """

    higher_is_better = False

    def __init__(self, num_bins: int = 15, prediction: str = "probabilities", **settings: Any) -> None:
        super().__init__(prediction, **settings)
        self.num_bins = _at_least_one(num_bins)

    def check_rows(self, predictions: Tensor, labels: Tensor) -> None:
        """Refuses probabilities outside 0..1."""
        check_probabilities(predictions, f"{self._place()}, output {self.prediction!r}")

    def compute(self) -> Tensor:
        """Returns the error, 0..1, float64."""
        predictions, labels, weights = self.rows()
        if weights.sum() == 0:
            return self.undefined("the total weight is zero")
        distinct, level = torch.unique(predictions, return_inverse=True)
        weight = torch.zeros_like(distinct).index_add_(0, level, weights)
        middle = (weight.cumsum(0) - weight / 2) / weight.sum()
        place = (middle * self.num_bins).to(torch.int64).clamp(max=self.num_bins - 1)[level]
        return _distance(_bin_sums(predictions, labels, weights, place, self.num_bins))


def _bin_sums(predictions: Tensor, labels: Tensor, weights: Tensor, place: Tensor, num_bins: int) -> Tensor:
    """Weight, weighted predictions and weighted labels of each bin, float64 [M, 3]."""
    columns = torch.stack((weights, weights * predictions, weights * labels), dim=1)
    return columns.new_zeros(num_bins, 3).index_add_(0, place, columns)


def _distance(bins: Tensor) -> Tensor:
    weight, predicted, label = bins.unbind(1)
    return (predicted - label).abs().sum() / weight.sum()


def _at_least_one(num_bins: int) -> int:
    if num_bins < 1:
        raise ConfigError(
            "there are no bins",
            where="expected calibration error",
            value=num_bins,
            limit="at least 1",
            fix="take 15",
        )
    return num_bins
