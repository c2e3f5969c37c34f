"""One parquet file of a data set: its footer, checked on opening, and its row groups, decoded on demand.

The footer is read once and kept. Every later opening compares the file's size and footer with what was seen first, so
that a file replaced during a run is an error and not a silent change of the data.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tml.common.errors import ConfigError, DataError
from tml.common.filesystem import is_remote, open_file

_MAGIC = b"PAR1"
_TAIL_BYTES = 8  # length of the footer (4 bytes, little endian) and the magic


@dataclass(frozen=True)
class ParquetDataFile:
    """A file as it was when the data set was opened.

    Args:
        path: local path or URL.
        size: bytes.
        footer_hash: SHA-256 of the footer, in hex: covers schema, statistics and the place and size of every column
            chunk.
        metadata: the decoded footer.
    """

    path: str
    size: int
    footer_hash: str
    metadata: pq.FileMetaData

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.replace("\\", "/").rsplit("/", 1)[-1]

    @property
    def row_group_rows(self) -> list[int]:
        """Rows of each row group."""
        return [self.metadata.row_group(i).num_rows for i in range(self.metadata.num_row_groups)]

    @contextmanager
    def open(self, columns: Mapping[str, pa.DataType], use_threads: bool = False) -> Iterator[OpenParquetFile]:
        """Opens the file for decoding and closes it again.

        Raises:
            DataError: it is gone, unreadable, or not the file it was when the data set was opened.
        """
        with _open_source(self.path) as source:
            if _size(source) != self.size or _footer_hash(self.path, source) != self.footer_hash:
                raise DataError(
                    "data file changed during the run",
                    where=self.path,
                    value=f"{_size(source)} bytes",
                    limit=f"{self.size} bytes and the same footer as when the data set was opened",
                    fix="put the old file back, or start again from the new data",
                )
            source.seek(0)
            with _decoding(self.path, "footer"):
                parquet = pq.ParquetFile(
                    source,
                    metadata=self.metadata,
                    page_checksum_verification=True,
                    pre_buffer=is_remote(self.path),  # joins small ranges into few requests
                )
            yield OpenParquetFile(self.path, parquet, columns, use_threads)


class OpenParquetFile:
    """A file that is open for decoding; made by `ParquetDataFile.open`."""

    def __init__(
        self, path: str, parquet: pq.ParquetFile, columns: Mapping[str, pa.DataType], use_threads: bool
    ) -> None:
        self._path = path
        self._parquet = parquet
        self._columns = columns
        self._use_threads = use_threads

    def read(self, row_group: int, start: int, stop: int) -> dict[str, np.ndarray]:
        """Decodes rows `[start, stop)` of a row group, widening where need be: `[stop - start]` of each column.

        Raises:
            DataError: the bytes cannot be decoded, or a column holds a null.
        """
        with _decoding(self._path, f"row group {row_group}"):
            table = self._parquet.read_row_group(
                row_group, columns=list(self._columns), use_threads=self._use_threads
            ).slice(start, stop - start)
        if table.num_rows != stop - start:
            raise _corrupt(self._path, f"row group {row_group}", f"{table.num_rows} of {stop - start} rows")
        return {name: self._values(table.column(name), name, row_group) for name in self._columns}

    def _values(self, column: pa.ChunkedArray, name: str, row_group: int) -> np.ndarray:
        if column.null_count:
            raise _nulls(self._path, name, row_group, column.null_count)
        chunks = [chunk.to_numpy(zero_copy_only=False) for chunk in column.chunks]
        values = chunks[0] if len(chunks) == 1 else np.concatenate(chunks)
        return values.astype(numpy_dtype(self._columns[name]), copy=False)


def open_data_file(path: str, columns: Mapping[str, pa.DataType]) -> ParquetDataFile:
    """Reads and checks a file's footer. A file without rows is returned unchecked: nothing will be read from it.

    Args:
        path: local path or URL.
        columns: name and expected type of each column that will be read; others are ignored.

    Raises:
        DataError: the file is missing, truncated or not parquet; a column is missing or of a type that cannot be
            widened to the expected one without loss; a column's statistics count nulls (without statistics they are
            found on decoding).
    """
    with _open_source(path) as source:
        size, footer_hash = _size(source), _footer_hash(path, source)
        source.seek(0)
        with _decoding(path, "footer"):
            parquet = pq.ParquetFile(source)
            metadata, schema = parquet.metadata, parquet.schema_arrow
    if metadata.num_rows > 0:
        _check_schema(path, schema, columns)
        _check_null_counts(path, metadata, columns)
    return ParquetDataFile(path, size, footer_hash, metadata)


def is_safe_cast(found: pa.DataType, expected: pa.DataType) -> bool:
    """Whether every value of a numeric or boolean type has an equal one in the expected type."""
    if not (_is_supported(found) and _is_supported(expected)):
        return False
    source, target = numpy_dtype(found), numpy_dtype(expected)
    # numpy calls 64-bit integers to float64 safe, although 2**53 + 1 has no equal there.
    loses_digits = source.kind in "iu" and source.itemsize == 8 and target.kind == "f"
    return np.can_cast(source, target, "safe") and not loses_digits


def numpy_dtype(kind: pa.DataType) -> np.dtype:
    """The numpy dtype of a numeric or boolean arrow type; `ConfigError` for any other."""
    if not _is_supported(kind):
        raise ConfigError(
            "column type is not supported", where="reader, columns", value=str(kind), limit="integers, floats or bool"
        )
    return np.dtype(kind.to_pandas_dtype())


def _is_supported(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)


def _check_schema(path: str, schema: pa.Schema, columns: Mapping[str, pa.DataType]) -> None:
    for name, expected in columns.items():
        if schema.names.count(name) != 1:
            raise DataError(
                "column is missing" if name not in schema.names else "column occurs more than once",
                where=f"{path}, column {name!r}",
                value=schema.names,
                limit=f"one column {name!r} of type {expected}",
                fix="rename the column in the file or in the config, or convert the data again",
            )
        found = schema.field(name).type
        if found != expected and not is_safe_cast(found, expected):
            raise DataError(
                "column has the wrong type",
                where=f"{path}, column {name!r}",
                value=str(found),
                limit=f"{expected}, or a type that widens to it without loss",
                fix=f"write the column as {expected}",
            )


def _check_null_counts(path: str, metadata: pq.FileMetaData, columns: Mapping[str, pa.DataType]) -> None:
    leaf_of = {metadata.schema.column(i).path: i for i in range(metadata.num_columns)}
    for name in columns:
        nulls_of: dict[int, int] = {}
        for row_group in range(metadata.num_row_groups):
            statistics = metadata.row_group(row_group).column(leaf_of[name]).statistics
            if statistics is not None and statistics.has_null_count and statistics.null_count:
                nulls_of[row_group] = statistics.null_count
        if nulls_of:
            raise _nulls(path, name, min(nulls_of), sum(nulls_of.values()))


def _nulls(path: str, column: str, row_group: int, num_nulls: int) -> DataError:
    return DataError(
        "column holds nulls",
        where=f"{path}, column {column!r}, row group {row_group}",
        value=f"{num_nulls} nulls",
        limit="none",
        fix="fill or drop the rows with nulls and write the file again",
    )


@contextmanager
def _open_source(path: str) -> Iterator[pa.NativeFile]:
    try:
        source = _source(path)
    except OSError as error:
        raise DataError(
            "cannot open data file", where=path, value=str(error), fix="check the path, or put the file back"
        ) from error
    with source:
        yield source


def _source(path: str) -> pa.NativeFile:
    if is_remote(path):
        from tml.common.reader.remote_file import RemoteFile

        return pa.PythonFile(RemoteFile(path), mode="r")
    if "://" in path:
        return pa.PythonFile(open_file(path, "rb"), mode="r")
    # Plain reads and not a memory map: a mapped file that is truncated under us kills the process with SIGBUS, a read
    # fails with an error.
    return pa.OSFile(os.path.expanduser(path), mode="r")


def _size(source: pa.NativeFile) -> int:
    return int(source.size())


def _footer_hash(path: str, source: pa.NativeFile) -> str:
    size = _size(source)
    with _decoding(path, "footer"):
        source.seek(max(size - _TAIL_BYTES, 0))
        tail = source.read(_TAIL_BYTES)
        length = int.from_bytes(tail[:4], "little")
        if tail[4:] != _MAGIC or length + _TAIL_BYTES + len(_MAGIC) > size:
            raise _corrupt(path, "footer", f"{size} bytes, ending in {tail!r}")
        source.seek(size - _TAIL_BYTES - length)
        footer = source.read(length)
    return hashlib.sha256(footer).hexdigest()


@contextmanager
def _decoding(path: str, part: str) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise _corrupt(path, part, str(error)) from error


def _corrupt(path: str, part: str, found: str) -> DataError:
    return DataError(
        "data file is corrupt, truncated or not parquet",
        where=f"{path}, {part}",
        value=found,
        fix="copy or convert the file again, or leave it out of the file list",
    )
