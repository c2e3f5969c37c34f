"""The folder of an exported model: what lies where, and how it is read back.

    <model>/
      model.json                comparator, relations, and per file its rows, bytes and checksum
      embeddings/<table>.parquet  id (string or int64), embedding (fixed_size_list<float32>[D]); row order = index order
      embeddings/<table>.npy    float32 [n, D], the same rows, for memory mapping (only if asked for)
      relations.parquet         name, lhs, rhs, operator, params, inverse_params
      model_card.json, MODEL_CARD.md

Letters: `n` rows of a table, `D` embedding dim.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from tml.common.errors import DataError
from tml.common.filesystem.digest import FileInfo, file_info
from tml.projects.twhin.models.relations import RelationScorer, RelationSpec
from tml.projects.twhin.models.scores import Comparator

FORMAT = "tml-twhin-model"
FORMAT_VERSION = 1
MODEL_NAME = "model.json"
RELATIONS_NAME = "relations.parquet"
CARD_NAME = "model_card.json"
READABLE_CARD_NAME = "MODEL_CARD.md"


@dataclass(frozen=True)
class TableInfo:
    """A table: rows, type of ids (`string` or `int64`), digest of the ids in their order, files by suffix."""

    num_rows: int
    id_type: str
    id_hash: str
    files: dict[str, FileInfo]


@dataclass(frozen=True)
class ModelInfo:
    """What `model.json` says."""

    dim: int
    comparator: Comparator
    reciprocal: bool
    relations: tuple[RelationSpec, ...]
    tables: dict[str, TableInfo]
    relations_file: FileInfo

    def to_json(self) -> dict[str, Any]:
        """The content of `model.json`."""
        return {"format": FORMAT, "version": FORMAT_VERSION} | asdict(self)

    @staticmethod
    def from_json(body: dict[str, Any]) -> ModelInfo:
        """The inverse of `to_json`."""
        tables = {
            name: TableInfo(
                table["num_rows"],
                table["id_type"],
                table["id_hash"],
                {suffix: FileInfo(**file) for suffix, file in table["files"].items()},
            )
            for name, table in body["tables"].items()
        }
        relations = tuple(RelationSpec(**relation) for relation in body["relations"])
        relations_file = FileInfo(**body["relations_file"])
        return ModelInfo(body["dim"], body["comparator"], body["reciprocal"], relations, tables, relations_file)


def embeddings_path(folder: Path, table: str, suffix: str = "parquet") -> Path:
    """The file of a table's embeddings."""
    return folder / "embeddings" / f"{table}.{suffix}"


def is_model_folder(folder: Path) -> bool:
    """Whether an exported model lies here."""
    return (folder / MODEL_NAME).is_file()


def read_model_info(folder: Path) -> ModelInfo:
    """Read `model.json` and check that the files it names are there, in their full size.

    Raises:
        DataError: this is no model folder, a newer format, damaged, or a file is missing or cut off.
    """
    path = folder / MODEL_NAME
    if not path.is_file():
        raise DataError(
            "not a model folder",
            where=folder,
            limit=f"a folder with {MODEL_NAME}",
            fix="export one with `tml twhin export`",
        )
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        if body["format"] != FORMAT or body["version"] > FORMAT_VERSION:
            raise DataError(
                "a model of another format",
                where=path,
                value=f"{body['format']} {body['version']}",
                limit=f"{FORMAT} up to {FORMAT_VERSION}",
                fix="use the version of tml that exported it, or a newer one",
            )
        info = ModelInfo.from_json(body)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError("model.json is damaged", where=path, value=repr(error), fix="export the model again") from error
    for name, file in files_of(folder, info).items():
        _check_size(folder / name, file)
    return info


def files_of(folder: Path, info: ModelInfo) -> dict[str, FileInfo]:
    """Every file that `model.json` vouches for, by its path inside the folder."""
    files = {RELATIONS_NAME: info.relations_file}
    for name, table in info.tables.items():
        for suffix, file in table.files.items():
            files[str(embeddings_path(folder, name, suffix).relative_to(folder))] = file
    return files


def verify(folder: Path, info: ModelInfo) -> None:
    """Compare every file with its checksum.

    Raises:
        DataError: naming the first file whose content has changed.
    """
    for name, file in files_of(folder, info).items():
        found = file_info(folder / name)
        if found != file:
            raise DataError(
                "a file of the model has changed since its export",
                where=folder / name, value=found.sha256, limit=file.sha256, fix="export the model again",
            )  # fmt: skip


def write_relations(path: Path, scorer: RelationScorer) -> None:
    """Write the relations and their parameters; `inverse_params` is null without reciprocal relations."""
    weight = scorer.weight.detach().float().cpu()
    forward, inverse = weight[: len(scorer.relations)], weight[len(scorer.relations) :]
    vectors = pa.list_(pa.float32())
    columns: dict[str, pa.Array] = {
        column: pa.array([getattr(relation, column) for relation in scorer.relations], pa.string())
        for column in ("name", "lhs", "rhs", "operator")
    }
    columns["params"] = pa.array(forward.tolist(), vectors)
    columns["inverse_params"] = pa.array(inverse.tolist() if len(inverse) else [None] * len(forward), vectors)
    pq.write_table(pa.table(columns), path)


def read_scorer(folder: Path, info: ModelInfo) -> RelationScorer:
    """The relations with their parameters."""
    columns = pq.read_table(folder / RELATIONS_NAME, partitioning=None)
    names = columns.column("name").to_pylist()
    if names != [relation.name for relation in info.relations]:
        raise DataError("relations.parquet and model.json disagree", where=folder, value=names, fix="export again")
    scorer = RelationScorer(info.relations, info.dim, info.comparator, info.reciprocal)
    rows = columns.column("params").to_pylist()
    if info.reciprocal:
        rows += columns.column("inverse_params").to_pylist()
    scorer.weight.requires_grad_(False)
    scorer.weight.copy_(torch.tensor(rows, dtype=torch.float32))
    return scorer.eval()


def score_formula(comparator: Comparator, relations: Sequence[RelationSpec], reciprocal: bool) -> list[str]:
    """How a score is computed, in words, one line per operator in use and one for the comparator."""
    operators = {
        "identity": "identity: op(x) = x",
        "translation": "translation: op(x) = x + params",
        "diagonal": "diagonal: op(x) = x * params, elementwise",
        "complex_diagonal": "complex_diagonal: op(x) = x * params over complex numbers; the first half of a vector "
        "holds the real parts, the second half the imaginary parts",
    }
    comparators = {
        "dot": "compare(a, b) = a . b",
        "cosine": "compare(a, b) = a . b / (|a| |b|)",
        "l2": "compare(a, b) = -|a - b|, the negative Euclidean distance",
    }
    lines = ["score(lhs, relation, rhs) = compare(op(lhs), rhs); higher is better, and only op knows the relation"]
    lines += [operators[name] for name in dict.fromkeys(relation.operator for relation in relations)]
    lines.append(comparators[comparator])
    if reciprocal:
        lines.append("left-hand sides are ranked by compare(inverse_op(rhs), lhs), with inverse_params")
    return lines


def _check_size(path: Path, expected: FileInfo) -> None:
    size = path.stat().st_size if path.is_file() else None
    if size != expected.size:
        raise DataError(
            "a file of the model is missing or cut off",
            where=path,
            value="missing" if size is None else f"{size} bytes",
            limit=f"{expected.size} bytes",
            fix="copy the folder again, or export the model again",
        )
