"""Blocks of edges that are scored and ranked together: how large, on which threads, and their scores.

Letters: `U` distinct queries of a block, `N` candidates, `D` embedding dim.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

# Scores `[U, N]` from relation indexes `[U]`, queries `[U, D]` and candidates `[N, D]`.
ScoreFunction = Callable[[Tensor, Tensor, Tensor], Tensor]

# Candidates of one product. On a CPU they and their scores stay in the cache until the scores lie in the matrix.
_CANDIDATES_ON_CPU, _CANDIDATES_ON_GPU = 4096, 65_536
# With fewer queries a product is far from its rate: then threads share a block instead of having one each.
_FEW_QUERIES = 32
# Products have a multiple of so many rows and columns: libraries sum the columns at the edge of other shapes in another
# order, and equal embeddings would not have equal scores.
_ROW_MULTIPLE, _COLUMN_MULTIPLE = 16, 64


class BlockWorkers:
    """Threads that take one block after the other, each with a score matrix of its own that it uses again.

    A block is part products and part counting in NumPy: a block on each core keeps all cores busy with both. A GPU, and
    a table so large that only a few queries' scores fit the memory, have one thread; then products use all cores.

    Args:
        num_edges: edges in all.
        num_columns: `N`, scores of a query.
        device: where scores are computed.
        max_queries: bound on the edges of a block.
        max_bytes: bound on all score matrices together (one query's scores on one thread may exceed it).
    """

    def __init__(
        self, num_edges: int, num_columns: int, device: torch.device, max_queries: int, max_bytes: int
    ) -> None:
        fitting = max_bytes // (4 * num_columns)
        self._num_threads = torch.get_num_threads() if device.type == "cpu" else 1
        self.num_workers = max(1, min(self._num_threads, fitting // _FEW_QUERIES))
        fair = -(-num_edges // self.num_workers)
        self.block_size = max(1, min(max_queries, fitting // self.num_workers, fair))
        self._device = device
        self._thread = threading.local()
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> Self:
        if self.num_workers > 1:
            threads_each = self._num_threads // self.num_workers
            self._pool = ThreadPoolExecutor(self.num_workers, "rank", torch.set_num_threads, (threads_each,))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            # The number holds for the thread that sets it, and for all that are new to torch after it.
            torch.set_num_threads(self._num_threads)

    def map(self, work: Callable[[slice], int], num_edges: int) -> Iterable[int]:
        """The results of `work` for the blocks of `num_edges` edges, in their order."""
        starts = range(0, num_edges, self.block_size)
        blocks = (slice(start, start + self.block_size) for start in starts)
        return map(work, blocks) if self._pool is None else self._pool.map(work, blocks)

    def matrix(self, num_rows: int, num_columns: int) -> Tensor:
        """A float32 matrix of any content that is this thread's until its next call."""
        size = num_rows * num_columns
        memory: Tensor | None = getattr(self._thread, "memory", None)
        if memory is None or len(memory) < size:
            self._thread.memory = None  # let go first
            memory = self._thread.memory = torch.empty(size, device=self._device)
        return memory[:size].view(num_rows, num_columns)


def score_into(
    matrix: Tensor, score: ScoreFunction, relations: Tensor, queries: Tensor, candidates: Sequence[Tensor]
) -> Tensor:
    """Score all candidates for all queries, with bounded temporaries; equal embeddings get equal scores.

    Args:
        matrix: float32 `[U, N]`, is filled.
        score: the scorer's function.
        relations: int64 `[U]`.
        queries: `[U, D]`.
        candidates: `N` rows `[., D]` in one or several tensors.

    Returns:
        float `[U]`, finite where all scores of the row are.
    """
    num_queries, column = len(queries), 0
    at_a_time = _CANDIDATES_ON_CPU if matrix.device.type == "cpu" else _CANDIDATES_ON_GPU
    relations, queries = _whole(relations, _ROW_MULTIPLE), _whole(queries, _ROW_MULTIPLE)
    sums = torch.zeros(num_queries, device=matrix.device)
    for rows in candidates:
        for part in rows.split(at_a_time):
            scores = score(relations, queries, _whole(part, _COLUMN_MULTIPLE))[:num_queries, : len(part)]
            matrix[:, column : column + len(part)] = scores
            sums += scores.sum(1)
            column += len(part)
    return sums


def _whole(rows: Tensor, multiple: int) -> Tensor:
    """The rows, the last one repeated until their number is a multiple."""
    missing = -len(rows) % multiple
    return torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])]) if missing else rows
