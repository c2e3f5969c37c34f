"""Reads TSV and CSV, gzipped or not, chunk by chunk; lines of a wrong form go to the rejects."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, cast

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv

from tml.common.errors import DataError
from tml.projects.twhin.data.convert import lines as line_blocks
from tml.projects.twhin.data.convert.columns import (
    OUR_NAMES,
    Chunk,
    Roles,
    is_position,
    looks_like_header,
    resolve_roles,
    wanted_columns,
)
from tml.projects.twhin.data.convert.lines import LineBlock, line_faults, read_blocks
from tml.projects.twhin.data.convert.options import ConvertOptions
from tml.projects.twhin.data.convert.rejects import Rejects

_LINES_LOOKED_AT = 1_000


@dataclass(frozen=True)
class Dialect:
    """How a line is cut into values."""

    delimiter: str
    quoting: bool

    @classmethod
    def of(cls, path: str, options: ConvertOptions) -> Dialect:
        """By the file's name, unless the options say otherwise."""
        is_csv = path.lower().removesuffix(".gz").endswith(".csv")
        delimiter = options.delimiter or ("," if is_csv else "\t")
        return cls(delimiter, is_csv if options.quoting is None else options.quoting)


@dataclass(frozen=True)
class Layout:
    """What the first lines of a file tell about all of them."""

    dialect: Dialect
    num_columns: int
    has_header: bool
    roles: Roles


def read_text(path: str, options: ConvertOptions, has_relation: bool, rejects: Rejects) -> Iterator[Chunk]:
    """Yields the well-formed lines of a file as strings.

    Raises:
        DataError: the file cannot be read, a column is missing, or a line is bad and `rejects` is strict.
    """
    dialect, layout = Dialect.of(path, options), None
    with _open(path) as stream:
        for block in read_blocks(stream, path, line_blocks.BLOCK_BYTES):
            skip_first = False
            if layout is None:
                layout = find_layout(block, dialect, options, has_relation, path)
                skip_first = layout.has_header
                rejects.limits.setdefault(
                    "too few columns", f"{layout.num_columns} columns, as in the file's other lines"
                )
                rejects.limits.setdefault("too many columns", rejects.limits["too few columns"])
            yield from _read_block(block, layout, rejects, skip_first)


def find_layout(block: LineBlock, dialect: Dialect, options: ConvertOptions, has_relation: bool, path: str) -> Layout:
    """Looks at the first block for the header, the number of columns (the header's, else the usual) and their roles."""
    fields = _fields(block.content(0), dialect)
    has_header = options.header
    if has_header is None:
        has_header = _wants_header(fields, options, has_relation)
    num_columns = len(fields) if has_header else _usual_columns(block, dialect)
    header = [name.strip() for name in fields] if has_header else None
    roles = resolve_roles(header, num_columns, options, has_relation, path)
    return Layout(dialect, num_columns, has_header, roles)


def _wants_header(fields: list[str], options: ConvertOptions, has_relation: bool) -> bool:
    wanted = wanted_columns(options, has_relation)
    names = [*(wanted or ()), *([options.time_column] if options.time_column else ())]
    if any(not is_position(name) for name in names):
        return True
    ours = OUR_NAMES if has_relation else (OUR_NAMES[0], OUR_NAMES[2])
    return set(ours) <= {name.strip() for name in fields} or looks_like_header(fields, has_relation)


def _usual_columns(block: LineBlock, dialect: Dialect) -> int:
    counts: dict[int, int] = {}
    for line in range(min(len(block.stops), _LINES_LOOKED_AT)):
        content = block.content(line)
        if content:
            width = len(_fields(content, dialect))
            counts[width] = counts.get(width, 0) + 1
    return max(counts, key=lambda width: (counts[width], width), default=1)


def _fields(line: str, dialect: Dialect) -> list[str]:
    if not dialect.quoting or '"' not in line:
        return line.split(dialect.delimiter)
    fields, inside = [""], False
    for character in line:
        if character == dialect.delimiter and not inside:
            fields.append("")
            continue
        inside ^= character == '"'
        fields[-1] += character
    return [field[1:-1].replace('""', '"') if field[:1] == '"' else field for field in fields]


def _read_block(block: LineBlock, layout: Layout, rejects: Rejects, skip_first: bool) -> Iterator[Chunk]:
    faults = line_faults(block, layout.dialect.delimiter, layout.dialect.quoting, layout.num_columns)
    good = faults == 0
    if skip_first:
        faults[0], good[0] = 0, False
    rejects.add(faults, block.line_numbers, block.content)
    kept = np.flatnonzero(good)
    if not len(kept):
        return
    columns = _parse(block.keep(good), layout, int((block.stops - block.starts).max()), len(kept))
    roles = layout.roles
    yield Chunk(
        lhs=columns[roles.lhs],
        rhs=columns[roles.rhs],
        rel=None if roles.rel is None else columns[roles.rel],
        time=None if roles.time is None else columns[roles.time],
        places=block.line_numbers[kept],
        content=lambda i: block.content(int(kept[i])),
    )


def _parse(text: bytes, layout: Layout, longest_line: int, num_rows: int) -> dict[int, pa.Array]:
    names = [str(i) for i in range(layout.num_columns)]
    wanted = [str(i) for i in layout.roles.positions()]
    quoting = layout.dialect.quoting
    table = pacsv.read_csv(
        io.BytesIO(text),
        read_options=pacsv.ReadOptions(column_names=names, block_size=max(1 << 20, 2 * longest_line + 64)),
        parse_options=pacsv.ParseOptions(
            delimiter=layout.dialect.delimiter,
            quote_char='"' if quoting else False,
            double_quote=quoting,
            ignore_empty_lines=False,
        ),
        convert_options=pacsv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()),
            include_columns=wanted,
            strings_can_be_null=False,
            check_utf8=False,
        ),
    )
    assert table.num_rows == num_rows, f"the line scan found {num_rows} rows and the parser {table.num_rows}"
    return {int(name): _one_array(table.column(name)) for name in wanted}


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)


@contextmanager
def _open(path: str) -> Iterator[IO[bytes]]:
    try:
        opened = gzip.open(path, "rb") if path.lower().endswith(".gz") else open(path, "rb")  # noqa: SIM115
        with opened as stream:
            yield cast(IO[bytes], stream)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            "input file cannot be read", where=path, value=str(error), fix="check that the file is whole and readable"
        ) from error
