"""Losses: of classifiers, of watch time, of replicated scores and of rankings; all weighted by example."""

from tml.core.losses.classification import (
    GlobalReduction,
    LossType,
    bce_with_logits,
    build_loss,
    build_multi_task_loss,
    cross_entropy,
)
from tml.core.losses.lolly import lolly_logit, lolly_replication_loss
from tml.core.losses.ranking import (
    RankingLossType,
    build_ranking_loss,
    lambdarank,
    listmle,
    listnet,
    pointwise,
    ranknet,
)
from tml.core.losses.reduction import Loss, Reduction, get_global_loss_detached
from tml.core.losses.watch_time import ClickAndWatchTimeLoss, Engagement, WatchTimeLoss, log1p_mse, mse

__all__ = [
    "ClickAndWatchTimeLoss",
    "Engagement",
    "GlobalReduction",
    "Loss",
    "LossType",
    "RankingLossType",
    "Reduction",
    "WatchTimeLoss",
    "bce_with_logits",
    "build_loss",
    "build_multi_task_loss",
    "build_ranking_loss",
    "cross_entropy",
    "get_global_loss_detached",
    "lambdarank",
    "listmle",
    "listnet",
    "log1p_mse",
    "lolly_logit",
    "lolly_replication_loss",
    "mse",
    "pointwise",
    "ranknet",
]
