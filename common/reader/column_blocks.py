"""Columns of a type side by side in one array, so that a row in a random place is a few cache lines rather than one a
column.

    blocks = empty_blocks({"lhs": np.dtype(np.int64), "rhs": np.dtype(np.int64)}, num_rows)
    columns = columns_of(dtypes, blocks)                            # views, to be filled and read by name
    joined_columns(columns, ["lhs", "rhs"], np.dtype(np.int64), num_rows)    # [num_rows, 2], without a copy
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import count

import numpy as np

Columns = dict[str, np.ndarray]
# The columns of each type, `[rows, columns of the type]`.
Blocks = dict[np.dtype, np.ndarray]


def empty_blocks(dtypes: Mapping[str, np.dtype], num_rows: int) -> Blocks:
    """Room for the columns of each type, side by side in the order of `dtypes`."""
    return {dtype: np.empty((num_rows, num), dtype) for dtype, num in Counter(dtypes.values()).items()}


def columns_of(dtypes: Mapping[str, np.dtype], blocks: Blocks) -> Columns:
    """Each column as a view of its block, by name."""
    places = {dtype: count() for dtype in blocks}
    return {name: blocks[dtype][:, next(places[dtype])] for name, dtype in dtypes.items()}


def joined_columns(
    columns: Mapping[str, np.ndarray], names: Sequence[str], dtype: np.dtype, num_rows: int
) -> np.ndarray:
    """Some columns side by side `[num_rows, len(names)]`, without a copy where they are neighbours in one array."""
    if not names:
        return np.empty((num_rows, 0), dtype)
    chosen = [columns[name] for name in names]
    block = chosen[0].base
    # A slice of a column has the same base and begins elsewhere: it is copied.
    if block is not None and block.ndim == 2 and all(c.base is block and len(c) == len(block) for c in chosen):
        start, step = block.__array_interface__["data"][0], block.itemsize
        places = [(column.__array_interface__["data"][0] - start) // step for column in chosen]
        if block.dtype == dtype and places == list(range(places[0], places[0] + len(places))):
            return block[:, places[0] : places[0] + len(places)]
    return np.stack(chosen, axis=1).astype(dtype, copy=False)
