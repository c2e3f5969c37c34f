"""Scores: one matrix product compares the edges of a chunk with all candidates of a side.

Letters: `...` any leading shape (chunks), `C` edges, `N` candidates, `D` embedding dim.

The score of an edge is `f(l, r, t) = compare(op_r(l), t)`: the left-hand side is moved (arXiv 2202.05387).
Comparators: `dot`;
`cosine`; `l2`, the negative Euclidean distance. Higher is better for all three.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from tml.projects.twhin.models.operators import Operator

Comparator = Literal["dot", "cosine", "l2"]
Side = Literal["lhs", "rhs"]

# Squared distances are clamped here before the root: its gradient at zero is infinite.
_MIN_SQUARE = 1e-12


def score_rhs(operator: Operator, comparator: Comparator, params: Tensor, lhs: Tensor, candidates: Tensor) -> Tensor:
    """Scores of candidates for the right-hand side.

    Args:
        params: relation parameters of each edge, `[..., C, D]`.
        lhs: left-hand-side embeddings, `[..., C, D]`.
        candidates: `[..., N, D]`.

    Returns:
        `[..., C, N]`.
    """
    return compare_matrix(comparator, operator.apply(lhs, params), candidates)


def score_lhs(operator: Operator, comparator: Comparator, params: Tensor, rhs: Tensor, candidates: Tensor) -> Tensor:
    """Scores of candidates for the left-hand side; shapes as in `score_rhs`, with `rhs [..., C, D]`."""
    dots = operator.adjoint(rhs, params) @ candidates.transpose(-1, -2)
    bias = operator.adjoint_bias(rhs, params)
    if bias is not None:
        dots = dots + bias.unsqueeze(-1)
    if comparator == "dot":
        return dots
    moved_square = _moved_squares(operator, params, candidates)
    if comparator == "cosine":
        norms = moved_square.clamp_min(_MIN_SQUARE).sqrt()
        return dots / norms / _norm(rhs).unsqueeze(-1)
    return _negative_distance(moved_square - 2 * dots + rhs.square().sum(-1, keepdim=True))


def score_pairs(operator: Operator, comparator: Comparator, params: Tensor, lhs: Tensor, rhs: Tensor) -> Tensor:
    """Scores of edges, `[..., C]`, from `params`, `lhs` and `rhs`, each `[..., C, D]`."""
    moved = operator.apply(lhs, params)
    if comparator == "dot":
        return (moved * rhs).sum(-1)
    if comparator == "cosine":
        return (moved * rhs).sum(-1) / _norm(moved) / _norm(rhs)
    return _negative_distance((moved - rhs).square().sum(-1))


def compare_matrix(comparator: Comparator, queries: Tensor, candidates: Tensor) -> Tensor:
    """Compare every query `[..., C, D]` with every candidate `[..., N, D]`: `[..., C, N]`."""
    if comparator == "cosine":
        queries = queries / _norm(queries).unsqueeze(-1)
        candidates = candidates / _norm(candidates).unsqueeze(-1)
    dots = queries @ candidates.transpose(-1, -2)
    if comparator != "l2":
        return dots
    query_square = queries.square().sum(-1, keepdim=True)
    return _negative_distance(query_square - 2 * dots + candidates.square().sum(-1).unsqueeze(-2))


def _moved_squares(operator: Operator, params: Tensor, candidates: Tensor) -> Tensor:
    """`|op_c(candidate_n)|^2` for every edge c and candidate n: `[..., C, N]` (or `[..., 1, N]`)."""
    square, linear, constant = operator.norm_form(params)
    if square is None:
        total = candidates.square().sum(-1).unsqueeze(-2)
    else:
        total = square @ candidates.square().transpose(-1, -2)
    if linear is not None:
        total = total + linear @ candidates.transpose(-1, -2)
    if constant is not None:
        total = total + constant.unsqueeze(-1)
    return total


def _norm(x: Tensor) -> Tensor:
    return x.square().sum(-1).clamp_min(_MIN_SQUARE).sqrt()


def _negative_distance(square: Tensor) -> Tensor:
    return -torch.sqrt(square.clamp_min(_MIN_SQUARE))
