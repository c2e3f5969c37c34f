"""One table of a model folder: rows and ids go to parquet in blocks.

Letters: `n` rows of a table or block, `D` embedding dim.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from tml.common.errors import DataError, NonFiniteError
from tml.common.filesystem.digest import FileInfo, file_info
from tml.projects.twhin.export.ids import IdStream
from tml.projects.twhin.model_folder import TableInfo, embeddings_path

Blocks = Iterable[Tensor]

_BLOCK_BYTES = 32 << 20


def rows_per_block(dim: int) -> int:
    """Rows of float32 vectors that are held in memory at a time."""
    return max(1, _BLOCK_BYTES // (4 * dim))


def row_groups(rows: Tensor | Blocks, dim: int) -> Iterator[Tensor]:
    """A tensor, or blocks of any size, as blocks of bounded size."""
    for block in (rows,) if isinstance(rows, Tensor) else rows:
        yield from block.detach().split(rows_per_block(dim))


def write_table(folder: Path, name: str, blocks: Iterator[Tensor], ids: IdStream, dim: int) -> TableInfo:
    """Write `embeddings/<name>.parquet` from blocks of rows `[n, D]`, in the order of the index.

    Raises:
        DataError: rows and ids differ in number, or a block is not `[n, D]`.
        NonFiniteError: an embedding is NaN or infinite.
    """
    path = embeddings_path(folder, name)
    vector = pa.list_(pa.field("element", pa.float32(), nullable=False), dim)
    schema = pa.schema([pa.field("id", ids.type, nullable=False), pa.field("embedding", vector, nullable=False)])
    # Trained vectors do not compress, and plain pages are read back at the speed of a copy.
    compression = {"id": "zstd", "embedding.list.element": "none"}
    with pq.ParquetWriter(
        path, schema, compression=compression, use_dictionary=False, write_statistics=["id"]
    ) as writer:
        for block in blocks:
            values = _checked(block, name, ids.num_taken, dim)
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), type=vector)
            writer.write_batch(pa.record_batch([ids.take(len(values)), vectors], schema=schema))
    written = pq.read_metadata(path).num_rows
    if written != ids.num_taken:
        raise DataError("rows were lost in writing", where=path, value=written, limit=ids.num_taken, fix="export again")
    kind = "int64" if ids.type == pa.int64() else "string"
    return TableInfo(written, kind, ids.finish(), {"parquet": file_info(path)})


def _checked(block: Tensor, table: str, first_row: int, dim: int) -> np.ndarray:
    if block.dim() != 2 or block.shape[1] != dim:
        raise DataError("a block of embeddings has the wrong shape", where=f"table {table!r}", value=list(block.shape),
                        limit=f"[n, {dim}]")  # fmt: skip
    values = np.ascontiguousarray(block.float().cpu().numpy())
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        row = int(bad.argmax())
        raise NonFiniteError(
            "an embedding is NaN or infinite",
            where=f"table {table!r}, row {first_row + row}",
            value=values[row][~np.isfinite(values[row])][:3].tolist(),
            limit="finite values",
            fix="export an earlier step (--step)",
        )
    return values


def write_npy(folder: Path, name: str) -> FileInfo:
    """Write `embeddings/<name>.npy` from the parquet file, a row group at a time."""
    file, path = pq.ParquetFile(embeddings_path(folder, name)), embeddings_path(folder, name, "npy")
    dim = file.schema_arrow.field("embedding").type.list_size
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(file.metadata.num_rows, dim))
    row = 0
    for group in range(file.num_row_groups):
        for chunk in file.read_row_group(group, columns=["embedding"]).column("embedding").chunks:
            out[row : row + len(chunk)] = chunk.flatten().to_numpy().reshape(-1, dim)
            row += len(chunk)
    out.flush()
    del out
    return file_info(path)
