"""Regularisers of the rows and relation parameters that an edge touches.

Letters: `...` leading shape (chunks and edges), `D` embedding dim.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from tml.projects.twhin.models.operators import Operator

# (operator, relation parameters, lhs, rhs), each `[..., D]`, to a penalty `[...]`.
Regularizer = Callable[[Operator, Tensor, Tensor, Tensor], Tensor]


def n3(operator: Operator, params: Tensor, lhs: Tensor, rhs: Tensor) -> Tensor:
    """Sum of cubed moduli of lhs, relation and rhs (nuclear 3-norm, arXiv 1806.07297 eq. 4)."""
    # Embeddings are complex exactly where the operator's parameters are.
    penalty = operator.factors(lhs).pow(3).sum(-1) + operator.factors(rhs).pow(3).sum(-1)
    if operator.has_params:
        penalty = penalty + operator.factors(params).pow(3).sum(-1)
    return penalty


def l2(operator: Operator, params: Tensor, lhs: Tensor, rhs: Tensor) -> Tensor:
    """Sum of squares of lhs, relation and rhs."""
    penalty = lhs.square().sum(-1) + rhs.square().sum(-1)
    if operator.has_params:
        penalty = penalty + params.square().sum(-1)
    return penalty


REGULARIZERS: dict[str, Regularizer] = {"n3": n3, "l2": l2}
