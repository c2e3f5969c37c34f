"""Ranks of a block of edges among their candidates.

Letters: `Q` edges of a block, `U` distinct queries among them, `N` candidates, `P` pairs (edge, candidate).

The rank of an edge is the realistic one, the mean of the optimistic and the pessimistic: `1 + better + equal / 2`
over the other candidates. The score matrix is never masked or copied: candidates that a protocol leaves out are
looked up one by one and taken off the counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tml.projects.twhin.data.edges import EdgeArrays
from tml.projects.twhin.evaluation.known_edges import KnownEdges
from tml.projects.twhin.models.scores import Side

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

# Bounds of what is compared at a time: rows on a GPU; scores of a row on a CPU, so that they stay in the cache.
_ROWS_AT_A_TIME = 64
_SCORES_AT_A_TIME = 32_768


class Field(IntEnum):
    """What is kept of an edge and side; the first axis of the results.

    The ranks differ in the candidates they leave out: `RAW` none, `FILTERED` every other true answer, `RETRIEVAL` the
    answers that are not evaluated themselves. `POSITIVE` is the edge's score and `NEGATIVE` that of one corruption
    (NaN if there is none). A rank is NaN when a score of the edge is not finite.
    """

    RAW = 0
    FILTERED = 1
    RETRIEVAL = 2
    POSITIVE = 3
    NEGATIVE = 4


@dataclass(frozen=True)
class Pool:
    """Candidates of a table.

    Attributes:
        rows: embeddings `[N, D]`.
        ids: sorted int64 `[N]` of sampled candidates; None for the whole table.
    """

    rows: Tensor
    ids: Ints | None = None

    def columns(self, nodes: Ints) -> tuple[Ints, Mask]:
        """The column of each node, and whether the node is a candidate at all."""
        if self.ids is None:
            return nodes, np.ones(len(nodes), dtype=bool)
        at = np.minimum(np.searchsorted(self.ids, nodes), len(self.ids) - 1)
        return at, self.ids[at] == nodes


@dataclass(frozen=True)
class ScoreBlock:
    """Scores of a block.

    Attributes:
        matrix: `[U, N]`, or `[U, N + Q]` for a sampled pool: the last Q columns then score the block's own true nodes.
        row: int64 `[Q]`, the row of each edge's query.
        pool: the candidates of the first N columns.
        is_finite: bool `[U]`, whether all scores of a row are finite.
    """

    matrix: Tensor
    row: Ints
    pool: Pool
    is_finite: Mask

    def at(self, edges: Ints, columns: Ints) -> NDArray[np.float32]:
        """The scores of some edges at some columns."""
        device = self.matrix.device
        rows = torch.from_numpy(self.row[edges]).to(device)
        return _numpy(self.matrix[rows, torch.from_numpy(columns).to(device)])

    def count(self, limit: NDArray[np.float32]) -> tuple[Ints, Ints]:
        """How many candidates of each edge score above, and how many equal to, the edge's `limit [Q]`."""
        candidates = self.matrix[:, : len(self.pool.rows)]
        if candidates.device.type == "cpu":
            return _count_in_rows(candidates.numpy(), self.row, limit)
        better, equal = np.empty((2, len(limit)), dtype=np.int64)
        for start in range(0, len(limit), _ROWS_AT_A_TIME):
            part = slice(start, start + _ROWS_AT_A_TIME)
            scores = candidates[torch.from_numpy(self.row[part]).to(candidates.device)]
            column = torch.from_numpy(limit[part]).to(candidates.device).unsqueeze(1)
            better[part], equal[part] = _numpy((scores > column).sum(1)), _numpy((scores == column).sum(1))
        return better, equal


