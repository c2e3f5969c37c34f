"""Losses of rankings within groups: pointwise, RankNet, LambdaRank, ListNet and ListMLE.

They share their arguments:

    scores   float [B], the higher the better; a softmax or a difference of them, never their scale, is what counts
    labels   [B], relevance: clicks 0 and 1, or grades
    groups   int64 [B], rows of equal number are ranked against each other
    weights  [B] or None: a row of weight `k` stands for `k` equal rows

and what they return: the mean, over the groups with contrast, of the loss of a group, so a long request weighs as much
as a short one. Groups of one row, or of equal labels, have nothing to rank: they are not counted, and a batch of only
such groups has loss zero and gradient zero. `pointwise` alone does not look at groups.

Pairs are listed, not kept in a matrix: memory is about 40 bytes for every pair of rows of a group that differ in label.

Letters: `B` rows, `N` rows with weight, `G` groups.
"""

from __future__ import annotations

import enum
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from tml.common.errors import ConfigError
from tml.core.losses.classification import bce_with_logits
from tml.core.losses.groups import GroupedRows, group_rows, segment_logsumexp
from tml.core.losses.reduction import Loss
from tml.core.relevance import places_in_groups, rank_discounts, relevance_gains


class RankingLossType(enum.StrEnum):
    """Losses of rankings by name."""

    POINTWISE = "pointwise"
    RANKNET = "ranknet"
    LAMBDARANK = "lambdarank"
    LISTNET = "listnet"
    LISTMLE = "listmle"


def build_ranking_loss(loss_type: RankingLossType, k: int | None = None) -> Loss:
    """Builds a loss by name.

    Args:
        loss_type: its name.
        k: for `lambdarank`: the NDCG that it raises is that of the first k; None for that of all.

    Returns:
        A function `(scores, labels, groups, weights=None) -> scalar`.

    Raises:
        ConfigError: k is below 1, or given to a loss that has no use for it.
    """
    loss_type = RankingLossType(loss_type)
    if k is None:
        return _LOSSES[loss_type]
    if loss_type is not RankingLossType.LAMBDARANK or k < 1:
        raise ConfigError(
            "k is below 1" if k < 1 else "only lambdarank cuts its ranking at k",
            where=f"ranking loss {loss_type.value!r}",
            value=k,
            limit="at least 1, with lambdarank",
            fix="leave k out, or choose lambdarank",
        )
    return partial(lambdarank, k=k)


def pointwise(scores: Tensor, labels: Tensor, groups: Tensor, weights: Tensor | None = None) -> Tensor:
    """Binary cross-entropy of each row on its own; groups are not looked at, scores are logits, labels lie in 0..1."""
    return bce_with_logits(scores, labels, weights)


def ranknet(scores: Tensor, labels: Tensor, groups: Tensor, weights: Tensor | None = None) -> Tensor:
    """RankNet: the weighted mean, over a group's pairs of different labels, of `log(1 + exp(worse - better))`.

    Burges et al., "Learning to Rank using Gradient Descent" (ICML 2005). A pair weighs the product of its weights.
    """
    rows = group_rows(scores, labels, groups, weights)
    losses, pair_weights, group = _pair_losses(rows)
    return rows.mean_over_groups(_weighted_mean_by_group(rows, losses, pair_weights, group))


def lambdarank(
    scores: Tensor, labels: Tensor, groups: Tensor, weights: Tensor | None = None, k: int | None = None
) -> Tensor:
    """LambdaRank: the sum over a group's pairs of RankNet's loss times the change of NDCG@k if the two swapped places.

    Burges, "From RankNet to LambdaRank to LambdaMART: An Overview" (MSR-TR-2010-82). Gain `2 ** label - 1`, discount
    `1 / log2(1 + rank)`; ranks come from the scores, equal scores in the order of the batch, and carry no gradient. The
    weights of a group's pairs, products of row weights, are scaled to average one.

    Raises:
        DataError: a label is negative or above 30.
    """
    rows = group_rows(scores, labels, groups, weights)
    better, worse = rows.pairs()
    losses, pair_weights, group = _pair_losses(rows)
    delta = _ndcg_changes(rows, better, worse, k)
    num_pairs = rows.sum_by_group(torch.ones_like(losses), group)
    return rows.mean_over_groups(num_pairs * _weighted_mean_by_group(rows, losses * delta, pair_weights, group))


