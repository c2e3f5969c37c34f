"""Losses of an edge against its negatives, with their gradients written out.

Letters: `...` leading shape (chunks), `C` edges, `N` candidates.

A loss takes the positive scores `[..., C]`, the negative scores `[..., C, N]` in which a candidate that is no
negative (a positive of the chunk, or padding) is `MASKED_SCORE`, and the margin. It returns the loss of each edge
`[..., C]` and its derivatives by the positive score `[..., C]` and by the negative scores `[..., C, N]`; the latter
overwrite the negative scores, and are zero where masked. Logistic and ranking losses are means over the negatives, so
they depend neither on `N` nor on how many candidates are masked; softmax grows with both.

Derivatives are written out because the scores of a batch are its largest tensor: autograd would walk over them
several more times.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# Finite, so that an edge whose candidates are all masked has a finite loss (infinities would subtract to NaN).
MASKED_SCORE = -1e30

EdgeLoss = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor, Tensor]]


def softmax_loss(positive: Tensor, negative: Tensor, margin: float) -> tuple[Tensor, Tensor, Tensor]:
    """Cross entropy of the positive, less `margin`, among itself and its negatives: `log(sum exp) - positive`.

    With `n` candidates of which `N` were drawn uniformly, `margin = log(n / N)` gives each of them the weight of those
    it stands for: the loss then estimates the one over all candidates (sampled softmax, arXiv 1412.2007).
    """
    positive = positive - margin
    top = positive if negative.shape[-1] == 0 else torch.maximum(negative.amax(-1), positive)
    share = negative.sub_(top.unsqueeze(-1)).exp_()
    own = (positive - top).exp_()
    total = share.sum(-1) + own
    loss = total.log() + top - positive
    return loss, own / total - 1, share.div_(total.unsqueeze(-1))


def logistic_loss(positive: Tensor, negative: Tensor, margin: float) -> tuple[Tensor, Tensor, Tensor]:
    """Binary cross entropy; the negatives of an edge weigh together as much as its positive. `margin` is not used."""
    weight = 1.0 / _num_valid(negative)
    loss = F.softplus(-positive) + F.softplus(negative).sum(-1) * weight
    return loss, torch.sigmoid(positive) - 1, negative.sigmoid_().mul_(weight.unsqueeze(-1))


def ranking_loss(positive: Tensor, negative: Tensor, margin: float) -> tuple[Tensor, Tensor, Tensor]:
    """Mean hinge: every negative should score at least `margin` below the positive."""
    weight = 1.0 / _num_valid(negative)
    hinge = F.relu_(negative.add_((margin - positive).unsqueeze(-1)))
    loss = hinge.sum(-1) * weight
    active = hinge.sign_().mul_(weight.unsqueeze(-1))
    return loss, -active.sum(-1), active


def _num_valid(negative: Tensor) -> Tensor:
    return (negative > MASKED_SCORE / 2).sum(-1).clamp_min(1)


LOSSES: dict[str, EdgeLoss] = {"softmax": softmax_loss, "logistic": logistic_loss, "ranking": ranking_loss}

# Losses of differences between scores: what is added to all scores of an edge has no effect on them.
SHIFT_INVARIANT = frozenset({"softmax", "ranking"})
