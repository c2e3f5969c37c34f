"""Precision and recall of a binary classifier at a threshold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tml.core.metrics.base import OutputMetric


class _AtThreshold(OutputMetric):
    """Weighted numbers of true positives, false positives and false negatives.

    Args:
        threshold: a row is predicted positive when `probabilities >= threshold`; its label is positive above one half.
        settings: see `OutputMetric`.
    """

    higher_is_better = True
    true_positive: Tensor
    false_positive: Tensor
    false_negative: Tensor

    def __init__(self, threshold: float = 0.5, **settings: Any) -> None:
        super().__init__(**settings)
        self.threshold = threshold
        self.add_sums("true_positive", "false_positive", "false_negative")

    def update(self, outputs: Mapping[str, Any]) -> None:
        """Adds a batch."""
        probabilities, labels, weights = self.select(outputs, "probabilities", "labels")
        predicted, actual = probabilities >= self.threshold, labels > 0.5
        self.true_positive += _weight_where(predicted & actual, weights).to(self.device)
        self.false_positive += _weight_where(predicted & ~actual, weights).to(self.device)
        self.false_negative += _weight_where(~predicted & actual, weights).to(self.device)


class Precision(_AtThreshold):
    """The weighted share of positives among the rows predicted positive; undefined when none is predicted positive."""

    def compute(self) -> Tensor:
        """Returns the precision, float64."""
        predicted = self.true_positive + self.false_positive
        return self.true_positive / predicted if predicted > 0 else self.undefined("no row is predicted positive")


class Recall(_AtThreshold):
    """The weighted share of rows predicted positive among the positives; undefined without positives."""

    def compute(self) -> Tensor:
        """Returns the recall, float64."""
        actual = self.true_positive + self.false_negative
        return self.true_positive / actual if actual > 0 else self.undefined("no label is positive")


def _weight_where(chosen: Tensor, weights: Tensor) -> Tensor:
    return torch.where(chosen, weights, 0.0).sum()
