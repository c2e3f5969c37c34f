"""Relations: their parameters and how they score, shared by training, evaluation and the exported model.

Letters: `R` relations, `D` embedding dim, `C` edges, `N` candidates, `...` any leading shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tml.projects.twhin.models import scores
from tml.projects.twhin.models.operators import OPERATORS, Operator
from tml.projects.twhin.models.scores import Comparator


@dataclass(frozen=True)
class RelationSpec:
    """A relation's name, the tables of its ends and its operator's name."""

    name: str
    lhs: str
    rhs: str
    operator: str = "translation"


class RelationScorer(nn.Module):
    """Scores edges and candidates under every relation.

    With `reciprocal`, each relation has a second row of parameters for its inverse: corrupted left-hand sides are
    scored as right-hand sides of the inverse, `compare(op_inverse(rhs), lhs)` (arXiv 1806.07297). Without, both sides
    use one score.

    Attributes:
        weight: float `[R, D]`, or `[2 R, D]` with the inverses in the second half. The row of an `identity` relation
            is unused.
    """

    def __init__(
        self, relations: Sequence[RelationSpec], dim: int, comparator: Comparator = "dot", reciprocal: bool = False
    ) -> None:
        super().__init__()
        self.relations = tuple(relations)
        self.comparator: Comparator = comparator
        self.reciprocal = reciprocal
        self.weight = nn.Parameter(torch.zeros(len(relations) * (2 if reciprocal else 1), dim))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start every operator as the identity."""
        for row in range(len(self.weight)):
            self.operator(row % len(self.relations)).init_params(self.weight[row : row + 1])

    def operator(self, relation: int) -> Operator:
        """The operator of a relation index."""
        return OPERATORS[self.relations[relation].operator]

    def pair_scores(self, operator: Operator, rel: Tensor, lhs: Tensor, rhs: Tensor) -> Tensor:
        """Forward scores of edges `[..., C]`: `rel` int64 `[..., C]` under one operator, `lhs` and `rhs` `[..., C,
        D]`."""
        return scores.score_pairs(operator, self.comparator, self.params(rel), lhs, rhs)

    def rhs_scores(self, operator: Operator, rel: Tensor, lhs: Tensor, candidates: Tensor) -> Tensor:
        """Scores `[..., C, N]` of `candidates [..., N, D]` as right-hand sides of `lhs [..., C, D]` under `rel [...,
        C]`."""
        return scores.score_rhs(operator, self.comparator, self.params(rel), lhs, candidates)

    def lhs_scores(self, operator: Operator, rel: Tensor, rhs: Tensor, candidates: Tensor) -> Tensor:
        """Scores `[..., C, N]` of `candidates [..., N, D]` as left-hand sides of `rhs [..., C, D]` under `rel [...,
        C]`."""
        if self.reciprocal:
            return scores.score_rhs(operator, self.comparator, self.inverse_params(rel), rhs, candidates)
        return scores.score_lhs(operator, self.comparator, self.params(rel), rhs, candidates)

    def params(self, rel: Tensor) -> Tensor:
        """Parameters `[..., D]` of relation indexes `[...]`."""
        return F.embedding(rel, self.weight)

    def inverse_params(self, rel: Tensor) -> Tensor:
        """Parameters `[..., D]` of the inverses of relation indexes `[...]`; only with `reciprocal`."""
        return F.embedding(rel + len(self.relations), self.weight)
