"""Losses of rankings: numbers worked by hand, a plain numpy loop over groups and pairs, and finite differences."""

import math

import numpy as np
import pytest
import torch
from scipy.special import logsumexp, softmax

from tml.common.errors import ConfigError, DataError
from tml.core.losses import RankingLossType, build_ranking_loss, lambdarank, listmle, listnet, pointwise, ranknet

OVER_GROUPS = [ranknet, lambdarank, listnet, listmle]
LOG_2 = math.log(2)


def batch(num_rows=60, num_groups=9, grades=4, seed=0):
    """Rows of mixed-up groups, some of one row, with tied grades and weights that may be zero."""
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, num_groups, num_rows) * 1_000_003 - 5
    groups[:2] = (7, 8)
    labels = rng.integers(0, grades, num_rows).astype(float)
    weights = rng.integers(0, 4, num_rows).astype(float)
    return rng.normal(size=num_rows), labels, groups, weights


def tensors(*columns):
    return [torch.as_tensor(column) for column in columns]


# ---- references: one group in, its loss out


def softplus(x):
    return np.logaddexp(0, x)


def ranknet_of_group(s, y, w):
    pairs = [(i, j) for i in range(len(s)) for j in range(len(s)) if y[i] > y[j]]
    total = sum(w[i] * w[j] * softplus(s[j] - s[i]) for i, j in pairs)
    return total / sum(w[i] * w[j] for i, j in pairs)


def dcg(gains, ranks, k):
    return sum(g / np.log2(1 + r) for g, r in zip(gains, ranks, strict=True) if r <= k)


def lambdarank_of_group(s, y, w, k=10**9):
    gains, ranks = 2**y - 1, np.empty(len(s), int)
    ranks[np.argsort(-s)] = np.arange(1, len(s) + 1)
    ideal = dcg(np.sort(gains)[::-1], range(1, len(s) + 1), k)
    pairs = [(i, j) for i in range(len(s)) for j in range(len(s)) if y[i] > y[j]]
    mean_weight = np.mean([w[i] * w[j] for i, j in pairs])
    total = 0.0
    for i, j in pairs:
        swapped = ranks.copy()
        swapped[[i, j]] = swapped[[j, i]]
        change = abs(dcg(gains, swapped, k) - dcg(gains, ranks, k)) / ideal
        total += w[i] * w[j] / mean_weight * change * softplus(s[j] - s[i])
    return total


def copies(values, w):
    return np.repeat(values, w.astype(int))


def listnet_of_group(s, y, w):
    s, y = copies(s, w), copies(y, w)
    return -(softmax(y) * np.log(softmax(s))).sum()


def listmle_of_group(s, y, w):
    s, y = copies(s, w), copies(y, w)
    return sum(logsumexp(s[y <= y[i]]) - s[i] for i in range(len(s)) if (y < y[i]).any()) / len(s)


REFERENCES = {
    ranknet: ranknet_of_group,
    lambdarank: lambdarank_of_group,
    listnet: listnet_of_group,
    listmle: listmle_of_group,
}


def reference(of_group, scores, labels, groups, weights, **settings):
    losses = []
    for group in np.unique(groups):
        rows = (groups == group) & (weights > 0)
        if len(np.unique(labels[rows])) > 1:
            losses.append(of_group(scores[rows], labels[rows], weights[rows], **settings))
    return np.mean(losses)


@pytest.mark.parametrize("loss", OVER_GROUPS)
@pytest.mark.parametrize("grades", [2, 4])
@pytest.mark.parametrize("seed", range(3))
def test_loss_equals_a_plain_loop_over_groups(loss, grades, seed):
    columns = batch(grades=grades, seed=seed)
    assert loss(*tensors(*columns)).item() == pytest.approx(reference(REFERENCES[loss], *columns), rel=1e-10)


