"""Edges: checked once, on the host, where their file and row are still known.

Letters: `B` edges, `R` relations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tml.common.errors import DataError
from tml.projects.twhin.models.relations import RelationSpec

Ints = NDArray[np.int64]
Locate = Callable[[int], str]


@dataclass(frozen=True)
class EdgeArrays:
    """Edges as three int64 arrays `[B]`: left-hand side, relation, right-hand side, each an index (of a table, or of
    the relations)."""

    lhs: Ints
    rel: Ints
    rhs: Ints

    def __post_init__(self) -> None:
        for name in ("lhs", "rel", "rhs"):
            array = getattr(self, name)
            if array.dtype != np.int64 or array.ndim != 1:
                raise DataError(
                    "edges must be int64 vectors",
                    where=f"column {name}",
                    value=f"{array.dtype} of shape {array.shape}",
                )
        if not len(self.lhs) == len(self.rel) == len(self.rhs):
            raise DataError(
                "columns of unequal length",
                value=f"lhs {len(self.lhs)}, rel {len(self.rel)}, rhs {len(self.rhs)}",
            )

    def __len__(self) -> int:
        return len(self.lhs)


def take(edges: EdgeArrays, index: Ints | slice) -> EdgeArrays:
    """The edges at `index`."""
    return EdgeArrays(edges.lhs[index], edges.rel[index], edges.rhs[index])


def concatenate(*parts: EdgeArrays) -> EdgeArrays:
    """All parts, one after the other."""
    return EdgeArrays(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("lhs", "rel", "rhs")))


class EdgeSchema:
    """What an edge may hold: the relations, and the number of rows of the tables at their ends.

    Args:
        relations: `R` relations; their order gives the index in the `rel` column.
        num_embeddings: rows of each table.
    """

    def __init__(self, relations: Sequence[RelationSpec], num_embeddings: Mapping[str, int]) -> None:
        self.relations = tuple(relations)
        self.num_embeddings = dict(num_embeddings)
        self._limits = {
            side: np.array([num_embeddings[getattr(relation, side)] for relation in relations], dtype=np.int64)
            for side in ("lhs", "rhs")
        }

    def check(self, edges: EdgeArrays, locate: Locate = "row {}".format) -> None:
        """Refuse edges that name no relation or no row.

        Args:
            edges: `B` edges.
            locate: turns an index into `edges` into "file, row" for the message.

        Raises:
            DataError: naming file, row, column, table, value and limit of the first bad edge.
        """
        bad = self._first_outside(edges.rel, np.int64(len(self.relations)))
        if bad is not None:
            raise DataError(
                "unknown relation",
                where=f"{locate(bad)}, column rel",
                value=int(edges.rel[bad]),
                limit=f"0 <= rel < {len(self.relations)} ({', '.join(r.name for r in self.relations[:8])})",
                fix="list the relation under model.relations, or convert the data again",
            )
        for side in ("lhs", "rhs"):
            ids, limits = getattr(edges, side), self._limits[side][edges.rel]
            bad = self._first_outside(ids, limits)
            if bad is not None:
                table = getattr(self.relations[edges.rel[bad]], side)
                raise DataError(
                    "node id out of range",
                    where=f"{locate(bad)}, column {side}",
                    value=int(ids[bad]),
                    limit=f"0 <= id < {self.num_embeddings[table]} (table {table!r})",
                    fix=f"raise num_embeddings of table {table!r}, or convert the data again",
                )

    @staticmethod
    def _first_outside(values: Ints, limits: Ints | np.int64) -> int | None:
        # One unsigned comparison checks both ends: a negative number is a huge unsigned one.
        outside = values.view(np.uint64) >= np.asarray(limits).astype(np.uint64)
        return int(outside.argmax()) if outside.any() else None
