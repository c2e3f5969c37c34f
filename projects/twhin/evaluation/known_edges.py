"""Known edges by query, for the filtered protocol.

Letters: `E` known edges. A query of side "rhs" is (rel, lhs) and its answers are right-hand sides; of side "lhs" the
other way round.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tml.common.errors import DataError
from tml.projects.twhin.data.edges import EdgeArrays
from tml.projects.twhin.models.scores import Side

Ints = NDArray[np.int64]

_ID_BITS = 40


class KnownEdges:
    """The distinct edges of all splits, sorted by query for both sides: 16 bytes an edge and some for each query.

    Args:
        edges: `E` edges of train, validation and test together; repeated edges count once.

    Raises:
        DataError: an id does not fit 40 bits, or a relation 23.
    """

    def __init__(self, edges: EdgeArrays) -> None:
        self._by_side = {
            "rhs": _Answers(query_keys(edges, "rhs"), edges.rhs),
            "lhs": _Answers(query_keys(edges, "lhs"), edges.lhs),
        }

    def count(self, edges: EdgeArrays, side: Side) -> Ints:
        """How many answers each edge's query has: int64 `[len(edges)]`."""
        return self._by_side[side].find(query_keys(edges, side))[1]

    def answers(self, edges: EdgeArrays, side: Side) -> tuple[Ints, Ints]:
        """All answers to the edges' queries.

        Returns:
            `(row, node)`: answer j belongs to edge `row[j]` and is `node[j]`; sorted by row, then node.
        """
        index = self._by_side[side]
        start, count = index.find(query_keys(edges, side))
        row = np.repeat(np.arange(len(edges)), count)
        # Position j of the flat answer counts on from its query's start.
        position = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count) + np.repeat(start, count)
        return row, index.nodes[position]


class _Answers:
    """Compressed rows: `keys [Q]` sorted, `offsets [Q + 1]`, `nodes` sorted within a key."""

    def __init__(self, keys: Ints, nodes: Ints) -> None:
        order = np.lexsort((nodes, keys))
        keys, nodes = keys[order], nodes[order]
        fresh = np.ones(len(keys), dtype=bool)
        fresh[1:] = (keys[1:] != keys[:-1]) | (nodes[1:] != nodes[:-1])
        keys, self.nodes = keys[fresh], nodes[fresh]
        self.keys, first = np.unique(keys, return_index=True)
        self.offsets = np.append(first, len(keys)).astype(np.int64)

    def find(self, keys: Ints) -> tuple[Ints, Ints]:
        """Start and length of each key's nodes; length 0 where the key is not known."""
        if len(self.keys) == 0:
            return np.zeros(len(keys), dtype=np.int64), np.zeros(len(keys), dtype=np.int64)
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        count = np.where(self.keys[at] == keys, self.offsets[at + 1] - self.offsets[at], 0)
        return self.offsets[at], count


def query_keys(edges: EdgeArrays, side: Side) -> Ints:
    """One int64 for each edge's query: the relation above 40 bits of the id."""
    ids = edges.lhs if side == "rhs" else edges.rhs
    for name, values, bits in (("rel", edges.rel, 63 - _ID_BITS), ("id", ids, _ID_BITS)):
        if len(values) and not 0 <= values.min() <= values.max() < 1 << bits:
            worst = values.min() if values.min() < 0 else values.max()
            raise DataError(f"{name} of an edge out of range", value=int(worst), limit=f"0 <= {name} < 2**{bits}")
    return (edges.rel << _ID_BITS) | ids
