"""Rows of a group (a request, a user) have to lie together where a loss compares them: only rows of a batch meet."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow.parquet as pq

from tml.common.errors import DataError
from tml.common.filesystem import open_file

_BLOCK_ROWS = 1 << 20


def require_groups_together(files: Sequence[str]) -> None:
    """Look at the groups of encoded files; the same group may come again in another file, such as another day's.

    Args:
        files: with the column `group`.

    Raises:
        DataError: within a file, a group ends and comes again.
    """
    for path in files:
        firsts, groups = _runs(path)
        order = np.argsort(groups, kind="stable")
        again = np.flatnonzero(groups[order][1:] == groups[order][:-1])
        if len(again):
            row = int(firsts[order[again + 1]].min())
            raise DataError(
                "rows of a group do not lie together, as a ranking loss needs them", where=f"{path}, row {row}",
                value=f"{len(again)} groups come again", limit="all rows of a group one after the other in a file",
                fix="sort each table by its group column (ORDER BY request_id), and prepare it again",
            )  # fmt: skip


def _runs(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Where each run of equal groups begins, and its group: int64 each."""
    firsts, groups, num_rows, last = [], [], 0, None
    with open_file(path) as file:
        for block in pq.ParquetFile(file).iter_batches(_BLOCK_ROWS, columns=["group"]):
            values = block.column(0).to_numpy()
            begins = np.flatnonzero(np.diff(values, prepend=values[:1]) != 0)
            if last is None or values[0] != last:
                begins = np.concatenate([[0], begins])
            firsts.append(begins + num_rows)
            groups.append(values[begins])
            num_rows, last = num_rows + len(values), values[-1]
    empty = np.empty(0, np.int64)
    return np.concatenate([empty, *firsts]), np.concatenate([empty, *groups])
