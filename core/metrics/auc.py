"""Areas under the ROC and the precision-recall curve, exact: no thresholds, no sampled pairs.

A pair with tied scores counts one half in the ROC area. `tml.core.metrics.binned_auc` has the areas that keep no rows.

Letters: `N` rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tml.core.metrics.kept_rows import KeptRowsMetric
from tml.core.metrics.probabilities import check_binary


def roc_auc(scores: Tensor, positive: Tensor, weights: Tensor) -> Tensor:
    """Returns the area under the ROC curve by the trapezoid rule over all distinct scores.

    Args:
        scores: [N].
        positive: bool [N].
        weights: float64 [N], not negative.

    Returns:
        float64 scalar; NaN when the positives or the negatives have no weight.
    """
    # Equal scores are passed in one go, along a slanted line, which gives a tied pair its half.
    true_positive, false_positive = _passed_weights(scores, positive, weights)
    area = torch.trapezoid(_from_zero(true_positive), _from_zero(false_positive))
    return area / (true_positive[-1:].sum() * false_positive[-1:].sum())


def average_precision(scores: Tensor, positive: Tensor, weights: Tensor) -> Tensor:
    """Returns the area under the precision-recall curve as a step function: the mean precision at each positive.

    Between two distinct scores, precision is that of the lower one, so nothing is interpolated.

    Arguments are those of `roc_auc`; NaN when the positives have no weight.
    """
    true_positive, false_positive = _passed_weights(scores, positive, weights)
    passed = true_positive + false_positive
    precision = true_positive / torch.where(passed > 0, passed, 1.0)
    gained = _from_zero(true_positive).diff()
    return (precision * gained).sum() / true_positive[-1:].sum()


def mann_whitney_auc(scores: Tensor, positive: Tensor, weights: Tensor) -> Tensor:
    """Returns the Mann-Whitney U statistic over the number of pairs: the chance that a positive outscores a negative.

    Arguments and result are those of `roc_auc`.
    """
    distinct, place = torch.unique(scores, return_inverse=True)
    negative_weight = torch.zeros(len(distinct), dtype=torch.float64, device=scores.device)
    negative_weight.index_add_(0, place, torch.where(positive, 0.0, weights))
    below_or_half_equal = negative_weight.cumsum(0) - negative_weight / 2
    positive_weight = torch.where(positive, weights, 0.0)
    u = (positive_weight * below_or_half_equal[place]).sum()
    return u / (positive_weight.sum() * negative_weight.sum())


class _Area(KeptRowsMetric):
    """An area of binary labels. Keeps all rows; see `KeptRowsMetric`.

    Args:
        prediction: output with the scores. Any rising function of the probability gives the same area.
        settings: see `OutputMetric`.
    """

    higher_is_better = True
    _fix = "let labels be 0 and 1"

    def __init__(self, prediction: str = "probabilities", **settings: Any) -> None:
        super().__init__(prediction, **settings)

    def check_rows(self, predictions: Tensor, labels: Tensor) -> None:
        """Refuses labels other than 0 and 1."""
        check_binary(labels, f"{self._place()}, output 'labels'", self._fix)


class Auc(_Area):
    """Weighted area under the ROC curve; see `_Area`. Undefined unless both classes have weight."""

    _fix = "use AurocWithMwu, which takes a label threshold"

    def compute(self) -> Tensor:
        """Returns the area, float64."""
        scores, labels, weights = self.rows()
        area = roc_auc(scores, labels > 0.5, weights)
        return self.undefined("positives or negatives have no weight") if area.isnan() else area


class PrAuc(_Area):
    """Weighted area under the precision-recall curve, the average precision; see `_Area`.

    Undefined unless the positives have weight.
    """

    def compute(self) -> Tensor:
        """Returns the area, float64."""
        scores, labels, weights = self.rows()
        area = average_precision(scores, labels > 0.5, weights)
        return self.undefined("positives have no weight") if area.isnan() else area


class AurocWithMwu(KeptRowsMetric):
    """Weighted area under the ROC curve by the Mann-Whitney U statistic, of labels on any scale.

    Undefined unless both classes have weight. Keeps all rows; see `KeptRowsMetric`.

    Args:
        label_threshold: labels above it are positive.
        prediction: output with the scores.
        settings: see `OutputMetric`.
    """

    higher_is_better = True

    def __init__(self, label_threshold: float = 0.5, prediction: str = "probabilities", **settings: Any) -> None:
        super().__init__(prediction, **settings)
        self.label_threshold = label_threshold

    def compute(self) -> Tensor:
        """Returns the area, float64."""
        scores, labels, weights = self.rows()
        area = mann_whitney_auc(scores, labels > self.label_threshold, weights)
        return self.undefined("positives or negatives have no weight") if area.isnan() else area


def _passed_weights(scores: Tensor, positive: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The weights of the positives and negatives that score at least each distinct score, from the highest on."""
    order = torch.argsort(scores, descending=True)
    scores, weights, positive = scores[order], weights[order], positive[order]
    last_of_equal = torch.ones_like(positive)
    last_of_equal[:-1] = scores[1:] != scores[:-1]
    true_positive = torch.where(positive, weights, 0.0).cumsum(0)
    false_positive = torch.where(positive, 0.0, weights).cumsum(0)
    return true_positive[last_of_equal], false_positive[last_of_equal]


def _from_zero(values: Tensor) -> Tensor:
    return torch.cat((values.new_zeros(1), values))
