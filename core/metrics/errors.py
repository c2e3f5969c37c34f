"""Errors of predicted amounts: of watch time, of replicated scores, of anything with a target."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from tml.common.errors import NonFiniteError
from tml.core.metrics.mean import StableMean

Scale = Literal["as_is", "from_log1p"]


class MeanSquaredError(StableMean):
    """The weighted mean of `(prediction - target) ** 2`, over all rows: of every batch, not of the last one.

    Undefined while the total weight is zero.

    Args:
        prediction: output with the predictions.
        target: output with what they should be, on the same scale.
        mask: output [B] with 1 for rows that count and 0 for others; None for all.
        scale: `from_log1p` takes predictions and targets through `exp(x) - 1` first, so the error of logarithms of
            seconds is measured in seconds.
        settings: see `OutputMetric`.
    """

    higher_is_better = False

    def __init__(
        self,
        prediction: str = "probabilities",
        target: str = "labels",
        mask: str | None = None,
        scale: Scale = "as_is",
        **settings: Any,
    ) -> None:
        super().__init__(prediction, **settings)
        self.target = target
        self.mask = mask
        self.scale = scale

    def update(self, outputs: Mapping[str, Any]) -> None:
        """Adds a batch.

        Raises:
            NonFiniteError: an amount is out of float64's range once its logarithm is undone.
        """
        names = (self.output, self.target) if self.mask is None else (self.output, self.target, self.mask)
        prediction, target, *mask, weights = self.select(outputs, *names)
        if mask:
            weights = torch.where(mask[0] > 0, weights, 0.0)
        errors = self.error(self._amount(prediction) - self._amount(target))
        if not errors.isfinite().all():
            row = int((~errors.isfinite()).nonzero()[0])
            raise NonFiniteError(
                "error of a prediction is infinite",
                where=f"{self._place()}, outputs {self.output!r} and {self.target!r}",
                value=(prediction[row].item(), target[row].item()),
                limit="logarithms below about 350" if self.scale == "from_log1p" else "finite",
                fix="look for the step at which training diverged",
            )
        self.add(errors, weights)

    def error(self, differences: Tensor) -> Tensor:
        """Returns what is averaged, from prediction less target, float64 [rows]."""
        return differences.square()

    def _amount(self, values: Tensor) -> Tensor:
        amount: Callable[[Tensor], Tensor] = torch.expm1 if self.scale == "from_log1p" else torch.clone
        return amount(values.to(torch.float64))


class MeanAbsoluteError(MeanSquaredError):
    """The weighted mean of `|prediction - target|`; arguments are those of `MeanSquaredError`."""

    def error(self, differences: Tensor) -> Tensor:
        """Returns the distances."""
        return differences.abs()
