"""The loss of a batch: click, watch time and order, weighted and added.

Letters: `B` rows, `L` labels.

    L = alpha * sum_i w_i bce(z_i, y_i) / sum_i w_i + beta * sum_i w_i (t_i' - t_i)^2 / sum_i w_i + weight * ranking

The sums run over the global batch, so the mean of the ranks' losses is the loss of one rank.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from tml.common.device import world_size
from tml.common.errors import ConfigError
from tml.core.losses.lolly import lolly_logit
from tml.core.losses.ranking import RankingLossType, build_ranking_loss
from tml.projects.light_ranker.config import LossConfig
from tml.projects.light_ranker.data.batch import RankerBatch
from tml.projects.light_ranker.features.spec import FeatureSpec


class Objective(nn.Module):
    """Loss and metrics' outputs from a model's predictions.

    Args:
        config: the `loss` section.
        spec: says where each label lies.
        replicate_label: label with another model's score, 0 to 100. Its logit is then learnt and nothing else, by the
            plain squared error over all rows, whatever their weights.
        num_ranks: ranks that hold a share of each batch; those of this run by default. With 1 the loss asks no other
            rank, so that an export or an answer on one rank does not wait for the rest.

    Raises:
        ConfigError: a label is unknown or of the wrong kind, or a ranking loss lacks groups.
    """

    def __init__(
        self, config: LossConfig, spec: FeatureSpec, replicate_label: str | None = None, num_ranks: int | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self._num_ranks = world_size() if num_ranks is None else num_ranks
        self._scores = None
        if replicate_label is not None:
            self._scores = label_place(spec, replicate_label, "model.lolly_lr.replicate_label", "nonnegative")
        self._click = label_place(spec, config.click_label, "loss.click_label", "binary")
        self._watch_time = None
        if config.watch_time_label is not None:
            self._watch_time = label_place(spec, config.watch_time_label, "loss.watch_time_label", "nonnegative")
        if config.ranking is not None and not spec.has_group:
            raise ConfigError(
                "a ranking loss needs groups", where="loss.ranking",
                fix="name a group column in features.yaml and prepare the data again, or leave the ranking loss out",
            )  # fmt: skip
        self._ranking = build_ranking_loss(RankingLossType(config.ranking.kind)) if config.ranking else None

    @property
    def click_place(self) -> int:
        """The column of the click among the labels."""
        return self._click

    @property
    def has_watch_time(self) -> bool:
        """Whether the watch time is learnt."""
        return self._watch_time is not None

    def forward(self, predictions: dict[str, Tensor], batch: RankerBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and the detached outputs that metrics read.

        Args:
            predictions: `click` logits `[B]` and, with a watch time, `watch_time` `[B]`, float32.
            batch: labels and weights.

        Returns:
            A scalar whose mean over ranks is the loss of the global batch; and `logits`, `probabilities`, `labels`,
            `weights`, `groups`, `watch_time_prediction` and `watch_time_label` (log1p seconds) of real rows.
        """
        loss = (
            self._replication(predictions["click"], batch)
            if self._scores is not None
            else self._loss(predictions, batch)
        )
        return loss, {} if self.training else self._outputs(predictions, batch)

    def _loss(self, predictions: dict[str, Tensor], batch: RankerBatch) -> Tensor:
        logits, labels = predictions["click"], batch.labels[:, self._click]
        share = batch.weight * (self._num_ranks / self._global_sum(batch.weight))
        loss = self.config.alpha * F.binary_cross_entropy_with_logits(logits, labels, share, reduction="sum")
        if self._watch_time is not None:
            target = batch.labels[:, self._watch_time]
            target = target.log1p() if self.config.watch_time_loss == "log1p_mse" else target
            loss = loss + self.config.beta * ((predictions["watch_time"] - target).square() * share).sum()
        if self.config.ranking is not None and self._ranking is not None:
            # A rank's mean over its own groups: cutting a batch elsewhere cuts other groups in two.
            loss = loss + self.config.ranking.weight * self._ranking(logits, labels, batch.group, batch.weight)
        return loss

    def _global_sum(self, values: Tensor) -> Tensor:
        total = values.sum()
        if self._num_ranks > 1:
            dist.all_reduce(total)
        return torch.where(total > 0, total, 1.0)

    def _replication(self, logits: Tensor, batch: RankerBatch) -> Tensor:
        is_real = batch.is_real.to(logits.dtype)
        share = is_real * (self._num_ranks / self._global_sum(is_real))
        return ((logits - lolly_logit(batch.labels[:, self._scores])).square() * share).sum()

    def _outputs(self, predictions: dict[str, Tensor], batch: RankerBatch) -> dict[str, Tensor]:
        logits = predictions["click"]
        outputs = {
            "logits": logits,
            "probabilities": logits.sigmoid(),
            "labels": batch.labels[:, self._click],
            "weights": batch.weight,
            "groups": batch.group,
        }
        if self._scores is not None:
            outputs["lolly_probabilities"] = batch.labels[:, self._scores] / 100.0
        if self._watch_time is not None:
            outputs["watch_time_prediction"] = self._log_seconds(predictions["watch_time"])
            outputs["watch_time_label"] = batch.labels[:, self._watch_time].log1p()
        return {name: values.detach()[batch.is_real] for name, values in outputs.items()}

    def _log_seconds(self, prediction: Tensor) -> Tensor:
        return prediction if self.config.watch_time_loss == "log1p_mse" else prediction.clamp_min(0.0).log1p()


def label_place(spec: FeatureSpec, name: str, where: str, kind: str) -> int:
    """The column of a label.

    Raises:
        ConfigError: there is no such label, or it is of another kind.
    """
    for place, label in enumerate(spec.labels):
        if label.name == name and label.kind == kind:
            return place
    raise ConfigError(
        f"no {kind} label of this name",
        where=where,
        value=name,
        limit=", ".join(f"{label.name} ({label.kind})" for label in spec.labels) or "the data has no labels",
        fix="name one of them, or prepare the data again",
    )
