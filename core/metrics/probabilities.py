"""What the metrics of probabilities share: cross-entropies, and the refusal of numbers that are no probabilities.

Letters: `N` rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tml.common.errors import DataError

TWML_EPSILON = 1e-5
"""How far from 0 and 1 the original light ranker's metrics keep probabilities."""


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


def check_probabilities(probabilities: Tensor, where: str) -> None:
    """Refuses probabilities outside 0..1.

    Raises:
        DataError: one is outside.
    """
    outside = (probabilities < 0) | (probabilities > 1)
    if outside.any():
        raise DataError(
            "probability is out of range",
            where=where,
            value=probabilities[outside][0].item(),
            limit="0 <= probability <= 1",
            fix="apply the sigmoid, or return logits and set from_logits where the metric has it",
        )


def check_binary(labels: Tensor, where: str, fix: str) -> None:
    """Refuses labels other than 0 and 1.

    Raises:
        DataError: one is another.
    """
    strange = (labels != 0) & (labels != 1)
    if strange.any():
        raise DataError(
            "label is neither 0 nor 1", where=where, value=labels[strange][0].item(), limit="0 or 1", fix=fix
        )
