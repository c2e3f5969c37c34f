"""From scores to the loss of some chunks in one step: masks, loss and gradients together.

Letters: `S` chunks, `C` edges, `N` candidates, `D` embedding dim.

`scores_loss` starts from a matrix of scores; `dots_loss` also makes the scores, as dot products, and keeps gradients by
their operands instead of the scores themselves.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tml.projects.twhin.models.losses import LOSSES, MASKED_SCORE


def scores_loss(positive: Tensor, negative: Tensor, masked: Tensor, weight: Tensor, loss: str, margin: float) -> Tensor:
    """Weighted sum of the edges' losses (scalar).

    Args:
        positive: scores of the edges, `[S, C]`.
        negative: scores of the candidates, `[S, C, N]`.
        masked: int64 `[P]`, flat places in `[S, C, N]` that hold no negative.
        weight: `[S, C]`.
        loss: a name of `LOSSES`.
        margin: of the ranking loss.
    """
    total: Tensor = _ScoresLoss.apply(positive, negative, masked, weight, loss, margin)  # type: ignore[no-untyped-call]
    return total


def dots_loss(
    queries: Tensor,
    candidates: Tensor,
    bias: Tensor | None,
    positive: Tensor,
    masked: Tensor,
    weight: Tensor,
    loss: str,
    margin: float,
) -> Tensor:
    """`scores_loss` with the negative scores `queries [S, C, D] . candidates [S, N, D] + bias [S, C]`."""
    if torch.is_autocast_enabled(queries.device.type):
        # The written-out products below keep the type of their operands; autocast knows how to mix two of them.
        negative = torch.bmm(queries, candidates.transpose(1, 2)).float()
        negative = negative if bias is None else negative + bias.unsqueeze(-1)
        return scores_loss(positive, negative, masked, weight, loss, margin)
    total: Tensor = _DotsLoss.apply(  # type: ignore[no-untyped-call]
        queries, candidates, bias, positive, masked, weight, loss, margin
    )
    return total


class _ScoresLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, positive: Tensor, negative: Tensor, masked: Tensor, weight: Tensor, loss: str, margin: float
    ) -> Tensor:
        negative = negative.clone()
        negative.view(-1).index_fill_(0, masked, MASKED_SCORE)
        total, by_positive, by_negative = _weighted(positive, negative, weight, loss, margin)
        ctx.save_for_backward(by_positive, by_negative)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        by_positive, by_negative = ctx.saved_tensors
        return *scaled(grad, by_positive, by_negative), None, None, None, None


class _DotsLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        candidates: Tensor,
        bias: Tensor | None,
        positive: Tensor,
        masked: Tensor,
        weight: Tensor,
        loss: str,
        margin: float,
    ) -> Tensor:
        negative = torch.bmm(queries, candidates.transpose(1, 2))
        if bias is not None:
            negative += bias.unsqueeze(-1)
        negative.view(-1).index_fill_(0, masked, MASKED_SCORE)
        total, by_positive, by_negative = _weighted(positive, negative, weight, loss, margin)
        by_queries = torch.bmm(by_negative, candidates)
        by_candidates = torch.bmm(by_negative.transpose(1, 2), queries)
        by_bias = None if bias is None else by_negative.sum(-1)
        ctx.has_bias = bias is not None
        ctx.save_for_backward(by_queries, by_candidates, by_positive, *([] if by_bias is None else [by_bias]))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        by_queries, by_candidates, by_positive, *rest = scaled(grad, *ctx.saved_tensors)
        by_bias = rest[0] if ctx.has_bias else None
        return by_queries, by_candidates, by_bias, by_positive, None, None, None, None


def scaled(grad: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Derivatives times the derivative of what follows, a scalar that is one wherever a loss is what is minimised."""
    # On a CPU it is worth a look; on a GPU looking would wait for the device.
    if grad.device.type == "cpu" and grad.item() == 1.0:
        return tensors
    return tuple(tensor * grad for tensor in tensors)


def _weighted(
    positive: Tensor, negative: Tensor, weight: Tensor, loss: str, margin: float
) -> tuple[Tensor, Tensor, Tensor]:
    losses, by_positive, by_negative = LOSSES[loss](positive, negative, margin)
    return (losses * weight).sum(), by_positive * weight, by_negative.mul_(weight.unsqueeze(-1))
