"""Stage 2: ids become numbers, per table, in a DuckDB file that spills to disk when memory is short."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from tml.common.errors import ConfigError, DataError
from tml.projects.twhin.data.convert.options import ConvertOptions
from tml.projects.twhin.data.convert.scan import table_types


@dataclass(frozen=True)
class Schema:
    """The graph's tables and relations, each in the order of its index.

    Args:
        tables: names.
        relations: name, lhs, rhs (tables) and rows, per relation.
        codes: file, local, rel, lhs_table, rhs_table: what the scan's relation numbers mean.
    """

    tables: list[str]
    relations: list[dict[str, Any]]
    codes: pa.Table


@contextmanager
def open_database(work: Path, memory_limit: str) -> Iterator[duckdb.DuckDBPyConnection]:
    """The conversion's own database, which may use `memory_limit` and spills into the work folder beyond it."""
    connection = duckdb.connect(str(work / "graph.duckdb"))
    try:
        connection.execute(f"SET memory_limit = {_quoted(memory_limit)}")
        connection.execute(f"SET temp_directory = {_quoted(str(work / 'spill'))}")
        connection.execute("SET enable_progress_bar = false")
        yield connection
    except duckdb.OutOfMemoryException as error:
        raise DataError(
            "not enough memory for the conversion",
            value=memory_limit,
            where="--memory-limit",
            fix="raise --memory-limit",
        ) from error
    finally:
        connection.close()


def find_schema(found: list[dict[str, Any]], options: ConvertOptions) -> Schema:
    """Brings the relations of all files together.

    Declared relations keep their order; discovered ones are ordered by name.

    Raises:
        ConfigError: a relation joins different tables in different rows, or ids are of two kinds.
        DataError: there are no rows, or a declared relation has none.
    """
    totals: dict[tuple[str, str, str], int] = {(r.name, r.lhs, r.rhs): 0 for r in options.relations}
    for summary in found:
        for entry in summary["signatures"]:
            if entry["rows"]:
                key = (entry["name"], entry["lhs"], entry["rhs"])
                totals[key] = totals.get(key, 0) + entry["rows"]
    _check_totals(totals, found)
    order = list(totals) if options.relations else sorted(totals)
    relations = [{"name": n, "lhs": lhs, "rhs": rhs, "rows": totals[n, lhs, rhs]} for n, lhs, rhs in order]
    tables = [table for table, _ in table_types(found)]
    index = {key: i for i, key in enumerate(order)}
    codes = [
        (file, local, index[entry["name"], entry["lhs"], entry["rhs"]], entry["lhs"], entry["rhs"])
        for file, summary in enumerate(found)
        for local, entry in enumerate(summary["signatures"])
        if entry["rows"]
    ]
    names = ("file", "local", "rel", "lhs_table", "rhs_table")
    columns = [list(column) for column in zip(*codes, strict=True)]
    return Schema(tables, relations, pa.table(dict(zip(names, columns, strict=True))))


def _check_totals(totals: dict[tuple[str, str, str], int], found: list[dict[str, Any]]) -> None:
    if not any(totals.values()):
        raise DataError(
            "no edges found", where=", ".join(summary["path"] for summary in found)[:500], limit="at least one good row"
        )
    empty = [name for (name, _, _), rows in totals.items() if not rows]
    if empty:
        raise DataError(
            "a declared relation has no edges",
            where="--relation",
            value=empty,
            fix="leave it out, or check its spelling",
        )
    names = [name for name, _, _ in totals]
    mixed = sorted({key for key in totals if names.count(key[0]) > 1})
    if mixed:
        raise ConfigError(
            "a relation joins different tables in different rows",
            value=[f"{name}={lhs}:{rhs} ({totals[name, lhs, rhs]} rows)" for name, lhs, rhs in mixed],
            limit="one pair of tables per relation",
            fix="give the two kinds of edges different relation names",
        )


def encode(db: duckdb.DuckDBPyConnection, schema: Schema, found: list[dict[str, Any]], folder: Path) -> list[int]:
    """Makes the tables `nodes_<t>` (id, node) and `edges` (row, key, split, rel, lhs, rhs, with node numbers).

    Nodes are numbered arbitrarily here; the vocabulary puts them into their order at the end.

    Returns:
        the number of nodes per table.
    """
    # Without this, a large table is held in memory to keep its rows in order. Elsewhere it must stay on: DuckDB may
    # otherwise hand out the rows of an ORDER BY in another order.
    db.execute("SET preserve_insertion_order = false")
    db.register("codes", schema.codes)
    kinds = dict(table_types(found))
    scans = _scan_views(db, found, folder)
    for t, table in enumerate(schema.tables):
        parts = [
            f"SELECT s.{end} AS id FROM {name} s JOIN codes c ON c.file = s.row >> 40 AND c.local = s.rel "
            f"WHERE c.{end}_table = {_quoted(table)}"
            for name, types in scans.items()
            for end, kind in zip(("lhs", "rhs"), types, strict=True)
            if kind == kinds[table] and any(relation[end] == table for relation in schema.relations)
        ]
        db.execute(
            f"CREATE OR REPLACE TABLE nodes_{t} AS SELECT id, row_number() OVER () - 1 AS node "
            f"FROM (SELECT DISTINCT id FROM ({' UNION ALL '.join(parts)}))"
        )
    pairs = sorted({(relation["lhs"], relation["rhs"]) for relation in schema.relations})
    parts = [
        _encoded(name, schema.tables.index(lhs), schema.tables.index(rhs), lhs, rhs)
        for lhs, rhs in pairs
        for name, types in scans.items()
        if types == (kinds[lhs], kinds[rhs])
    ]
    db.execute(f"CREATE OR REPLACE TABLE edges AS {' UNION ALL '.join(parts)}")
    db.unregister("codes")
    db.execute("SET preserve_insertion_order = true")
    return [db.execute(f"SELECT count(*) FROM nodes_{t}").fetchall()[0][0] for t in range(len(schema.tables))]


def _encoded(scan: str, lhs_index: int, rhs_index: int, lhs: str, rhs: str) -> str:
    return (
        f"SELECT s.row, s.key, s.split, c.rel, l.node AS lhs, r.node AS rhs FROM {scan} s "
        f"JOIN codes c ON c.file = s.row >> 40 AND c.local = s.rel "
        f"JOIN nodes_{lhs_index} l ON l.id = s.lhs JOIN nodes_{rhs_index} r ON r.id = s.rhs "
        f"WHERE c.lhs_table = {_quoted(lhs)} AND c.rhs_table = {_quoted(rhs)}"
    )


def _scan_views(db: duckdb.DuckDBPyConnection, found: list[dict[str, Any]], folder: Path) -> dict[str, tuple[str, ...]]:
    """One view per pair of id types, since a column has one type; gives the types by the view's name."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for summary in found:
        if summary["file"] is not None:
            groups.setdefault(tuple(summary["id_types"]), []).append(str(folder / summary["file"]))
    for i, files in enumerate(groups.values()):
        paths = ", ".join(
            _quoted(re.sub(r"([*?[])", r"[\1]", file)) for file in files
        )  # DuckDB takes paths for patterns
        db.execute(
            f"CREATE OR REPLACE TEMP VIEW scan_{i} AS SELECT * FROM read_parquet([{paths}], hive_partitioning = false)"
        )
    return {f"scan_{i}": types for i, types in enumerate(groups)}


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
