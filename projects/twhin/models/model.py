"""The TwHIN model: look-up of a batch's nodes, and a head that scores, masks and turns scores into a loss.

Letters: `S` chunks, `C` edges in a chunk, `G` uniform negatives of a chunk and side, `W = 2 (C + G)` nodes of a chunk,
`N` candidates of a chunk and side, `D` embedding dim.

The head is a module of its own, without tables: torchrec's pipeline traces the look-up and leaves the head alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn

from tml.projects.twhin.data.chunks import ChunkedEdges, ChunkShape
from tml.projects.twhin.models import scores
from tml.projects.twhin.models.losses import LOSSES, MASKED_SCORE
from tml.projects.twhin.models.negatives import positives_mask
from tml.projects.twhin.models.operators import OPERATORS, Operator
from tml.projects.twhin.models.regularizers import REGULARIZERS
from tml.projects.twhin.models.relations import RelationScorer


@dataclass(frozen=True)
class HeadSettings:
    """What the head needs besides the relations.

    Args:
        shape: sizes of a chunk.
        num_in_batch: candidates of a side taken from the chunk's own edges, at most `shape.size`.
        loss: a name of `LOSSES`.
        margin: of the ranking loss.
        regularizer: a name of `REGULARIZERS`, or None.
        regularization_weight: what its penalty is multiplied with.
        num_ranks: the loss is scaled so that its mean over ranks is the mean over the global batch.
    """

    shape: ChunkShape
    num_in_batch: int
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
            averaged over the
            global batch: a scalar whose mean over ranks is that of one rank. And `positive_score`, the detached mean
            over this rank's edges.
        """
        rows = rows.view(*batch.node_ids.shape, -1)
        lhs_mask, rhs_mask = self._masks(batch)
        # Data-parallel training waits for a gradient of every parameter, also on a rank whose operators need none.
        total, positive = 0.0 * self.scorer.weight[0, 0], rows.new_zeros(())
        for operator, chunks in _runs(batch.operators):
            run = _Run(operator, *self._split(rows[chunks]), rel=batch.rel[chunks])
            loss, scores_of_edges = self._edge_losses(run, lhs_mask[chunks], rhs_mask[chunks])
            total = total + (loss * batch.weight[chunks]).sum()
            positive = positive + (scores_of_edges.detach() * (batch.weight[chunks] > 0)).sum()
        num_edges = (batch.weight > 0).sum().clamp_min(1)
        return total * (self.settings.num_ranks / batch.num_examples), {"positive_score": positive / num_edges}

    def _edge_losses(self, run: _Run, lhs_mask: Tensor, rhs_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Losses and forward scores of a run's edges, `[S, C]` each."""
        comparator = self.scorer.comparator
        params = self.scorer.params(run.rel)
        score = scores.score_pairs(run.operator, comparator, params, run.lhs, run.rhs)
        rhs_negative = scores.score_rhs(run.operator, comparator, params, run.lhs, run.rhs_candidates)
        if self.scorer.reciprocal:
            inverse = self.scorer.inverse_params(run.rel)
            lhs_positive = scores.score_pairs(run.operator, comparator, inverse, run.rhs, run.lhs)
            lhs_negative = scores.score_rhs(run.operator, comparator, inverse, run.rhs, run.lhs_candidates)
        else:
            inverse = None
            lhs_positive = score
            lhs_negative = scores.score_lhs(run.operator, comparator, params, run.rhs, run.lhs_candidates)
        loss = 0.5 * (
            self._loss(score, rhs_negative.masked_fill(rhs_mask, MASKED_SCORE))
            + self._loss(lhs_positive, lhs_negative.masked_fill(lhs_mask, MASKED_SCORE))
        )
        return loss + self._penalty(run, params, inverse), score

    def _loss(self, positive: Tensor, negative: Tensor) -> Tensor:
        return LOSSES[self.settings.loss](positive, negative, self.settings.margin)

    def _penalty(self, run: _Run, params: Tensor, inverse: Tensor | None) -> Tensor | float:
        if self.settings.regularizer is None:
            return 0.0
        penalty = REGULARIZERS[self.settings.regularizer]
        value = penalty(run.operator, params, run.lhs, run.rhs)
        if inverse is not None:
            value = 0.5 * (value + penalty(run.operator, inverse, run.rhs, run.lhs))
        return self.settings.regularization_weight * value

    def _split(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`lhs [S, C, D]`, `rhs`, `lhs candidates [S, N, D]`, `rhs candidates` out of a chunk's nodes `[S, W, D]`."""
        size, half = self.settings.shape.size, self.settings.shape.num_nodes // 2
        skipped = size - self.settings.num_in_batch
        lhs, rhs = rows.split(half, dim=1)
        return lhs[:, :size], rhs[:, :size], lhs[:, skipped:], rhs[:, skipped:]

    @torch.no_grad()
    def _masks(self, batch: ChunkedEdges) -> tuple[Tensor, Tensor]:
        """Candidates that are no negatives, `[S, C, N]` for each side."""
        lhs, rhs, lhs_candidates, rhs_candidates = self._split(batch.node_ids)
        valid = torch.ones_like(lhs_candidates, dtype=torch.bool)
        in_batch = self.settings.num_in_batch
        valid[:, :in_batch] = batch.weight[:, self.settings.shape.size - in_batch :] > 0
        return (
            positives_mask(lhs, lhs_candidates, valid, batch.lhs_shared),
            positives_mask(rhs, rhs_candidates, valid, batch.rhs_shared),
        )


@dataclass(frozen=True)
class _Run:
    """Consecutive chunks of one operator."""

    operator: Operator
    lhs: Tensor
    rhs: Tensor
    lhs_candidates: Tensor
    rhs_candidates: Tensor
    rel: Tensor


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
