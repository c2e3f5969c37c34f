"""Weighted means and totals: the mean of any output, click-through rates and counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tml.core.metrics.base import OutputMetric


def merge_moments(moments: Tensor) -> Tensor:
    """Merges weighted means, after Chan, Golub and LeVeque's pairwise form of Welford's algorithm.

    Args:
        moments: float64 [parts, 2], a mean and its total weight for each part.

    Returns:
        float64 [2], the mean and total weight of all parts. Parts without weight have no say.
    """
    mean, weight = torch.zeros_like(moments[0])
    for part_mean, part_weight in moments:
        weight = weight + part_weight
        mean = mean + (part_mean - mean) * part_weight / torch.where(weight > 0, weight, 1.0)
    return torch.stack((mean, weight))


def merge_variances(moments: Tensor) -> Tensor:
    """Merges weighted sums of squares around means; see `merge_moments`.

    Args:
        moments: float64 [parts, 3], a mean, its total weight, and the weighted sum of squared distances from it.

    Returns:
        float64 [3], those of all parts.
    """
    mean, weight = merge_moments(moments[:, :2])
    between = moments[:, 1] @ (moments[:, 0] - mean).square()
    return torch.stack((mean, weight, moments[:, 2].sum() + between))


class StableMean(OutputMetric):
    """The weighted mean of an output; exact to rounding however many rows there are and however large they are.

    Undefined while the total weight is zero.

    Args:
        output: name of the output.
        settings: see `OutputMetric`.
    """

    moments: Tensor

    def __init__(self, output: str, **settings: Any) -> None:
        super().__init__(**settings)
        self.output = output
        self.add_state("moments", torch.zeros(2, dtype=torch.float64), dist_reduce_fx=merge_moments)

    def update(self, outputs: Mapping[str, Any]) -> None:
        """Adds a batch."""
        values, weights = self.select(outputs, self.output)
        self.add(self.transform(values.to(torch.float64)), weights)

    def transform(self, values: Tensor) -> Tensor:
        """Returns what is averaged, from the output as float64 [rows]."""
        return values

    def add(self, values: Tensor, weights: Tensor) -> None:
        """Adds values with their weights, both float64 [rows]."""
        weight = weights.sum()
        mean = (values * weights).sum() / torch.where(weight > 0, weight, 1.0)
        batch = torch.stack((mean, weight)).to(self.moments.device)
        self.moments = merge_moments(torch.stack((self.moments, batch)))

    def compute(self) -> Tensor:
        """Returns the mean, float64."""
        mean, weight = self.moments
        return mean if weight > 0 else self.undefined("the total weight is zero")


class Ctr(StableMean):
    """Click-through rate: the weighted mean of `labels`."""

    def __init__(self, **settings: Any) -> None:
        super().__init__("labels", **settings)


class Pctr(StableMean):
    """Predicted click-through rate: the weighted mean of `probabilities`, or of another output."""

    def __init__(self, prediction: str = "probabilities", **settings: Any) -> None:
        super().__init__(prediction, **settings)


class PredictionStdDev(OutputMetric):
    """The weighted standard deviation of the predictions: how far the model tells rows apart, not how sure it is.

    Undefined while the total weight is zero.

    Args:
        prediction: output with the predictions.
        settings: see `OutputMetric`.
    """

    moments: Tensor

    def __init__(self, prediction: str = "probabilities", **settings: Any) -> None:
        super().__init__(**settings)
        self.prediction = prediction
        self.add_state("moments", torch.zeros(3, dtype=torch.float64), dist_reduce_fx=merge_variances)

    def update(self, outputs: Mapping[str, Any]) -> None:
        """Adds a batch."""
        values, weights = self.select(outputs, self.prediction)
        values, weight = values.to(torch.float64), weights.sum()
        mean = (values * weights).sum() / torch.where(weight > 0, weight, 1.0)
        batch = torch.stack((mean, weight, ((values - mean).square() * weights).sum()))
        self.moments = merge_variances(torch.stack((self.moments, batch.to(self.moments.device))))

    def compute(self) -> Tensor:
        """Returns the standard deviation, float64."""
        _, weight, squares = self.moments
        return (squares / weight).sqrt() if weight > 0 else self.undefined("the total weight is zero")


class Count(OutputMetric):
    """The number of positive labels: the sum of `labels`, without weights. Zero when there are no rows."""

    total: Tensor

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.add_sums("total")

    def update(self, outputs: Mapping[str, Any]) -> None:
        """Adds a batch."""
        self.total += self.amount(*self.select(outputs, "labels")).to(self.total)

    def amount(self, labels: Tensor, weights: Tensor) -> Tensor:
        """Returns what a batch adds to the total."""
        return labels.sum(dtype=torch.float64)

    def compute(self) -> Tensor:
        """Returns the total, float64."""
        return self.total


class NumSamples(Count):
    """The number of rows."""

    def amount(self, labels: Tensor, weights: Tensor) -> Tensor:
        """Returns the number of rows of a batch."""
        return torch.tensor(len(labels))


class TotalWeight(Count):
    """The sum of the weights."""

    def amount(self, labels: Tensor, weights: Tensor) -> Tensor:
        """Returns the weight of a batch."""
        return weights.sum()
