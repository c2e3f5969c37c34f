"""Consecutive chunks of one operator, as views of a batch and of its rows: what the head works on at a time.

Letters: `S` chunks, `C` edges in a chunk, `W` nodes of a side of a chunk, `N` candidates of a side, `D` embedding dim.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from tml.projects.twhin.data.chunks import ChunkedEdges, ChunkShape

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class ChunkRun:
    """Some chunks of one operator. Pairs hold left-hand, then right-hand sides.

    Args:
        operator: its name.
        shape: sizes of a chunk.
        rows: `[S, W, D]` each: endpoints of the edges, then uniform negatives.
        by_rows: likewise; the derivatives by the rows go there.
        rel: int64 `[S, C]`.
        weight: `[S, C]`, of each edge's two losses.
        masked: int64 `[P]`, ascending flat places in `[S, C, N]` where a candidate for this side is no negative.
    """

    operator: str
    shape: ChunkShape
    rows: Pair
    by_rows: Pair
    rel: Tensor
    weight: Tensor
    masked: Pair

    def parts(self, num_chunks: int) -> Iterator[ChunkRun]:
        """The same chunks, `num_chunks` at a time."""
        for start in range(0, len(self.rel), num_chunks):
            yield self._part(slice(start, min(start + num_chunks, len(self.rel))))

    def _part(self, chunks: slice) -> ChunkRun:
        rows, by_rows = ((lhs[chunks], rhs[chunks]) for lhs, rhs in (self.rows, self.by_rows))
        masked = _places_of(self.masked, chunks, len(self.rel), self.shape)
        return ChunkRun(self.operator, self.shape, rows, by_rows, self.rel[chunks], self.weight[chunks], masked)


def chunk_runs(
    rows: Tensor, by_rows: Tensor, weight: Tensor, batch: ChunkedEdges, shape: ChunkShape
) -> Iterator[ChunkRun]:
    """The chunks of a batch by operator.

    Args:
        rows: `[S * 2 W, D]`, in the order of `batch.nodes`.
        by_rows: of the same shape.
        weight: `[S, C]`.
        batch: the chunks.
        shape: their sizes.
    """
    half = shape.num_nodes_of_side
    first = 0
    for num_chunks in batch.part_chunks:
        places = slice(first * 2 * half, (first + num_chunks) * 2 * half)
        sides, by_sides = (tensor[places].view(2, num_chunks, half, -1) for tensor in (rows, by_rows))
        start = first
        for operator, group in groupby(batch.operators[first : first + num_chunks]):
            chunks = slice(start, start + len(list(group)))
            within = slice(chunks.start - first, chunks.stop - first)
            yield ChunkRun(
                operator,
                shape,
                (sides[0, within], sides[1, within]),
                (by_sides[0, within], by_sides[1, within]),
                batch.rel[chunks],
                weight[chunks],
                _places_of((batch.lhs_masked, batch.rhs_masked), chunks, len(batch.rel), shape),
            )
            start = chunks.stop
        first += num_chunks


def _places_of(masked: Pair, chunks: slice, num_chunks: int, shape: ChunkShape) -> Pair:
    """The masked places of some of `num_chunks` chunks, counted from the first of them."""
    if chunks == slice(0, num_chunks):
        return masked
    scores_per_chunk = shape.size * shape.num_candidates
    ends = torch.tensor([chunks.start, chunks.stop], device=masked[0].device) * scores_per_chunk
    parts = []
    for places in masked:
        low, high = torch.searchsorted(places, ends).tolist()
        parts.append(places[low:high] - chunks.start * scores_per_chunk)
    return parts[0], parts[1]
