"""The conversion as a whole: scan, encode, shuffle, count, write, publish; a restart runs no stage twice."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from tml.common.errors import ConfigError, DataError, TmlError
from tml.common.filesystem import write_text
from tml.common.workspace import Workspace
from tml.projects.twhin.data.convert import arrange, encode, write
from tml.projects.twhin.data.convert.meaning import SPLITS
from tml.projects.twhin.data.convert.options import ConvertOptions
from tml.projects.twhin.data.convert.scan import scan, summaries
from tml.projects.twhin.data.convert.sources import Source, find_sources
from tml.projects.twhin.data.convert.starter import starter_config

FORMAT_VERSION = 1
PUBLISHED = ("vocab", "edges", "config.yaml", "rejected.jsonl")

_log = logging.getLogger(__name__)


def convert(options: ConvertOptions, out: Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Converts edge files to vocabularies and shuffled integer edges (docs/data.md).

    Args:
        out: the folder to make: `vocab/`, `edges/{train,valid,test}/`, `config.yaml`, `meta.json`. When the same
            conversion is complete there, nothing is done; when it was cut off, it continues.
        overwrite: replace an earlier conversion in `out`.

    Returns:
        the content of `meta.json`.

    Raises:
        DataError: input is missing or bad. ConfigError: settings do not fit, or `out` holds something else.
    """
    if "?" in str(out.resolve()):
        raise ConfigError(
            "the out folder's path has a question mark", where="--out", value=str(out), limit="what DuckDB can open"
        )
    sources = find_sources(options)
    plan = {"options": options.as_json(), "sources": [source.fingerprint() for source in sources]}
    workspace = Workspace(out, published=PUBLISHED, work=".convert")
    if not workspace.begin(plan, overwrite):
        _log.info("%s is complete already", out)
        return workspace.meta()
    try:
        return _Conversion(options, sources, plan, workspace).run()
    except TmlError:
        workspace.fail()
        raise
    except (OSError, duckdb.IOException) as error:
        raise DataError(
            "the conversion cannot write",
            where=str(out),
            value=str(error),
            fix="mend this and run it again: it continues",
        ) from error
    finally:
        workspace.release()


class _Conversion:
    """The stages of one run, in order; each leaves its mark in the workspace."""

    def __init__(
        self, options: ConvertOptions, sources: list[Source], plan: dict[str, Any], workspace: Workspace
    ) -> None:
        self.options, self.sources, self.plan, self.workspace = options, sources, plan, workspace
        self.scanned, self.shuffled = workspace.work / "scan", workspace.work / "shuffled.parquet"

    def run(self) -> dict[str, Any]:
        stage = self.workspace.stage
        stage("scan", self._scan)
        self.found = summaries(self.scanned, len(self.sources))
        self.schema = encode.find_schema(self.found, self.options)
        with encode.open_database(self.workspace.work, self.options.memory_limit) as self.db:
            self.sizes = stage("encode", self._encode)
            self.dropped = stage("shuffle", self._shuffle)
            self.kept = stage("count", self._count)
            self.written = stage("write", self._write)
        meta = self._meta()
        self.workspace.publish(meta)
        return self.workspace.meta()

    def _scan(self) -> dict[str, Any]:
        _log.info("reading %d files", len(self.sources))
        scan(self.sources, self.options, self.scanned)
        now = [source.fingerprint() for source in self.sources]
        changed = [new["path"] for old, new in zip(self.plan["sources"], now, strict=True) if old != new]
        if changed:
            raise DataError("input file changed while it was read", value=changed, fix="run the conversion again")
        return {}

    def _encode(self) -> list[int]:
        _log.info("numbering the ids of %s", ", ".join(self.schema.tables))
        return encode.encode(self.db, self.schema, self.found, self.scanned)

    def _shuffle(self) -> dict[str, int]:
        _log.info("shuffling")
        return arrange.shuffle(self.db, self.schema, self.options, self.shuffled)

    def _count(self) -> dict[str, Any]:
        nodes = arrange.Nodes(self.workspace.work / "nodes", self.schema, self.sizes, "w+")
        return arrange.count_nodes(self.shuffled, nodes, self.options)

    def _write(self) -> dict[str, Any]:
        _log.info("writing")
        result, options = self.workspace.result, self.options
        shutil.rmtree(result, ignore_errors=True)
        nodes = arrange.Nodes(self.workspace.work / "nodes", self.schema, self.sizes, "r")
        indexes, tables = [], {}
        for t, table in enumerate(self.schema.tables):
            index, tables[table] = write.write_vocabulary(
                self.db, t, nodes, options, result / "vocab" / f"{table}.parquet"
            )
            indexes.append(index)
        cuts = self.kept["cuts"] and (self.kept["cuts"][0], self.kept["cuts"][1])
        splits = write.write_edges(self.shuffled, nodes, cuts, indexes, options, result / "edges")
        relations = result / "vocab" / "relations.parquet"
        relations_hash = write.write_relations(self.schema, np.array(splits["train"]["per_relation"]), relations)
        sizes = {table: entry["size"] for table, entry in tables.items()}
        counts = {split: splits[split]["edges"] for split in SPLITS}
        write_text(result / "config.yaml", starter_config(self.workspace.out, sizes, self.schema.relations, counts))
        self._write_rejects(result / "rejected.jsonl")
        return {"tables": tables, "splits": splits, "relations_hash": relations_hash}

    def _write_rejects(self, target: Path) -> None:
        files = [self.scanned / f"{i:05d}.rejects.jsonl" for i in range(len(self.sources))]
        text = "".join(file.read_text(encoding="utf-8") for file in files)
        if text:
            write_text(target, text)

    def _meta(self) -> dict[str, Any]:
        rejected: dict[str, int] = {}
        for summary in self.found:
            for fault, count in summary["rejected"].items():
                rejected[fault] = rejected.get(fault, 0) + count
        splits = self.written["splits"]
        read = sum(summary["rows"] for summary in self.found)
        low_degree = read - sum(self.dropped.values()) - self.kept["rows"]
        names = [relation["name"] for relation in self.schema.relations]
        return {
            "format_version": FORMAT_VERSION,
            "tables": self.written["tables"],
            "relations": [
                {key: relation[key] for key in ("name", "lhs", "rhs")}
                | {split: splits[split]["per_relation"][i] for split in SPLITS}
                for i, relation in enumerate(self.schema.relations)
            ],
            "relations_hash": self.written["relations_hash"],
            "num_relations": len(names),
            "edges": {split: splits[split]["edges"] for split in SPLITS},
            "rows_read": read,
            "rows_rejected": rejected,
            "rows_dropped": self.dropped
            | {"low_degree": low_degree}
            | {f"unknown_in_{split}": splits[split]["unknown"] for split in SPLITS if split != "train"},
            "plan": self.plan,
        }
