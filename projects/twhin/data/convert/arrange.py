"""Stages 3 and 4: edges are filtered and put into their shuffled order; then nodes are counted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tml.projects.twhin.data.convert.encode import Schema
from tml.projects.twhin.data.convert.meaning import TEST, TRAIN, VALID
from tml.projects.twhin.data.convert.options import ConvertOptions

BATCH_ROWS = 1 << 20


class Edges(NamedTuple):
    """Edges with node numbers: four arrays of one length; `split` int8, the others int64."""

    split: np.ndarray
    rel: np.ndarray
    lhs: np.ndarray
    rhs: np.ndarray

    def where(self, mask: np.ndarray) -> Edges:
        """The edges that a boolean mask picks."""
        return self if mask.all() else Edges(*(column[mask] for column in self))


def shuffle(db: duckdb.DuckDBPyConnection, schema: Schema, options: ConvertOptions, target: Path) -> dict[str, int]:
    """Writes the edges that pass the filters to `target`, in the order of their shuffle keys.

    Returns:
        the numbers of rows that the filters dropped.
    """
    same_table = [str(i) for i, relation in enumerate(schema.relations) if relation["lhs"] == relation["rhs"]]
    loop = f"lhs = rhs AND rel IN ({', '.join(same_table) or 'NULL'})"
    source = f"(SELECT * FROM edges WHERE NOT coalesce({loop}, false))" if options.drop_self_loops else "edges"
    columns = "key, split, rel, lhs, rhs"
    if options.drop_duplicates:
        # Of equal edges the first stays, train before valid before test, so that no held-out edge is a train edge too.
        columns = "key, place >> 60 AS split, rel, lhs, rhs"
        source = (
            "(SELECT rel, lhs, rhs, arg_min(key, place) AS key, min(place) AS place FROM "
            f"(SELECT *, (split::BIGINT << 60) | row AS place FROM {source}) GROUP BY rel, lhs, rhs)"
        )
    total, loops = db.execute(f"SELECT count(*), count(*) FILTER (WHERE {loop}) FROM edges").fetchall()[0]
    written = _write(db.sql(f"SELECT {columns} FROM {source} ORDER BY key"), target)
    dropped_loops = loops if options.drop_self_loops else 0
    return {"self_loops": dropped_loops, "duplicates": total - dropped_loops - written}


def _write(result: duckdb.DuckDBPyRelation, target: Path) -> int:
    part = target.with_name(target.name + ".part")
    schema = pa.schema([("split", pa.int8()), ("rel", pa.int64()), ("lhs", pa.int64()), ("rhs", pa.int64())])
    written, last = 0, -1
    with pq.ParquetWriter(part, schema, compression="lz4", use_dictionary=False) as writer:
        for batch in result.to_arrow_reader(BATCH_ROWS):
            keys = batch.column("key").to_numpy()
            in_order = int(keys[0]) > last and bool((keys[1:] > keys[:-1]).all())
            assert in_order, "the database lost the order of its rows"
            last = int(keys[-1])
            writer.write_table(pa.Table.from_batches([batch]).select(schema.names).cast(schema))
            written += batch.num_rows
    part.replace(target)
    return written


def read_edges(path: Path) -> Iterator[Edges]:
    """The edges of a file in their order, in batches."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(BATCH_ROWS):
            yield Edges(*(batch.column(name).to_numpy() for name in Edges._fields))


