"""Chunks: a batch of edges is cut into groups of one type signature that share their negatives.

Letters: `B` edges, `C` edges in a chunk, `G` uniform negatives of a chunk and side, `S` chunks, `W = 2 (C + G)`
nodes of a chunk.

A chunk's nodes are `[lhs (C), lhs negatives (G), rhs (C), rhs negatives (G)]`; they are looked up side by side, the
left-hand half of all chunks first. The candidates of a side, the last `in_batch_negatives` edges' endpoints and the
uniform negatives, are therefore one slice of the looked-up rows, and all rows of a side where every endpoint is one:
nothing is copied.

The cut and the draws are a function of the edges, the seed and the block's number in the run, not of ranks: a run
over the same global batches gives the same result on any number of ranks that divides `assembly_blocks`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchrec import KeyedJaggedTensor

from tml.common.batch import Cursor, DataclassBatch
from tml.common.modules.embedding_tables import keyed_ids
from tml.common.modules.table_layout import TableLayout
from tml.projects.twhin.data.edges import EdgeArrays, EdgeSchema, Ints
from tml.projects.twhin.data.masks import ChunkNodes, masked_places
from tml.projects.twhin.models.relations import RelationSpec

# Keeps these draws apart from others that a run may make with its seed.
_NEGATIVES_STREAM = 0x6E656761


@dataclass
class ChunkedEdges(DataclassBatch):
    """A batch as the model takes it.

    Attributes:
        nodes: the look-up of all `S * W` nodes, part by part, and within a part the left-hand halves of all chunks
            before the right-hand ones.
        part_chunks: chunks of each part; a batch is one part until several are joined.
        node_ids: int64 `[S, W]`, ids in the nodes' own tables.
        rel: int64 `[S, C]`.
        weight: float32 `[S, C]`, the relation's weight; zero marks padding.
        lhs_masked: int64 `[P]`, ascending flat places in `[S, C, N]` where the candidate left-hand side is no negative:
            a positive of the chunk, or padding.
        rhs_masked: the same for right-hand sides.
        num_scores: `S * C * N`.
        operators: the operator of each chunk.
        num_examples: edges of the global batch.
        cursor: the place in the data after this batch.
    """

    nodes: KeyedJaggedTensor
    part_chunks: tuple[int, ...] = field(metadata={"concat": "sum"})
    node_ids: Tensor
    rel: Tensor
    weight: Tensor
    lhs_masked: Tensor
    rhs_masked: Tensor
    num_scores: int = field(metadata={"concat": "sum"})
    operators: tuple[str, ...] = field(metadata={"concat": "sum"})
    num_examples: int = field(metadata={"concat": "sum"})
    cursor: Cursor

    @classmethod
    def concat(cls, batches: Sequence[ChunkedEdges]) -> ChunkedEdges:
        """One batch with the chunks of all: places in the scores are counted on."""
        numbered = []
        num_scores = 0
        for batch in batches:
            masked = {name: getattr(batch, name) + num_scores for name in ("lhs_masked", "rhs_masked")}
            numbered.append(dataclasses.replace(batch, **masked))
            num_scores += batch.num_scores
        return super().concat(numbered)


@dataclass(frozen=True)
class ChunkShape:
    """Sizes of a chunk.

    Args:
        size: `C`.
        num_in_batch: candidates of a side that are endpoints of the chunk's own edges, at most `size`.
        num_global: `G`.
    """

    size: int
    num_in_batch: int
    num_global: int

    @property
    def num_nodes_of_side(self) -> int:
        """`W / 2`."""
        return self.size + self.num_global

    @property
    def num_candidates(self) -> int:
        """`N`."""
        return self.num_in_batch + self.num_global

    def split(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """Views of a side's nodes `[S, W / 2, ...]`: endpoints of the edges `[S, C, ...]`, candidates `[S, N, ...]`."""
        return nodes[:, : self.size], nodes[:, self.size - self.num_in_batch :]


