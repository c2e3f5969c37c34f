"""What a run is measured by: clicks before and after calibration, the watch time, and order within groups."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torchmetrics
from torch import Tensor, nn

from tml.common.batch import DataclassBatch
from tml.common.device import gather_objects
from tml.common.modules.calibrators import Isotonic
from tml.core.batch_stream import StopRequest
from tml.core.custom_training_loop import evaluate
from tml.core.metrics import Auc, Ctr, NumSamples, Pctr, Rce, TotalWeight, metric_collection
from tml.projects.light_ranker.config import EvaluationConfig, LossConfig
from tml.projects.light_ranker.features.spec import FeatureSpec

# What predictions are kept for: fitting the isotonic calibration.
Predictions = dict[str, Tensor]


class RankerMetrics:
    """Metrics of a model's outputs, weighted; see `Objective` for the outputs.

    Args:
        config: the `evaluation` section.
        loss: the `loss` section, which says what is predicted.
        spec: the features.
        isotonic: calibration of the click; None before there is one.
    """

    def __init__(
        self, config: EvaluationConfig, loss: LossConfig, spec: FeatureSpec, isotonic: Isotonic | None = None
    ) -> None:
        self._isotonic = isotonic
        self._plain = metric_collection(_click_metrics())
        self._calibrated = metric_collection(_click_metrics()) if isotonic else None

    def reset(self) -> None:
        """Forget all rows."""
        for collection in self._collections():
            collection.reset()

    def update(self, outputs: Mapping[str, Any]) -> None:
        """Add a batch."""
        self._plain.update(outputs)
        if self._calibrated is not None:
            assert self._isotonic is not None
            self._calibrated.update({**outputs, "probabilities": self._isotonic(outputs["probabilities"])})

    def compute(self) -> dict[str, Tensor]:
        """Metrics by name, reduced over ranks."""
        found = dict(self._plain.compute())
        if self._calibrated is not None:
            found |= {f"calibrated_{name}": value for name, value in self._calibrated.compute().items()}
        return found

    def _collections(self) -> list[torchmetrics.MetricCollection]:
        return [one for one in (self._plain, self._calibrated) if one is not None]


def evaluate_ranker(
    model: nn.Module,
    batches: Iterable[DataclassBatch],
    metrics: Any,
    device: torch.device,
    num_steps: int = -1,
    stop: StopRequest | None = None,
) -> dict[str, float]:
    """Metrics of a model over batches, see `evaluate`."""
    return evaluate(model, batches, metrics, device, num_steps=num_steps, stop=stop)


class KeptPredictions:
    """Keeps probabilities, labels and weights of every row; stands in for metrics in `evaluate`."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all rows."""
        self._kept: list[list[Tensor]] = [[], [], []]

    def update(self, outputs: Mapping[str, Tensor]) -> None:
        """Add a batch."""
        for kept, name in zip(self._kept, ("probabilities", "labels", "weights"), strict=True):
            kept.append(outputs[name].float().cpu())

    def compute(self) -> dict[str, Tensor]:
        """Nothing: the rows are asked for by `rows`."""
        return {}

    def rows(self) -> tuple[Tensor, Tensor, Tensor]:
        """Probabilities, labels and weights of all ranks' rows, on every rank."""
        mine = [torch.cat(kept) if kept else torch.empty(0) for kept in self._kept]
        parts = gather_objects(mine)
        joined = [torch.cat([part[place] for part in parts]) for place in range(3)]
        return joined[0], joined[1], joined[2]


def _click_metrics() -> dict[str, torchmetrics.Metric]:
    return {
        "rce": Rce(),
        "roc_auc": Auc(),
        "ctr": Ctr(),
        "predicted_ctr": Pctr(),
        "num_samples": NumSamples(),
        "total_weight": TotalWeight(),
    }
