"""What a model that knows the truth would reach on sample clicks; adds up over chunks of rows in bounded memory."""

from __future__ import annotations

import numpy as np

_BINS = 1 << 20  # of the click probability, for the AUC
_NODES, _NODE_WEIGHTS = np.polynomial.hermite_e.hermegauss(21)


class BestScores:
    """Scores of the true click probability and of the expected log watch time.

    Args:
        max_watch_seconds: where the watch time is cut off.
    """

    WATCH_SPREAD = 0.8  # standard deviation of the logarithm of the seconds watched, given a click

    def __init__(self, max_watch_seconds: float) -> None:
        self._max_watch_seconds = max_watch_seconds
        self._histogram = np.zeros((2, _BINS), np.int64)
        self._rows, self._entropy, self._watch_error = 0, 0.0, 0.0

    def add(self, click: np.ndarray, probability: np.ndarray, watch_time: np.ndarray, watch_mean: np.ndarray) -> None:
        """Takes rows: clicks (bool), their true probabilities, seconds watched, and the mean of their logarithm, given
        a click: [B] each."""
        bins = np.minimum((probability * _BINS).astype(np.int64), _BINS - 1)
        for happened in (0, 1):
            self._histogram[happened] += np.bincount(bins[click == happened], minlength=_BINS)
        self._rows += len(click)
        self._entropy -= float(np.where(click, np.log(probability), np.log1p(-probability)).sum())
        expected = probability * self._expected_log_seconds(watch_mean)
        self._watch_error += float(((np.log1p(watch_time.astype(np.float64)) - expected) ** 2).sum())

    def _expected_log_seconds(self, watch_mean: np.ndarray) -> np.ndarray:
        seconds = np.exp(watch_mean[:, None] + self.WATCH_SPREAD * _NODES)
        weights = _NODE_WEIGHTS / _NODE_WEIGHTS.sum()
        return np.log1p(np.minimum(seconds, self._max_watch_seconds)) @ weights

    def result(self) -> dict[str, float]:
        """auc, log_loss, rce and mse_log1p_watch_time."""
        negatives, positives = (counts.astype(np.float64) for counts in self._histogram)
        below = np.cumsum(negatives) - negatives
        pairs = negatives.sum() * positives.sum()
        auc = float((positives * (below + negatives / 2)).sum() / pairs) if pairs else float("nan")
        rate, log_loss = positives.sum() / self._rows, self._entropy / self._rows
        blind = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate)) if 0 < rate < 1 else float("nan")
        return {
            "auc": round(auc, 6),
            "log_loss": round(log_loss, 6),
            "rce": round(float(100 * (1 - log_loss / blind)), 4),
            "mse_log1p_watch_time": round(self._watch_error / self._rows, 6),
        }
