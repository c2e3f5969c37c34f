"""Which columns of a file hold the ends, the relation and the time, and the pieces of a file that the scan works on."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from tml.common.errors import DataError
from tml.projects.twhin.data.convert.options import ConvertOptions

OUR_NAMES = ("lhs", "rel", "rhs")
LHS_HEADERS = {"lhs", "head", "source", "src", "subject", "from", "h", "user", "user_id", "left"}
RHS_HEADERS = {"rhs", "tail", "target", "dst", "object", "to", "t", "item", "item_id", "destination", "right"}
REL_HEADERS = {"rel", "relation", "type", "predicate", "r", "edge_type", "label"}


@dataclass(frozen=True)
class Chunk:
    """Some rows of an input file, as Arrow arrays of one length, before they mean anything.

    Args:
        lhs, rhs: strings or integers.
        rel: strings, or None where the whole file holds one relation.
        time: None where there is no split by time.
        places: int64 [n], line or row numbers.
        content: gives the text of the i-th row, for messages.
    """

    lhs: pa.Array
    rhs: pa.Array
    rel: pa.Array | None
    time: pa.Array | None
    places: np.ndarray
    content: Callable[[int], str]


@dataclass(frozen=True)
class Roles:
    """Positions of the columns that matter in a file; `rel` and `time` may be None."""

    lhs: int
    rhs: int
    rel: int | None
    time: int | None

    def positions(self) -> list[int]:
        """The positions in use, each once, ascending."""
        return sorted({p for p in (self.lhs, self.rhs, self.rel, self.time) if p is not None})


def wanted_columns(options: ConvertOptions, has_relation: bool) -> tuple[str, ...] | None:
    """The columns asked for, two or three of them, or None when the file is to be taken as it comes."""
    if options.columns is None or has_relation:
        return options.columns
    return (options.columns[0], options.columns[-1])


def resolve_roles(
    header: Sequence[str] | None, num_columns: int, options: ConvertOptions, has_relation: bool, path: str
) -> Roles:
    """Finds the columns by name or position.

    Args:
        header: the columns' names, or None for a file without a header.
        has_relation: whether the file has a relation column.

    Raises:
        DataError: a column is not there.
    """
    wanted = wanted_columns(options, has_relation)
    if wanted is None:
        ours = OUR_NAMES if has_relation else (OUR_NAMES[0], OUR_NAMES[2])
        named = header is not None and set(ours) <= set(header)
        wanted = ours if named else tuple(str(i) for i in range(len(ours)))
    places = [_place(column, header, num_columns, path) for column in wanted]
    time = None if options.time_column is None else _place(options.time_column, header, num_columns, path)
    return Roles(lhs=places[0], rhs=places[-1], rel=places[1] if has_relation else None, time=time)


def is_position(column: str) -> bool:
    """Whether a column is given by its position from 0."""
    return column.isascii() and column.isdigit()


def looks_like_header(fields: Sequence[str], has_relation: bool) -> bool:
    """Whether the first line of a file is made of well-known column names rather than ids."""
    low = [name.strip().lower() for name in fields]
    if has_relation:
        return len(low) >= 3 and low[0] in LHS_HEADERS and low[1] in REL_HEADERS and low[2] in RHS_HEADERS
    return len(low) >= 2 and low[0] in LHS_HEADERS and low[1] in RHS_HEADERS


def _place(column: str, header: Sequence[str] | None, num_columns: int, path: str) -> int:
    if header is not None and column in header:
        return list(header).index(column)
    if is_position(column) and int(column) < num_columns:
        return int(column)
    near = difflib.get_close_matches(column, header or [], n=1)
    known = f"{num_columns} columns" + (f": {', '.join(header)}" if header is not None else " and no header")
    raise DataError(
        "column not found",
        where=path,
        value=column,
        limit=known[:300],
        fix=f"did you mean {near[0]!r}?" if near else "name the columns with --columns, by name or by position from 0",
    )
