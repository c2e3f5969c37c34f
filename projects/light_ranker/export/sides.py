"""One side of a request inside the graph: its encoded features become table rows, bins and numbers.

Letters: `B` rows, `S` id slots of the side, `C` its continuous features, `V` values of its vectors, `T` its table slots
(own tables' slots, then bins), `D` embedding dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tml.common.modules.sorted_search import count_below, padded_rows
from tml.projects.light_ranker.features.spec import FeatureSpec, IdFeature, Side
from tml.projects.light_ranker.models.bins import MISSING_CODE, Bins

# Up to so many boundaries are all compared with a value; among more, a binary search is faster.
_MOST_COMPARISONS = 256


@dataclass(frozen=True)
class SideInput:
    """The encoded features of one side, as the graph is given them.

    Args:
        ids: int64 `[B, S]`, -1 pads.
        continuous: float32 `[B, C]`, NaN where missing.
        vectors: float32 `[B, V]`.
    """

    ids: Tensor
    continuous: Tensor
    vectors: Tensor


class GraphBins(nn.Module):
    """`Bins` of some of its features in operators that ONNX has: float32 `[B, N]` of values -> rows int64 `[B, N]`.

    Args:
        bins: the model's.
        members: which of its features.
        columns: where their values lie in this side's continuous features.
    """

    columns: Tensor
    boundaries: Tensor
    rows: Tensor
    first: Tensor

    def __init__(self, bins: Bins, members: Sequence[int], columns: Sequence[int]) -> None:
        super().__init__()
        boundaries, rows = bins.boundaries[list(members)], bins.rows[list(members)]
        self.left_closed, self.searches = bins.left_closed, boundaries.shape[1] > _MOST_COMPARISONS
        self.register_buffer("columns", torch.tensor(columns, dtype=torch.int64))
        self.register_buffer("boundaries", padded_rows(boundaries) if self.searches else boundaries.clone())
        self.register_buffer("rows", rows.flatten().clone())
        self.register_buffer("first", torch.arange(len(members)) * rows.shape[1])

    def forward(self, continuous: Tensor) -> Tensor:
        """The rows of the values' bins."""
        values = continuous.index_select(1, self.columns)
        codes = torch.where(values.isnan(), MISSING_CODE, self._count(values) + 1)
        return self.rows[codes + self.first]

    def _count(self, values: Tensor) -> Tensor:
        if self.searches:
            feature = torch.arange(len(self.boundaries)).expand_as(values)
            return count_below(self.boundaries, feature, values, or_equal=self.left_closed)
        column = values.unsqueeze(2)
        below = self.boundaries <= column if self.left_closed else self.boundaries < column
        # Sums of floats are the fastest here; counts are far below 2 ** 24.
        return below.to(torch.float32).sum(2).to(torch.int64)


class SideLookup(nn.Module):
    """Rows of the offset table for the ids and bins of one side, `[B, T, D]`.

    Args:
        features: the side's id features with rows in the table, and the slots of each among the side's.
        offsets: first row of each feature in the table.
        bins: of the side's binned features; None without any.
        dim: `D`.
    """

    slots: Tensor
    offsets: Tensor

    def __init__(
        self, features: Sequence[tuple[IdFeature, slice]], offsets: Sequence[int], bins: GraphBins | None, dim: int
    ) -> None:
        super().__init__()
        self.bins, self.dim = bins, dim
        self.has_padding = any(feature.num_slots > 1 for feature, _ in features)
        self.num_slots = sum(feature.num_slots for feature, _ in features)
        slots = [slot for _, part in features for slot in range(part.start, part.stop)]
        first = [offset for (f, _), offset in zip(features, offsets, strict=True) for _ in range(f.num_slots)]
        self.takes_all = slots == list(range(len(slots)))
        self.register_buffer("slots", torch.tensor(slots, dtype=torch.int64))
        self.register_buffer("offsets", torch.tensor(first, dtype=torch.int64))

    @property
    def has_rows(self) -> bool:
        """Whether the side has ids or bins."""
        return self.num_slots > 0 or self.bins is not None

    def first_rows(self) -> Tensor:
        """A row `[T]` of the table that each slot looks its rows up in."""
        return self.offsets if self.bins is None else torch.cat([self.offsets, self.bins.rows[self.bins.first]])

    def forward(self, table: Tensor, side: SideInput) -> Tensor | None:
        """The rows; None for a side without any."""
        parts = []
        if self.num_slots:
            # A padding slot looks up some row, which is then masked.
            ids = _leading(side.ids, self.num_slots) if self.takes_all else side.ids.index_select(1, self.slots)
            parts.append((ids.clamp_min(0) if self.has_padding else ids) + self.offsets)
        if self.bins is not None:
            parts.append(self.bins(side.continuous))
        return nn.functional.embedding(torch.cat(parts, dim=1), table) if parts else None


class SidePooling(nn.Module):
    """Pools the slots of each feature: rows `[B, T, D]` -> `[B, F, D]`, bins behind.

    Args:
        features: the features of the slots, and their slots among the side's.
        num_bins: table slots behind them.
    """

    def __init__(self, features: Sequence[tuple[IdFeature, slice]], num_bins: int) -> None:
        super().__init__()
        self.features, self.num_bins = tuple(features), num_bins
        self.is_flat = all(feature.num_slots == 1 for feature, _ in features)

    def forward(self, rows: Tensor, ids: Tensor) -> Tensor:
        """The pooled embeddings."""
        if self.is_flat:
            return rows
        parts, start = [], 0
        for feature, slots in self.features:
            values = rows[:, start : start + feature.num_slots]
            parts.append(values if feature.num_slots == 1 else pooled(feature, values, ids[:, slots]).unsqueeze(1))
            start += feature.num_slots
        if self.num_bins:
            parts.append(rows[:, start:])
        return torch.cat(parts, dim=1)


def pooled(feature: IdFeature, values: Tensor, ids: Tensor) -> Tensor:
    """`[B, D]` of a feature's slots `[B, num_slots, D]`, padding (ids below 0) left out."""
    if feature.num_slots == 1:
        return values.squeeze(1)
    mask = (ids >= 0).to(values.dtype)
    total = (values * mask.unsqueeze(2)).sum(1)
    return total if feature.pooling == "sum" else total / mask.sum(1, keepdim=True).clamp_min(1.0)


def slots_of(spec: FeatureSpec, side: Side) -> list[tuple[IdFeature, slice]]:
    """The id features of a side, and the slots of each among the side's."""
    found, start = [], 0
    for feature in spec.ids:
        if feature.side == side:
            found.append((feature, slice(start, start + feature.num_slots)))
            start += feature.num_slots
    return found


def bins_of(bins: Bins | None, spec: FeatureSpec, side: Side) -> GraphBins | None:
    """The bins of a side's features; None without any."""
    if bins is None:
        return None
    columns = [place for place, feature in enumerate(spec.continuous) if feature.side == side]
    members = [member for member, column in enumerate(bins.columns.tolist()) if column in columns]
    own = [columns.index(int(bins.columns[member])) for member in members]
    return GraphBins(bins, members, own) if members else None


def _leading(ids: Tensor, num_slots: int) -> Tensor:
    return ids if ids.shape[1] == num_slots else ids[:, :num_slots]
