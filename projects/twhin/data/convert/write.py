"""Stage 5: the vocabularies and the edge files in their final form."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tml.common.errors import DataError
from tml.projects.twhin.data.convert.arrange import BATCH_ROWS, Edges, Nodes, final_edges
from tml.projects.twhin.data.convert.encode import Schema
from tml.projects.twhin.data.convert.meaning import SPLITS, TRAIN
from tml.projects.twhin.data.convert.options import RELATIONS_FILE, ConvertOptions
from tml.projects.twhin.data.vocab import VocabularyHash

EDGE_SCHEMA = pa.schema([("lhs", pa.int64()), ("rel", pa.int64()), ("rhs", pa.int64())])
_MEMBER_SCHEMA = pa.schema([("node", pa.int64()), ("count", pa.int64())])


def write_vocabulary(
    db: duckdb.DuckDBPyConnection, t: int, nodes: Nodes, options: ConvertOptions, target: Path
) -> tuple[np.ndarray, dict[str, Any]]:
    """Writes one table's vocabulary: id, index, count (edge ends in train).

    Rows are ordered by descending count and then by id, or pseudo-randomly by seed and id; the order of the input makes
    no difference.

    Returns:
        int64 [num_nodes], mapped from disk: each node's index, or -1 for a node outside the vocabulary; and
        size, hash, number of ids without a train edge, and id type.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    index = np.lib.format.open_memmap(
        target.parent.parent / f"index_{t}.npy", mode="w+", dtype=np.int64, shape=(len(nodes.degree[t]),)
    )
    index[:] = -1
    db.register("members", pa.RecordBatchReader.from_batches(_MEMBER_SCHEMA, _members(nodes, t)))
    order = "m.count DESC, n.id" if options.vocab_order == "count" else f"md5('{options.seed}:' || n.id), n.id"
    query = f"SELECT n.id, n.node, m.count FROM members m JOIN nodes_{t} n USING (node) ORDER BY {order}"
    reader = db.sql(query).to_arrow_reader(BATCH_ROWS)
    kind = pa.int64() if pa.types.is_integer(reader.schema.field("id").type) else pa.string()
    schema = pa.schema([("id", kind), ("index", pa.int64()), ("count", pa.int64())])
    digest, size, unseen = VocabularyHash(), 0, 0
    with pq.ParquetWriter(target, schema, compression="zstd", use_dictionary=False) as writer:
        for batch in reader:
            rows = np.arange(size, size + batch.num_rows)
            index[batch.column("node").to_numpy()] = rows
            ids, counts = batch.column("id").cast(kind), batch.column("count")
            writer.write_table(pa.table([ids, pa.array(rows), counts], schema=schema))
            digest.update(ids)
            unseen += int(np.count_nonzero(counts.to_numpy() == 0))
            size += batch.num_rows
    db.unregister("members")
    if not size:
        raise DataError(
            "no id of a table is left",
            where=f"table {target.stem!r}",
            limit="at least one",
            fix="check the filters (--min-degree, ...), the split and --vocab-from",
        )
    return index, {"size": size, "hash": digest.hexdigest(), "not_in_train": unseen, "id_type": str(kind)}


def _members(nodes: Nodes, t: int) -> Iterator[pa.RecordBatch]:
    for start in range(0, len(nodes.degree[t]), BATCH_ROWS):
        chosen = start + np.flatnonzero(nodes.in_vocab[t][start : start + BATCH_ROWS])
        yield pa.record_batch([pa.array(chosen), pa.array(nodes.degree[t][chosen])], schema=_MEMBER_SCHEMA)


def write_relations(schema: Schema, counts: np.ndarray, target: Path) -> str:
    """Writes `relations.parquet`: id (the name), index, lhs and rhs (tables), count (train edges); gives its hash."""
    assert target.stem == RELATIONS_FILE
    names, lhs, rhs = ([relation[key] for relation in schema.relations] for key in ("name", "lhs", "rhs"))
    columns = {"id": names, "index": range(len(names)), "lhs": lhs, "rhs": rhs, "count": counts.tolist()}
    pq.write_table(pa.table({key: pa.array(value) for key, value in columns.items()}), target)
    digest = VocabularyHash()
    digest.update(pa.array(names))
    return digest.hexdigest()


