"""The TwHIN model: look-up of a batch's nodes, and a head that scores, masks and turns scores into a loss.

Letters: `S` chunks, `C` edges in a chunk, `W` nodes of a chunk, `N` candidates of a chunk and side, `D` embedding dim.

The head is a module of its own, without tables: torchrec's pipeline traces the look-up and leaves the head alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tml.common.modules.embedding_tables import LocalTables, ShardedTables
from tml.common.profiling import phase
from tml.projects.twhin.data.chunks import ChunkedEdges, ChunkShape
from tml.projects.twhin.models import scores
from tml.projects.twhin.models.chunk_kernel import ChunkKernel, HeadCase
from tml.projects.twhin.models.chunk_loss import Derivatives, SideLoss, scaled
from tml.projects.twhin.models.chunk_runs import ChunkRun, chunk_runs
from tml.projects.twhin.models.operators import OPERATORS, Operator
from tml.projects.twhin.models.regularizers import REGULARIZERS
from tml.projects.twhin.models.relations import RelationScorer

# Rows of a part on a CPU. Smaller parts would fit a core's own cache, but the cost of calling a hundred small
# operations outweighs that: 1, 4, 8 and 32 MiB gave 75, 117, 145 and 154 thousand edges a second (2 cores, dim 128).
_PART_BYTES = 32 << 20


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
        # Looked at when first needed: compiling takes seconds, and not every head is trained.
        self._kernel: ChunkKernel | None = None

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
        loss, positive = _ChunkLosses.apply(rows, self.scorer.weight, self, batch)  # type: ignore[no-untyped-call]
        return loss, {"positive_score": positive}

    def edge_weight(self, batch: ChunkedEdges) -> Tensor:
        """What each of an edge's two losses counts in the mean over the global batch: `[S, C]`."""
        return batch.weight * (0.5 * self.settings.num_ranks / batch.num_examples)

    def run_loss(self, run: ChunkRun) -> tuple[Tensor, Tensor, Tensor]:
        """The weighted sum of a run's losses, the forward scores of its edges `[S, C]`, the derivatives by relations.

        The derivatives by rows are written to `run.by_rows`.
        """
        kernel = self._kernel_for(run)
        if kernel is not None:
            with phase("scores+loss"):
                losses, positive, by_relations = kernel.losses(run, self.scorer.weight)
            return losses.sum(), positive, by_relations
        parts = [self._part_loss(part) for part in self._parts(run)]
        of_parts, positives, by_relations_of_parts = zip(*parts, strict=True)
        return torch.stack(of_parts).sum(), torch.cat(positives), torch.stack(by_relations_of_parts).sum(0)

    def _kernel_for(self, run: ChunkRun) -> ChunkKernel | None:
        """The compiled head, where it can do this head's work."""
        rows, settings = run.rows[0], self.settings
        case = HeadCase(
            rows.device.type,
            rows.dtype,
            torch.is_autocast_enabled("cpu"),
            self.scorer.comparator,
            run.shape,
            rows.shape[-1],
            len(run.rel),
            torch.get_num_threads(),
        )
        can_run = case.suits_kernel and ChunkKernel.is_built()
        if can_run and self._kernel is None:
            self._kernel = ChunkKernel(
                settings.loss,
                settings.margin,
                self.scorer.reciprocal,
                settings.regularizer,
                settings.regularization_weight,
            )
        return self._kernel if can_run else None

    def _parts(self, run: ChunkRun) -> Iterator[ChunkRun]:
        """A few chunks at a time on a CPU.

        Their tensors are small enough for the last cache, from rows to gradient, and none outlives its part; over the
        whole batch each would go through memory several times.
        """
        rows = run.rows[0]
        if rows.device.type != "cpu":
            return iter([run])
        return run.parts(max(1, _PART_BYTES // (2 * rows[0].numel() * rows.element_size())))

    def _part_loss(self, part: ChunkRun) -> tuple[Tensor, Tensor, Tensor]:
        """As `run_loss`, by torch's operations, at the start of a graph of its own."""
        shape, relations = self.settings.shape, self.scorer.weight
        with torch.enable_grad():
            lhs, rhs = (_Side.of(*pair, shape) for pair in zip(part.rows, part.by_rows, strict=True))
            loss, positive, derivatives = self._block_loss(_Block(OPERATORS[part.operator], lhs, rhs, part))
            outputs, by_outputs = zip(*derivatives, strict=True)
            inputs = (lhs.ends, lhs.candidates, rhs.ends, rhs.candidates, relations)
            # An operator without parameters has no gradient by them.
            with phase("backward"):
                grads = torch.autograd.grad(outputs, inputs, by_outputs, allow_unused=True)
        lhs.collect(grads[0], grads[1], shape.size - shape.num_in_batch)
        rhs.collect(grads[2], grads[3], shape.size - shape.num_in_batch)
        return loss, positive, torch.zeros_like(relations) if grads[4] is None else grads[4]

    def _block_loss(self, block: _Block) -> tuple[Tensor, Tensor, Derivatives]:
        """The weighted sum of a block's losses, the forward scores of its edges `[S, C]`, and the derivatives."""
        scorer = self.scorer
        params = scorer.params(block.run.rel)
        inverse = scorer.inverse_params(block.run.rel) if scorer.reciprocal else None
        rhs_loss, positive, derivatives = self._rhs_loss(block, params)
        lhs_loss, by_lhs_side = self._lhs_loss(block, params, inverse)
        penalty, by_penalty = self._penalty(block, params, inverse)
        return rhs_loss + lhs_loss + penalty, positive, derivatives + by_lhs_side + by_penalty

    def _rhs_loss(self, block: _Block, params: Tensor) -> tuple[Tensor, Tensor, Derivatives]:
        """Against corrupted right-hand sides; also the forward scores of the edges."""
        operator, comparator = block.operator, self.scorer.comparator
        lhs, rhs = block.lhs, block.rhs
        if comparator == "dot":
            return self._dots_loss(operator.apply(lhs.ends, params), rhs, block.run.masked[1], block.run.weight)
        positive = scores.score_pairs(operator, comparator, params, lhs.ends, rhs.ends)
        negative = scores.score_rhs(operator, comparator, params, lhs.ends, rhs.candidates)
        loss, derivatives = self._side_loss.of_scores(positive, negative, block.run.masked[1], block.run.weight)
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
            loss, _, derivatives = self._dots_loss(queries, lhs, block.run.masked[0], block.run.weight, bias)
            return loss, derivatives
        if inverse is not None:
            positive = scores.score_pairs(operator, comparator, inverse, rhs.ends, lhs.ends)
            negative = scores.score_rhs(operator, comparator, inverse, rhs.ends, lhs.candidates)
        else:
            positive = scores.score_pairs(operator, comparator, params, lhs.ends, rhs.ends)
            negative = scores.score_lhs(operator, comparator, params, rhs.ends, lhs.candidates)
        return self._side_loss.of_scores(positive, negative, block.run.masked[0], block.run.weight)

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
        value = self.settings.regularization_weight * ((forward + backward) * block.run.weight).sum()
        return value.detach(), [(value, torch.ones_like(value))]


@dataclass(frozen=True)
class _Side:
    """One side of a block: leaves of its graph, and where the gradient by them goes; endpoints and candidates overlap.

    Scores by dot products write `by_candidates` themselves.
    """

    ends: Tensor
    candidates: Tensor
    by_ends: Tensor
    by_candidates: Tensor

    @classmethod
    def of(cls, rows: Tensor, by_rows: Tensor, shape: ChunkShape) -> _Side:
        """The side of some chunks, from its rows `[S, W, D]` and the place of the gradient by them."""
        ends, candidates = (part.detach().requires_grad_() for part in shape.split(rows))
        return cls(ends, candidates, *shape.split(by_rows))

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
    run: ChunkRun


class _ChunkLosses(torch.autograd.Function):
    """The loss of a batch's chunks, with its derivatives made in the same pass."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, relations: Tensor, head: TwhinHead, batch: ChunkedEdges
    ) -> tuple[Tensor, Tensor]:
        by_rows, by_relations = torch.empty_like(rows), torch.zeros_like(relations)
        total, positive = rows.new_zeros(()), rows.new_zeros(())
        for run in chunk_runs(rows, by_rows, head.edge_weight(batch), batch, head.settings.shape):
            loss, score, by_relations_of_run = head.run_loss(run)
            total += loss
            positive += (score * (run.weight > 0)).sum()
            by_relations += by_relations_of_run
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

    def __init__(self, tables: LocalTables | ShardedTables, head: TwhinHead) -> None:
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
        assert isinstance(self.tables, LocalTables)
        return self.tables.checkpoint_tensors() | self.dense_tensors()
