"""From the losses of examples to one number: the weighted mean or sum, and a loss's mean over ranks for the log.

Letters: `B` examples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from tml.common.errors import DataError

Reduction = Literal["mean", "sum"]
Loss = Callable[..., Tensor]


def reduce_losses(losses: Tensor, weights: Tensor | None, reduction: Reduction) -> Tensor:
    """Returns the weighted mean or sum of losses.

    Args:
        losses: float [B].
        weights: [B], not negative; None for ones.
        reduction: `mean` divides the sum by the total weight and gives zero where that is zero.

    Returns:
        A scalar.

    Raises:
        DataError: losses and weights have different shapes.
    """
    if weights is None:
        weights = torch.ones_like(losses)
    elif weights.shape != losses.shape:
        raise DataError(
            "weights must have the shape of the losses",
            value=tuple(weights.shape),
            limit=tuple(losses.shape),
            fix="give every example one weight",
        )
    weights = weights.to(losses.dtype)
    total = (losses * weights).sum()
    if reduction == "sum":
        return total
    total_weight = weights.sum()
    return total / torch.where(total_weight > 0, total_weight, 1.0)


def get_global_loss_detached(local_loss: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Returns the mean of the ranks' losses, cut off from the graph. The argument is left as it is.

    Args:
        local_loss: this rank's loss, of the same shape on every rank.
        group: ranks that take part; all by default. Without a process group the loss itself is the mean.
    """
    # A detached tensor shares its storage, and all-reduce works in place.
    total = local_loss.detach().clone()
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(total, group=group)
        total /= dist.get_world_size(group)
    return total
