"""What the tests of the conversion share: a quick door, and the output decoded back to ids."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tml.projects.twhin.data.convert.options import ConvertOptions, RelationType
from tml.projects.twhin.data.convert.pipeline import convert

SPLITS = ("train", "valid", "test")
USER_TWEET = (RelationType("follow", "user", "user"), RelationType("fav", "user", "tweet"))
ALL_TRAIN = (1.0, 0.0, 0.0)


def write(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def run(out: Path, *inputs: str, **settings) -> dict:
    """Converts; all rows go to train unless the settings say otherwise."""
    splits = {"split_fractions", "valid", "test", "time_column"}
    if not splits & set(settings):
        settings["split_fractions"] = ALL_TRAIN
    return convert(ConvertOptions(inputs=tuple(inputs), **settings), out)


def vocabulary(out: Path, table: str) -> list:
    columns = pq.read_table(out / "vocab" / f"{table}.parquet").to_pydict()
    assert columns["index"] == list(range(len(columns["id"])))
    return columns["id"]


def relations(out: Path) -> list[dict]:
    return pq.read_table(out / "vocab" / "relations.parquet").to_pylist()


def raw_edges(out: Path, split: str) -> list[tuple[int, int, int]]:
    files = sorted((out / "edges" / split).glob("*.parquet"))
    if not files:
        return []
    table = pa.concat_tables(pq.read_table(file, partitioning=None) for file in files)
    assert table.schema == pa.schema([("lhs", pa.int64()), ("rel", pa.int64()), ("rhs", pa.int64())])
    return list(zip(*(table.column(name).to_pylist() for name in ("lhs", "rel", "rhs")), strict=True))


def decoded(out: Path, split: str = "train") -> Counter:
    """The edges of a split by id: (lhs table, lhs id, relation, rhs table, rhs id)."""
    known = relations(out)
    names = {table: vocabulary(out, table) for table in {r[end] for r in known for end in ("lhs", "rhs")}}
    return Counter(
        (
            known[rel]["lhs"],
            names[known[rel]["lhs"]][lhs],
            known[rel]["id"],
            known[rel]["rhs"],
            names[known[rel]["rhs"]][rhs],
        )
        for lhs, rel, rhs in raw_edges(out, split)
    )


def tree(out: Path) -> dict[str, bytes]:
    """Every file below a folder, byte for byte."""
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
