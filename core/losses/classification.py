"""Losses of classifiers with weighted examples and several tasks.

Letters: `B` examples, `C` classes, `T` tasks.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tml.common.errors import ConfigError, DataError
from tml.core.losses.reduction import Loss, Reduction, reduce_losses

GlobalReduction = Literal["mean", "sum", "min", "max", "median"]


class LossType(enum.StrEnum):
    """Losses by name."""

    BCE_WITH_LOGITS = "bce_with_logits"
    CROSS_ENTROPY = "cross_entropy"


def bce_with_logits(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor | None = None,
    pos_weight: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Binary cross-entropy: `-w * (pos_weight * y * log p + (1 - y) * log(1 - p))` with `p = sigmoid(logits)`.

    Args:
        logits: float [B].
        labels: [B], in 0..1.
        weights: [B], not negative; None for ones.
        pos_weight: factor of the positive term. It is no part of the total weight.
        reduction: `mean` divides the sum by the total weight and gives zero where that is zero.

    Returns:
        A scalar.
    """
    factor = None if pos_weight == 1.0 else logits.new_tensor(pos_weight)
    losses = F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none", pos_weight=factor)
    return reduce_losses(losses, weights, reduction)


def cross_entropy(
    logits: Tensor, labels: Tensor, weights: Tensor | None = None, reduction: Reduction = "mean"
) -> Tensor:
    """Cross-entropy of a softmax: `-w * log softmax(logits)[label]`.

    Args:
        logits: float [B, C].
        labels: int64 [B], in 0..C-1.
        weights: [B], not negative; None for ones.
        reduction: `mean` divides the sum by the total weight and gives zero where that is zero.

    Returns:
        A scalar.
    """
    return reduce_losses(F.cross_entropy(logits, labels, reduction="none"), weights, reduction)


def build_loss(loss_type: LossType, reduction: Reduction = "mean") -> Loss:
    """Builds a loss by name.

    Returns:
        A function `(logits, labels, weights=None) -> scalar`; see the loss for the shapes.
    """
    return partial(_LOSSES[LossType(loss_type)], reduction=reduction)


def build_multi_task_loss(
    tasks: Sequence[str],
    pos_weights: Mapping[str, float] | None = None,
    global_reduction: GlobalReduction = "mean",
    reduction: Reduction = "mean",
) -> Callable[..., dict[str, Tensor]]:
    """Builds the binary cross-entropy of several tasks.

    Args:
        tasks: a name for every column.
        pos_weights: factor of the positive term by task; 1 for tasks that are not named.
        global_reduction: how the losses of the tasks become one.
        reduction: how the losses of the examples of a task become one.

    Returns:
        A function `(logits [B, T], labels [B, T], weights [B] or [B, T] or None) -> losses` with the key
        `loss/<task>` for every task and `loss` for all together.

    Raises:
        ConfigError: names of tasks are missing, repeated or unknown.
    """
    factors = dict.fromkeys(tasks, 1.0) | dict(pos_weights or {})
    if not tasks or len(set(tasks)) != len(tasks) or len(factors) != len(tasks):
        raise ConfigError(
            "tasks are missing, repeated or unknown",
            where="tasks and pos_weights",
            value=(list(tasks), dict(pos_weights or {})),
            limit="at least one task, distinct names, pos_weights of these tasks only",
            fix="name each column of the logits once",
        )
    combine = _GLOBAL_REDUCTIONS[global_reduction]

    def multi_task_loss(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> dict[str, Tensor]:
        if logits.shape[1:] != (len(tasks),) or labels.shape != logits.shape:
            raise DataError(
                "logits and labels must have a column for each task",
                value=(tuple(logits.shape), tuple(labels.shape)),
                limit=f"two equal shapes [B, {len(tasks)}] for tasks {', '.join(tasks)}",
                fix="give every task a column",
            )
        shared = weights is None or weights.dim() == 1
        losses = {
            f"loss/{task}": bce_with_logits(
                logits[:, column],
                labels[:, column],
                weights if shared else weights[:, column],  # type: ignore[index]
                factors[task],
                reduction,
            )
            for column, task in enumerate(tasks)
        }
        return {**losses, "loss": combine(torch.stack(list(losses.values())))}

    return multi_task_loss


_LOSSES: dict[LossType, Loss] = {
    LossType.BCE_WITH_LOGITS: bce_with_logits,
    LossType.CROSS_ENTROPY: cross_entropy,
}

_GLOBAL_REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": torch.mean,
    "sum": torch.sum,
    "min": torch.min,
    "max": torch.max,
    "median": torch.median,
}
