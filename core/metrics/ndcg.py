"""Normalised discounted cumulative gain: how near the order of each group's rows is to the best one.

Letters: `N` rows, `G` groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tml.common.errors import ConfigError, DataError
from tml.core.metrics.kept_rows import KeptRowsMetric
from tml.core.relevance import places_in_groups, rank_discounts, relevance_gains


class Ndcg(KeptRowsMetric):
    """The mean over groups of NDCG@k, with gain `2 ** label - 1` and discount `1 / log2(1 + rank)`.

    Groups are those of the whole data set, however their rows lie in batches and on ranks. Equal scores share their
    places (McSherry and Najork, ECIR 2008), so that the order of rows does not matter. Groups without any gain have no
    best order and are left out; each other group counts once. Weights grade nothing: rows without weight are absent,
    the others count alike.

    Undefined when no group has a gain. Keeps all rows with their groups, 20 bytes a row; see `KeptRowsMetric`.

    Args:
        k: ranks that count; None for all.
        prediction: output with the scores.
        group: output, int64 [B], of the groups.
        settings: see `OutputMetric`.

    Raises:
        ConfigError: k is below 1.
    """

    higher_is_better = True
    groups: list[Tensor] | Tensor

    def __init__(
        self, k: int | None = None, prediction: str = "probabilities", group: str = "groups", **settings: Any
    ) -> None:
        super().__init__(prediction, **settings)
        if k is not None and k < 1:
            raise ConfigError("k is too small", where="ndcg", value=k, limit="at least 1", fix="raise k")
        self.k = k
        self.group = group
        self.add_state("groups", [], dist_reduce_fx="cat")

    def update(self, outputs: Mapping[str, Any]) -> None:
        """Adds a batch.

        Raises:
            DataError: a group is no whole number.
        """
        groups, _ = self.select(outputs, self.group)
        if groups.is_floating_point():
            raise DataError(
                "groups are not integers",
                where=f"{self._place()}, output {self.group!r}",
                value=str(groups.dtype),
                limit="int64",
                fix="number the requests or users; floats merge large numbers",
            )
        super().update(outputs)
        assert isinstance(self.groups, list)
        # A rank without rows joins the gathering with an empty float32 tensor, so ids travel as the bits of two floats.
        self.groups.append(groups.to(self.device, torch.int64).view(torch.float32))

    def check_rows(self, predictions: Tensor, labels: Tensor) -> None:
        """Refuses labels that are no grades."""
        relevance_gains(labels.to(torch.float64), f"{self._place()}, output 'labels'")

    def compute(self) -> Tensor:
        """Returns the mean NDCG, 0..1, float64."""
        scores, labels, weights = self.rows()
        kept = weights > 0
        _, group, sizes = torch.unique(self._all_groups()[kept], return_inverse=True, return_counts=True)
        gains = relevance_gains(labels[kept], self._place())
        best = self._dcg(gains, gains, group, len(sizes))
        answerable = best > 0
        if not answerable.any():
            return self.undefined("no group has a label above zero")
        return (self._dcg(scores[kept], gains, group, len(sizes))[answerable] / best[answerable]).mean()

    def _all_groups(self) -> Tensor:
        groups = self.groups
        if isinstance(groups, list):
            groups = torch.cat(groups) if groups else torch.empty(0, device=self.device)
        return groups.view(torch.int64)

    def _dcg(self, scores: Tensor, gains: Tensor, group: Tensor, num_groups: int) -> Tensor:
        """Discounted gain of each group, float64 [G]."""
        order = torch.argsort(scores, descending=True)
        order = order[torch.argsort(group[order], stable=True)]
        scores, gains, group = scores[order], gains[order], group[order]
        discounts = rank_discounts(places_in_groups(group), self.k, gains.dtype)
        first_of_tied = torch.ones_like(group, dtype=torch.bool)
        first_of_tied[1:] = (group[1:] != group[:-1]) | (scores[1:] != scores[:-1])
        tied = first_of_tied.cumsum(0) - 1
        num_tied = torch.bincount(tied)
        shared = discounts.new_zeros(len(num_tied)).index_add_(0, tied, discounts) / num_tied
        return gains.new_zeros(num_groups).index_add_(0, group, gains * shared[tied])
