"""Metrics of rankings: of the ranks of true answers among their candidates, and of hits among the first k.

A rank counts from 1. With ties it may be a half: the realistic rank is the mean of the best and the worst place that
the tie allows (Berrendorf et al., arXiv 2002.06914). Whoever ranks decides about filtering; these metrics take ranks as
they come.

Letters: `Q` queries.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tml.common.errors import ConfigError, DataError
from tml.core.metrics.mean import StableMean


class MeanRank(StableMean):
    """The weighted mean of `ranks` [Q]."""

    higher_is_better = False

    def __init__(self, **settings: Any) -> None:
        super().__init__("ranks", **settings)

    def transform(self, values: Tensor) -> Tensor:
        """Returns the score of each rank, after checking them."""
        if (values < 1).any():
            raise DataError(
                "rank is below 1",
                where=f"{self._place()}, output 'ranks'",
                value=values[values < 1][0].item(),
                limit="at least 1",
                fix="count ranks from 1",
            )
        return self.score(values)

    def score(self, ranks: Tensor) -> Tensor:
        """Returns what is averaged, from ranks as float64 [Q]."""
        return ranks


class MeanReciprocalRank(MeanRank):
    """The weighted mean of `1 / ranks`."""

    higher_is_better = True

    def score(self, ranks: Tensor) -> Tensor:
        """Returns the reciprocals."""
        return 1.0 / ranks


class HitsAtK(MeanRank):
    """The weighted share of `ranks <= k`."""

    higher_is_better = True

    def __init__(self, k: int, **settings: Any) -> None:
        super().__init__(**settings)
        self.k = _at_least_one(k)

    def score(self, ranks: Tensor) -> Tensor:
        """Returns 1 for hits and 0 for misses."""
        return (ranks <= self.k).to(ranks.dtype)


class RecallAtK(StableMean):
    """The weighted mean over queries of the share of relevant items that are among the first k.

    It reads `hits_at_<k>` [Q], the number of relevant items among the first k, and `num_relevant` [Q]. Queries without
    relevant items are left out.
    """

    higher_is_better = True

    def __init__(self, k: int, **settings: Any) -> None:
        super().__init__(f"hits_at_{_at_least_one(k)}", **settings)
        self.k = k

    def update(self, outputs: Mapping[str, Any]) -> None:
        """Adds a batch of queries."""
        hits, num_relevant, weights = self.select(outputs, self.output, "num_relevant")
        wrong = (hits < 0) | (hits > num_relevant.clamp(max=self.k))
        if wrong.any():
            raise DataError(
                "number of hits is impossible",
                where=f"{self._place()}, output {self.output!r}",
                value=f"{hits[wrong][0].item()} hits of {num_relevant[wrong][0].item()} relevant items",
                limit=f"0 <= hits <= {self.k} and hits <= relevant items",
                fix="count each relevant item once",
            )
        answerable = num_relevant > 0
        recall = hits.to(torch.float64) / torch.where(answerable, num_relevant, 1)
        self.add(recall, torch.where(answerable, weights, 0.0))


def _at_least_one(k: int) -> int:
    if k < 1:
        raise ConfigError("k is too small", where="ranking metric", value=k, limit="at least 1", fix="raise k")
    return k
