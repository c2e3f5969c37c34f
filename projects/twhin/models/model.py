"""The TwHIN model: look-up of a batch's nodes, and a head that scores, masks and turns scores into a loss.

Letters: `S` chunks, `C` edges in a chunk, `W` nodes of a chunk, `N` candidates of a chunk and side, `D` embedding dim.

The head is a module of its own, without tables: torchrec's pipeline traces the look-up and leaves the head alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tml.projects.twhin.data.chunks import ChunkedEdges, ChunkShape
from tml.projects.twhin.models import scores
from tml.projects.twhin.models.chunk_loss import dots_loss, scores_loss
from tml.projects.twhin.models.operators import OPERATORS, Operator
from tml.projects.twhin.models.regularizers import REGULARIZERS
from tml.projects.twhin.models.relations import RelationScorer


@dataclass(frozen=True)
class HeadSettings:
    """What the head needs besides the relations.

    Args:
        shape: sizes of a chunk.
        loss: a name of `LOSSES`.
        margin: of the ranking loss.
        regularizer: a name of `REGULARIZERS`, or None.
        regularization_weight: what its penalty is multiplied with.
        num_ranks: the loss is scaled so that its mean over ranks is the mean over the global batch.
    """

    shape: ChunkShape
    loss: str = "softmax"
    margin: float = 0.1
    regularizer: str | None = None
    regularization_weight: float = 0.0
    num_ranks: int = 1


class TwhinHead(nn.Module):
    """Rows of a batch's nodes in, mean loss of its edges out."""

    def __init__(self, scorer: RelationScorer, settings: HeadSettings) -> None:
        super().__init__()
        self.scorer = scorer
        self.settings = settings

    def forward(self, rows: Tensor, batch: ChunkedEdges) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and what is worth logging.

        Args:
            rows: `[S * W, D]`, in the order of `batch.node_ids`.
            batch: the chunks.

        Returns:
            The loss of an edge (half the sum over its two sides, plus regularisation), weighted by its relation and
            averaged over the global batch: a scalar whose mean over ranks is that of one rank. And `positive_score`,
            the detached mean over this rank's edges.
        """
        rows = rows.view(*batch.node_ids.shape, -1)
        # Data-parallel training waits for a gradient of every parameter, also on a rank whose operators need none.
        total, positive = 0.0 * self.scorer.weight[0, 0], rows.new_zeros(())
        weight = batch.weight * (self.settings.num_ranks / batch.num_examples)
        for operator, chunks in _runs(batch.operators):
            parts = _SplitRows.apply(rows[chunks], self.settings.shape)  # type: ignore[no-untyped-call]
            run = _Run(operator, *parts, batch.rel[chunks], weight[chunks], *self._masked(batch, chunks))
            loss, score = self._run_loss(run)
            total = total + loss
            positive = positive + (score.detach() * (run.weight > 0)).sum()
        num_edges = (batch.weight > 0).sum().clamp_min(1)
        return total, {"positive_score": positive / num_edges}

    def _run_loss(self, run: _Run) -> tuple[Tensor, Tensor]:
        """The weighted sum of a run's losses, and the forward scores of its edges `[S, C]`."""
        scorer = self.scorer
        params = scorer.params(run.rel)
        score = scores.score_pairs(run.operator, scorer.comparator, params, run.lhs, run.rhs)
        total = self._rhs_loss(run, params, run.lhs, run.rhs_candidates, score, run.rhs_masked)
        if scorer.reciprocal:
            inverse = scorer.inverse_params(run.rel)
            inverse_score = scores.score_pairs(run.operator, scorer.comparator, inverse, run.rhs, run.lhs)
            total = total + self._rhs_loss(run, inverse, run.rhs, run.lhs_candidates, inverse_score, run.lhs_masked)
        else:
            inverse = None
            total = total + self._lhs_loss(run, params, score)
        return 0.5 * total + self._penalty(run, params, inverse), score

    def _rhs_loss(
        self, run: _Run, params: Tensor, lhs: Tensor, candidates: Tensor, positive: Tensor, masked: Tensor
    ) -> Tensor:
        comparator = self.scorer.comparator
        if comparator == "dot":
            queries = run.operator.apply(lhs, params)
            return dots_loss(queries, candidates, None, positive, masked, run.weight, *self._loss)
        negative = scores.score_rhs(run.operator, comparator, params, lhs, candidates)
        return scores_loss(positive, negative, masked, run.weight, *self._loss)

    def _lhs_loss(self, run: _Run, params: Tensor, positive: Tensor) -> Tensor:
        comparator = self.scorer.comparator
        if comparator == "dot":
            queries, bias = run.operator.adjoint(run.rhs, params)
            return dots_loss(queries, run.lhs_candidates, bias, positive, run.lhs_masked, run.weight, *self._loss)
        negative = scores.score_lhs(run.operator, comparator, params, run.rhs, run.lhs_candidates)
        return scores_loss(positive, negative, run.lhs_masked, run.weight, *self._loss)

    @property
    def _loss(self) -> tuple[str, float]:
        return self.settings.loss, self.settings.margin

    def _penalty(self, run: _Run, params: Tensor, inverse: Tensor | None) -> Tensor | float:
        if self.settings.regularizer is None:
            return 0.0
        penalty = REGULARIZERS[self.settings.regularizer]
        value = penalty(run.operator, params, run.lhs, run.rhs)
        if inverse is not None:
            value = 0.5 * (value + penalty(run.operator, inverse, run.rhs, run.lhs))
        return self.settings.regularization_weight * (value * run.weight).sum()

    def _masked(self, batch: ChunkedEdges, chunks: slice) -> tuple[Tensor, Tensor]:
        if chunks == slice(0, len(batch.rel)):
            return batch.lhs_masked, batch.rhs_masked
        scores_per_chunk = self.settings.shape.size * self.settings.shape.num_candidates
        first, last = chunks.start * scores_per_chunk, chunks.stop * scores_per_chunk
        parts = []
        for masked in (batch.lhs_masked, batch.rhs_masked):
            parts.append(masked[(masked >= first) & (masked < last)] - first)
        return parts[0], parts[1]


