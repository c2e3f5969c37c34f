"""Tables on disk or behind a URL: parquet, and CSV or TSV (.gz too), read in batches of bounded size."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from tml.common.errors import DataError
from tml.common.filesystem import is_remote
from tml.core.config.base_config import did_you_mean
from tml.projects.light_ranker.features.config import TextConfig

BATCH_ROWS = 1 << 17
_BLOCK_BYTES = 16 << 20
_TEXT_SUFFIXES = (".csv", ".tsv", ".txt")


class Table:
    """One file.

    Args:
        path: local path or URL; a name like `clicks.csv.gz` is text, any other parquet.
        text: how text is read.
        skip_bad_lines: leave lines with a wrong number of fields out, and count them in `bad_lines`.
    """

    def __init__(self, path: str, text: TextConfig, skip_bad_lines: bool = False) -> None:
        self.path, self._text, self._skip_bad_lines = path, text, skip_bad_lines
        name = path.lower().removesuffix(".gz")
        self.is_text, self._is_tsv = name.endswith(_TEXT_SUFFIXES), name.endswith(".tsv")
        self.bad_lines = 0

    def fingerprint(self) -> dict[str, Any]:
        """What tells whether the file has changed: path, size, and time of the last change where there is one."""
        if is_remote(self.path):
            return {"path": self.path, "size": _remote_file(self.path).seek(0, os.SEEK_END)}
        path = os.path.realpath(self.path.removeprefix("file://"))
        found = os.stat(path)
        return {"path": path, "size": found.st_size, "mtime_ns": found.st_mtime_ns}

    def schema(self) -> pa.Schema:
        """Names and types of all columns; in text files every type is string.

        Raises:
            DataError: the file cannot be read, or two columns have one name.
        """
        if self.is_text:
            schema = pa.schema([(name, pa.string()) for name in self._header()])
        else:
            with self._reading() as source:
                schema = pq.ParquetFile(source).schema_arrow
        twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
        if twice:
            raise DataError("two columns have one name", where=self.path, value=twice[0], fix="rename one of them")
        return schema

    def batches(self, columns: Sequence[str]) -> Iterator[tuple[int, pa.Table]]:
        """The rows, in pieces: the number of the first row, and the columns asked for.

        Rows count from 0, without the header of a text file.

        Raises:
            DataError: the file cannot be read, or lacks a column.
        """
        schema, first_row = self.schema(), 0
        check_columns(schema, columns, self.path)
        with self._reading() as source:
            if self.is_text:
                batches: Iterator[pa.RecordBatch] = self._text_batches(source, schema, columns)
            else:
                batches = pq.ParquetFile(source).iter_batches(BATCH_ROWS, columns=list(columns))
            for batch in batches:
                for start in range(0, batch.num_rows, BATCH_ROWS):
                    piece = batch.slice(start, BATCH_ROWS)
                    yield first_row, pa.Table.from_batches([piece]).select(list(columns))
                    first_row += piece.num_rows

    def _text_batches(self, source: Any, schema: pa.Schema, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        reader = pacsv.open_csv(
            source,
            read_options=pacsv.ReadOptions(block_size=_BLOCK_BYTES, use_threads=False),
            parse_options=pacsv.ParseOptions(
                delimiter=self._delimiter, quote_char=self._text.quote or False,
                newlines_in_values=bool(self._text.quote), invalid_row_handler=self._on_bad_line,
            ),
            convert_options=pacsv.ConvertOptions(
                column_types=schema,
                include_columns=list(columns),
                null_values=self._text.missing_values,
                strings_can_be_null=True,
            ),
        )  # fmt: skip
        # Closed explicitly: whoever leaves the loop early would leave threads behind.
        with reader:
            yield from reader

    def _header(self) -> list[str]:
        with self._reading() as source:
            first = bytes(source.read(1 << 20)).split(b"\n", 1)[0].rstrip(b"\r")
            if not first.strip():
                raise DataError("a text file is empty", where=self.path, limit="a first line that names the columns")
            options = pacsv.ParseOptions(delimiter=self._delimiter, quote_char=self._text.quote or False)
            return list(pacsv.read_csv(pa.py_buffer(first + b"\n"), parse_options=options).schema.names)

    @property
    def _delimiter(self) -> str:
        return self._text.delimiter or ("\t" if self._is_tsv else ",")

    def _on_bad_line(self, line: Any) -> str:
        if not self._skip_bad_lines:
            return "error"
        self.bad_lines += 1
        return "skip"

    @contextmanager
    def _reading(self) -> Iterator[Any]:
        try:
            if is_remote(self.path):
                source: Any = pa.PythonFile(_remote_file(self.path), mode="r")
            else:
                source = pa.OSFile(self.path.removeprefix("file://"))
            if self.is_text and self.path.lower().endswith(".gz"):
                source = pa.CompressedInputStream(source, "gzip")
            with source:
                yield source
        except (pa.ArrowException, OSError, EOFError) as error:
            raise DataError(
                "a data file cannot be read", where=self.path, value=str(error),
                limit="parquet, or text whose first line names the columns",
                fix="mend or replace the file; lines with a wrong number of fields: bad_values.rows: skip",
            ) from None  # fmt: skip


def _remote_file(url: str) -> Any:
    # Imported late: the reader's room loads torch, which local tables do without.
    from tml.common.reader.remote_file import RemoteFile

    return RemoteFile(url)


def check_columns(schema: pa.Schema, columns: Sequence[str], where: str) -> None:
    """Raises DataError if a column is not there, with the nearest name."""
    for column in columns:
        if column not in schema.names:
            raise DataError(
                "a column is missing", where=where, value=column,
                limit=f"one of {', '.join(schema.names[:20])}{' ...' if len(schema.names) > 20 else ''}",
                fix=f"name the column in features.yaml as the file does{did_you_mean(column, schema.names)}",
            )  # fmt: skip
