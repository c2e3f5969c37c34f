"""Losses of an edge against its negatives.

Letters: `...` leading shape (chunks), `C` edges, `N` candidates. Inputs are the positive scores `[..., C]` and the
negative scores
`[..., C, N]` in which a masked candidate (a positive of the chunk, or padding) is `MASKED_SCORE`. The result is one
loss per
edge, `[..., C]`, whose size depends neither on `N` nor on how many candidates are masked away.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# Finite, so that an edge whose candidates are all masked has a finite loss and gradient (infinities would subtract
# to NaN).
MASKED_SCORE = -1e30

EdgeLoss = Callable[[Tensor, Tensor, float], Tensor]


def softmax_loss(positive: Tensor, negative: Tensor, margin: float) -> Tensor:
    """Cross entropy of the positive among itself and its negatives: `log(sum exp) - positive`. `margin` is not used."""
    return torch.logaddexp(positive, torch.logsumexp(negative, dim=-1)) - positive


def logistic_loss(positive: Tensor, negative: Tensor, margin: float) -> Tensor:
    """Binary cross entropy; the negatives of an edge weigh together as much as its positive. `margin` is not used."""
    return F.softplus(-positive) + F.softplus(negative).sum(-1) / _num_valid(negative)


def ranking_loss(positive: Tensor, negative: Tensor, margin: float) -> Tensor:
    """Mean hinge: every negative should score at least `margin` below the positive."""
    return F.relu(margin - positive.unsqueeze(-1) + negative).sum(-1) / _num_valid(negative)


def _num_valid(negative: Tensor) -> Tensor:
    return (negative > MASKED_SCORE / 2).sum(-1).clamp_min(1)


LOSSES: dict[str, EdgeLoss] = {"softmax": softmax_loss, "logistic": logistic_loss, "ranking": ranking_loss}
