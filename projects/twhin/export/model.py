"""Export: a model folder that answers by original id and needs neither the training data nor the training libraries.

Letters: `n` rows of a table or block, `D` embedding dim.

Tables are streamed in blocks of rows to parquet, so memory is bounded by a block. The folder is written beside its
place, verified, and takes its name as the last act.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from tml.common.errors import DataError
from tml.common.filesystem import new_folder
from tml.common.filesystem.digest import file_info
from tml.projects.twhin import model_folder
from tml.projects.twhin.export.card import build_card, readable_card
from tml.projects.twhin.export.ids import IdStream
from tml.projects.twhin.export.tables import Blocks, row_groups, write_npy, write_table
from tml.projects.twhin.model_folder import ModelInfo, TableInfo
from tml.projects.twhin.models.relations import RelationScorer


def export_model(
    out_dir: str | os.PathLike[str],
    *,
    tables: Mapping[str, Tensor | Blocks],
    scorer: RelationScorer,
    vocab_dir: str | os.PathLike[str] | None,
    model_card: Mapping[str, Any],
    overwrite: bool = False,
    memory_map: bool = False,
    id_hashes: Mapping[str, str] | None = None,
) -> Path:
    """Write a model folder, whole or not at all.

    Args:
        out_dir: where; must not exist or be empty unless `overwrite`.
        tables: per table its rows `[n, D]` of any float type in the order of the index: a tensor, or blocks, read once.
        scorer: the relations.
        vocab_dir: folder with `<table>.parquet` (id, index); None makes the index itself the id.
        model_card: what the run knows: config, metrics, data, step, ...
        overwrite: replace a model that lies there already; it stays untouched until the new one is complete.
        memory_map: also write `.npy` files, so that loading maps the tables instead of reading them; doubles the space.
        id_hashes: digests of the vocabularies the model was trained with, to be compared.

    Returns:
        The folder.

    Raises:
        DataError: the place is taken or cannot be written, a table and its vocabulary differ in length or digest, or a
            shape does not fit.
        NonFiniteError: an embedding is NaN or infinite.
    """
    _check_tables(tables, scorer)
    dim = scorer.weight.shape[1]
    with new_folder(
        out_dir, is_ours=model_folder.is_model_folder, what="exported model", overwrite=overwrite
    ) as folder:
        (folder / "embeddings").mkdir()
        infos = {}
        for name, rows in tables.items():
            ids = IdStream(None if vocab_dir is None else Path(vocab_dir) / f"{name}.parquet", name)
            infos[name] = write_table(folder, name, row_groups(rows, dim), ids, dim)
            ids.finish((id_hashes or {}).get(name))
            if memory_map:
                infos[name].files["npy"] = write_npy(folder, name)
        _write_rest(folder, infos, scorer, model_card)
        model_folder.read_model_info(folder)
    return Path(out_dir).absolute()


def _check_tables(tables: Mapping[str, object], scorer: RelationScorer) -> None:
    missing = {end for relation in scorer.relations for end in (relation.lhs, relation.rhs)} - set(tables)
    if missing:
        raise DataError("tables of the relations are missing", value=sorted(missing), limit=f"given: {sorted(tables)}")


def _write_rest(folder: Path, tables: dict[str, TableInfo], scorer: RelationScorer, given: Mapping[str, Any]) -> None:
    relations_path = folder / model_folder.RELATIONS_NAME
    model_folder.write_relations(relations_path, scorer)
    info = ModelInfo(
        scorer.weight.shape[1],
        scorer.comparator,
        scorer.reciprocal,
        scorer.relations,
        tables,
        file_info(relations_path),
    )
    card = build_card(info, given)
    for name, text in (
        (model_folder.CARD_NAME, json.dumps(card, indent=1, ensure_ascii=False)),
        (model_folder.READABLE_CARD_NAME, readable_card(card)),
        (model_folder.MODEL_NAME, json.dumps(info.to_json(), indent=1)),
    ):
        (folder / name).write_text(text + "\n", encoding="utf-8")
