"""Metrics of a whole data set that no running total can hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tml.core.metrics.base import OutputMetric


class KeptRowsMetric(OutputMetric):
    """Keeps prediction, label and weight of every row in float32: 12 bytes a row, of all ranks' rows in `compute()`.

    Args:
        prediction: name of the output with the predictions.
        settings: see `OutputMetric`.
    """

    predictions: list[Tensor] | Tensor
    labels: list[Tensor] | Tensor
    weights: list[Tensor] | Tensor

    def __init__(self, prediction: str, **settings: Any) -> None:
        super().__init__(**settings)
        self.prediction = prediction
        for name in ("predictions", "labels", "weights"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, outputs: Mapping[str, Any]) -> None:
        """Adds a batch."""
        predictions, labels, weights = self.select(outputs, self.prediction, "labels")
        self.check_rows(predictions, labels)
        for kept, rows in ((self.predictions, predictions), (self.labels, labels), (self.weights, weights)):
            assert isinstance(kept, list)
            # A rank that has seen no rows takes part in the gathering with an empty tensor of this very type.
            kept.append(rows.to(self.device, self.dtype))

    def check_rows(self, predictions: Tensor, labels: Tensor) -> None:
        """Refuses rows that the metric has no meaning for; nothing has been kept of the batch then."""

    def rows(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns predictions, labels and weights of all rows, float64 [rows] each."""
        return self._joined(self.predictions), self._joined(self.labels), self._joined(self.weights)

    def _joined(self, kept: list[Tensor] | Tensor) -> Tensor:
        if isinstance(kept, list):
            kept = torch.cat(kept) if kept else torch.empty(0, device=self.device)
        return kept.to(torch.float64)
