"""Relative cross-entropy: how much better than always predicting the mean label, in per cent.

`RCE = 100 * (1 - CE / CE0)`: CE is the weighted mean cross-entropy of the predictions, CE0 that of predicting the mean
label for every row. 100 is perfect, 0 is no better than that constant, and below it is worse. `1 - RCE / 100` is the
normalised entropy of He et al., "Practical Lessons from Predicting Clicks on Ads at Facebook" (ADKDD 2014).

Letters: `N` rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tml.common.errors import DataError
from tml.core.metrics.base import OutputMetric
from tml.core.metrics.kept_rows import KeptRowsMetric


def binary_cross_entropy(probabilities: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    """Returns `-y log p - (1 - y) log(1 - p)` with `p` clipped to `[epsilon, 1 - epsilon]`; all float64 [N]."""
    clipped = probabilities.clamp(epsilon, 1.0 - epsilon)
    return -(labels * clipped.log() + (1.0 - labels) * torch.log1p(-clipped))


def binary_entropy(mean_label: Tensor) -> Tensor:
    """Returns the cross-entropy of a constant prediction of the mean label; zero where all labels are equal."""
    return -(torch.xlogy(mean_label, mean_label) + torch.xlogy(1.0 - mean_label, 1.0 - mean_label))


def smooth(labels: Tensor, label_smoothing: float) -> Tensor:
    """Returns labels as float64, moved towards one half: `y * (1 - s) + s / 2`."""
    return labels.to(torch.float64) * (1.0 - label_smoothing) + 0.5 * label_smoothing


class Rce(OutputMetric):
    """Relative cross-entropy. Undefined without weight or when all labels are equal.

    Args:
        from_logits: read `logits`, and clip nothing; otherwise read `probabilities`.
        label_smoothing: see `smooth`.
        epsilon: probabilities are clipped to `[epsilon, 1 - epsilon]`.
        settings: see `OutputMetric`.
    """

    higher_is_better = True
    cross_entropy: Tensor
    label: Tensor
    weight: Tensor

    def __init__(
        self, from_logits: bool = False, label_smoothing: float = 0.0, epsilon: float = 1e-7, **settings: Any
    ) -> None:
        super().__init__(**settings)
        self.from_logits = from_logits
        self.label_smoothing = label_smoothing
        self.epsilon = epsilon
        self.add_sums("cross_entropy", "label", "weight")

    def update(self, outputs: Mapping[str, Any]) -> None:
        """Adds a batch."""
        name = "logits" if self.from_logits else "probabilities"
        predictions, labels, weights = self.select(outputs, name, "labels")
        predictions, labels = predictions.to(torch.float64), smooth(labels, self.label_smoothing)
        if self.from_logits:
            losses = F.binary_cross_entropy_with_logits(predictions, labels, reduction="none")
        else:
            _check_probabilities(predictions, self._place())
            losses = binary_cross_entropy(predictions, labels, self.epsilon)
        self.cross_entropy += (losses * weights).sum().to(self.device)
        self.label += (labels * weights).sum().to(self.device)
        self.weight += weights.sum().to(self.device)

    def compute(self) -> Tensor:
        """Returns the RCE in per cent, float64."""
        if self.weight == 0:
            return self.undefined("the total weight is zero")
        baseline = binary_entropy(self.label / self.weight)
        if baseline == 0:
            return self.undefined("all labels are equal")
        return 100.0 * (1.0 - self.cross_entropy / self.weight / baseline)


class Nrce(KeptRowsMetric):
    """Normalised relative cross-entropy: the RCE of predictions scaled so that their mean is the mean label.

    The scale is that of the whole data set: `p * sum(w * y) / sum(w * p)`, then clipped. So the value depends neither
    on the order or size of batches nor on the number of ranks, as it would with a scale taken while batches pass. The
    price is that all rows are kept; see `KeptRowsMetric`.

    Undefined without weight, when all labels are equal, or when all predictions are zero.

    Args:
        from_logits: read `logits` and take their sigmoid; otherwise read `probabilities`.
        label_smoothing: see `smooth`.
        epsilon: scaled probabilities are clipped to `[epsilon, 1 - epsilon]`.
        settings: see `OutputMetric`.
    """

    higher_is_better = True

    def __init__(
        self, from_logits: bool = False, label_smoothing: float = 0.0, epsilon: float = 1e-7, **settings: Any
    ) -> None:
        super().__init__("logits" if from_logits else "probabilities", **settings)
        self.from_logits = from_logits
        self.label_smoothing = label_smoothing
        self.epsilon = epsilon

    def check_rows(self, predictions: Tensor, labels: Tensor) -> None:
        """Refuses probabilities outside 0..1."""
        if not self.from_logits:
            _check_probabilities(predictions, self._place())

    def compute(self) -> Tensor:
        """Returns the NRCE in per cent, float64."""
        predictions, labels, weights = self.rows()
        labels = smooth(labels, self.label_smoothing)
        probabilities = predictions.sigmoid() if self.from_logits else predictions
        weight, label, predicted = weights.sum(), (labels * weights).sum(), (probabilities * weights).sum()
        if weight == 0:
            return self.undefined("the total weight is zero")
        baseline = binary_entropy(label / weight)
        if baseline == 0 or predicted == 0:
            return self.undefined("all labels are equal" if baseline == 0 else "all predictions are zero")
        losses = binary_cross_entropy(probabilities * label / predicted, labels, self.epsilon)
        return 100.0 * (1.0 - (losses * weights).sum() / weight / baseline)


def _check_probabilities(probabilities: Tensor, place: str) -> None:
    outside = (probabilities < 0) | (probabilities > 1)
    if outside.any():
        raise DataError(
            "probability is out of range",
            where=f"{place}, output 'probabilities'",
            value=probabilities[outside][0].item(),
            limit="0 <= probability <= 1",
            fix="apply the sigmoid, or return logits and set from_logits",
        )
