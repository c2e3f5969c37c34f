"""Rows per second of `ParquetReader` against a plain pyarrow read of the same files, in the same run.

    python benchmarks/reader_speed.py                         # 4 M synthetic edges, written to a temporary folder
    python benchmarks/reader_speed.py --files 'edges/*.parquet' --columns lhs,rel,rhs

The plain read decodes each row group with one thread and drops it: no order, no batches, no checks, so it is the
ceiling. Passes are interleaved, the medians are compared, and the ratio is what to quote: rows/s depend on the machine
and on the page cache.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

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
            "plain pyarrow": lambda: _read_plain(files, names),
            "file order": lambda: _read_batches(make(shuffle=False)),
            "shuffled": lambda: _read_batches(make()),
            "shuffled, no prefetch": lambda: _read_batches(make(prefetch=False)),
        }
        seconds, num_rows = _interleaved(contestants, arguments.repeats)
    _report(seconds, num_rows)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", help="pattern of parquet files; synthetic edges without it")
    parser.add_argument("--columns", default="lhs,rel,rhs")
    parser.add_argument("--rows", type=int, default=4_000_000, help="synthetic rows")
    parser.add_argument("--row-group-size", type=int, default=250_000)
    parser.add_argument("--compression", default="zstd", help="of the synthetic files: none, zstd, snappy")
    parser.add_argument("--batch-size", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=5)
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


def _interleaved(contestants: dict[str, Callable[[], int]], repeats: int) -> tuple[dict[str, list[float]], int]:
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    counted = {read() for read in contestants.values()}  # warms the page cache
    if len(counted) != 1:
        raise SystemExit(f"the readers disagree about the number of rows: {counted}")
    for _ in range(repeats):
        for name, read in contestants.items():
            start = time.perf_counter()
            read()
            seconds[name].append(time.perf_counter() - start)
    return seconds, counted.pop()


def _report(seconds: dict[str, list[float]], num_rows: int) -> None:
    plain = statistics.median(seconds["plain pyarrow"])
    for name, times in seconds.items():
        median = statistics.median(times)
        line = {"reader": name, "rows_per_second": round(num_rows / median), "ratio_to_plain": round(plain / median, 3)}
        print(json.dumps(line))


if __name__ == "__main__":
    main()
