"""Models of small integers, whose scores are exact, and edges between their few users and tweets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tml.projects.twhin.data.edges import EdgeArrays
from tml.projects.twhin.evaluation import DictSource, RankingOptions
from tml.projects.twhin.models.relations import RelationScorer, RelationSpec

DIM = 6
NUM_ROWS = {"user": 13, "tweet": 17}
OPERATOR_NAMES = ("identity", "translation", "diagonal", "complex_diagonal")


def quiet(**options: object) -> RankingOptions:
    return RankingOptions(progress=False, **options)  # type: ignore[arg-type]


def edge_arrays(rows: Sequence[tuple[int, int, int]]) -> EdgeArrays:
    table = np.array(rows, dtype=np.int64).reshape(-1, 3)
    return EdgeArrays(*(np.ascontiguousarray(column) for column in table.T))


def make_relations(*operators: str) -> list[RelationSpec]:
    """Two relations per operator, one between users and one from users to tweets."""
    ends = (("follow", "user"), ("fav", "tweet"))
    return [RelationSpec(f"{name}_{op}", "user", rhs, op) for op in operators for name, rhs in ends]


def random_edges(relations: Sequence[RelationSpec], num_edges: int, seed: int) -> EdgeArrays:
    rng = np.random.default_rng(seed)
    rel = rng.integers(0, len(relations), num_edges)
    limits = np.array([[NUM_ROWS[r.lhs], NUM_ROWS[r.rhs]] for r in relations])[rel]
    # Squares of uniform numbers favour small ids, so that queries repeat and have several answers.
    ends = (rng.random((num_edges, 2)) ** 2 * limits).astype(np.int64)
    return EdgeArrays(ends[:, 0].copy(), rel, ends[:, 1].copy())


def random_model(relations: Sequence[RelationSpec], comparator: str = "dot", reciprocal: bool = False, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    scorer = RelationScorer(relations, DIM, comparator, reciprocal)  # type: ignore[arg-type]
    with torch.no_grad():
        scorer.weight.copy_(_small_integers(scorer.weight.shape, generator))
    tables = {name: _small_integers((rows, DIM), generator) for name, rows in NUM_ROWS.items()}
    return scorer, DictSource(tables)


def _small_integers(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    # Sums of products of small integers are exact in float32: the same in any order of summation, and with true ties.
    return torch.randint(-2, 3, tuple(shape), generator=generator).float()


class FixedScores:
    """Ranks by a given score per node, whatever the query."""

    def __init__(self, relations: Sequence[RelationSpec], scores: Sequence[float]) -> None:
        self.relations, self._scores = tuple(relations), torch.tensor(scores)

    def operator(self, relation: int):
        return RelationScorer(self.relations, 2).operator(relation)

    def rhs_scores(self, operator: object, rel: Tensor, lhs: Tensor, candidates: Tensor) -> Tensor:
        return self._scores[candidates[:, 0]].expand(len(rel), -1).contiguous()

    lhs_scores = rhs_scores


FOLLOW = [RelationSpec("follow", "user", "user", "identity")]
