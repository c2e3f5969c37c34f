"""Metrics that reduce over ranks; see `tml.core.metrics.base` for what they read, `catalogue` for them by name."""

from importlib import import_module
from typing import Any

# What each module offers here. Modules are imported on use: torchmetrics takes longer to import than torch.
_HOMES = {
    "auc": ("Auc", "AurocWithMwu", "PrAuc"),
    "base": ("OutputMetric", "Stratifier", "metric_collection"),
    "binned_auc": ("PrAuc200", "RocAuc200"),
    "calibration": ("EqualMassCalibrationError", "ExpectedCalibrationError"),
    "catalogue": ("DEFAULT_METRICS", "build_metrics", "scalars"),
    "classification": ("Accuracy", "AtThreshold", "AtThresholds", "Precision", "Recall"),
    "errors": ("MeanAbsoluteError", "MeanSquaredError"),
    "mean": ("Count", "Ctr", "NumSamples", "Pctr", "PredictionStdDev", "StableMean", "TotalWeight"),
    "ndcg": ("Ndcg",),
    "normalised_rce": ("Arce", "LollyNrce", "Nrce"),
    "ranking": ("HitsAtK", "MeanRank", "MeanReciprocalRank", "RecallAtK"),
    "rce": ("Rce", "RceStdErr"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = tuple(sorted(_HOME_OF))


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
