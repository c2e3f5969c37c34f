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
from tml.projects.twhin.models.chunk_loss import Derivatives, SideLoss, scaled
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
        self._side_loss = SideLoss(settings.loss, settings.margin)

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

    def blocks(self, rows: Tensor, by_rows: Tensor, batch: ChunkedEdges) -> Iterator[_Block]:
        """The chunks of a batch, a few of one operator at a time, each at the start of a graph of its own.

        Args:
            rows: `[S, W, D]`.
            by_rows: of the same shape; a block's backward writes its part.
            batch: the chunks.
        """
        # Half for each side.
        weight = batch.weight * (0.5 * self.settings.num_ranks / batch.num_examples)
        step = len(batch.rel)
        if rows.device.type == "cpu":
            step = max(1, _BLOCK_BYTES // (rows[0].numel() * rows.element_size()))
        for operator, run in _runs(batch.operators):
            for start in range(run.start, run.stop, step):
                chunks = slice(start, min(start + step, run.stop))
                leaf = rows[chunks].detach().requires_grad_()
                parts = _SplitRows.apply(leaf, by_rows[chunks], self.settings.shape)  # type: ignore[no-untyped-call]
                masked = self._masked(batch, chunks)
                yield _Block(operator, leaf, *parts, batch.rel[chunks], weight[chunks], *masked)

    def block_loss(self, block: _Block) -> tuple[Tensor, Tensor, Derivatives]:
        """The weighted sum of a block's losses, the forward scores of its edges `[S, C]`, and the derivatives."""
        scorer = self.scorer
        params = scorer.params(block.rel)
        inverse = scorer.inverse_params(block.rel) if scorer.reciprocal else None
        rhs_loss, positive, derivatives = self._rhs_loss(block, params)
        lhs_loss, by_lhs_side = self._lhs_loss(block, params, inverse)
        penalty, by_penalty = self._penalty(block, params, inverse)
        return rhs_loss + lhs_loss + penalty, positive, derivatives + by_lhs_side + by_penalty

    def _rhs_loss(self, block: _Block, params: Tensor) -> tuple[Tensor, Tensor, Derivatives]:
        """Against corrupted right-hand sides; also the forward scores of the edges."""
        operator, comparator = block.operator, self.scorer.comparator
        if comparator == "dot":
            queries = operator.apply(block.lhs, params)
            own = self._own(block.rhs)
            return self._side_loss.of_dots(queries, block.rhs_candidates, own, block.rhs_masked, block.weight)
        positive = scores.score_pairs(operator, comparator, params, block.lhs, block.rhs)
        negative = scores.score_rhs(operator, comparator, params, block.lhs, block.rhs_candidates)
        loss, derivatives = self._side_loss.of_scores(positive, negative, block.rhs_masked, block.weight)
        return loss, positive.detach(), derivatives

    def _lhs_loss(self, block: _Block, params: Tensor, inverse: Tensor | None) -> tuple[Tensor, Derivatives]:
        """Against corrupted left-hand sides; with parameters of inverses, as right-hand sides of those."""
        operator, comparator = block.operator, self.scorer.comparator
        if comparator == "dot":
            bias = None
            if inverse is not None:
                queries = operator.apply(block.rhs, inverse)
            else:
                queries = operator.adjoint(block.rhs, params)
                bias = operator.adjoint_bias(block.rhs, params) if self._side_loss.needs_bias else None
            own = self._own(block.lhs)
            loss, _, derivatives = self._side_loss.of_dots(
                queries, block.lhs_candidates, own, block.lhs_masked, block.weight, bias
            )
            return loss, derivatives
        if inverse is not None:
            positive = scores.score_pairs(operator, comparator, inverse, block.rhs, block.lhs)
            negative = scores.score_rhs(operator, comparator, inverse, block.rhs, block.lhs_candidates)
        else:
            positive = scores.score_pairs(operator, comparator, params, block.lhs, block.rhs)
            negative = scores.score_lhs(operator, comparator, params, block.rhs, block.lhs_candidates)
        return self._side_loss.of_scores(positive, negative, block.lhs_masked, block.weight)

    def _own(self, ends: Tensor) -> Tensor | None:
        """The edges' ends, or None where they are the first of the candidates."""
        shape = self.settings.shape
        return None if shape.num_in_batch == shape.size else ends

    def _penalty(self, block: _Block, params: Tensor, inverse: Tensor | None) -> tuple[Tensor | float, Derivatives]:
        if self.settings.regularizer is None:
            return 0.0, []
        penalty = REGULARIZERS[self.settings.regularizer]
        forward = penalty(block.operator, params, block.lhs, block.rhs)
        backward = forward if inverse is None else penalty(block.operator, inverse, block.rhs, block.lhs)
        value = self.settings.regularization_weight * ((forward + backward) * block.weight).sum()
        return value.detach(), [(value, torch.ones_like(value))]

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
class _Block:
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
            for block in head.blocks(rows, by_rows, batch):
                loss, score, derivatives = head.block_loss(block)
                outputs, by_outputs = zip(*derivatives, strict=True)
                # An operator without parameters has no gradient by them; the one by rows goes straight to `by_rows`.
                grads = torch.autograd.grad(outputs, (block.rows, relations), by_outputs, allow_unused=True)
                if grads[1] is not None:
                    by_relations += grads[1]
                total += loss
                positive += (score * (block.weight > 0)).sum()
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
    def forward(ctx: Any, rows: Tensor, by_rows: Tensor, shape: ChunkShape) -> tuple[Tensor, ...]:
        ctx.shape, ctx.by_rows = shape, by_rows
        return shape.split(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        lhs, lhs_candidates, rhs, rhs_candidates = ctx.shape.split(ctx.by_rows)
        skipped = ctx.shape.size - ctx.shape.num_in_batch
        for edges, candidates, by_edges, by_candidates in (
            (lhs, lhs_candidates, grads[0], grads[1]),
            (rhs, rhs_candidates, grads[2], grads[3]),
        ):
            candidates.copy_(by_candidates)
            edges[:, :skipped] = by_edges[:, :skipped]
            edges[:, skipped:] += by_edges[:, skipped:]
        return ctx.by_rows, None, None


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