def test_lambdarank_at_k_equals_a_plain_loop():
    columns = batch(num_groups=4)
    expected = reference(lambdarank_of_group, *columns, k=3)
    assert build_ranking_loss("lambdarank", k=3)(*tensors(*columns)).item() == pytest.approx(expected, rel=1e-10)


# ---- numbers worked by hand

HAND = tensors([math.log(3), 0.0], [1, 0], [5, 5])


def test_ranknet_of_a_pair():
    # The better row leads by log 3: it wins with chance 3/4.
    assert ranknet(*HAND).item() == pytest.approx(math.log(4 / 3), rel=1e-6)


def test_ranknet_of_a_tie_in_scores_costs_log_two():
    assert ranknet(torch.zeros(3), torch.tensor([1, 0, 0]), torch.zeros(3)).item() == pytest.approx(LOG_2, rel=1e-6)


def test_lambdarank_of_a_pair():
    # Swapping the two moves the only gain from discount 1 to 1 / log2(3).
    assert lambdarank(*HAND).item() == pytest.approx((1 - 1 / math.log2(3)) * math.log(4 / 3), rel=1e-6)


def test_listnet_of_a_pair():
    p = math.e / (1 + math.e)
    expected = -(p * math.log(3 / 4) + (1 - p) * math.log(1 / 4))
    assert listnet(*HAND).item() == pytest.approx(expected, rel=1e-6)


def test_listmle_of_three_rows_in_order():
    # Drawn in the order 3/6, then 2/3, then the last for sure.
    scores = torch.tensor([1.0, 3.0, 2.0]).log()
    got = listmle(scores, torch.tensor([0, 2, 1]), torch.zeros(3, dtype=torch.int64))
    assert got.item() == pytest.approx(-(math.log(3 / 6) + math.log(2 / 3)) / 3, rel=1e-6)


def test_pointwise_is_binary_cross_entropy_and_looks_at_no_groups():
    scores, labels, _ = HAND
    for groups in ([5, 5], [1, 2]):
        got = pointwise(scores, labels, torch.tensor(groups), torch.tensor([1.0, 3.0]))
        assert got.item() == pytest.approx((math.log(4 / 3) + 3 * LOG_2) / 4, rel=1e-6)


def test_each_group_with_contrast_counts_once_however_long():
    one = ranknet(*HAND)
    scores = torch.cat((HAND[0], torch.zeros(5), torch.ones(3)))
    labels = torch.tensor([1, 0, 1, 0, 0, 0, 1, 1, 1, 1])
    groups = torch.tensor([0, 0, 1, 1, 1, 1, 1, 2, 2, 3])
    assert ranknet(scores, labels, groups).item() == pytest.approx((one.item() + LOG_2) / 2, rel=1e-6)


# ---- properties

NO_CONTRAST = {
    "no rows": tensors(np.zeros(0), np.zeros(0), np.zeros(0, int)),
    "groups of one": tensors([1.0, 2.0, 3.0], [0, 1, 1], [1, 2, 3]),
    "equal labels": tensors([1.0, 2.0, 3.0], [1, 1, 0], [4, 4, 5]),
    "no weight": tensors([1.0, 2.0], [1, 0], [4, 4], [0.0, 0.0]),
    "contrast without weight": tensors([1.0, 2.0, 3.0], [1, 0, 1], [4, 4, 4], [1.0, 0.0, 2.0]),
}


@pytest.mark.parametrize("loss", OVER_GROUPS)
@pytest.mark.parametrize("case", NO_CONTRAST)
def test_groups_without_contrast_give_zero_loss_and_zero_gradient(loss, case):
    scores, *others = NO_CONTRAST[case]
    scores = scores.clone().requires_grad_()
    got = loss(scores, *others)
    got.backward()
    assert got.item() == 0.0
    assert not scores.grad.any()


