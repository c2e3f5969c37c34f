"""Masks: which candidates of a chunk are positives, or padding, and so must not count as negatives.

Letters: `S` chunks, `C` edges in a chunk, `N` candidates, `P` masked places.

An edge (l, r, t) asks the query (l, r); every t' with (l, r, t') in the chunk is a positive of it. Few of the scores
are concerned, so masks are lists of places in `[S, C, N]`, found while the batch is made, not tensors of booleans.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tml.common.native.compiler import compiled
from tml.projects.twhin.data.edges import Ints

Mask = NDArray[np.bool_]

_SOURCE = Path(__file__).with_name("masks.cpp")


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
        `[P]`, ascending flat places in `[S, C, N]`; a place may come twice.
    """
    library = compiled(_SOURCE)
    if library is None:
        return _places_by_numpy(nodes, candidates, valid)
    find = library.tml_masked_places
    find.restype = ctypes.c_int64
    integers = [np.ascontiguousarray(array) for array in (nodes.other, nodes.rel, nodes.own, candidates)]
    masks = [np.ascontiguousarray(mask) for mask in (nodes.filled, valid)]
    other, rel, own, candidates_, filled, valid_ = (ctypes.c_void_p(array.ctypes.data) for array in (*integers, *masks))
    capacity = 2 * nodes.own.size  # an edge's own node, and room for as many again
    while True:
        places = np.empty(capacity, dtype=np.int64)
        num_places = find(
            *map(ctypes.c_int64, (*nodes.own.shape, candidates.shape[1])), other, rel, own, filled, candidates_, valid_,
            ctypes.c_void_p(places.ctypes.data), ctypes.c_int64(capacity), torch.get_num_threads(),
        )  # fmt: skip
        if num_places <= capacity:
            return places[:num_places]
        capacity = num_places


def _places_by_numpy(nodes: ChunkNodes, candidates: Ints, valid: Mask) -> Ints:
    """The definition of `masked_places`."""
    # All pairs are compared: for chunks of 50 edges a batch took 10 ms so, and 27 ms by sorting and searching.
    own, candidates = _as_short_as_they_fit(nodes.own, candidates)
    equal = own[:, :, None] == candidates[:, None, :]
    if not nodes.filled.all():
        equal &= nodes.filled[:, :, None]
    places = np.flatnonzero(equal)
    num_candidates = candidates.shape[1]
    more = [_places_of_equal_queries(nodes, places, num_candidates)]
    if not valid.all():
        more.append(_padding_places(valid, nodes.rel.shape[1]))
    return np.sort(np.concatenate([places, *more])) if any(map(len, more)) else places


def _as_short_as_they_fit(*ids: Ints) -> list[NDArray[np.signedinteger]]:
    """Ids as int32 where all fit: a comparison of twice as many at a time takes less than half as long."""
    fit = all(array.max(initial=0) <= np.iinfo(np.int32).max for array in ids)
    return [array.astype(np.int32) if fit else array for array in ids]


def _places_of_equal_queries(nodes: ChunkNodes, places: Ints, num_candidates: int) -> Ints:
    """For a place of an edge, the same column of all edges of its chunk with the same query."""
    # The config bounds relations and rows, so that a query fits int64.
    span = int(nodes.other.max(initial=0)) + 1
    queries = np.where(nodes.filled, nodes.rel * span + nodes.other, -1)
    by_query = np.argsort(queries, axis=1)
    ordered = np.take_along_axis(queries, by_query, axis=1)
    fresh = np.ones(queries.shape, dtype=bool)
    fresh[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    first = np.flatnonzero(fresh)
    size = np.diff(np.append(first, queries.size))
    if size.max(initial=1) == 1:
        return np.empty(0, dtype=np.int64)
    order = (by_query + np.arange(len(queries))[:, None] * queries.shape[1]).ravel()
    group = np.empty(queries.size, dtype=np.int64)
    group[order] = np.cumsum(fresh) - 1
    slot, column = np.divmod(places, num_candidates)
    concerned = size[group[slot]] > 1
    of_place, column = group[slot[concerned]], column[concerned]
    members = order[_ranges(first[of_place], size[of_place])]
    return members * num_candidates + np.repeat(column, size[of_place])


def _padding_places(valid: Mask, size: int) -> Ints:
    """All places of columns that hold padding."""
    chunk, column = np.nonzero(~valid)
    slots = chunk[:, None] * size + np.arange(size)
    return (slots * valid.shape[1] + column[:, None]).ravel()


def _ranges(start: Ints, count: Ints) -> Ints:
    """`start[i], start[i] + 1, ...`, `count[i]` of each, one after the other."""
    return np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + np.repeat(start, count)