def listnet(scores: Tensor, labels: Tensor, groups: Tensor, weights: Tensor | None = None) -> Tensor:
    """ListNet: the cross-entropy of the softmax of a group's scores against the softmax of its labels.

    The top-one form of Cao et al., "Learning to Rank: From Pairwise Approach to Listwise Approach" (ICML 2007). Its
    least value is the entropy of the labels' softmax, not zero.
    """
    rows = group_rows(scores, labels, groups, weights)
    log_chances = rows.scores - _log_total(rows, rows.scores)
    target = rows.weights * (rows.labels - _log_total(rows, rows.labels)).exp()
    return rows.mean_over_groups(-rows.sum_by_group(target * log_chances))


def listmle(scores: Tensor, labels: Tensor, groups: Tensor, weights: Tensor | None = None) -> Tensor:
    """ListMLE: the mean negative log-likelihood of drawing a group's rows in the order of their labels.

    Xia et al., "Listwise Approach to Learning to Rank" (ICML 2008), divided by the weight of the group's rows. Rows of
    equal label have no order among them: each is drawn against all rows that are not above it (Breslow's rule for
    ties), and the rows of the lowest label, after which nothing is left to order, cost nothing.
    """
    rows = group_rows(scores, labels, groups, weights)
    row, other = rows.not_above()
    log_left = segment_logsumexp(rows.scores[other], rows.weights[other], row, len(rows.scores))
    losses = torch.where(rows.has_lower, log_left - rows.scores, 0.0)
    total = rows.sum_by_group(rows.weights * losses)
    return rows.mean_over_groups(total / rows.sum_by_group(rows.weights))


def _pair_losses(rows: GroupedRows) -> tuple[Tensor, Tensor, Tensor]:
    """RankNet's loss, weight and group of each pair."""
    better, worse = rows.pairs()
    losses = F.softplus(rows.scores[worse] - rows.scores[better])
    return losses, rows.weights[better] * rows.weights[worse], rows.group[better]


def _weighted_mean_by_group(rows: GroupedRows, losses: Tensor, weights: Tensor, group: Tensor) -> Tensor:
    weight = rows.sum_by_group(weights, group)
    return rows.sum_by_group(losses * weights, group) / torch.where(weight > 0, weight, 1.0)


def _log_total(rows: GroupedRows, values: Tensor) -> Tensor:
    """The weighted log-sum-exp of each row's group, [N]."""
    return segment_logsumexp(values, rows.weights, rows.group, rows.num_groups)[rows.group]


def _ndcg_changes(rows: GroupedRows, better: Tensor, worse: Tensor, k: int | None) -> Tensor:
    gains = relevance_gains(rows.labels, "lambdarank")
    # Rows are sorted by falling label, which is the ideal order.
    ideal = rows.sum_by_group(gains * rank_discounts(places_in_groups(rows.group), k, gains.dtype))
    discounts = rank_discounts(_ranks(rows), k, gains.dtype)
    change = (gains[better] - gains[worse]) * (discounts[better] - discounts[worse])
    return change.abs() / ideal[rows.group[better]]


def _ranks(rows: GroupedRows) -> Tensor:
    """The place, from 0, of each row in its group by falling score."""
    order = torch.argsort(rows.scores.detach(), descending=True, stable=True)
    order = order[torch.argsort(rows.group[order], stable=True)]
    ranks = torch.empty_like(order)
    ranks[order] = places_in_groups(rows.group[order])
    return ranks


_LOSSES: dict[RankingLossType, Loss] = {
    RankingLossType.POINTWISE: pointwise,
    RankingLossType.RANKNET: ranknet,
    RankingLossType.LAMBDARANK: lambdarank,
    RankingLossType.LISTNET: listnet,
    RankingLossType.LISTMLE: listmle,
}
