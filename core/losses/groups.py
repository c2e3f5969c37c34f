"""Rows of a batch by group: what losses of rankings are made of.

A group is what is ranked together: the candidates of one request or one user. Rows of a group need not be neighbours,
but only rows of the same batch (and rank) meet.

A row of weight `k` stands for `k` equal rows, so rows of weight zero are absent. A group has contrast when two of its
rows have different labels; without contrast there is nothing to rank.

Letters: `B` rows of a batch, `N` rows with weight, `G` groups, `P` pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tml.common.errors import DataError


@dataclass(frozen=True)
class GroupedRows:
    """Rows with weight, sorted by group and, within a group, by falling label; rows of equal label form a tier.

    Attributes:
        scores: float [N], with a graph.
        labels: float [N].
        weights: float [N], above zero.
        group: int64 [N], 0..G-1.
        num_groups: G.
        tier_start: int64 [N], the place of the first row of the row's tier.
        tier_end: int64 [N], the place after its last row.
        group_end: int64 [N], the place after the last row of the group.
    """

    scores: Tensor
    labels: Tensor
    weights: Tensor
    group: Tensor
    num_groups: int
    tier_start: Tensor
    tier_end: Tensor
    group_end: Tensor

    @property
    def has_lower(self) -> Tensor:
        """bool [N]: whether the row's group holds a row of lower label."""
        return self.tier_end < self.group_end

    def pairs(self) -> tuple[Tensor, Tensor]:
        """Returns every row with every row of its group that has a lower label: int64 [P] each, better and worse."""
        return _spans(self.tier_end, self.group_end)

    def not_above(self) -> tuple[Tensor, Tensor]:
        """Returns every row that has a lower one together with all rows of its group that are not above it, itself too.

        Returns:
            int64 [P] each: the row and the other.
        """
        return _spans(torch.where(self.has_lower, self.tier_start, self.group_end), self.group_end)

    def sum_by_group(self, values: Tensor, group: Tensor | None = None) -> Tensor:
        """Returns the sums [G] of values [N], or of values whose groups are given."""
        return segment_sum(values, self.group if group is None else group, self.num_groups)

    def mean_over_groups(self, losses: Tensor) -> Tensor:
        """Returns the mean of losses [G] over the groups with contrast; zero, with zero gradient, where none has."""
        contrast = self.sum_by_group(self.has_lower.to(losses.dtype)) > 0
        return torch.where(contrast, losses, 0.0).sum() / contrast.sum().clamp(min=1)


def group_rows(scores: Tensor, labels: Tensor, groups: Tensor, weights: Tensor | None = None) -> GroupedRows:
    """Sorts rows by group and falling label.

    Args:
        scores: float [B].
        labels: [B], the higher the better.
        groups: int64 [B], any numbers.
        weights: [B], not negative; None for ones.

    Raises:
        DataError: shapes differ, or a weight is negative.
    """
    weights = torch.ones_like(labels) if weights is None else weights
    _check(scores, labels, groups, weights)
    dtype = torch.promote_types(scores.dtype, torch.float32)
    kept = (weights > 0).nonzero()[:, 0]
    kept = kept[torch.argsort(labels[kept], descending=True, stable=True)]
    kept = kept[torch.argsort(groups[kept], stable=True)]
    sorted_labels, sorted_groups = labels[kept].to(dtype), groups[kept]
    _, group, group_size = torch.unique_consecutive(sorted_groups, return_inverse=True, return_counts=True)
    first_of_tier = torch.ones_like(group, dtype=torch.bool)
    first_of_tier[1:] = (group[1:] != group[:-1]) | (sorted_labels[1:] != sorted_labels[:-1])
    tier = first_of_tier.cumsum(0) - 1
    tier_size = torch.bincount(tier)
    tier_end = tier_size.cumsum(0)
    return GroupedRows(
        scores=scores[kept].to(dtype),
        labels=sorted_labels,
        weights=weights[kept].to(dtype),
        group=group,
        num_groups=len(group_size),
        tier_start=(tier_end - tier_size)[tier],
        tier_end=tier_end[tier],
        group_end=group_size.cumsum(0)[group],
    )


def segment_sum(values: Tensor, segment: Tensor, num_segments: int) -> Tensor:
    """Returns the sums of values [K] that share a segment, int64 [K] in 0..num_segments-1."""
    return values.new_zeros(num_segments).index_add(0, segment, values)


def segment_logsumexp(values: Tensor, weights: Tensor, segment: Tensor, num_segments: int) -> Tensor:
    """Returns `log sum w * exp(value)` by segment, without overflow; minus infinity for segments without values.

    Args:
        values: float [K].
        weights: float [K], above zero.
        segment: int64 [K].
        num_segments: length of the result.
    """
    highest = values.new_full((num_segments,), -torch.inf).scatter_reduce(0, segment, values.detach(), "amax")
    total = segment_sum(weights * (values - highest[segment]).exp(), segment, num_segments)
    return torch.where(total > 0, total, 1.0).log() + highest


def _spans(start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (row, place) for every place in `start[row]..end[row]-1` of every row."""
    lengths = end - start
    rows = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
    first = lengths.cumsum(0) - lengths
    return rows, start[rows] + torch.arange(len(rows), device=rows.device) - first[rows]


def _check(scores: Tensor, labels: Tensor, groups: Tensor, weights: Tensor) -> None:
    shapes = [tuple(column.shape) for column in (scores, labels, groups, weights)]
    if scores.dim() != 1 or len(set(shapes)) != 1:
        raise DataError(
            "scores, labels, groups and weights of a ranking loss must be of one length",
            value=shapes,
            limit="four times [B]",
            fix="give every row one score, label, group and weight",
        )
    if (weights < 0).any():
        raise DataError(
            "weight is negative",
            where=f"row {int((weights < 0).nonzero()[0])} of the batch",
            value=weights[weights < 0][0].item(),
            limit="at least 0",
            fix="mend the weights of the data",
        )
