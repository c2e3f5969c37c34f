"""Losses of watch time, and of clicks and watch time together.

Letters: `B` examples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tml.common.errors import ConfigError, DataError
from tml.core.losses.classification import bce_with_logits
from tml.core.losses.reduction import Reduction, reduce_losses

WatchTimeLoss = Literal["mse", "log1p_mse"]


def mse(
    predictions: Tensor,
    targets: Tensor,
    weights: Tensor | None = None,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Squared error: `w * (prediction - target) ** 2` over the examples of a mask.

    Args:
        predictions: float [B].
        targets: [B]; outside the mask they may be anything, NaN too.
        weights: [B], not negative; None for ones.
        mask: bool [B], the examples that count; None for all.
        reduction: `mean` divides by the total weight of the examples that count and gives zero where that is zero.

    Returns:
        A scalar.
    """
    targets = targets.to(predictions.dtype)
    if mask is not None:
        # Both are replaced, not only their difference: a NaN behind `where` would still come back in the gradient.
        mask = mask.to(torch.bool)
        targets = torch.where(mask, targets, 0.0)
        weights = torch.where(mask, torch.ones_like(predictions) if weights is None else weights, 0.0)
    return reduce_losses((predictions - targets).square(), weights, reduction)


def log1p_mse(
    predictions: Tensor,
    seconds: Tensor,
    weights: Tensor | None = None,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Squared error on a logarithmic scale: `w * (prediction - log(1 + seconds)) ** 2`.

    Watch times have a long tail: in seconds, one video watched for an hour outweighs a thousand glances.

    Args:
        predictions: float [B], the logarithm of one plus seconds.
        seconds: [B], not negative where the mask is set.
        weights: as for `mse`.
        mask: as for `mse`.
        reduction: as for `mse`.

    Returns:
        A scalar.

    Raises:
        DataError: a watch time is negative.
    """
    counted = seconds if mask is None else torch.where(mask.to(torch.bool), seconds, 0.0)
    if (counted < 0).any():
        raise DataError(
            "watch time is negative",
            where=f"row {int((counted < 0).nonzero()[0])} of the batch",
            value=counted[counted < 0][0].item(),
            limit="seconds, at least 0",
            fix="mend the watch time column, or filter such rows in the feature config",
        )
    return mse(predictions, torch.log1p(counted.to(predictions.dtype)), weights, mask, reduction)


@dataclass(frozen=True)
class Engagement:
    """What a user did with each example of a batch.

    Attributes:
        clicks: [B], 0 or 1.
        seconds: [B], watch time.
        weights: [B], not negative; None for ones.
        watched: bool [B], the examples whose watch time counts, such as those that were clicked; None for all.
    """

    clicks: Tensor
    seconds: Tensor
    weights: Tensor | None = None
    watched: Tensor | None = None


class ClickAndWatchTimeLoss:
    """`alpha * click + beta * watch time`: binary cross-entropy of the click and a squared error of the watch time.

    Each part is a weighted mean over its own examples, so masking examples out of the watch time does not change what
    one watched example weighs against another.

    Args:
        alpha: factor of the click loss.
        beta: factor of the watch time loss.
        watch_time: `log1p_mse` (predictions are the logarithm of one plus seconds) or `mse` (predictions are seconds).

    Raises:
        ConfigError: a factor is negative or not finite, or both are zero.
    """

    def __init__(self, alpha: float, beta: float, watch_time: WatchTimeLoss = "log1p_mse") -> None:
        if not (alpha >= 0 and beta >= 0 and alpha + beta > 0 and math.isfinite(alpha + beta)):
            raise ConfigError(
                "factors of the combined loss make no loss",
                where="alpha, beta",
                value=(alpha, beta),
                limit="finite, not negative, not both zero",
                fix="give the click loss a positive alpha, and watch time a beta of zero to leave it out",
            )
        self.alpha, self.beta = alpha, beta
        self._watch_time_loss = {"mse": mse, "log1p_mse": log1p_mse}[watch_time]

    def __call__(self, click_logits: Tensor, watch_time: Tensor, engagement: Engagement) -> dict[str, Tensor]:
        """Returns the losses of two heads.

        Args:
            click_logits: float [B].
            watch_time: float [B], predictions on the scale of the watch time loss.
            engagement: the labels and weights.

        Returns:
            `loss`, `loss/click` and `loss/watch_time`, scalars; the parts are without their factors.
        """
        click = bce_with_logits(click_logits, engagement.clicks, engagement.weights)
        watched = self._watch_time_loss(watch_time, engagement.seconds, engagement.weights, engagement.watched)
        return {"loss": self.alpha * click + self.beta * watched, "loss/click": click, "loss/watch_time": watched}

    def of_single_output(self, logits: Tensor, engagement: Engagement) -> dict[str, Tensor]:
        """Returns the losses of one output that is both the click's logit and the prediction of the watch time.

        That is the light ranker as it is often written down. The two parts pull the one number to different places; it
        is here to be compared with, not to be recommended.

        Args:
            logits: float [B].
            engagement: the labels and weights.
        """
        return self(logits, logits, engagement)
