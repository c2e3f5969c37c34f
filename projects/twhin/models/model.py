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
            rows: `[S * W, D]`, in the order of `batch.nodes`.
            batch: the chunks.

        Returns:
            The loss of an edge (half the sum over its two sides, plus regularisation), weighted by its relation and
            averaged over the global batch: a scalar whose mean over ranks is that of one rank. And `positive_score`,
            the detached mean over this rank's edges.
        """
        loss, positive = _BlockwiseLoss.apply(rows, self.scorer.weight, self, batch)  # type: ignore[no-untyped-call]
        return loss, {"positive_score": positive}

    def blocks(self, rows: Tensor, by_rows: Tensor, batch: ChunkedEdges) -> Iterator[_Block]:
        """The chunks of a batch, a few of one operator at a time, each at the start of a graph of its own.

        Args:
            rows: `[S * W, D]`.
            by_rows: of the same shape; a block writes its part of the gradient there.
            batch: the chunks.
        """
        half, dim = self.settings.shape.num_nodes_of_side, rows.shape[-1]
        # Half for each side.
        weight = batch.weight * (0.5 * self.settings.num_ranks / batch.num_examples)
        step = max(batch.part_chunks)
        if rows.device.type == "cpu":
            step = max(1, _BLOCK_BYTES // (2 * half * dim * rows.element_size()))
        first_chunk = 0
        for num_chunks in batch.part_chunks:
            places = slice(first_chunk * 2 * half, (first_chunk + num_chunks) * 2 * half)
            sides, by_sides = (tensor[places].view(2, num_chunks, half, dim) for tensor in (rows, by_rows))
            for operator, run in _runs(batch.operators[first_chunk : first_chunk + num_chunks]):
                for start in range(run.start, run.stop, step):
                    within = slice(start, min(start + step, run.stop))
                    chunks = slice(first_chunk + within.start, first_chunk + within.stop)
                    lhs, rhs = (self._side(sides[side, within], by_sides[side, within]) for side in (0, 1))
                    masked = self._masked(batch, chunks)
                    yield _Block(operator, lhs, rhs, batch.rel[chunks], weight[chunks], *masked)
            first_chunk += num_chunks

    def _side(self, rows: Tensor, by_rows: Tensor) -> _Side:
        ends, candidates = (part.detach().requires_grad_() for part in self.settings.shape.split(rows))
        return _Side(ends, candidates, *self.settings.shape.split(by_rows))

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
        lhs, rhs = block.lhs, block.rhs
        if comparator == "dot":
            return self._dots_loss(operator.apply(lhs.ends, params), rhs, block.rhs_masked, block.weight)
        positive = scores.score_pairs(operator, comparator, params, lhs.ends, rhs.ends)
        negative = scores.score_rhs(operator, comparator, params, lhs.ends, rhs.candidates)
        loss, derivatives = self._side_loss.of_scores(positive, negative, block.rhs_masked, block.weight)
        return loss, positive.detach(), derivatives

    def _lhs_loss(self, block: _Block, params: Tensor, inverse: Tensor | None) -> tuple[Tensor, Derivatives]:
        """Against corrupted left-hand sides; with parameters of inverses, as right-hand sides of those."""
        operator, comparator, lhs, rhs = block.operator, self.scorer.comparator, block.lhs, block.rhs
        if comparator == "dot":
            bias = None
            if inverse is not None:
                queries = operator.apply(rhs.ends, inverse)
            else:
                queries = operator.adjoint(rhs.ends, params)
                bias = operator.adjoint_bias(rhs.ends, params) if self._side_loss.needs_bias else None
            loss, _, derivatives = self._dots_loss(queries, lhs, block.lhs_masked, block.weight, bias)
            return loss, derivatives
        if inverse is not None:
            positive = scores.score_pairs(operator, comparator, inverse, rhs.ends, lhs.ends)
            negative = scores.score_rhs(operator, comparator, inverse, rhs.ends, lhs.candidates)
        else:
            positive = scores.score_pairs(operator, comparator, params, lhs.ends, rhs.ends)
            negative = scores.score_lhs(operator, comparator, params, rhs.ends, lhs.candidates)
        return self._side_loss.of_scores(positive, negative, block.lhs_masked, block.weight)

    def _dots_loss(
        self, queries: Tensor, side: _Side, masked: Tensor, weight: Tensor, bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Derivatives]:
        shape = self.settings.shape
        own = None if shape.num_in_batch == shape.size else side.ends
        return self._side_loss.of_dots(queries, side.candidates, side.by_candidates, own, masked, weight, bias)

    def _penalty(self, block: _Block, params: Tensor, inverse: Tensor | None) -> tuple[Tensor | float, Derivatives]:
        if self.settings.regularizer is None:
            return 0.0, []
        penalty = REGULARIZERS[self.settings.regularizer]
        forward = penalty(block.operator, params, block.lhs.ends, block.rhs.ends)
        backward = forward if inverse is None else penalty(block.operator, inverse, block.rhs.ends, block.lhs.ends)
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
class _Side:
    """One side of a block: leaves of its graph, and where the gradient by them goes; endpoints and candidates overlap.

    Scores by dot products write `by_candidates` themselves.
    """

    ends: Tensor
    candidates: Tensor
    by_ends: Tensor
    by_candidates: Tensor

    def collect(self, by_ends: Tensor, by_candidates: Tensor | None, skipped: int) -> None:
        """Put the gradients in their place; the first `skipped` endpoints are no candidates."""
        if by_candidates is not None:
            self.by_candidates.copy_(by_candidates)
        self.by_ends[:, :skipped] = by_ends[:, :skipped]
        self.by_ends[:, skipped:] += by_ends[:, skipped:]


@dataclass(frozen=True)
class _Block:
    """Consecutive chunks of one operator."""

    operator: Operator
    lhs: _Side
    rhs: _Side
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
        skipped = head.settings.shape.size - head.settings.shape.num_in_batch
        with torch.enable_grad():
            for block in head.blocks(rows, by_rows, batch):
                loss, score, derivatives = head.block_loss(block)
                outputs, by_outputs = zip(*derivatives, strict=True)
                lhs, rhs = block.lhs, block.rhs
                inputs = (lhs.ends, lhs.candidates, rhs.ends, rhs.candidates, relations)
                # An operator without parameters has no gradient by them.
                grads = torch.autograd.grad(outputs, inputs, by_outputs, allow_unused=True)
                lhs.collect(*grads[0:2], skipped)
                rhs.collect(*grads[2:4], skipped)
                if grads[4] is not None:
                    by_relations += grads[4]
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
