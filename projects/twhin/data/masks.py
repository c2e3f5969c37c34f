"""Masks: which candidates of a chunk are positives, or padding, and so must not count as negatives.

Letters: `S` chunks, `C` edges in a chunk, `N` candidates, `P` masked places.

An edge (l, r, t) asks the query (l, r); every t' with (l, r, t') in the chunk is a positive of it. Few of the `S * C
* N` scores are concerned, so the masks are lists of places, found by sorting while the batch is made, not tensors of
booleans.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tml.projects.twhin.data.edges import Ints

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class ChunkNodes:
    """The edges of chunks, seen from the side whose candidates are ranked; `[S, C]` each.

    Args:
        other: nodes of the other side.
        rel: relations.
        own: nodes of this side.
        filled: false for padding.
    """

    other: Ints
    rel: Ints
    own: Ints
    filled: Mask


def masked_places(nodes: ChunkNodes, candidates: Ints, valid: Mask) -> Ints:
    """Places of candidates that are padding, the edge's own node, or the node of an edge with the same query.

    Args:
        nodes: the edges.
        candidates: `[S, N]`, ids of the same table as `nodes.own`.
        valid: `[S, N]`, false for padding.

    Returns:
        `[P]`, ascending flat places in `[S, C, N]`.
    """
    slot, column = _equal_nodes(nodes, candidates, valid)
    slot, column = _spread_over_queries(nodes, slot, column)
    num_candidates = candidates.shape[1]
    places = slot * num_candidates + column
    if not valid.all():
        places = np.concatenate([places, _padding_places(valid, nodes.rel.shape[1])])
    return np.unique(places)


def _equal_nodes(nodes: ChunkNodes, candidates: Ints, valid: Mask) -> tuple[Ints, Ints]:
    """All (flat slot, column) where a candidate is the own node of an edge of its chunk."""
    num_chunks, num_candidates = candidates.shape
    span = int(max(nodes.own.max(initial=0), candidates.max(initial=0))) + 1
    chunk = np.arange(num_chunks)[:, None] * span
    slots = np.flatnonzero(nodes.filled)
    keys = (chunk + nodes.own).ravel()[slots]
    order = np.argsort(keys, kind="stable")
    flat = np.flatnonzero(valid)
    wanted = (chunk + candidates).ravel()[flat]
    start, count = _find(keys[order], wanted)
    return slots[order[_ranges(start, count)]], np.repeat(flat % num_candidates, count)


def _spread_over_queries(nodes: ChunkNodes, slot: Ints, column: Ints) -> tuple[Ints, Ints]:
    """Repeat each (slot, column) for all slots with the same query as `slot`."""
    span = int(nodes.other.max(initial=0)) + 1
    num_relations = int(nodes.rel.max(initial=0)) + 1
    keys = (np.arange(len(nodes.rel))[:, None] * num_relations + nodes.rel) * span + nodes.other
    slots = np.flatnonzero(nodes.filled)
    queries = keys.ravel()
    order = slots[np.argsort(queries[slots], kind="stable")]
    ordered = queries[order]
    if len(ordered) < 2 or (ordered[1:] != ordered[:-1]).all():
        return slot, column
    start, count = _find(ordered, queries[slot])
    return order[_ranges(start, count)], np.repeat(column, count)


def _padding_places(valid: Mask, size: int) -> Ints:
    """All places of columns that hold padding."""
    chunk, column = np.nonzero(~valid)
    slots = chunk[:, None] * size + np.arange(size)
    return (slots * valid.shape[1] + column[:, None]).ravel()


def _find(ordered: Ints, wanted: Ints) -> tuple[Ints, Ints]:
    """Start and count of each wanted key in an ascending array."""
    start = np.searchsorted(ordered, wanted, "left")
    return start, np.searchsorted(ordered, wanted, "right") - start


def _ranges(start: Ints, count: Ints) -> Ints:
    """`start[i], start[i] + 1, ...`, `count[i]` of each, one after the other."""
    return np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + np.repeat(start, count)
