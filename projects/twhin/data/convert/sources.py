"""The input files of a conversion: found, told apart by split and relation, and fingerprinted."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tml.common.errors import DataError
from tml.projects.twhin.data.convert.columns import Chunk
from tml.projects.twhin.data.convert.meaning import TEST, TRAIN, VALID
from tml.projects.twhin.data.convert.options import ConvertOptions
from tml.projects.twhin.data.convert.parquet_input import read_parquet
from tml.projects.twhin.data.convert.rejects import Rejects
from tml.projects.twhin.data.convert.text_input import read_text

EXTENSIONS = (".parquet", ".pq", ".tsv", ".csv", ".txt", ".tsv.gz", ".csv.gz", ".txt.gz")


@dataclass(frozen=True)
class Source:
    """One input file.

    Args:
        path: as given.
        relation: the relation of all its rows, or None when a column says it.
        split: place in `meaning.SPLITS`, for rows that are not split by time or fraction.
    """

    path: str
    relation: str | None
    split: int

    @property
    def is_parquet(self) -> bool:
        """By the file's name."""
        return self.path.lower().endswith((".parquet", ".pq"))

    def rejects(self, options: ConvertOptions) -> Rejects:
        """An empty list of rejects for this file."""
        limits = {"unknown relation": ", ".join(relation.name for relation in options.relations)}
        return Rejects(self.path, "row" if self.is_parquet else "line", options.on_error == "fail", limits)

    def read(self, options: ConvertOptions, rejects: Rejects) -> Iterator[Chunk]:
        """The file's rows, chunk by chunk."""
        read = read_parquet if self.is_parquet else read_text
        return read(self.path, options, self.relation is None, rejects)

    def fingerprint(self) -> dict[str, Any]:
        """What tells that the file has changed: path, size in bytes and time of change in ns."""
        stat = Path(self.path).stat()
        return {"path": self.path, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def find_sources(options: ConvertOptions) -> list[Source]:
    """The files of a conversion in the order of their rows: train first, then valid, then test.

    Raises:
        DataError: a file is missing, or a folder has no file of a known kind.
    """
    named: list[tuple[str, str | None]] = [(path, None) for path in options.inputs]
    named += [(path, relation) for relation, path in options.relation_inputs]
    known = {relation.name for relation in options.relations} | {relation for relation, _ in options.relation_inputs}
    groups = [(TRAIN, named)]
    groups += [(split, [_unnamed(text, known) for text in given]) for split, given in _held_out(options)]
    sources = [
        Source(file, relation or options.only_relation, split)
        for split, pairs in groups
        for path, relation in pairs
        for file in _files(path)
    ]
    _refuse_twice(sources)
    return sources


def _held_out(options: ConvertOptions) -> list[tuple[int, tuple[str, ...]]]:
    return [(VALID, options.valid), (TEST, options.test)]


def _unnamed(text: str, known: set[str]) -> tuple[str, str | None]:
    relation, equals, path = text.partition("=")
    return (path, relation) if equals and relation in known else (text, None)


def _files(path: str) -> list[str]:
    place = Path(path)
    if place.is_file():
        return [path]
    if place.is_dir():
        found = sorted(str(file) for file in place.iterdir() if file.name.lower().endswith(EXTENSIONS))
        if found:
            return found
        raise DataError("no input file in the folder", where=path, limit=f"files named {', '.join(EXTENSIONS)}")
    siblings = [str(file) for file in place.parent.iterdir()] if place.parent.is_dir() else []
    near = difflib.get_close_matches(path, siblings, n=3)
    raise DataError(
        "input file not found", value=path, fix=f"did you mean {' or '.join(near)}?" if near else "check the path"
    )


def _refuse_twice(sources: list[Source]) -> None:
    seen: dict[tuple[Path, str | None], Source] = {}
    for source in sources:
        key = (Path(source.path).resolve(), source.relation)
        if key in seen:
            raise DataError(
                "input file given twice", value=source.path, limit="each file once", fix="remove one of them"
            )
        seen[key] = source