@dataclass(frozen=True)
class _Run:
    """Consecutive chunks of one operator."""

    operator: Operator
    lhs: Tensor
    lhs_candidates: Tensor
    rhs: Tensor
    rhs_candidates: Tensor
    rel: Tensor
    weight: Tensor
    lhs_masked: Tensor
    rhs_masked: Tensor


class _SplitRows(torch.autograd.Function):
    """`ChunkShape.split`, with one gradient tensor for all four parts, though edges and candidates overlap."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, shape: ChunkShape) -> tuple[Tensor, ...]:
        ctx.shape, ctx.rows_shape = shape, rows.shape
        return shape.split(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        total = torch.empty(ctx.rows_shape, dtype=grads[0].dtype, device=grads[0].device)
        lhs, lhs_candidates, rhs, rhs_candidates = ctx.shape.split(total)
        for edges, candidates, by_edges, by_candidates in (
            (lhs, lhs_candidates, grads[0], grads[1]),
            (rhs, rhs_candidates, grads[2], grads[3]),
        ):
            num_overlapping = ctx.shape.num_in_batch
            skipped = ctx.shape.size - num_overlapping
            candidates.copy_(by_candidates)
            edges[:, :skipped] = by_edges[:, :skipped]
            edges[:, skipped:] += by_edges[:, skipped:]
        return total, None


class TwhinModel(nn.Module):
    """Tables and head.

    Args:
        tables: `LocalTables` or `ShardedTables`.
        head: what scores.
    """

    def __init__(self, tables: nn.Module, head: TwhinHead) -> None:
        super().__init__()
        self.tables = tables
        self.head = head

    def forward(self, batch: ChunkedEdges) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and outputs of a batch, see `TwhinHead.forward`."""
        rows = self.tables(batch.nodes)
        return self.head(rows, batch)

    def dense_tensors(self) -> dict[str, Tensor]:
        """Live parameters outside the tables, by their name in a checkpoint."""
        return {"relations.weight": self.head.scorer.weight}

    def checkpoint_tensors(self) -> dict[str, Tensor]:
        """All that a checkpoint must hold of an unsharded model, live; see `ShardedModel` for a sharded one."""
        return self.tables.checkpoint_tensors() | self.dense_tensors()


def _runs(operators: tuple[str, ...]) -> Iterator[tuple[Operator, slice]]:
    """Consecutive chunks with the same operator, as slices."""
    start = 0
    for name, chunks in groupby(operators):
        stop = start + len(list(chunks))
        yield OPERATORS[name], slice(start, stop)
        start = stop
