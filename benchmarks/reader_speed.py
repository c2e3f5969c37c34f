"""Rows per second of `ParquetReader` against a plain pyarrow read of the same files, in the same run.

    python benchmarks/reader_speed.py                         # 4 M synthetic edges, written to a temporary folder
    python benchmarks/reader_speed.py --files 'edges/*.parquet' --columns lhs,rel,rhs

The plain read decodes each row group with one thread and drops it: no order, no batches, no checks, so it is the
ceiling. Every contestant reads the files once before the first round, to warm the page cache; then they take turns. The
ratios are what to quote: rows/s depend on the machine.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tml.benchmarks.harness import argument_parser, circumstances, parse_count, write_record
from tml.benchmarks.turns import take_turns, timed
from tml.common.filesystem import glob_files
from tml.common.reader import ParquetReader


def main() -> None:
    arguments = _parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        files = glob_files(arguments.files) if arguments.files else _write_edges(Path(folder), arguments)
        names = arguments.columns.split(",")
        types = pq.read_schema(files[0])
        columns = {name: types.field(name).type for name in names}
        make = partial(ParquetReader, files, columns, global_batch_size=arguments.batch_size, num_epochs=1)
        contestants: dict[str, Callable[[], int]] = {
            "file order": lambda: _read_batches(make(shuffle=False)),
            "shuffled": lambda: _read_batches(make()),
            "shuffled, no prefetch": lambda: _read_batches(make(prefetch=False)),
            "plain pyarrow": lambda: _read_plain(files, names),
        }
        record: dict[str, Any] = {"circumstances": circumstances()}
        counted = {read() for read in contestants.values()}
        if len(counted) != 1:
            raise SystemExit(f"the readers disagree about the number of rows: {counted}")
        runs = take_turns({name: timed(read) for name, read in contestants.items()}, arguments.rounds, "rows")
    text = f"{counted.pop():,} rows in {len(files)} files, columns {arguments.columns}, batch {arguments.batch_size:,}"
    write_record(arguments.results, arguments.record, record | runs.record(), f"{text}\n\n{runs.report()}")


def _parse_arguments() -> argparse.Namespace:
    parser = argument_parser(__doc__, "reader_speed", rounds="passes of each, taking turns", default_rounds=5)
    parser.add_argument("--files", help="pattern of parquet files; synthetic edges without it")
    parser.add_argument("--columns", default="lhs,rel,rhs")
    parser.add_argument("--rows", type=parse_count, default=4_000_000, help="synthetic rows, such as 400k or 4m")
    parser.add_argument("--row-group-size", type=int, default=250_000)
    parser.add_argument("--compression", default="zstd", help="of the synthetic files: none, zstd, snappy")
    parser.add_argument("--batch-size", type=int, default=8192)
    return parser.parse_args()


def _write_edges(folder: Path, arguments: argparse.Namespace, num_files: int = 4) -> list[str]:
    rng = np.random.default_rng(0)
    rows = arguments.rows // num_files
    files = [str(folder / f"{i}.parquet") for i in range(num_files)]
    for file in files:
        lhs, rhs = rng.zipf(1.3, (2, rows)) % 10**6
        edges = {"lhs": lhs, "rel": rng.integers(0, 4, rows), "rhs": rhs}
        pq.write_table(
            pa.table(edges), file, row_group_size=arguments.row_group_size, compression=arguments.compression
        )
    return files


def _read_plain(files: list[str], columns: list[str]) -> int:
    num_rows = 0
    for file in files:
        parquet = pq.ParquetFile(file, memory_map=True)
        for row_group in range(parquet.num_row_groups):
            num_rows += parquet.read_row_group(row_group, columns=columns, use_threads=False).num_rows
    return num_rows


def _read_batches(reader: ParquetReader) -> int:
    return sum(batch.num_rows for batch in reader)


if __name__ == "__main__":
    main()
