"""Metrics that reduce over ranks; see `tml.core.metrics.base` for what they read, `catalogue` for them by name."""

from tml.core.metrics.auc import Auc, AurocWithMwu, PrAuc
from tml.core.metrics.base import OutputMetric, Stratifier, UndefinedMetricWarning, metric_collection
from tml.core.metrics.binned_auc import PrAuc200, RocAuc200
from tml.core.metrics.calibration import EqualMassCalibrationError, ExpectedCalibrationError
from tml.core.metrics.catalogue import DEFAULT_METRICS, build_metrics, scalars
from tml.core.metrics.classification import Accuracy, AtThreshold, AtThresholds, Precision, Recall
from tml.core.metrics.errors import MeanAbsoluteError, MeanSquaredError
from tml.core.metrics.mean import Count, Ctr, NumSamples, Pctr, PredictionStdDev, StableMean, TotalWeight
from tml.core.metrics.ndcg import Ndcg
from tml.core.metrics.normalised_rce import Arce, LollyNrce, Nrce
from tml.core.metrics.ranking import HitsAtK, MeanRank, MeanReciprocalRank, RecallAtK
from tml.core.metrics.rce import Rce, RceStdErr

__all__ = [
    "DEFAULT_METRICS",
    "Accuracy",
    "Arce",
    "AtThreshold",
    "AtThresholds",
    "Auc",
    "AurocWithMwu",
    "Count",
    "Ctr",
    "EqualMassCalibrationError",
    "ExpectedCalibrationError",
    "HitsAtK",
    "LollyNrce",
    "MeanAbsoluteError",
    "MeanRank",
    "MeanReciprocalRank",
    "MeanSquaredError",
    "Ndcg",
    "Nrce",
    "NumSamples",
    "OutputMetric",
    "Pctr",
    "PrAuc",
    "PrAuc200",
    "Precision",
    "PredictionStdDev",
    "Rce",
    "RceStdErr",
    "Recall",
    "RecallAtK",
    "RocAuc200",
    "StableMean",
    "Stratifier",
    "TotalWeight",
    "UndefinedMetricWarning",
    "build_metrics",
    "metric_collection",
    "scalars",
]
