"""Losses: numbers worked by hand, masks, direction, and independence of the number of negatives."""

from __future__ import annotations

import math

import pytest
import torch

from tml.projects.twhin.models.losses import LOSSES, MASKED_SCORE

POSITIVE = torch.tensor([1.0])
NEGATIVE = torch.tensor([[0.5, -0.2]])


def test_softmax_by_hand() -> None:
    expected = math.log(math.exp(1.0) + math.exp(0.5) + math.exp(-0.2)) - 1.0
    assert LOSSES["softmax"](POSITIVE, NEGATIVE, 0.1).item() == pytest.approx(expected, rel=1e-6)


def test_logistic_by_hand_labels_negatives_zero() -> None:
    expected = math.log1p(math.exp(-1.0)) + 0.5 * (math.log1p(math.exp(0.5)) + math.log1p(math.exp(-0.2)))
    assert LOSSES["logistic"](POSITIVE, NEGATIVE, 0.1).item() == pytest.approx(expected, rel=1e-6)


def test_ranking_by_hand() -> None:
    # margin 0.6: max(0, 0.6 - 1 + 0.5) = 0.1 and max(0, 0.6 - 1 - 0.2) = 0
    assert LOSSES["ranking"](POSITIVE, NEGATIVE, 0.6).item() == pytest.approx(0.05, rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_negatives_fall_and_the_positive_rises(name: str) -> None:
    positive = torch.zeros(4, requires_grad=True)
    negative = torch.zeros(4, 3, requires_grad=True)
    optimizer = torch.optim.SGD([positive, negative], lr=0.5)
    for _ in range(10):
        optimizer.zero_grad()
        LOSSES[name](positive, negative, 1.0).sum().backward()
        optimizer.step()
    assert (positive > 0.1).all()
    assert (negative < -0.1).all()


@pytest.mark.parametrize("name", LOSSES)
def test_a_masked_negative_has_no_influence(name: str) -> None:
    padded = torch.cat([NEGATIVE, torch.full((1, 3), MASKED_SCORE)], dim=1).requires_grad_()
    with_mask = LOSSES[name](POSITIVE, padded, 0.6)
    assert with_mask.item() == pytest.approx(LOSSES[name](POSITIVE, NEGATIVE, 0.6).item(), rel=1e-6)
    with_mask.sum().backward()
    assert padded.grad[0, 2:].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("num_negatives", [0, 4])
def test_an_edge_whose_negatives_are_all_masked_or_absent_has_a_finite_loss(name: str, num_negatives: int) -> None:
    positive = torch.tensor([2.0], requires_grad=True)
    negative = torch.full((1, num_negatives), MASKED_SCORE, requires_grad=True)
    loss = LOSSES[name](positive, negative, 0.5)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(positive.grad).all()
    assert torch.isfinite(negative.grad).all()


@pytest.mark.parametrize("name", ["logistic", "ranking"])
def test_loss_does_not_grow_with_the_number_of_negatives(name: str) -> None:
    few = LOSSES[name](POSITIVE, torch.full((1, 2), 0.3), 1.0)
    many = LOSSES[name](POSITIVE, torch.full((1, 200), 0.3), 1.0)
    assert few.item() == pytest.approx(many.item(), rel=1e-5)
