"""Relative cross-entropies of predictions that are first brought to the mean label, so that only their order and spread
count: NRCE, ARCE and lolly NRCE.

The scale is always that of the whole data set, so a value depends neither on the order or size of batches nor on the
number of ranks. The original took the scale of the rows seen so far at each batch, and its NRCE and ARCE changed with
the order of the data.

Letters: `N` rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tml.common.errors import ConfigError
from tml.core.metrics.base import OutputMetric
from tml.core.metrics.kept_rows import KeptRowsMetric
from tml.core.metrics.probabilities import (
    TWML_EPSILON,
    binary_cross_entropy,
    binary_entropy,
    check_probabilities,
    smooth,
)


class Nrce(KeptRowsMetric):
    """Normalised relative cross-entropy: the RCE of predictions scaled so that their mean is the mean label.

    Predictions become `p * sum(w * y) / sum(w * p)`, then they are clipped. All rows are kept; see `KeptRowsMetric`.

    Undefined without weight, when all labels are equal, or when all predictions are zero.

    Args:
        from_logits: read logits and take their sigmoid; otherwise read probabilities.
        label_smoothing: see `smooth`.
        epsilon: scaled probabilities are clipped to `[epsilon, 1 - epsilon]`.
        prediction: output with the predictions; None for `logits` or `probabilities`.
        settings: see `OutputMetric`.
    """

    higher_is_better = True

    def __init__(
        self,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        epsilon: float = 1e-7,
        prediction: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(prediction or ("logits" if from_logits else "probabilities"), **settings)
        self.from_logits = from_logits
        self.label_smoothing = label_smoothing
        self.epsilon = epsilon

    def check_rows(self, predictions: Tensor, labels: Tensor) -> None:
        """Refuses probabilities outside 0..1."""
        if not self.from_logits:
            check_probabilities(predictions, f"{self._place()}, output {self.prediction!r}")

    def compute(self) -> Tensor:
        """Returns the NRCE in per cent, float64."""
        predictions, labels, weights = self.rows()
        labels = smooth(labels, self.label_smoothing)
        probabilities = predictions.sigmoid() if self.from_logits else predictions
        weight, label, predicted = weights.sum(), (labels * weights).sum(), (probabilities * weights).sum()
        if weight == 0:
            return self.undefined("the total weight is zero")
        baseline = binary_entropy(label / weight)
        if baseline == 0 or predicted == 0:
            return self.undefined("all labels are equal" if baseline == 0 else "all predictions are zero")
        losses = binary_cross_entropy(probabilities * label / predicted, labels, self.epsilon)
        return 100.0 * (1.0 - (losses * weights).sum() / weight / baseline)


class Arce(KeptRowsMetric):
    """Adjusted relative cross-entropy: the RCE of predictions whose odds are moved to the mean label.

    Predictions become `p * a / (p * a + (1 - p) * b)`, which stays a probability where NRCE's scaling may pass 1:

        up_weight   a = sum(w y) / sum(w p),  b = sum(w (1 - y)) / sum(w (1 - p)); the RCE is weighted
        otherwise   a = sum(y) / sum(w y),    b = sum(1 - y) / sum(w (1 - y));     the RCE is not weighted

    The second undoes, in the predictions, weights by which positives or negatives were favoured in training. All rows
    are kept; see `KeptRowsMetric`.

    Undefined without weight, when all labels are equal, when all predictions are equally 0 or 1, or without `up_weight`
    when a class has no weight.

    Args:
        up_weight: measure where the weights count; otherwise where each row counts once.
        epsilon: adjusted probabilities are clipped to `[epsilon, 1 - epsilon]`.
        prediction: output with the probabilities.
        settings: see `OutputMetric`.
    """

    higher_is_better = True

    def __init__(
        self, up_weight: bool = True, epsilon: float = TWML_EPSILON, prediction: str = "probabilities", **settings: Any
    ) -> None:
        super().__init__(prediction, **settings)
        self.up_weight = up_weight
        self.epsilon = epsilon

    def check_rows(self, predictions: Tensor, labels: Tensor) -> None:
        """Refuses probabilities outside 0..1."""
        check_probabilities(predictions, f"{self._place()}, output {self.prediction!r}")

    def compute(self) -> Tensor:
        """Returns the ARCE in per cent, float64."""
        predictions, labels, weights = self.rows()
        counted = weights if self.up_weight else torch.ones_like(weights)
        norm = predictions if self.up_weight else labels
        weight, label = counted.sum(), (counted * labels).sum()
        if weight == 0:
            return self.undefined("the total weight is zero")
        baseline = binary_entropy(label / weight)
        positive, negative = (weights * norm).sum(), (weights * (1.0 - norm)).sum()
        if baseline == 0 or positive == 0 or negative == 0:
            return self.undefined("all labels or all predictions are equal, or a class has no weight")
        for_, against = predictions * label / positive, (1.0 - predictions) * (weight - label) / negative
        losses = binary_cross_entropy(for_ / (for_ + against), labels, self.epsilon)
        return 100.0 * (1.0 - (losses * counted).sum() / weight / baseline)


class LollyNrce(OutputMetric):
    """NRCE from running sums, as lolly has it: `log(1 - a p)` is replaced by terms of its Taylor series.

    With `a = sum(w y) / sum(w p)`, the cross-entropy of `a p` is that of `p`, less `sum(w y) log a`, plus
    `sum over j of (a ** j - 1) / j * sum(w (1 - y) p ** j)`. It keeps no rows, but is good only while both `p` and
    `a p` are small: the first term left out is of order `p ** 6`. `Nrce` is exact.

    Undefined without weight, when all labels are equal, or when all predictions are zero.

    Args:
        num_terms: of the series; the original has 5.
        epsilon: probabilities in the cross-entropy of `p` are clipped to `[epsilon, 1 - epsilon]`.
        prediction: output with the probabilities.
        settings: see `OutputMetric`.
    """

    higher_is_better = True
    sums: Tensor
    powers: Tensor

    def __init__(
        self,
        num_terms: int = 5,
        epsilon: float = TWML_EPSILON,
        prediction: str = "probabilities",
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        if num_terms < 1:
            raise ConfigError(
                "a series needs terms", where="LollyNrce", value=num_terms, limit="at least 1", fix="take 5"
            )
        self.num_terms = num_terms
        self.epsilon = epsilon
        self.prediction = prediction
        self.add_state("sums", torch.zeros(4, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("powers", torch.zeros(num_terms, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, outputs: Mapping[str, Any]) -> None:
        """Adds a batch."""
        predictions, labels, weights = self.select(outputs, self.prediction, "labels")
        check_probabilities(predictions, f"{self._place()}, output {self.prediction!r}")
        predictions, labels = predictions.to(torch.float64), labels.to(torch.float64)
        losses = binary_cross_entropy(predictions, labels, self.epsilon)
        columns = torch.stack((losses, labels, predictions, torch.ones_like(losses)))
        exponents = torch.arange(1, self.num_terms + 1, device=predictions.device)
        self.sums += (columns @ weights).to(self.device)
        self.powers += (predictions ** exponents[:, None] @ (weights * (1.0 - labels))).to(self.device)

    def compute(self) -> Tensor:
        """Returns the lolly NRCE in per cent, float64."""
        cross_entropy, label, predicted, weight = self.sums
        if weight == 0:
            return self.undefined("the total weight is zero")
        baseline = binary_entropy(label / weight)
        if baseline == 0 or predicted == 0:
            return self.undefined("all labels are equal" if baseline == 0 else "all predictions are zero")
        scale = label / predicted
        exponents = torch.arange(1, self.num_terms + 1, device=self.powers.device)
        series = (self.powers * (scale**exponents - 1.0) / exponents).sum()
        normalised = cross_entropy - label * scale.log() + series
        return 100.0 * (1.0 - normalised / weight / baseline)
