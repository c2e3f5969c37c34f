"""The training data: parquet edges in, chunked batches out, from any cursor and on any number of ranks."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import pyarrow as pa

from tml.common.batch import Cursor
from tml.common.errors import ConfigError
from tml.common.filesystem import glob_files
from tml.common.modules.table_layout import TableLayout
from tml.common.reader import ParquetReader, RowBatch, check_shares
from tml.projects.twhin.config import EdgesConfig, TrainDataConfig
from tml.projects.twhin.data.chunks import ChunkAssembler, ChunkedEdges, ChunkShape
from tml.projects.twhin.data.edges import EdgeArrays, EdgeSchema, Locate, concatenate

EDGE_COLUMNS = {"lhs": pa.int64(), "rel": pa.int64(), "rhs": pa.int64()}

# Edges of an evaluation are read in batches of this many rows.
_READ_ROWS = 1_000_000


class EdgesDataset:
    """A rank's batches of the training edges.

    Args:
        config: the `train_data` section.
        schema: what an edge may hold.
        layout: where each table lies.
        weights: a relation's name to its weight in the loss.
        seed: of the order of edges and of the uniform negatives.
        rank: this rank.
        num_ranks: all ranks.
        num_epochs: how many will be asked for, so that nothing is read ahead beyond them; None never ends.

    Raises:
        ConfigError: the batch cannot be shared evenly among ranks or blocks.
        DataError: there are no such files, or a file is not as expected; while iterating, an edge is out of range.
    """

    def __init__(
        self,
        config: TrainDataConfig,
        schema: EdgeSchema,
        layout: TableLayout,
        *,
        weights: dict[str, float] | None = None,
        seed: int = 0,
        rank: int = 0,
        num_ranks: int = 1,
        num_epochs: int | None = None,
    ) -> None:
        batch_size = config.batch_size(num_ranks)
        self._num_blocks = num_blocks(config, batch_size, num_ranks)
        self._block_size = batch_size // self._num_blocks
        self._blocks_of_rank = self._num_blocks // num_ranks
        self._first_block = rank * self._blocks_of_rank
        self._reader = ParquetReader(
            edge_files(config.data_root),
            EDGE_COLUMNS,
            global_batch_size=batch_size,
            rank=rank,
            world_size=num_ranks,
            seed=seed,
            shuffle=config.shuffle,
            shuffle_window_rows=config.shuffle_window_rows,
            num_epochs=num_epochs,
            use_threads=True,
            offset=config.offset,
            limit=config.limit,
            check=partial(_check, schema),
        )
        self._assembler = ChunkAssembler(schema, layout, chunk_shape(config), seed, weights, pad=num_ranks > 1)

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch, the same on all ranks."""
        return self._reader.steps_per_epoch

    @property
    def num_edges(self) -> int:
        """Edges of an epoch, on all ranks together."""
        return self._reader.num_rows

    def fingerprint(self) -> str:
        """The identity of the data's content."""
        return self._reader.fingerprint()

    def load_cursor(self, cursor: Cursor) -> None:
        """Make the next iteration start at `cursor`."""
        self._reader.load_cursor(cursor)

    def __iter__(self) -> Iterator[ChunkedEdges]:
        for rows in self._reader:
            yield self._batch(rows)

    def _batch(self, rows: RowBatch) -> ChunkedEdges:
        edges = EdgeArrays(**rows.columns)
        # A block is numbered by the place of its first row in the run, so that its negatives do not depend on how
        # far the run has been resumed.
        first_row = rows.epoch * self._reader.num_rows + rows.global_first_row + self._first_block * self._block_size
        blocks = []
        for number in range(self._blocks_of_rank):
            part = slice(number * self._block_size, (number + 1) * self._block_size)
            blocks.append(
                (first_row + part.start, EdgeArrays(edges.lhs[part], edges.rel[part], edges.rhs[part])),
            )
        return self._assembler.assemble(blocks, self._block_size, rows.global_num_rows, rows.cursor)


def chunk_shape(config: TrainDataConfig) -> ChunkShape:
    """The sizes of a chunk, for those who make chunks and those who score them."""
    return ChunkShape(config.edges_per_chunk, config.in_batch_negatives, config.global_negatives)


def edge_files(data_root: str) -> list[str]:
    """The parquet files of a folder or glob pattern, in order of name."""
    pattern = data_root if any(mark in data_root for mark in "*?[") or data_root.endswith(".parquet") else None
    return glob_files(pattern or f"{data_root.rstrip('/')}/*.parquet")


def edge_blocks(config: EdgesConfig, schema: EdgeSchema | None = None) -> Iterator[EdgeArrays]:
    """The edges of a section in file order, a million at a time, checked against a schema if one is given.

    Raises:
        DataError: no such files, wrong columns, no edges, or an edge out of range (naming file and row).
    """
    reader = ParquetReader(
        edge_files(config.data_root),
        EDGE_COLUMNS,
        global_batch_size=_READ_ROWS,
        shuffle=False,
        offset=config.offset,
        limit=config.limit,
        check=None if schema is None else partial(_check, schema),
    )
    for rows in reader:
        yield EdgeArrays(**rows.columns)


def read_edges(config: EdgesConfig, schema: EdgeSchema) -> EdgeArrays:
    """All edges of a section in one piece; errors as `edge_blocks`."""
    return concatenate(*edge_blocks(config, schema))


def num_blocks(config: TrainDataConfig, batch_size: int, num_ranks: int) -> int:
    """Blocks that the batch of all ranks is cut into.

    Raises:
        ConfigError: the batch cannot be shared evenly among ranks or blocks.
    """
    # Without a wish of the user, a rank's share is one block.
    blocks = config.assembly_blocks if config.assembly_blocks > 1 else num_ranks
    check_shares(batch_size, num_ranks, where="train_data.global_batch_size")
    if blocks % num_ranks or batch_size % blocks:
        raise ConfigError(
            "a batch cannot be cut evenly into blocks",
            where="train_data.assembly_blocks",
            value=config.assembly_blocks,
            limit=f"a multiple of {num_ranks} ranks that divides the batch of {batch_size}",
            fix=f"set assembly_blocks to {num_ranks}, or to 1 for a block of each rank",
        )
    return blocks


def _check(schema: EdgeSchema, columns: dict[str, np.ndarray], locate: Locate) -> None:
    schema.check(EdgeArrays(**columns), locate)
