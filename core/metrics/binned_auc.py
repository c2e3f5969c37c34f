"""Areas under the ROC and precision-recall curve over 200 thresholds, as the original light ranker measured them.

They keep 402 numbers, not rows, and are the areas of `tf.metrics.auc(num_thresholds=200,
summation_method="careful_interpolation")`, formulas and roundings included, so that old and new models compare. The
thresholds are `-1e-7, 1/199, ..., 198/199, 1 + 1e-7`, in float32 as predictions are. Where most probabilities lie below
1/199, as those of rare events do, the areas come out too low: read the exact ones of `tml.core.metrics.auc`.

Letters: `N` rows, `K` thresholds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tml.core.metrics.histograms import HistogramMetric, weight_passing
from tml.core.metrics.probabilities import check_binary, check_probabilities

NUM_THRESHOLDS = 200
_RATIO_EPSILON = 1e-6


class _BinnedAuc(HistogramMetric):
    """An area over 200 thresholds, which a row passes when its prediction is above.

    Undefined unless both classes have weight.

    Args:
        prediction: output with the probabilities.
        settings: see `OutputMetric`.
    """

    higher_is_better = True

    def __init__(self, prediction: str = "probabilities", **settings: Any) -> None:
        super().__init__(NUM_THRESHOLDS, **settings)
        self.prediction = prediction

    def update(self, outputs: Mapping[str, Any]) -> None:
        """Adds a batch."""
        predictions, labels, weights = self.select(outputs, self.prediction, "labels")
        check_probabilities(predictions, f"{self._place()}, output {self.prediction!r}")
        check_binary(labels, f"{self._place()}, output 'labels'", "let labels be 0 and 1")
        passed = torch.bucketize(predictions.to(torch.float64), _thresholds(predictions.device))
        self.add(passed, labels, weights)

    def compute(self) -> Tensor:
        """Returns the area, float64."""
        if self.positives.sum() == 0 or self.negatives.sum() == 0:
            return self.undefined("positives or negatives have no weight")
        return self.area(weight_passing(self.positives), weight_passing(self.negatives))

    def area(self, true_positive: Tensor, false_positive: Tensor) -> Tensor:
        """Returns the area from the weights above each threshold, [K]; the first threshold lies below all."""
        raise NotImplementedError


class RocAuc200(_BinnedAuc):
    """Area under the ROC curve by the trapezoid rule over 200 thresholds; see the module."""

    def area(self, true_positive: Tensor, false_positive: Tensor) -> Tensor:
        """Returns the area; the total weights carry the small constants that keep the original's ratios finite."""
        rate = (true_positive + _RATIO_EPSILON) / (true_positive[0] + _RATIO_EPSILON)
        false_rate = false_positive / (false_positive[0] + _RATIO_EPSILON)
        return torch.trapezoid(rate.flip(0), false_rate.flip(0))


class PrAuc200(_BinnedAuc):
    """Area under the precision-recall curve over 200 thresholds; see the module.

    Between two thresholds true positives are taken to grow in a straight line with all positives, which bends the
    precision: with `P = tp + fp`, `slope = dtp / dP` and `c = tp - slope * P` at the upper threshold, a step adds
    `slope * (dtp + c * log(P_lower / P_upper)) / (tp + fn)`; Davis and Goadrich, ICML 2006.
    """

    def area(self, true_positive: Tensor, false_positive: Tensor) -> Tensor:
        """Returns the area."""
        passed = true_positive + false_positive
        gained, added = -true_positive.diff(), -passed.diff()
        slope = gained / torch.where(added > 0, added, torch.inf)
        intercept = true_positive[1:] - slope * passed[1:]
        ratio = torch.where(passed[1:] > 0, passed[:-1] / passed[1:], 1.0)
        return (slope * (gained + intercept * ratio.log())).sum() / true_positive[0]


def _thresholds(device: torch.device) -> Tensor:
    inner = [place / (NUM_THRESHOLDS - 1) for place in range(1, NUM_THRESHOLDS - 1)]
    single = torch.tensor([-1e-7, *inner, 1.0 + 1e-7], dtype=torch.float32, device=device)
    return single.to(torch.float64)
