"""Baselines that know no embeddings: popularity and chance. The keys are those of the evaluator.

Letters: `C` queries, `N` candidates, `E` edges, `m` candidates an edge is ranked among.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tml.common.errors import ConfigError
from tml.projects.twhin.data.edges import EdgeArrays, EdgeSchema, take
from tml.projects.twhin.evaluation.evaluator import LinkPredictionEvaluator, choose_edges
from tml.projects.twhin.evaluation.known_edges import KnownEdges, query_keys
from tml.projects.twhin.evaluation.ranking import Filters
from tml.projects.twhin.evaluation.sources import IdSource
from tml.projects.twhin.evaluation.summary import SIDES, recall
from tml.projects.twhin.models.operators import OPERATORS, Operator
from tml.projects.twhin.models.relations import RelationSpec
from tml.projects.twhin.models.scores import Side

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_EDGES_AT_A_TIME = 4096
_EULER_GAMMA = 0.5772156649015329
_NO_DEGREES = (np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))


class PopularityScorer:
    """Scores a candidate by its degree in the training edges, per relation and side; use with `IdSource`.

    Args:
        train: training edges.
        relations: the relations.
    """

    def __init__(self, train: EdgeArrays, relations: Sequence[RelationSpec]) -> None:
        self.relations = tuple(relations)
        self._degrees = {"lhs": _degrees(train.rel, train.lhs), "rhs": _degrees(train.rel, train.rhs)}

    def operator(self, relation: int) -> Operator:
        """Any: popularity moves nothing."""
        return OPERATORS["identity"]

    def rhs_scores(self, operator: Operator, rel: Tensor, lhs: Tensor, candidates: Tensor) -> Tensor:
        """In-degrees `[C, N]` of candidate ids `[N, 1]` under `rel [C]`."""
        return self._scores("rhs", rel, candidates)

    def lhs_scores(self, operator: Operator, rel: Tensor, rhs: Tensor, candidates: Tensor) -> Tensor:
        """Out-degrees `[C, N]` of candidate ids `[N, 1]` under `rel [C]`."""
        return self._scores("lhs", rel, candidates)

    def _scores(self, side: str, rel: Tensor, candidates: Tensor) -> Tensor:
        ids = candidates[:, 0].numpy()
        scores = torch.empty(len(rel), len(ids))
        for relation in rel.unique().tolist():
            nodes, degrees = self._degrees[side].get(relation, _NO_DEGREES)
            at = np.minimum(np.searchsorted(nodes, ids), max(len(nodes) - 1, 0))
            row = np.where(nodes[at] == ids, degrees[at], 0) if len(nodes) else np.zeros(len(ids))
            scores[rel == relation] = torch.from_numpy(row.astype(np.float32))
        return scores


def popularity_baseline(
    train: EdgeArrays,
    edges: EdgeArrays,
    *,
    relations: Sequence[RelationSpec],
    num_rows: Mapping[str, int],
    evaluator: LinkPredictionEvaluator,
) -> dict[str, float]:
    """What ranking by training degree reaches on `edges`, by the same evaluator (which see for results and errors)."""
    return evaluator.evaluate(edges, PopularityScorer(train, relations), IdSource(num_rows))


def random_baseline(
    edges: EdgeArrays,
    *,
    relations: Sequence[RelationSpec],
    num_rows: Mapping[str, int],
    evaluator: LinkPredictionEvaluator,
) -> dict[str, float]:
    """What a random order reaches in expectation, by formula: `filtered.*`, `raw.*`, `recall@k`, `auc`.

    Among m candidates the rank is uniform on 1..m: `mrr = H(m) / m`, `mr = (m + 1) / 2`, `hits@k = min(k, m) / m`.

    Raises:
        ConfigError: the evaluator samples candidates.
    """
    if evaluator.options.num_candidates is not None:
        raise ConfigError("the random baseline is for all candidates", where="num_candidates", fix="leave it out")
    edges = choose_edges(edges, evaluator.options)
    EdgeSchema(relations, num_rows).check(edges, "evaluated edge {}".format)
    filters = Filters(evaluator.known, KnownEdges(edges))
    sizes: dict[str, list[Ints]] = {name: [] for name in ("raw", "filtered", "retrieval")}
    for side in SIDES:
        num_candidates = np.array([num_rows[getattr(relation, side)] for relation in relations])[edges.rel]
        answers, evaluated = _count_answers(filters, edges, side)
        sizes["raw"].append(num_candidates)
        sizes["filtered"].append(num_candidates - answers + 1)  # an edge's own answer stays
        sizes["retrieval"].append(num_candidates - answers + evaluated)
    hits_at = evaluator.options.hits_at
    metrics = {"num_edges": float(len(edges)), "auc": 0.5}
    for name in ("filtered", "raw"):
        expected = _expected(np.concatenate(sizes[name]), hits_at)
        metrics |= {f"{name}.{key}": value for key, value in expected.items()}
    hits = {k: np.minimum(k / sizes["retrieval"][SIDES.index("rhs")], 1.0) for k in hits_at}
    return metrics | recall(query_keys(edges, "rhs"), hits)


def _count_answers(filters: Filters, edges: EdgeArrays, side: Side) -> tuple[Ints, Ints]:
    """How many true answers each edge's query has, and how many of them are evaluated themselves."""
    answers, evaluated = np.zeros((2, len(edges)), dtype=np.int64)
    for start in range(0, len(edges), _EDGES_AT_A_TIME):
        part = slice(start, start + _EDGES_AT_A_TIME)
        row, _, is_evaluated = filters.pairs(take(edges, part), side)
        answers[part] = np.bincount(row, minlength=len(answers[part]))
        evaluated[part] = np.bincount(row[is_evaluated], minlength=len(answers[part]))
    return answers, evaluated


def _expected(sizes: Ints, hits_at: Sequence[int]) -> dict[str, float]:
    metrics = {"mrr": float((_harmonic(sizes) / sizes).mean()), "mr": float((sizes + 1).mean() / 2)}
    return metrics | {f"hits@{k}": float(np.minimum(k / sizes, 1.0).mean()) for k in hits_at}


def _harmonic(m: Ints) -> Floats:
    """`1 + 1/2 + ... + 1/m`: summed up to 64, and from there by Euler's expansion, which is exact to 1e-9."""
    exact = np.cumsum(1.0 / np.arange(1, 65))
    expansion = np.log(m) + _EULER_GAMMA + 1 / (2 * m) - 1 / (12 * m.astype(np.float64) ** 2)
    return np.where(m <= 64, exact[np.minimum(m, 64) - 1], expansion)


def _degrees(rel: Ints, nodes: Ints) -> dict[int, tuple[Ints, Ints]]:
    """Per relation the nodes that occur, sorted, and how often."""
    return {relation: np.unique(nodes[rel == relation], return_counts=True) for relation in np.unique(rel).tolist()}
