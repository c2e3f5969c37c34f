"""Learning to give the scores that a lolly model gave: the squared error against the logit of a logged score.

Letters: `B` examples.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tml.common.errors import DataError
from tml.core.losses.watch_time import mse

LOLLY_EPSILON = 1e-5
"""Scores are kept that far from 0 and 1, so that their logits lie within about 11.5 of zero."""


def lolly_logit(scores: Tensor, epsilon: float = LOLLY_EPSILON) -> Tensor:
    """Returns `log(s / (1 - s))` of scores in per cent, `s = score / 100` clamped to `[epsilon, 1 - epsilon]`.

    The original does not clamp, so that a logged score of exactly 0 or 100 gave an infinite loss.

    Args:
        scores: [B], 0..100.
        epsilon: distance of the clamp from 0 and 1.

    Returns:
        float [B].

    Raises:
        DataError: a score is outside 0..100 or NaN.
    """
    wrong = ~((scores >= 0) & (scores <= 100))
    if wrong.any():
        raise DataError(
            "logged score is out of range",
            where=f"row {int(wrong.nonzero()[0])} of the batch",
            value=scores[wrong][0].item(),
            limit="0 <= score <= 100",
            fix="log scores in per cent, or leave replicate_lolly off",
        )
    # In float64: near one, float32 knows a logit to two digits only.
    shares = (scores.to(torch.float64) / 100.0).clamp(epsilon, 1.0 - epsilon)
    return torch.logit(shares).to(scores.dtype if scores.is_floating_point() else torch.float32)


def lolly_replication_loss(
    logits: Tensor, scores: Tensor, mask: Tensor | None = None, epsilon: float = LOLLY_EPSILON
) -> Tensor:
    """Plain mean squared error of logits against the logits of logged scores; example weights have no say.

    Args:
        logits: float [B].
        scores: [B], 0..100.
        mask: bool [B], False for rows that only fill the batch; None for all.
        epsilon: see `lolly_logit`.

    Returns:
        A scalar; zero where no row counts.
    """
    if mask is not None:
        scores = torch.where(mask.to(torch.bool), scores, 50.0)
    return mse(logits, lolly_logit(scores, epsilon), mask=mask)
