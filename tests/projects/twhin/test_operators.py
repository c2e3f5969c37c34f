"""Operators: known values, adjoints, norm forms, identity at the start."""

from __future__ import annotations

import pytest
import torch

from tml.projects.twhin.models.operators import OPERATORS

DIM = 6


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_values_worked_by_hand() -> None:
    x, p = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    assert OPERATORS["identity"].apply(x, p).tolist() == [1.0, 2.0]
    assert OPERATORS["translation"].apply(x, p).tolist() == [4.0, 6.0]
    assert OPERATORS["diagonal"].apply(x, p).tolist() == [3.0, 8.0]
    # (1 + 2i) (3 + 4i) = -5 + 10i
    assert OPERATORS["complex_diagonal"].apply(x, p).tolist() == [-5.0, 10.0]


@pytest.mark.parametrize("name", OPERATORS)
def test_adjoint_moves_the_operator_to_the_other_side_of_the_dot_product(name: str) -> None:
    operator, x, y, p = OPERATORS[name], _random(5, DIM), _random(5, DIM, seed=1), _random(5, DIM, seed=2)
    query, bias = operator.adjoint(y, p), operator.adjoint_bias(y, p)
    moved = (x * query).sum(-1) + (0 if bias is None else bias)
    torch.testing.assert_close(moved, (operator.apply(x, p) * y).sum(-1))


@pytest.mark.parametrize("name", OPERATORS)
def test_norm_form_is_the_squared_norm(name: str) -> None:
    operator, x, p = OPERATORS[name], _random(5, DIM), _random(5, DIM, seed=2)
    square, linear, constant = operator.norm_form(p)
    total = (x.square() * (1 if square is None else square)).sum(-1)
    total = total + (0 if linear is None else (x * linear).sum(-1)) + (0 if constant is None else constant)
    torch.testing.assert_close(total, operator.apply(x, p).square().sum(-1))


@pytest.mark.parametrize("name", OPERATORS)
def test_starts_as_the_identity(name: str) -> None:
    x, p = _random(3, DIM), torch.full((3, DIM), 7.0, dtype=torch.float64)
    OPERATORS[name].init_params(p)
    torch.testing.assert_close(OPERATORS[name].apply(x, p), x)


def test_complex_factors_are_moduli() -> None:
    assert OPERATORS["complex_diagonal"].factors(torch.tensor([3.0, 0.0, 4.0, 2.0])).tolist() == [5.0, 2.0]
