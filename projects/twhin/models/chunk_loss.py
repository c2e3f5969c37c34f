"""From scores to the loss of a batch in one step: masks, loss and gradients together.

Letters: `S` chunks, `C` edges, `N` candidates, `D` embedding dim.

`scores_loss` starts from a matrix of scores; `dots_loss` also makes the scores, as dot products, a few chunks at a
time, so that they stay in the processor's cache and are never kept for the backward.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tml.projects.twhin.models.losses import LOSSES, MASKED_SCORE

# Scores of one block: half a megabyte of float32 leaves room in a core's L2 cache for their operands.
_BLOCK_SCORES = 1 << 17


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
        return by_positive * grad, by_negative * grad, None, None, None, None


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
        by_queries, by_candidates = torch.empty_like(queries), torch.empty_like(candidates)
        by_positive, total = torch.empty_like(positive), positive.new_zeros(())
        by_bias = None if bias is None else torch.empty_like(bias)
        for block, places in _blocks(queries, candidates, masked):
            negative = torch.bmm(queries[block], candidates[block].transpose(1, 2))
            if bias is not None:
                negative += bias[block].unsqueeze(-1)
            negative.view(-1).index_fill_(0, places, MASKED_SCORE)
            part, by_positive[block], by_negative = _weighted(positive[block], negative, weight[block], loss, margin)
            total += part
            torch.bmm(by_negative, candidates[block], out=by_queries[block])
            torch.bmm(by_negative.transpose(1, 2), queries[block], out=by_candidates[block])
            if by_bias is not None:
                torch.sum(by_negative, dim=-1, out=by_bias[block])
        ctx.has_bias = bias is not None
        ctx.save_for_backward(by_queries, by_candidates, by_positive, *([] if by_bias is None else [by_bias]))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        by_queries, by_candidates, by_positive, *rest = ctx.saved_tensors
        by_bias = rest[0] * grad if ctx.has_bias else None
        return by_queries * grad, by_candidates * grad, by_bias, by_positive * grad, None, None, None, None


def _blocks(queries: Tensor, candidates: Tensor, masked: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Slices of chunks, and the masked places of each, counted from its first score."""
    num_chunks = len(queries)
    scores_per_chunk = queries.shape[1] * candidates.shape[1]
    step = max(1, _BLOCK_SCORES // max(scores_per_chunk, 1))
    if queries.device.type != "cpu" or step >= num_chunks:
        yield slice(0, num_chunks), masked
        return
    starts = range(0, num_chunks, step)
    bounds = torch.searchsorted(masked, torch.tensor([*starts, num_chunks]) * scores_per_chunk).tolist()
    for start, low, high in zip(starts, bounds, bounds[1:], strict=False):
        yield slice(start, start + step), masked[low:high] - start * scores_per_chunk


def _weighted(
    positive: Tensor, negative: Tensor, weight: Tensor, loss: str, margin: float
) -> tuple[Tensor, Tensor, Tensor]:
    losses, by_positive, by_negative = LOSSES[loss](positive, negative, margin)
    return (losses * weight).sum(), by_positive * weight, by_negative.mul_(weight.unsqueeze(-1))
