"""What a run is measured by: clicks before and after calibration, the watch time, and order within groups."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tml.common.device import gather_objects
from tml.common.modules.calibrators import Isotonic
from tml.core.metrics.catalogue import UNCALIBRATED, UNWEIGHTED, build_metrics, check_names, scalars
from tml.projects.light_ranker.config import EvaluationConfig, LossConfig
from tml.projects.light_ranker.features.spec import FeatureSpec

if TYPE_CHECKING:
    from torchmetrics import MetricCollection

# What the log shows of the metrics of held-out rows.
SHOWN = ("rce", "uncalibrated_rce", "roc_auc", "pr_auc", "ece", "uncalibrated_ece", "watch_time_mse", "ndcg@10")

# Metrics that a calibration changes, up to ties.
_CALIBRATED = ("rce", "nrce", "predicted_ctr", "pred_std_dev", "roc_auc", "pr_auc", "ece", "ece_equal_mass")


class RankerMetrics:
    """Metrics of a model's outputs; see `Objective` for the outputs and `build_metrics` for the names.

    Args:
        config: the `evaluation` section.
        loss: the `loss` section, which says what is predicted.
        spec: the features.
        isotonic: calibration of the click; None before there is one.

    Raises:
        ConfigError: a name is unknown or stands twice.
    """

    def __init__(
        self, config: EvaluationConfig, loss: LossConfig, spec: FeatureSpec, isotonic: Isotonic | None = None
    ) -> None:
        self._isotonic = isotonic
        names = list(config.metrics)
        names += [f"ndcg@{k}" for k in config.ndcg_at if spec.has_group]
        if loss.watch_time_label is not None:
            names += ["watch_time_mse", "watch_time_mae", "watch_time_mae_seconds"]
        if isotonic is not None:
            names += [f"{UNCALIBRATED}{name}" for name in names if name.removeprefix(UNWEIGHTED) in _CALIBRATED]
        self._names = list(dict.fromkeys(names))
        check_names(self._names)

    @cached_property
    def _metrics(self) -> MetricCollection:
        # Made for the first evaluation: importing torchmetrics would hold up the first step.
        return build_metrics(self._names)

    def reset(self) -> None:
        """Forget all rows."""
        self._metrics.reset()

    def update(self, outputs: Mapping[str, Any]) -> None:
        """Add a batch."""
        if self._isotonic is not None:
            raw = outputs["probabilities"]
            calibrated = self._isotonic.to(raw.device)(raw)
            outputs = {**outputs, "probabilities": calibrated, f"{UNCALIBRATED}probabilities": raw}
        self._metrics.update(outputs)

    def compute(self) -> dict[str, float]:
        """Metrics by name, reduced over ranks; one of many thresholds has a name for each."""
        return scalars(self._metrics.compute())


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
