"""Metrics of a binary classifier at a threshold, and at a hundred and one of them.

Letters: `K` thresholds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from tml.common.errors import ConfigError
from tml.core.metrics.histograms import HistogramMetric, weight_failing, weight_passing

Statistic = Literal["tp", "fp", "tn", "fn", "accuracy", "precision", "recall"]
PERCENTILES = tuple(place / 100 for place in range(101))


class AtThresholds(HistogramMetric):
    """A statistic of the confusion matrix at several thresholds: a vector, in the order of the thresholds.

    Entries that have no value, such as the precision where nothing is predicted positive, are NaN; there is a warning
    only when all are.

    Args:
        statistic: `tp`, `fp`, `tn` and `fn` are weights; `accuracy`, `precision` and `recall` are shares of them.
        thresholds: in rising order, K of them. A row is predicted positive when its prediction is at least the
            threshold; its label is positive above one half.
        prediction: output with the probabilities, or any scores the thresholds are meant for.
        settings: see `OutputMetric`.

    Raises:
        ConfigError: thresholds are missing or do not rise.
    """

    def __init__(
        self,
        statistic: Statistic,
        thresholds: Sequence[float] = PERCENTILES,
        prediction: str = "probabilities",
        **settings: Any,
    ) -> None:
        _check_rising(thresholds)
        super().__init__(len(thresholds), **settings)
        self.statistic = statistic
        self.thresholds = tuple(thresholds)
        self.prediction = prediction

    def update(self, outputs: Mapping[str, Any]) -> None:
        """Adds a batch."""
        predictions, labels, weights = self.select(outputs, self.prediction, "labels")
        # A threshold is taken in the predictions' own precision: .1 as float32 reaches a threshold of .1.
        own = predictions.dtype if predictions.is_floating_point() else torch.float64
        thresholds = torch.tensor(self.thresholds, dtype=own, device=predictions.device).to(torch.float64)
        self.add(torch.bucketize(predictions.to(torch.float64), thresholds, right=True), labels, weights)

    def compute(self) -> Tensor:
        """Returns the statistic at each threshold, float64 [K]."""
        tp, fn = weight_passing(self.positives), weight_failing(self.positives)
        fp, tn = weight_passing(self.negatives), weight_failing(self.negatives)
        part, whole, reason = {
            "tp": (tp, torch.ones_like(tp), ""),
            "fp": (fp, torch.ones_like(tp), ""),
            "tn": (tn, torch.ones_like(tp), ""),
            "fn": (fn, torch.ones_like(tp), ""),
            "accuracy": (tp + tn, tp + tn + fp + fn, "the total weight is zero"),
            "precision": (tp, tp + fp, "no row is predicted positive"),
            "recall": (tp, tp + fn, "no label is positive"),
        }[self.statistic]
        if not (whole > 0).any():
            return self.undefined(reason).expand(len(self.thresholds))
        return part / torch.where(whole > 0, whole, torch.nan)


class AtThreshold(AtThresholds):
    """A statistic of the confusion matrix at one threshold: a scalar.

    Args:
        statistic: see `AtThresholds`.
        threshold: rows are predicted positive at it and above.
        settings: see `AtThresholds`.
    """

    def __init__(self, statistic: Statistic, threshold: float = 0.5, **settings: Any) -> None:
        super().__init__(statistic, (threshold,), **settings)

    def compute(self) -> Tensor:
        """Returns the statistic, float64."""
        return super().compute()[0]


class Accuracy(AtThreshold):
    """The weighted share of rows whose prediction and label lie on the same side; undefined without weight."""

    higher_is_better = True

    def __init__(self, threshold: float = 0.5, **settings: Any) -> None:
        super().__init__("accuracy", threshold, **settings)


class Precision(AtThreshold):
    """The weighted share of positives among the rows predicted positive; undefined when none is predicted positive."""

    higher_is_better = True

    def __init__(self, threshold: float = 0.5, **settings: Any) -> None:
        super().__init__("precision", threshold, **settings)


class Recall(AtThreshold):
    """The weighted share of rows predicted positive among the positives; undefined without positives."""

    higher_is_better = True

    def __init__(self, threshold: float = 0.5, **settings: Any) -> None:
        super().__init__("recall", threshold, **settings)


def _check_rising(thresholds: Sequence[float]) -> None:
    rising = all(lower < upper for lower, upper in pairwise(thresholds))
    if not thresholds or not rising:
        raise ConfigError(
            "thresholds are missing or do not rise",
            where="thresholds of a metric",
            value=list(thresholds),
            limit="at least one, each above the one before",
            fix="sort them and drop repeated ones",
        )
