"""Counts and times of the service, in the text format that Prometheus reads (exposition format 0.0.4)."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from itertools import accumulate

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_PREFIX = "tml_light_ranker"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class ServiceMetrics:
    """What has happened since the start; safe to use from several threads.

    Args:
        model: version of the model, shown as a label.
    """

    def __init__(self, model: str) -> None:
        self._model, self._lock = model, threading.Lock()
        self._responses: Counter[tuple[str, int]] = Counter()
        self._candidates = 0
        self._buckets, self._seconds = [0] * (len(_SECONDS) + 1), 0.0

    def response(self, path: str, status: int) -> None:
        """Count a response."""
        with self._lock:
            self._responses[path, status] += 1

    def scored(self, num_candidates: int, seconds: float) -> None:
        """Count a scored request: its candidates, and the time from understood to answered."""
        with self._lock:
            self._candidates += num_candidates
            self._buckets[bisect_left(_SECONDS, seconds)] += 1
            self._seconds += seconds

    def text(self, num_inside: int) -> str:
        """Everything as text.

        Args:
            num_inside: requests that are being read, waiting or scored now.
        """
        with self._lock:
            lines = [
                *_head("model_info", "gauge", "The model that is served."),
                f'{_PREFIX}_model_info{{version="{self._model}"}} 1',
                *_head("requests_total", "counter", "Responses by path and status."),
                *(
                    f'{_PREFIX}_requests_total{{path="{path}",status="{status}"}} {count}'
                    for (path, status), count in sorted(self._responses.items())
                ),
                *_head("candidates_total", "counter", "Candidates scored."),
                f"{_PREFIX}_candidates_total {self._candidates}",
                *_head("requests_in_progress", "gauge", "Requests being read, waiting or scored."),
                f"{_PREFIX}_requests_in_progress {num_inside}",
                *_head("score_seconds", "histogram", "Time to understand, score and answer a request."),
                *self._histogram(),
            ]
        return "\n".join(lines) + "\n"

    def _histogram(self) -> list[str]:
        counts = list(accumulate(self._buckets))
        limits = [*(f"{seconds:g}" for seconds in _SECONDS), "+Inf"]
        buckets = [
            f'{_PREFIX}_score_seconds_bucket{{le="{limit}"}} {count}'
            for limit, count in zip(limits, counts, strict=True)
        ]
        name = f"{_PREFIX}_score_seconds"
        return [*buckets, f"{name}_sum {self._seconds:.6f}", f"{name}_count {counts[-1]}"]


def _head(name: str, kind: str, help: str) -> tuple[str, str]:
    return f"# HELP {_PREFIX}_{name} {help}", f"# TYPE {_PREFIX}_{name} {kind}"