def write_edges(
    shuffled: Path,
    nodes: Nodes,
    cuts: tuple[int, int] | None,
    indexes: list[np.ndarray],
    options: ConvertOptions,
    folder: Path,
) -> dict[str, Any]:
    """Writes `<split>/part-<n>.parquet` in shuffled order.

    Returns:
        per split the `edges` written, per relation too, and the `unknown` held-out edges dropped because an end is not
        in the vocabulary.

    Raises:
        DataError: there is no train edge.
    """
    num_relations = len(nodes.lhs_table)
    writers = [PartWriter(folder / split, options) for split in SPLITS]
    counts = np.zeros((len(SPLITS), num_relations), np.int64)
    unknown = [0] * len(SPLITS)
    for edges in final_edges(shuffled, nodes, cuts):
        mapped = _mapped(edges, nodes, indexes)
        known = (mapped.lhs >= 0) & (mapped.rhs >= 0)
        for split, writer in enumerate(writers):
            in_split = mapped.split == split
            unknown[split] += int(np.count_nonzero(in_split & ~known))
            chosen = mapped.where(in_split & known)
            writer.write(chosen)
            counts[split] += np.bincount(chosen.rel, minlength=num_relations)
    for writer in writers:
        writer.close()
    if not counts[TRAIN].any():
        raise DataError(
            "no train edges are left", limit="at least one", fix="check the filters (--min-degree, ...) and the split"
        )
    return {
        split: {"edges": int(counts[s].sum()), "unknown": unknown[s], "per_relation": counts[s].tolist()}
        for s, split in enumerate(SPLITS)
    }


def _mapped(edges: Edges, nodes: Nodes, indexes: list[np.ndarray]) -> Edges:
    ends = []
    for tables, nodes_of_end in ((nodes.lhs_table, edges.lhs), (nodes.rhs_table, edges.rhs)):
        table_of_edge = tables[edges.rel]
        mapped = np.empty(len(nodes_of_end), np.int64)
        for t in np.unique(tables):
            rows = np.flatnonzero(table_of_edge == t)
            mapped[rows] = indexes[t][nodes_of_end[rows]]
        ends.append(mapped)
    return edges._replace(lhs=ends[0], rhs=ends[1])


class PartWriter:
    """Writes edges to part files with row groups of exactly `row_group_size` rows, the last of a file excepted."""

    def __init__(self, folder: Path, options: ConvertOptions) -> None:
        self.folder, self.options = folder, options
        self._pending: list[pa.Table] = []
        self._num_pending = self._rows_in_file = self._num_files = 0
        self._writer: pq.ParquetWriter | None = None

    def write(self, edges: Edges) -> None:
        """Appends edges."""
        self._pending.append(pa.table([edges.lhs, edges.rel, edges.rhs], schema=EDGE_SCHEMA))
        self._num_pending += len(edges.rel)
        while self._num_pending >= self._next_group():
            self._flush(self._next_group())

    def close(self) -> None:
        """Writes what is pending and closes the last file."""
        if self._num_pending:
            self._flush(self._num_pending)
        if self._writer is not None:
            self._writer.close()

    def _next_group(self) -> int:
        return min(self.options.row_group_size, self.options.rows_per_file - self._rows_in_file)

    def _flush(self, num_rows: int) -> None:
        pending = pa.concat_tables(self._pending)
        if self._writer is None:
            self._open()
        assert self._writer is not None
        self._writer.write_table(pending.slice(0, num_rows).combine_chunks(), row_group_size=num_rows)
        self._pending, self._num_pending = [pending.slice(num_rows)], len(pending) - num_rows
        self._rows_in_file += num_rows
        if self._rows_in_file == self.options.rows_per_file:
            self._writer.close()
            self._writer, self._rows_in_file = None, 0

    def _open(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"part-{self._num_files:05d}.parquet"
        compression = None if self.options.compression == "none" else self.options.compression
        self._writer = pq.ParquetWriter(path, EDGE_SCHEMA, compression=compression, use_dictionary=["rel"])
        self._num_files += 1