class ChunkAssembler:
    """Turns edges into chunks.

    Args:
        schema: the relations and table sizes.
        layout: where each table lies.
        shape: sizes of a chunk.
        seed: of the uniform negatives.
        weights: a relation's name to its weight in the loss; one where absent.
        pad: give every block of a size the same number of chunks, so that all ranks look up equally many ids (gloo
            cannot gather unequal parts).
    """

    def __init__(
        self,
        schema: EdgeSchema,
        layout: TableLayout,
        shape: ChunkShape,
        seed: int,
        weights: Mapping[str, float] | None = None,
        pad: bool = False,
    ) -> None:
        self.schema, self.layout, self.shape, self.seed, self.pad = schema, layout, shape, seed, pad
        relations = schema.relations
        signatures = sorted({_signature(relation) for relation in relations})
        self._signatures = signatures
        self._signature_of_rel = np.array([signatures.index(_signature(relation)) for relation in relations])
        self._weight_of_rel = np.array([(weights or {}).get(r.name, 1.0) for r in relations], dtype=np.float32)
        self._num_rows = np.array(
            [[schema.num_embeddings[lhs], schema.num_embeddings[rhs]] for lhs, rhs, _ in signatures], dtype=np.int64
        )
        self._offset = np.array([[layout.offset[lhs], layout.offset[rhs]] for lhs, rhs, _ in signatures])
        self._group = np.array([[layout.group_index[lhs], layout.group_index[rhs]] for lhs, rhs, _ in signatures])

    def assemble(
        self, blocks: list[tuple[int, EdgeArrays]], block_size: int, num_examples: int, cursor: Cursor
    ) -> ChunkedEdges:
        """Chunks of a rank's share of a batch.

        Args:
            blocks: the share in blocks, each with its number in the run, which seeds its negatives. An empty block
                gives chunks of padding.
            block_size: edges of a full block.
            num_examples: edges of the global batch.
            cursor: the place in the data after the batch.
        """
        parts = [self._cut(edges, block_size) for _, edges in blocks]
        signature = np.concatenate([part[0] for part in parts])
        place = _Places(*(np.concatenate(columns) for columns in zip(*(p[1] for p in parts), strict=True)))
        draws = [self._draw(number, part[0]) for (number, _), part in zip(blocks, parts, strict=True)]
        return self._pack(signature, place, np.concatenate(draws), num_examples, cursor)

    def _cut(self, edges: EdgeArrays, block_size: int) -> tuple[Ints, tuple[NDArray[np.generic], ...]]:
        """The signature of each chunk `[S]`, and `lhs, rel, rhs, filled`, each `[S, C]`."""
        signature = self._signature_of_rel[edges.rel]
        counts = np.bincount(signature, minlength=len(self._signatures))
        num_chunks = -(-counts // self.shape.size)
        # Padding comes last, so that the chunks and draws before it are the same with and without.
        num_padding = max(self._least_chunks(block_size) - int(num_chunks.sum()), 0)
        chunk_signature = np.concatenate(
            [np.repeat(np.arange(len(counts)), num_chunks), np.zeros(num_padding, np.int64)]
        )
        slots = self._slots(counts, num_chunks)
        columns = []
        order = np.argsort(signature, kind="stable")
        for name in ("lhs", "rel", "rhs"):
            column = np.zeros(len(chunk_signature) * self.shape.size, dtype=np.int64)
            column[slots] = getattr(edges, name)[order]
            columns.append(column.reshape(-1, self.shape.size))
        is_edge = np.zeros(len(chunk_signature) * self.shape.size, dtype=bool)
        is_edge[slots] = True
        filled = is_edge.reshape(-1, self.shape.size)
        lhs, rel, rhs = columns
        # Padding has the relation of its chunk's last edge, so that it adds no relation to the chunk.
        return chunk_signature, (lhs, np.where(filled, rel, rel[:, -1:]), rhs, filled)

    def _least_chunks(self, block_size: int) -> int:
        """With `pad`, the most chunks that a block can need: every signature may have one that is not full."""
        num_signatures = min(len(self._signatures), block_size)
        return (block_size - num_signatures) // self.shape.size + num_signatures if self.pad else 1

    def _slots(self, counts: Ints, num_chunks: Ints) -> Ints:
        """The slot of every edge, in order of signature: a signature's edges are spread evenly over its chunks.

        A full chunk followed by a tail of one edge would leave that edge without in-batch negatives.
        """
        slots = []
        first_chunk = 0
        for count, chunks in zip(counts.tolist(), num_chunks.tolist(), strict=True):
            if count:
                bounds = np.arange(chunks + 1) * count // chunks
                sizes = np.diff(bounds)
                within = np.arange(count) - np.repeat(bounds[:-1], sizes)
                # Edges sit at the end of their chunk, next to the slice that holds the candidates.
                start = (first_chunk + np.arange(chunks) + 1) * self.shape.size - sizes
                slots.append(np.repeat(start, sizes) + within)
            first_chunk += chunks
        return np.concatenate(slots) if slots else np.empty(0, dtype=np.int64)

    def _draw(self, block: int, chunk_signature: Ints) -> Ints:
        """Uniform negatives of a block's chunks, `[S, 2, G]`."""
        generator = np.random.Generator(np.random.Philox(key=[self.seed ^ (_NEGATIVES_STREAM << 32), block]))
        limits = self._num_rows[chunk_signature][:, :, None]
        shape = (len(chunk_signature), 2, self.shape.num_global)
        return generator.integers(0, limits, size=shape, dtype=np.int64)

    def _pack(
        self, signature: Ints, place: _Places, negatives: Ints, num_examples: int, cursor: Cursor
    ) -> ChunkedEdges:
        node_ids = np.concatenate([place.lhs, negatives[:, 0], place.rhs, negatives[:, 1]], axis=1)
        half = self.shape.num_nodes_of_side
        by_side = node_ids.reshape(-1, 2, half).transpose(1, 0, 2)
        physical = by_side + self._offset[signature].T[:, :, None]
        groups = None
        if len(self.layout.groups) > 1:
            groups = torch.from_numpy(np.repeat(self._group[signature].T.ravel(), half))
        weight = np.where(place.filled, self._weight_of_rel[place.rel], np.float32(0))
        return ChunkedEdges(
            nodes=keyed_ids(self.layout, torch.from_numpy(physical).flatten(), groups),
            part_chunks=(len(signature),),
            node_ids=torch.from_numpy(node_ids),
            rel=torch.from_numpy(place.rel),
            weight=torch.from_numpy(weight),
            lhs_masked=torch.from_numpy(self._masked(place.rhs, place.rel, place.lhs, negatives[:, 0], place.filled)),
            rhs_masked=torch.from_numpy(self._masked(place.lhs, place.rel, place.rhs, negatives[:, 1], place.filled)),
            num_scores=place.rel.size * self.shape.num_candidates,
            operators=tuple(self._signatures[index][2] for index in signature.tolist()),
            num_examples=num_examples,
            cursor=cursor,
        )

    def _masked(self, other: Ints, rel: Ints, own: Ints, negatives: Ints, filled: NDArray[np.bool_]) -> Ints:
        """Where a candidate is padding or makes a positive of the chunk: flat places in `[S, C, N]`, ascending."""
        in_batch = slice(self.shape.size - self.shape.num_in_batch, None)
        candidates = np.concatenate([own[:, in_batch], negatives], axis=1)
        valid = np.concatenate([filled[:, in_batch], np.ones(negatives.shape, dtype=bool)], axis=1)
        return masked_places(ChunkNodes(other, rel, own, filled), candidates, valid)


def _signature(relation: RelationSpec) -> tuple[str, str, str]:
    return relation.lhs, relation.rhs, relation.operator


@dataclass(frozen=True)
class _Places:
    """The slots of all chunks, `[S, C]` each."""

    lhs: Ints
    rel: Ints
    rhs: Ints
    filled: NDArray[np.bool_]
