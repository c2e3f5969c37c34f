"""Gains and discounts of a ranking, shared by the losses that raise NDCG and the metric that measures it.

Letters: `N` rows, sorted so that groups lie one after the other.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tml.common.errors import DataError

MAX_RELEVANCE = 30.0
"""Gains double with each grade; labels above this are surely no grades of relevance but, say, seconds."""


def relevance_gains(labels: Tensor, where: str) -> Tensor:
    """Returns `2 ** label - 1`.

    Args:
        labels: float [N].
        where: for the error.

    Raises:
        DataError: a label is negative, above 30 or NaN.
    """
    wrong = ~((labels >= 0) & (labels <= MAX_RELEVANCE))
    if wrong.any():
        raise DataError(
            "label is no grade of relevance",
            where=where,
            value=labels[wrong][0].item(),
            limit=f"0 <= label <= {MAX_RELEVANCE:g}; its gain is 2 ** label - 1",
            fix="rank by a click or a small grade",
        )
    return torch.exp2(labels) - 1.0


def places_in_groups(group: Tensor) -> Tensor:
    """Returns the place, from 0, of each row in its group, int64 [N].

    Args:
        group: int64 [N], 0..G-1, in rising order.
    """
    sizes = torch.bincount(group)
    return torch.arange(len(group), device=group.device) - (sizes.cumsum(0) - sizes)[group]


def rank_discounts(places: Tensor, k: int | None, dtype: torch.dtype) -> Tensor:
    """Returns `1 / log2(1 + rank)`, the rank counting from 1; zero after the first `k`.

    Args:
        places: int64 [N], ranks from 0.
        k: ranks that count; None for all.
        dtype: of the result.
    """
    discounts = 1.0 / torch.log2(places.to(dtype) + 2.0)
    return discounts if k is None else torch.where(places < k, discounts, 0.0)
