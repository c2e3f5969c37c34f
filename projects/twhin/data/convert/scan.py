"""Stage 1: every input file becomes one parquet file of interpreted rows, with its counts beside it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tml.common.errors import ConfigError, DataError
from tml.common.filesystem import write_json, write_text
from tml.projects.twhin.data.convert.meaning import Interpreter, Rows
from tml.projects.twhin.data.convert.options import ConvertOptions
from tml.projects.twhin.data.convert.sources import Source

_log = logging.getLogger(__name__)
_FILE_BITS = 40  # a row's number is its file's place, shifted by this, plus its line


def scan(sources: list[Source], options: ConvertOptions, folder: Path) -> None:
    """Reads all sources into `folder`; files that an earlier run has finished are left as they are.

    Writes per source `<n>.parquet` (row, key, split, rel, lhs, rhs) and, last, `<n>.json` with its counts.

    Raises:
        DataError: a file cannot be read, or a row is bad and bad rows are not to be skipped.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for i, source in enumerate(sources):
        if not summary_path(folder, i).exists():
            _scan_file(i, source, options, folder)


def summary_path(folder: Path, i: int) -> Path:
    """Where the counts of the i-th source lie."""
    return folder / f"{i:05d}.json"


def summaries(folder: Path, num_sources: int) -> list[dict[str, Any]]:
    """The counts of all sources; `rows` lies beside them as parquet under `file`."""
    return [json.loads(summary_path(folder, i).read_text()) for i in range(num_sources)]


def _scan_file(i: int, source: Source, options: ConvertOptions, folder: Path) -> None:
    rejects = source.rejects(options)
    interpret = Interpreter(options, source.relation, source.split, rejects.add)
    target, part = folder / f"{i:05d}.parquet", folder / f"{i:05d}.parquet.part"
    writer, counts = None, np.zeros(0, np.int64)
    schema: pa.Schema | None = None
    for rows in map(interpret, source.read(options, rejects)):
        batch = _as_batch(rows, i, options.seed)
        schema = schema or batch.schema
        writer = writer or pq.ParquetWriter(part, schema, compression="lz4", use_dictionary=False)
        writer.write_batch(_same_schema(batch, schema, source))
        counts = _add(counts, np.bincount(rows.relation, minlength=len(interpret.signatures.codes)))
    if writer is not None:
        writer.close()
        part.replace(target)
    if not counts.any():
        _log.warning("%s has no usable row", source.path)
    signatures = [
        asdict(relation) | {"rows": int(_at(counts, c))} for relation, c in interpret.signatures.codes.items()
    ]
    write_text(folder / f"{i:05d}.rejects.jsonl", rejects.as_lines())
    write_json(
        summary_path(folder, i),
        {
            "path": source.path,
            "file": str(target.name) if writer is not None else None,
            "rows": int(counts.sum()),
            "signatures": signatures,
            "id_types": [] if schema is None else [str(schema.field(end).type) for end in ("lhs", "rhs")],
            "rejected": rejects.counts,
        },
    )


def _as_batch(rows: Rows, file: int, seed: int) -> pa.RecordBatch:
    numbers = rows.places + (file << _FILE_BITS)
    columns = {
        "row": pa.array(numbers),
        "key": pa.array(shuffle_keys(numbers, seed)),
        "split": pa.array(rows.split),
        "rel": pa.array(rows.relation, pa.int32()),
        "lhs": rows.lhs,
        "rhs": rows.rhs,
    }
    return pa.RecordBatch.from_pydict(columns)


def shuffle_keys(numbers: np.ndarray, seed: int) -> np.ndarray:
    """A pseudo-random sort key per row, uint64 [n]: distinct for distinct rows, a function of (row, seed) alone.

    The finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), which is a bijection, around a mixed seed.
    """
    start = np.uint64(_mix(np.array([seed & (2**64 - 1)], np.uint64))[0])
    return _mix(numbers.astype(np.uint64) ^ start)


def _mix(x: np.ndarray) -> np.ndarray:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _same_schema(batch: pa.RecordBatch, schema: pa.Schema, source: Source) -> pa.RecordBatch:
    if batch.schema != schema:
        raise DataError("types change within a file", where=source.path, value=str(batch.schema), limit=str(schema))
    return batch


def _add(total: np.ndarray, more: np.ndarray) -> np.ndarray:
    grown = np.zeros(max(len(total), len(more)), np.int64)
    grown[: len(total)] += total
    grown[: len(more)] += more
    return grown


def _at(counts: np.ndarray, code: int) -> int:
    return int(counts[code]) if code < len(counts) else 0


def table_types(found: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yields (table, id type) of all tables that have rows, each once.

    Raises:
        ConfigError: a table's ids are strings in one place and integers in another.
    """
    types: dict[str, tuple[str, str]] = {}
    for summary in found:
        for signature in summary["signatures"]:
            for end, kind in zip(("lhs", "rhs"), summary["id_types"], strict=False):
                if not signature["rows"]:
                    continue
                first_kind, first_path = types.setdefault(signature[end], (kind, summary["path"]))
                if kind != first_kind:
                    raise ConfigError(
                        "a table's ids are of two kinds",
                        where=f"table {signature[end]!r}: {first_path} and {summary['path']}",
                        value=f"{first_kind} and {kind}",
                        fix="pass --id-type string or --id-type int",
                    )
    for table in sorted(types):
        yield table, types[table][0]
