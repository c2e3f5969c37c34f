"""Scores of candidates equal the definition f(l, r, t) = compare(op_r(l), t), edge by edge."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch

from tml.projects.twhin.models.operators import OPERATORS
from tml.projects.twhin.models.relations import RelationScorer, RelationSpec
from tml.projects.twhin.models.scores import compare_matrix, score_lhs, score_pairs, score_rhs

COMBINATIONS = list(product(OPERATORS, ["dot", "cosine", "l2"]))


def _by_definition(operator, comparator, p, lhs, rhs) -> float:  # type: ignore[no-untyped-def]
    moved = operator.apply(lhs, p).tolist()
    rhs = rhs.tolist()
    dot = sum(a * b for a, b in zip(moved, rhs, strict=True))
    if comparator == "dot":
        return dot
    if comparator == "cosine":
        return dot / math.sqrt(sum(a * a for a in moved)) / math.sqrt(sum(b * b for b in rhs))
    return -math.sqrt(sum((a - b) ** 2 for a, b in zip(moved, rhs, strict=True)))


@pytest.mark.parametrize(("name", "comparator"), COMBINATIONS)
def test_candidates_of_both_sides_score_like_the_definition(name: str, comparator: str) -> None:
    torch.manual_seed(1)
    operator = OPERATORS[name]
    lhs, rhs, p = (torch.randn(2, 3, 4, dtype=torch.float64) for _ in range(3))
    candidates = torch.randn(2, 5, 4, dtype=torch.float64)
    right = score_rhs(operator, comparator, p, lhs, candidates)
    left = score_lhs(operator, comparator, p, rhs, candidates)
    pairs = score_pairs(operator, comparator, p, lhs, rhs)
    for s, c in product(range(2), range(3)):
        assert pairs[s, c].item() == pytest.approx(
            _by_definition(operator, comparator, p[s, c], lhs[s, c], rhs[s, c]), abs=1e-6
        )
        for n in range(5):
            expected = _by_definition(operator, comparator, p[s, c], lhs[s, c], candidates[s, n])
            assert right[s, c, n].item() == pytest.approx(expected, abs=1e-6)
            expected = _by_definition(operator, comparator, p[s, c], candidates[s, n], rhs[s, c])
            assert left[s, c, n].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("comparator", ["dot", "cosine", "l2"])
def test_gradient_is_finite_where_embeddings_are_zero_or_equal(comparator: str) -> None:
    x = torch.zeros(2, 4, requires_grad=True)
    compare_matrix(comparator, x, x).sum().backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("name", ["translation", "diagonal", "complex_diagonal"])
@pytest.mark.parametrize("comparator", ["dot", "cosine", "l2"])
def test_relation_gradients_match_finite_differences(name: str, comparator: str) -> None:
    torch.manual_seed(2)
    operator = OPERATORS[name]
    lhs, rhs, p = (torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    candidates = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda *x: score_rhs(operator, comparator, *x), (p, lhs, candidates))
    torch.autograd.gradcheck(lambda *x: score_lhs(operator, comparator, *x), (p, rhs, candidates))


def test_the_left_hand_side_is_translated_and_relations_get_a_gradient() -> None:
    scorer = RelationScorer([RelationSpec("fav", "user", "tweet", "translation")], 2)
    with torch.no_grad():
        scorer.weight.copy_(torch.tensor([[10.0, 0.0]]))
    lhs, rhs = torch.tensor([[1.0, 1.0]]), torch.tensor([[2.0, 3.0]])
    score = scorer.pair_scores(scorer.operator(0), torch.tensor([0]), lhs, rhs)
    assert score.tolist() == [(1 + 10) * 2 + 1 * 3]
    score.sum().backward()
    assert scorer.weight.grad.tolist() == [[2.0, 3.0]]


def test_reciprocal_relations_score_left_hand_sides_by_their_inverse() -> None:
    scorer = RelationScorer([RelationSpec("r", "e", "e", "diagonal")], 2, reciprocal=True)
    with torch.no_grad():
        scorer.weight.copy_(torch.tensor([[1.0, 1.0], [5.0, 7.0]]))
    operator, rel = scorer.operator(0), torch.tensor([0])
    lhs, rhs = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]])
    assert scorer.pair_scores(operator, rel, lhs, rhs).item() == 1 * 3 + 2 * 4
    assert scorer.lhs_scores(operator, rel, rhs, lhs).item() == 5 * 3 * 1 + 7 * 4 * 2
