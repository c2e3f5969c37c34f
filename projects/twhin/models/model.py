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
from tml.projects.twhin.models.chunk_loss import dots_loss, scaled, scores_loss
from tml.projects.twhin.models.operators import OPERATORS, Operator
from tml.projects.twhin.models.regularizers import REGULARIZERS
from tml.projects.twhin.models.relations import RelationScorer

# Rows of a block on a CPU. Smaller blocks would fit a core's own cache, but the cost of calling a hundred small
# operations outweighs that: 1, 4, 8 and 32 MiB gave 75, 117, 145 and 154 thousand edges a second (2 cores, dim 128).
_BLOCK_BYTES = 32 << 20


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
        loss, positive = _BlockwiseLoss.apply(rows, self.scorer.weight, self, batch)  # type: ignore[no-untyped-call]
        return loss, {"positive_score": positive}

    def blocks(self, rows: Tensor, batch: ChunkedEdges) -> Iterator[tuple[slice, _Run]]:
        """The chunks of a batch, a few of one operator at a time, without their rows' part of the graph."""
        # Half for each side.
        weight = batch.weight * (0.5 * self.settings.num_ranks / batch.num_examples)
        step = len(batch.rel)
        if rows.device.type == "cpu":
            step = max(1, _BLOCK_BYTES // (rows[0].numel() * rows.element_size()))
        for operator, run in _runs(batch.operators):
            for start in range(run.start, run.stop, step):
                chunks = slice(start, min(start + step, run.stop))
                leaf = rows[chunks].detach().requires_grad_()
                parts = _SplitRows.apply(leaf, self.settings.shape)  # type: ignore[no-untyped-call]
                masked = self._masked(batch, chunks)
                yield chunks, _Run(operator, leaf, *parts, batch.rel[chunks], weight[chunks], *masked)

    def run_loss(self, run: _Run) -> tuple[Tensor, Tensor]:
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
        return total + self._penalty(run, params, inverse), score

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
        forward = penalty(run.operator, params, run.lhs, run.rhs)
        backward = forward if inverse is None else penalty(run.operator, inverse, run.rhs, run.lhs)
        value = forward + backward
        return self.settings.regularization_weight * (value * run.weight).sum()

    def _masked(self, batch: ChunkedEdges, chunks: slice) -> tuple[Tensor, Tensor]:
        """The masked places of some chunks, counted from the first of them."""
        if chunks == slice(0, len(batch.rel)):
            return batch.lhs_masked, batch.rhs_masked
        scores_per_chunk = self.settings.shape.size * self.settings.shape.num_candidates
        ends = torch.tensor([chunks.start, chunks.stop], device=batch.rel.device) * scores_per_chunk
        parts = []
        for masked in (batch.lhs_masked, batch.rhs_masked):
            low, high = torch.searchsorted(masked, ends).tolist()
            parts.append(masked[low:high] - chunks.start * scores_per_chunk)
        return parts[0], parts[1]


@dataclass(frozen=True)
class _Run:
    """Consecutive chunks of one operator; `rows` is the leaf that the four parts are cut from."""

    operator: Operator
    rows: Tensor
    lhs: Tensor
    lhs_candidates: Tensor
    rhs: Tensor
    rhs_candidates: Tensor
    rel: Tensor
    weight: Tensor
    lhs_masked: Tensor
    rhs_masked: Tensor


class _BlockwiseLoss(torch.autograd.Function):
    """Loss and gradients of a few chunks at a time.

    The tensors of a block are small enough for the last cache, from its rows to their gradient, and none outlives it;
    over the whole batch each of them would go through memory several times.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, relations: Tensor, head: TwhinHead, batch: ChunkedEdges
    ) -> tuple[Tensor, Tensor]:
        by_rows, by_relations = torch.empty_like(rows), torch.zeros_like(relations)
        total, positive = rows.new_zeros(()), rows.new_zeros(())
        with torch.enable_grad():
            for chunks, run in head.blocks(rows, batch):
                loss, score = head.run_loss(run)
                # An operator without parameters has no gradient by them.
                grads = torch.autograd.grad(loss, (run.rows, relations), allow_unused=True)
                by_rows[chunks] = grads[0]
                if grads[1] is not None:
                    by_relations += grads[1]
                total += loss.detach()
                positive += (score.detach() * (run.weight > 0)).sum()
        ctx.save_for_backward(by_rows, by_relations)
        positive /= (batch.weight > 0).sum().clamp_min(1)
        ctx.mark_non_differentiable(positive)
        return total, positive

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        by_rows, by_relations = ctx.saved_tensors
        return *scaled(grad, by_rows, by_relations), None, None


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
