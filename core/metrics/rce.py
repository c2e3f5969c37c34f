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

from tml.core.metrics.base import OutputMetric
from tml.core.metrics.probabilities import (
    TWML_EPSILON,
    binary_cross_entropy,
    binary_entropy,
    check_probabilities,
    smooth,
)


class Rce(OutputMetric):
    """Relative cross-entropy. Undefined without weight or when all labels are equal.

    Args:
        from_logits: read logits, and clip nothing; otherwise read probabilities.
        label_smoothing: see `smooth`.
        epsilon: probabilities are clipped to `[epsilon, 1 - epsilon]`.
        prediction: output with the predictions; None for `logits` or `probabilities`.
        settings: see `OutputMetric`.
    """

    higher_is_better = True
    cross_entropy: Tensor
    label: Tensor
    weight: Tensor

    def __init__(
        self,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        epsilon: float = 1e-7,
        prediction: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.from_logits = from_logits
        self.label_smoothing = label_smoothing
        self.epsilon = epsilon
        self.prediction = prediction or ("logits" if from_logits else "probabilities")
        self.add_sums("cross_entropy", "label", "weight")

    def update(self, outputs: Mapping[str, Any]) -> None:
        """Adds a batch."""
        predictions, labels, weights = self.select(outputs, self.prediction, "labels")
        predictions, labels = predictions.to(torch.float64), smooth(labels, self.label_smoothing)
        if self.from_logits:
            losses = F.binary_cross_entropy_with_logits(predictions, labels, reduction="none")
        else:
            check_probabilities(predictions, f"{self._place()}, output {self.prediction!r}")
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


class RceStdErr(OutputMetric):
    """The standard error of the RCE, in per cent, by the delta method.

    The RCE is a function of three sums over rows, of `f = (w * ce, w * y, w)`; with `g` its gradient there, the
    variance is `g' (sum f f') g`. The term that would centre it, `(g' sum f) ** 2 / N`, is zero: the RCE does not
    change when all three sums grow alike. Rows are taken to be independent.

    Undefined without weight or when all labels are equal.

    Args:
        epsilon: probabilities are clipped to `[epsilon, 1 - epsilon]`.
        prediction: output with the probabilities.
        settings: see `OutputMetric`.
    """

    higher_is_better = False
    sums: Tensor
    products: Tensor

    def __init__(self, epsilon: float = TWML_EPSILON, prediction: str = "probabilities", **settings: Any) -> None:
        super().__init__(**settings)
        self.epsilon = epsilon
        self.prediction = prediction
        self.add_state("sums", torch.zeros(3, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("products", torch.zeros(3, 3, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, outputs: Mapping[str, Any]) -> None:
        """Adds a batch."""
        predictions, labels, weights = self.select(outputs, self.prediction, "labels")
        check_probabilities(predictions, f"{self._place()}, output {self.prediction!r}")
        labels = labels.to(torch.float64)
        losses = binary_cross_entropy(predictions.to(torch.float64), labels, self.epsilon)
        terms = torch.stack((losses * weights, labels * weights, weights), dim=1)
        self.sums += terms.sum(0).to(self.device)
        self.products += (terms.T @ terms).to(self.device)

    def compute(self) -> Tensor:
        """Returns the standard error of the RCE in per cent, float64."""
        cross_entropy, label, weight = self.sums
        if weight == 0:
            return self.undefined("the total weight is zero")
        mean_loss, mean_label = cross_entropy / weight, label / weight
        baseline = binary_entropy(mean_label)
        if baseline == 0:
            return self.undefined("all labels are equal")
        by_label = mean_loss * ((1.0 - mean_label).log() - mean_label.log()) / baseline
        by_weight = mean_loss - by_label * mean_label
        gradient = -100.0 / (weight * baseline) * torch.stack((torch.ones_like(weight), -by_label, -by_weight))
        return (gradient @ self.products @ gradient).clamp(min=0.0).sqrt()
