"""Weights of positives and negatives on either side of many thresholds, in memory that does not grow with the rows.

Letters: `N` rows, `K` thresholds.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tml.core.metrics.base import OutputMetric


class HistogramMetric(OutputMetric):
    """Keeps, for positives and negatives, the weight of rows by the number of thresholds that they pass.

    Args:
        num_thresholds: K.
        settings: see `OutputMetric`.
    """

    positives: Tensor
    negatives: Tensor

    def __init__(self, num_thresholds: int, **settings: Any) -> None:
        super().__init__(**settings)
        for name in ("positives", "negatives"):
            self.add_state(name, torch.zeros(num_thresholds + 1, dtype=torch.float64), dist_reduce_fx="sum")

    def add(self, num_passed: Tensor, labels: Tensor, weights: Tensor) -> None:
        """Adds rows.

        Args:
            num_passed: int64 [N], how many of the thresholds, which rise, each row passes.
            labels: [N]; positive above one half.
            weights: float64 [N].
        """
        positive = labels > 0.5
        for state, chosen in ((self.positives, positive), (self.negatives, ~positive)):
            histogram = torch.zeros_like(state, device=weights.device)
            state += histogram.index_add_(0, num_passed[chosen], weights[chosen]).to(state.device)


def weight_passing(histogram: Tensor) -> Tensor:
    """Returns the weight of rows that pass each threshold, [K], from those by number of thresholds passed, [K + 1]."""
    # A sum of what passes, not the total less what fails: where nothing passes this is exactly zero.
    return histogram.flip(0).cumsum(0).flip(0)[1:]


def weight_failing(histogram: Tensor) -> Tensor:
    """Returns the weight of rows that do not pass each threshold, [K], from the same."""
    return histogram.cumsum(0)[:-1]
