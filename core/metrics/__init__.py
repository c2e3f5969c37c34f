"""Metrics that reduce over ranks; see `tml.core.metrics.base` for what they read and how to use them."""

from tml.core.metrics.auc import Auc, AurocWithMwu
from tml.core.metrics.base import OutputMetric, Stratifier, UndefinedMetricWarning, metric_collection
from tml.core.metrics.classification import Precision, Recall
from tml.core.metrics.mean import Count, Ctr, NumSamples, Pctr, StableMean, TotalWeight
from tml.core.metrics.ranking import HitsAtK, MeanRank, MeanReciprocalRank, RecallAtK
from tml.core.metrics.rce import Nrce, Rce

__all__ = [
    "Auc",
    "AurocWithMwu",
    "Count",
    "Ctr",
    "HitsAtK",
    "MeanRank",
    "MeanReciprocalRank",
    "Nrce",
    "NumSamples",
    "OutputMetric",
    "Pctr",
    "Precision",
    "Rce",
    "Recall",
    "RecallAtK",
    "StableMean",
    "Stratifier",
    "TotalWeight",
    "UndefinedMetricWarning",
    "metric_collection",
]