@pytest.mark.parametrize("loss", OVER_GROUPS)
def test_gradient_equals_finite_differences(loss):
    scores, *others = tensors(*batch(num_rows=24, num_groups=4))
    assert torch.autograd.gradcheck(lambda s: loss(s, *others), scores.requires_grad_(), eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("loss", OVER_GROUPS)
def test_huge_scores_give_finite_losses_and_gradients(loss):
    scores = torch.tensor([-9000.0, 9000.0, 0.0, 0.0], requires_grad=True)
    got = loss(scores, torch.tensor([1, 0, 0, 1]), torch.tensor([0, 0, 0, 1]))
    got.backward()
    assert got.isfinite()
    assert scores.grad.isfinite().all()


@pytest.mark.parametrize("loss", OVER_GROUPS)
def test_order_of_rows_and_names_of_groups_do_not_matter(loss):
    scores, labels, groups, weights = batch()
    order = np.random.default_rng(5).permutation(len(scores))
    mixed = [column[order] for column in (scores, labels, -groups, weights)]
    expected = loss(*tensors(scores, labels, groups, weights)).item()
    assert loss(*tensors(*mixed)).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("loss", [ranknet, listnet, listmle])
def test_a_weight_of_k_is_k_copies_of_the_row(loss):
    *columns, weights = batch()
    repeated = [copies(column, weights) for column in columns]
    assert loss(*tensors(*columns, weights)).item() == pytest.approx(loss(*tensors(*repeated)).item(), rel=1e-12)


@pytest.mark.parametrize("loss", [ranknet, lambdarank])
def test_scale_of_the_weights_does_not_matter_to_losses_of_pairs(loss):
    *columns, weights = batch()
    expected = loss(*tensors(*columns, weights)).item()
    assert loss(*tensors(*columns, 2.5 * weights)).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("loss", OVER_GROUPS)
def test_level_of_the_scores_of_a_group_does_not_matter(loss):
    scores, labels, groups, weights = batch()
    expected = loss(*tensors(scores, labels, groups, weights)).item()
    assert loss(*tensors(scores + groups % 7, labels, groups, weights)).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("loss", list(RankingLossType))
def test_training_raises_clicked_rows_above_the_others(loss):
    labels, groups = torch.tensor([0.0, 1.0, 0.0, 0.0, 1.0]), torch.tensor([0, 0, 0, 1, 1])
    scores = torch.zeros(5, requires_grad=True)
    optimizer = torch.optim.SGD([scores], lr=1.0)
    for _ in range(20):
        optimizer.zero_grad()
        build_ranking_loss(loss)(scores, labels, groups).backward()
        optimizer.step()
    assert scores[1] > scores[[0, 2]].max()
    assert scores[4] > scores[3]


def test_half_precision_scores_are_ranked_in_full_precision():
    scores, labels, groups, _ = batch()
    half = torch.tensor(scores, dtype=torch.bfloat16)
    got = ranknet(half, *tensors(labels, groups))
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(ranknet(half.double(), *tensors(labels, groups)).item(), rel=1e-5)


# ---- bad input


def test_columns_of_different_lengths_are_refused():
    with pytest.raises(DataError, match=r"one length(.|\n)*\(3,\)"):
        ranknet(torch.zeros(2), torch.zeros(2), torch.zeros(3))


def test_negative_weights_are_refused_with_their_row():
    with pytest.raises(DataError, match=r"weight is negative(.|\n)*row 1(.|\n)*-1.0"):
        listnet(torch.zeros(2), torch.zeros(2), torch.zeros(2), torch.tensor([1.0, -1.0]))


@pytest.mark.parametrize("label", [-1.0, 31.0, math.nan])
def test_lambdarank_refuses_labels_that_are_no_grades(label):
    with pytest.raises(DataError, match="no grade of relevance"):
        lambdarank(torch.zeros(2), torch.tensor([1.0, label]), torch.zeros(2))


@pytest.mark.parametrize(("loss", "k", "message"), [("ranknet", 3, "only lambdarank"), ("lambdarank", 0, "below 1")])
def test_k_without_use_or_below_one_is_refused(loss, k, message):
    with pytest.raises(ConfigError, match=message):
        build_ranking_loss(loss, k)