class Nodes:
    """Arrays over the nodes of each table, as files mapped into memory: 17 bytes a node, held by the page cache.

    Args:
        sizes: number of nodes per table.
    """

    def __init__(self, folder: Path, schema: Schema, sizes: list[int], mode: str) -> None:
        tables = {table: i for i, table in enumerate(schema.tables)}
        self.lhs_table = np.array([tables[relation["lhs"]] for relation in schema.relations])
        self.rhs_table = np.array([tables[relation["rhs"]] for relation in schema.relations])
        folder.mkdir(parents=True, exist_ok=True)

        def arrays(name: str, kind: type) -> list[np.ndarray]:
            files = [folder / f"{name}_{t}.npy" for t in range(len(sizes))]
            if mode == "r":
                return [np.lib.format.open_memmap(file, mode="r") for file in files]
            shapes = zip(files, sizes, strict=True)
            return [np.lib.format.open_memmap(file, mode="w+", dtype=kind, shape=(size,)) for file, size in shapes]

        self.alive = arrays("alive", np.bool_)
        self.degree = arrays("degree", np.int64)
        self.in_vocab = arrays("in_vocab", np.bool_)

    def by_table(self, edges: Edges) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yields (table, rows of `edges`, nodes) for each table and each end."""
        for tables, ends in ((self.lhs_table, edges.lhs), (self.rhs_table, edges.rhs)):
            table_of_edge = tables[edges.rel]
            for t in np.unique(tables):
                rows = np.flatnonzero(table_of_edge == t)
                yield int(t), rows, ends[rows]

    def kept(self, edges: Edges) -> np.ndarray:
        """Which edges have both their ends alive: bool [n]."""
        keep = np.ones(len(edges.rel), bool)
        for t, rows, nodes in self.by_table(edges):
            keep[rows] &= self.alive[t][nodes]
        return keep

    def count(self, edges: Edges) -> None:
        """Adds the edges to the degrees of their ends."""
        for t, _, nodes in self.by_table(edges):
            np.add.at(self.degree[t], nodes, 1)


def count_nodes(shuffled: Path, nodes: Nodes, options: ConvertOptions) -> dict[str, Any]:
    """Finds the nodes that stay, the split of every edge, and each node's degree in train.

    Returns:
        `rows`, the edges that stay, and `cuts`, where they are cut into test, valid and train when split by fraction.
    """
    rows = _peel(shuffled, nodes, options.min_degree)
    cuts = _cuts(rows, options.fractions)
    for degree in nodes.degree:
        degree[:] = 0
    for edges in final_edges(shuffled, nodes, cuts):
        train = edges.where(edges.split == TRAIN)
        nodes.count(train)
        for t, _, members in nodes.by_table(train if options.vocab_from == "train" else edges):
            nodes.in_vocab[t][members] = True
    return {"rows": rows, "cuts": cuts}


def _peel(shuffled: Path, nodes: Nodes, min_degree: int) -> int:
    """Drops nodes of too low a degree with their edges until none is left (the k-core); gives the edges left."""
    for alive in nodes.alive:
        alive[:] = True
    while True:
        rows = 0
        for degree in nodes.degree:
            degree[:] = 0
        for edges in read_edges(shuffled):
            kept = edges.where(nodes.kept(edges))
            nodes.count(kept)
            rows += len(kept.rel)
        dropped = 0
        for alive, degree in zip(nodes.alive, nodes.degree, strict=True):
            low = alive & (degree < min_degree)
            alive[low] = False
            dropped += int(np.count_nonzero(low & (degree > 0)))
        if not dropped:
            return rows


def _cuts(rows: int, fractions: tuple[float, float, float] | None) -> tuple[int, int] | None:
    """Places in the shuffled order: test is before the first, valid before the second, train after it."""
    if fractions is None:
        return None
    num_valid, num_test = (int(rows * fraction + 0.5) for fraction in fractions[1:])
    num_test = min(num_test, rows)
    return num_test, min(num_test + num_valid, rows)


def final_edges(shuffled: Path, nodes: Nodes, cuts: tuple[int, int] | None) -> Iterator[Edges]:
    """The edges that stay, in their order, with their final split."""
    done = 0
    for edges in read_edges(shuffled):
        kept = edges.where(nodes.kept(edges))
        if cuts is not None:
            places = done + np.arange(len(kept.rel))
            split = np.where(places < cuts[0], TEST, np.where(places < cuts[1], VALID, TRAIN)).astype(np.int8)
            kept = kept._replace(split=split)
        done += len(kept.rel)
        yield kept
