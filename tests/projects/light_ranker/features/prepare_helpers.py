"""Small tables to prepare, and a look at the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from tml.projects.light_ranker.features.prepare import prepare
from tml.projects.light_ranker.features.prepare_options import PrepareOptions

CLICK = {"name": "click", "kind": "binary"}


def write_table(path: Path, **columns: Any) -> str:
    """A parquet file, or a CSV file by its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    if path.suffix == ".csv":
        lines = [",".join(table.column_names)]
        lines += [",".join("" if v is None else str(v) for v in row.values()) for row in table.to_pylist()]
        path.write_text("\n".join(lines) + "\n")
    else:
        pq.write_table(table, path)
    return str(path)


def run(
    folder: Path,
    config: Mapping[str, Any],
    train: str | Sequence[str],
    valid: str | Sequence[str] = (),
    *,
    out: str = "out",
    overwrite: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Prepares into `folder/out`; gives the content of meta.json."""
    path = folder / "features.yaml"
    path.write_text(yaml.safe_dump({"labels": [CLICK], **config}))
    inputs = {"train": _listed(train), "valid": _listed(valid)}
    return prepare(PrepareOptions(str(path), inputs, **options), folder / out, overwrite=overwrite)


def _listed(paths: str | Sequence[str]) -> list[str]:
    return [paths] if isinstance(paths, str) else list(paths)


def rows(folder: Path, split: str = "train", out: str = "out") -> dict[str, list[Any]]:
    """The encoded columns of a split, files in order."""
    files = sorted((folder / out / split).glob("*.parquet"))
    return pa.concat_tables([pq.read_table(file, partitioning=None) for file in files]).to_pydict() if files else {}


def vocabulary(folder: Path, name: str, out: str = "out") -> dict[str, list[Any]]:
    """The columns of a vocabulary file."""
    return pq.read_table(folder / out / "vocab" / f"{name}.parquet").to_pydict()


def tree(folder: Path) -> dict[str, bytes]:
    """Every file with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
