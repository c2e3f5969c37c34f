"""A table of an exported model: its ids, and its rows in memory or mapped.

Letters: `n` rows, `D` embedding dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from tml.projects.twhin.data.vocab import Vocabulary
from tml.projects.twhin.model_folder import ModelInfo, embeddings_path

Id = str | int
Neighbor = tuple[Id, float]

_ROWS_AT_A_TIME = 65_536


class ServedTable:
    """Reads ids and rows on first use.

    Args:
        folder: the model's folder.
        name: the table.
        info: the model.
    """

    def __init__(self, folder: Path, name: str, info: ModelInfo) -> None:
        self.name, self._folder, self._dim, self._info = name, folder, info.dim, info.tables[name]

    def __len__(self) -> int:
        return self._info.num_rows

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The ids in the order of the rows."""
        path = embeddings_path(self._folder, self.name)
        ids = pq.read_table(path, columns=["id"], partitioning=None).column("id")
        return Vocabulary(ids, name=self.name, where=str(path))

    @cached_property
    def array(self) -> NDArray[np.float32]:
        """All rows, float32 `[n, D]`; pages of the `.npy` file where there is one."""
        if "npy" in self._info.files:
            # Copy-on-write: torch wants a writable array, and nothing is ever written to the file.
            return np.load(embeddings_path(self._folder, self.name, "npy"), mmap_mode="c")
        rows = np.empty((len(self), self._dim), dtype=np.float32)
        file = pq.ParquetFile(embeddings_path(self._folder, self.name), memory_map=True)
        start = 0
        for group in range(file.num_row_groups):
            for chunk in file.read_row_group(group, columns=["embedding"]).column("embedding").chunks:
                rows[start : start + len(chunk)] = chunk.flatten().to_numpy().reshape(-1, self._dim)
                start += len(chunk)
        return rows

    def rows(self, ids: Sequence[Any] | NDArray[Any]) -> NDArray[np.int64]:
        """The row of each id.

        Raises:
            UnknownIdError: naming the nearest known ids.
        """
        return self.vocabulary.index(ids)

    def embeddings(self, ids: Sequence[Any] | NDArray[Any]) -> NDArray[np.float32]:
        """Rows `[len(ids), D]`, a copy; errors as in `rows`."""
        return np.array(self.array[self.rows(ids)])

    def blocks(self, num_rows: int) -> Iterator[tuple[int, Tensor]]:
        """`(first row, rows [<= num_rows, D])`, all of them in order, without a copy."""
        for first in range(0, len(self), num_rows):
            yield first, torch.from_numpy(self.array[first : first + num_rows])

    def best(
        self, score: Callable[[Tensor], Tensor], own: NDArray[np.int64], left_out: NDArray[np.int64], k: int
    ) -> list[list[Neighbor]]:
        """The k best rows for each of Q queries, by one pass over blocks of rows.

        Args:
            score: scores `[Q, N]` of rows `[N, D]`; may be overwritten.
            own: int64 `[Q]`, a row not to return for each query, or -1.
            left_out: rows not to return at all.
            k: at most so many.

        Returns:
            `(id, score)` for each query, best first, equal scores in the order of the rows.
        """
        best_scores, best_rows = torch.empty(len(own), 0), torch.empty(len(own), 0, dtype=torch.int64)
        for first, rows in self.blocks(_ROWS_AT_A_TIME):
            scores = score(rows)
            here = left_out[(left_out >= first) & (left_out < first + len(rows))] - first
            scores[:, torch.from_numpy(here)] = -torch.inf
            mine = np.flatnonzero((own >= first) & (own < first + len(rows)))
            scores[torch.from_numpy(mine), torch.from_numpy(own[mine] - first)] = -torch.inf
            top_scores, top_rows = _top(scores, min(k, len(rows)))
            best_scores = torch.cat([best_scores, top_scores], dim=1)
            best_rows = torch.cat([best_rows, top_rows + first], dim=1)
            order = best_scores.sort(dim=1, descending=True, stable=True).indices[:, :k]
            best_scores, best_rows = best_scores.gather(1, order), best_rows.gather(1, order)
        pairs = zip(best_scores.numpy(), best_rows.numpy(), strict=True)
        return [self._named(scores, rows) for scores, rows in pairs]

    def _named(self, scores: NDArray[np.float32], rows: NDArray[np.int64]) -> list[Neighbor]:
        kept = scores > -np.inf
        return list(zip(self.vocabulary.ids(rows[kept]).tolist(), scores[kept].tolist(), strict=True))


def _top(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row with their columns, equal ones in the order of columns (which `topk` leaves open)."""
    columns = scores.topk(k, dim=1).indices.sort(dim=1).values
    values = scores.gather(1, columns)
    order = values.sort(dim=1, descending=True, stable=True).indices
    columns, values = columns.gather(1, order), values.gather(1, order)
    cut_ties = torch.count_nonzero(scores >= values[:, -1:], dim=1) > k
    if cut_ties.any():
        whole = scores[cut_ties].sort(dim=1, descending=True, stable=True)
        values[cut_ties], columns[cut_ties] = whole.values[:, :k], whole.indices[:, :k]
    return values, columns
