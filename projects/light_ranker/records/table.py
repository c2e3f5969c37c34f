"""Block files of DataRecords to parquet tables and back.

Training reads parquet: it is shuffled, sharded, repeated and resumed there (`tml.common.reader`), which a stream of
block files does not allow. A conversion that was stopped goes on with the next file.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from tml.common.errors import ConfigError, DataError
from tml.common.filesystem import atomic_write, is_remote, open_file
from tml.core.config import format_config
from tml.projects.light_ranker.data.files import keep_files
from tml.projects.light_ranker.records.block_format import RECORDS_PER_BLOCK
from tml.projects.light_ranker.records.block_reader import BlockCounts
from tml.projects.light_ranker.records.block_streams import Compression
from tml.projects.light_ranker.records.block_writer import BlockWriter
from tml.projects.light_ranker.records.columns import OnError
from tml.projects.light_ranker.records.from_arrow import check_columns, records_of
from tml.projects.light_ranker.records.parts import convert_parts
from tml.projects.light_ranker.records.stream import iterate_records
from tml.projects.light_ranker.records.table_config import RecordTableConfig
from tml.projects.light_ranker.records.to_arrow import table_of, table_schema

_BATCH_RECORDS = 8192
_BATCH_BYTES = 16 << 20


@dataclass(frozen=True)
class ToTableOptions:
    """How block files are read.

    Args:
        on_error: "fail" at damage and bad records, or "skip" and count them.
        keep_rate, file_keep_rate: chance of each record and of each file.
        seed: of those draws.
        row_group_size: rows, of the parquet files.
    """

    on_error: OnError = "fail"
    keep_rate: float = 1.0
    file_keep_rate: float = 1.0
    seed: int = 0
    row_group_size: int = 131_072


@dataclass(frozen=True)
class ToRecordsOptions:
    """How block files are written.

    Args:
        on_error: "fail" at rows that no record can hold, or "skip" and count them.
        compression: "gzip" or "none".
        records_per_block: 100 in the original.
    """

    on_error: OnError = "fail"
    compression: Compression = "gzip"
    records_per_block: int = RECORDS_PER_BLOCK


def records_to_table(
    files: Sequence[str],
    out: str | os.PathLike[str],
    config: RecordTableConfig,
    options: ToTableOptions | None = None,
    *,
    overwrite: bool = False,
) -> dict[str, int]:
    """Converts block files to `<out>/part-<n>.parquet`, one for each.

    Args:
        files: local paths or URLs, raw or gzip.
        out: a local folder.
        config: the columns.
        options: defaults when None.
        overwrite: replace an earlier conversion.

    Returns:
        counts: files, rows, skipped_records, missing_labels, missing_weights, and those of `BlockCounts`.

    Raises:
        ConfigError: the folder holds something else.
        DataError: a file is damaged or a record bad and `on_error` is "fail"; or there is no row at all.
    """
    options = options or ToTableOptions()
    if options.row_group_size < 1:
        raise ConfigError(
            "row group is too small", where="row_group_size", value=options.row_group_size, limit="1 or more"
        )
    kept = list(files) if options.file_keep_rate == 1 else keep_files(files, options.file_keep_rate, options.seed)
    plan = {"to": "table", "config": format_config(config), "options": asdict(options)}
    counts = convert_parts(
        kept, out, ".parquet", plan,
        lambda source, target: _write_table(source, target, config, options), overwrite=overwrite,
    )  # fmt: skip
    return _with_rows(counts, "rows", files)


def table_to_records(
    files: Sequence[str],
    out: str | os.PathLike[str],
    config: RecordTableConfig,
    options: ToRecordsOptions | None = None,
    *,
    overwrite: bool = False,
) -> dict[str, int]:
    """Converts parquet files to block files `<out>/part-<n>[.gz]`, one for each.

    Args:
        files: local paths or URLs.
        out: a local folder.
        config: the columns.
        options: defaults when None.
        overwrite: replace an earlier conversion.

    Returns:
        counts: files, records, skipped_records.

    Raises:
        ConfigError: the folder holds something else.
        DataError: a file is no parquet, lacks a column or holds a bad row; or there is no row at all.
    """
    options = options or ToRecordsOptions()
    plan = {"to": "records", "config": format_config(config), "options": asdict(options)}
    counts = convert_parts(
        files, out, ".gz" if options.compression == "gzip" else "", plan,
        lambda source, target: _write_records(source, target, config, options), overwrite=overwrite,
    )  # fmt: skip
    return _with_rows(counts, "records", files)


def _with_rows(counts: dict[str, int], name: str, files: Sequence[str]) -> dict[str, int]:
    if not counts.get(name):
        raise DataError(
            "nothing is left to write", where=", ".join(files) or "files", value=counts, limit="at least one record",
            fix="check the files, and what was skipped",
        )  # fmt: skip
    return counts


def _write_table(source: str, target: str, config: RecordTableConfig, options: ToTableOptions) -> dict[str, int]:
    blocks, totals, first = BlockCounts(), Counter[str](), 0
    stream = iterate_records([source], options.keep_rate, options.seed, on_error=options.on_error, counts=blocks)
    with atomic_write(target) as file, pq.ParquetWriter(file, table_schema(config), compression="zstd") as writer:
        pending: list[pa.Table] = []
        for records in _batches(stream):
            table, counts = table_of(records, config, source, first, options.on_error)
            first += len(records)
            totals.update(asdict(counts))
            pending.append(table)
            if sum(each.num_rows for each in pending) >= options.row_group_size:
                pending = _write_groups(writer, pending, options.row_group_size)
        writer.write_table(pa.concat_tables([*pending, table_schema(config).empty_table()]))
    return {**totals, **blocks.as_dict()}


def _write_groups(writer: pq.ParquetWriter, pending: list[pa.Table], size: int) -> list[pa.Table]:
    """Writes full row groups, and returns what is left over."""
    joined = pa.concat_tables(pending)
    full = joined.num_rows // size * size
    writer.write_table(joined.slice(0, full), row_group_size=size)
    return [joined.slice(full)]


def _batches(records: Iterator[bytes]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    num_bytes = 0
    for record in records:
        batch.append(record)
        num_bytes += len(record)
        if len(batch) == _BATCH_RECORDS or num_bytes >= _BATCH_BYTES:
            yield batch
            batch, num_bytes = [], 0
    if batch:
        yield batch


def _write_records(source: str, target: str, config: RecordTableConfig, options: ToRecordsOptions) -> dict[str, int]:
    num_rows = 0
    with BlockWriter(target, options.compression, records_per_block=options.records_per_block) as writer:
        for batch in _table_batches(source, config):
            for record in records_of(batch, config, source, num_rows, options.on_error):
                writer.write(record)
            num_rows += batch.num_rows
    return {"records": writer.num_records, "skipped_records": num_rows - writer.num_records}


def _table_batches(path: str, config: RecordTableConfig) -> Iterator[pa.RecordBatch]:
    try:
        with _source(path) as source, pq.ParquetFile(source) as parquet:
            check_columns(parquet.schema_arrow.names, config, path)
            names = [column.column_name for column in config.all_columns]
            yield from parquet.iter_batches(_BATCH_RECORDS, columns=names, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            "file is damaged or no parquet", where=path, value=str(error), fix="write the file again"
        ) from error


def _source(path: str) -> pa.PythonFile:
    if not is_remote(path):
        return pa.PythonFile(open_file(path), mode="r")
    from tml.common.reader.remote_file import RemoteFile

    return pa.PythonFile(RemoteFile(path), mode="r")