@dataclass(frozen=True)
class Filters:
    """The edges of all splits, and those being evaluated."""

    known: KnownEdges
    evaluated: KnownEdges

    def pairs(self, block: EdgeArrays, side: Side) -> tuple[Ints, Ints, Mask]:
        """All true answers to the block's queries: `(edge, node, is evaluated)`, each `[P]`."""
        row, node = self.known.answers(block, side)
        eval_row, eval_node = self.evaluated.answers(block, side)
        width = 1 + max(node.max(initial=0), eval_node.max(initial=0))
        key, eval_key = row * width + node, eval_row * width + eval_node
        at = np.minimum(np.searchsorted(key, eval_key), max(len(key) - 1, 0))
        found = key[at] == eval_key if len(key) else np.zeros(len(eval_key), dtype=bool)
        is_evaluated = np.zeros(len(key), dtype=bool)
        is_evaluated[at[found]] = True
        return (
            np.concatenate([row, eval_row[~found]]),
            np.concatenate([node, eval_node[~found]]),
            np.concatenate([is_evaluated, np.ones(np.count_nonzero(~found), dtype=bool)]),
        )


def rank_block(scores: ScoreBlock, block: EdgeArrays, side: Side, filters: Filters, uniform: Floats) -> Floats:
    """Rank the true node of every edge.

    Args:
        scores: of the block's queries.
        block: `Q` edges.
        side: which end is ranked.
        filters: true answers.
        uniform: `[Q]` in [0, 1), chooses the corruption of each edge.

    Returns:
        float64 `[5, Q]` in the order of `Field`.
    """
    num_edges, num_candidates = len(block), len(scores.pool.rows)
    target = block.rhs if side == "rhs" else block.lhs
    edge = np.arange(num_edges)
    own_column, is_candidate = scores.pool.columns(target)
    positive = scores.at(edge, own_column if scores.pool.ids is None else num_candidates + edge)
    better, equal = scores.count(positive)

    row, node, is_evaluated = filters.pairs(block, side)
    column, present = scores.pool.columns(node)
    row, node, column, is_evaluated = row[present], node[present], column[present], is_evaluated[present]
    pair_scores = scores.at(row, column)
    pair_better, pair_equal = pair_scores > positive[row], pair_scores == positive[row]
    is_own = node == target[row]

    def rank(left_out: Mask) -> Floats:
        fewer_better = np.bincount(row[left_out & pair_better], minlength=num_edges)
        fewer_equal = np.bincount(row[left_out & pair_equal], minlength=num_edges)
        return 1.0 + (better - fewer_better) + (equal - fewer_equal) / 2

    result = np.empty((len(Field), num_edges))
    result[Field.RAW] = rank(is_own)
    result[Field.FILTERED] = rank(np.ones(len(row), dtype=bool))
    result[Field.RETRIEVAL] = rank(is_own | ~is_evaluated)
    result[Field.POSITIVE] = positive
    result[Field.NEGATIVE] = _corrupted(scores, np.where(is_candidate, own_column, num_candidates), uniform)
    result[: Field.RETRIEVAL + 1, ~scores.is_finite[scores.row]] = np.nan
    return result


def _count_in_rows(matrix: NDArray[np.float32], row: Ints, limit: NDArray[np.float32]) -> tuple[Ints, Ints]:
    # Part by part the comparison stays in the cache; as one matrix operation it costs as much as computing the scores.
    better, equal = np.zeros((2, len(limit)), dtype=np.int64)
    num_candidates = matrix.shape[1]
    for start in range(0, num_candidates, _SCORES_AT_A_TIME):
        part = matrix[:, start : start + _SCORES_AT_A_TIME]
        mask = np.empty(part.shape[1], dtype=bool)
        for edge, (index, value) in enumerate(zip(row.tolist(), limit, strict=True)):
            better[edge] += np.count_nonzero(np.greater(part[index], value, out=mask))
            equal[edge] += np.count_nonzero(np.equal(part[index], value, out=mask))
    return better, equal


def _corrupted(scores: ScoreBlock, own: Ints, uniform: Floats) -> Floats:
    """Score of one uniformly drawn candidate per edge; column `own` is not drawn (N stands for none)."""
    num_candidates = len(scores.pool.rows)
    num_others = num_candidates - (own < num_candidates)
    drawn = np.floor(uniform * num_others).astype(np.int64)
    drawn += drawn >= own
    valid = np.flatnonzero(num_others > 0)
    result = np.full(len(own), np.nan)
    result[valid] = scores.at(valid, drawn[valid])
    return result


def _numpy(values: Tensor) -> NDArray:  # type: ignore[type-arg]
    return values.cpu().numpy()
