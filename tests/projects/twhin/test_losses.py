"""Losses: numbers worked by hand, gradients by finite differences, masks, direction, independence of the number of
negatives."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tml.projects.twhin.models.chunk_loss import SideLoss
from tml.projects.twhin.models.losses import LOSSES, MASKED_SCORE, SHIFT_INVARIANT

POSITIVE = torch.tensor([1.0])
NEGATIVE = torch.tensor([[0.5, -0.2]])


def loss_of(name: str, positive: Tensor, negative: Tensor, margin: float) -> Tensor:
    return LOSSES[name](positive, negative.clone(), margin)[0]


def test_softmax_by_hand() -> None:
    expected = math.log(math.exp(1.0) + math.exp(0.5) + math.exp(-0.2)) - 1.0
    assert loss_of("softmax", POSITIVE, NEGATIVE, 0.0).item() == pytest.approx(expected, rel=1e-6)
    # A margin of log 3 counts every negative three times.
    expected = math.log(math.exp(1.0) + 3 * (math.exp(0.5) + math.exp(-0.2))) - 1.0
    assert loss_of("softmax", POSITIVE, NEGATIVE, math.log(3)).item() == pytest.approx(expected, rel=1e-6)


def test_logistic_by_hand_labels_negatives_zero() -> None:
    expected = math.log1p(math.exp(-1.0)) + 0.5 * (math.log1p(math.exp(0.5)) + math.log1p(math.exp(-0.2)))
    assert loss_of("logistic", POSITIVE, NEGATIVE, 0.1).item() == pytest.approx(expected, rel=1e-6)


def test_ranking_by_hand() -> None:
    # margin 0.6: max(0, 0.6 - 1 + 0.5) = 0.1 and max(0, 0.6 - 1 - 0.2) = 0
    assert loss_of("ranking", POSITIVE, NEGATIVE, 0.6).item() == pytest.approx(0.05, rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_negatives_fall_and_the_positive_rises(name: str) -> None:
    positive = torch.zeros(1, 4, requires_grad=True)
    negative = torch.zeros(1, 4, 3, requires_grad=True)
    optimizer = torch.optim.SGD([positive, negative], lr=0.5)
    nothing = torch.empty(0, dtype=torch.int64)
    for _ in range(10):
        _, derivatives = SideLoss(name, 1.0).of_scores(positive, negative, nothing, torch.ones(1, 4))
        for scores, derivative in derivatives:
            scores.grad = derivative
        optimizer.step()
    assert (positive > 0.1).all()
    assert (negative < -0.1).all()


def _reference(name: str, positive: Tensor, negative: Tensor, masked: Tensor, weight: Tensor, margin: float) -> Tensor:
    """The definition, with autograd."""
    valid = torch.ones(negative.numel(), dtype=torch.bool).index_fill_(0, masked, False).view(negative.shape)
    total = torch.zeros((), dtype=torch.float64)
    for s in range(positive.shape[0]):
        for c in range(positive.shape[1]):
            p, n = positive[s, c], negative[s, c][valid[s, c]]
            if name == "softmax":
                loss = torch.logsumexp(torch.cat([p.view(1), n + margin]), 0) - p
            elif name == "logistic":
                loss = -torch.nn.functional.logsigmoid(p)
                loss = loss - (torch.nn.functional.logsigmoid(-n).mean() if len(n) else 0)
            else:
                loss = (margin - p + n).clamp_min(0).mean() if len(n) else 0 * p
            total = total + weight[s, c] * loss
    return total


def _inputs() -> tuple[Tensor, ...]:
    torch.manual_seed(3)
    queries = torch.randn(3, 4, 6, dtype=torch.float64, requires_grad=True)
    candidates = torch.randn(3, 5, 6, dtype=torch.float64, requires_grad=True)
    own = torch.randn(3, 4, 6, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(3, 4, dtype=torch.float64)
    return queries, candidates, own, bias, weight


@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_derivatives_equal_autograd_of_the_definition(name: str) -> None:
    inputs = queries, candidates, own, bias = _inputs()[:4]
    weight = _inputs()[4]
    # The second edge of the first chunk has no negative left.
    masked = torch.tensor([0, 5, 6, 7, 8, 9, 33, 59])
    positive = (queries * own).sum(-1) + bias
    negative = queries @ candidates.transpose(1, 2) + bias.unsqueeze(-1)
    expected = _reference(name, positive, negative, masked, weight, 0.7)
    side = SideLoss(name, 0.7)
    by_candidates = torch.empty_like(candidates)
    loss, found, by_dots = side.of_dots(queries, candidates, by_candidates, own, masked, weight, bias)
    by_dots.append((candidates, by_candidates))
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(found, positive.detach())
    loss, by_scores = side.of_scores(positive, negative, masked, weight)
    torch.testing.assert_close(loss, expected.detach())
    for derivatives in (by_dots, by_scores):
        outputs, by_outputs = zip(*derivatives, strict=True)
        found = torch.autograd.grad(outputs, inputs, by_outputs, retain_graph=True)
        wanted = torch.autograd.grad(expected, inputs, retain_graph=True)
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("name", LOSSES)
def test_positive_scores_are_read_off_the_diagonal_where_the_ends_are_candidates(name: str) -> None:
    queries, candidates, _, bias, weight = _inputs()
    diagonal = torch.arange(3).unsqueeze(1) * 20 + torch.arange(4) * 6
    masked = torch.cat([diagonal.flatten(), torch.tensor([1, 13, 44])]).sort().values
    side = SideLoss(name, 0.7)
    results, grads = [], []
    for own in (None, candidates[:, :4]):
        by_candidates = torch.empty_like(candidates)
        *result, derivatives = side.of_dots(queries, candidates, by_candidates, own, masked, weight, bias)
        results.append(result)
        outputs, by_outputs = zip(*derivatives, (candidates, by_candidates), strict=True)
        grads.append(torch.autograd.grad(outputs, (queries, candidates, bias), by_outputs, retain_graph=True))
    torch.testing.assert_close(results[0], results[1])
    torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.parametrize("name", sorted(SHIFT_INVARIANT))
def test_a_bias_of_all_scores_of_an_edge_changes_nothing(name: str) -> None:
    positive, negative = torch.randn(4), torch.randn(4, 5)
    plain = LOSSES[name](positive, negative.clone(), 0.7)
    shifted = LOSSES[name](positive + 3.0, negative + 3.0, 0.7)
    torch.testing.assert_close(plain, shifted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("num_negatives", [0, 4])
def test_fault_26_an_edge_whose_negatives_are_all_masked_or_absent_has_a_finite_loss(
    name: str, num_negatives: int
) -> None:
    loss, by_positive, by_negative = LOSSES[name](
        torch.tensor([2.0]), torch.full((1, num_negatives), MASKED_SCORE), 0.5
    )
    assert torch.isfinite(loss).all()
    assert torch.isfinite(by_positive).all()
    assert by_negative.abs().sum() == 0


@pytest.mark.parametrize("name", ["logistic", "ranking"])
def test_loss_does_not_grow_with_the_number_of_negatives(name: str) -> None:
    few = loss_of(name, POSITIVE, torch.full((1, 2), 0.3), 1.0)
    many = loss_of(name, POSITIVE, torch.full((1, 200), 0.3), 1.0)
    assert few.item() == pytest.approx(many.item(), rel=1e-5)
