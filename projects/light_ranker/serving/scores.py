"""The answer to a request."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Scores:
    """Scores of `N` candidates, in the order in which they were given.

    Args:
        probabilities: float32 `[N]`, calibrated where the model is.
        watch_time: predicted seconds, float32 `[N]`; None if the model does not predict it.
        top_k: indices of the best candidates, int64 `[k]`, best first; None if not asked for. They are ordered by their
            logits, as calibration is flat in places and makes many candidates equal; equal logits keep their order.
    """

    probabilities: NDArray[np.float32]
    watch_time: NDArray[np.float32] | None = None
    top_k: NDArray[np.int64] | None = None


def best(scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Indices of the `k` highest scores (all, if there are fewer), best first, equal ones by their index."""
    k = min(k, len(scores))
    if k == 0:
        return np.empty(0, np.int64)
    # Only those at least as good as the k-th are sorted: of thousands of candidates, tens are asked for.
    kth = np.partition(scores, len(scores) - k)[len(scores) - k]
    candidates = np.flatnonzero(scores >= kth)
    return candidates[np.argsort(-scores[candidates], kind="stable")][:k]
