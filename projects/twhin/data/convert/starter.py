"""The starter config that lies beside converted data, ready for training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

_HEADER = """\
# Written by `tml convert`: a starting point that trains as it is. docs/data.md says where the data came from, and
# `tml twhin train --config <this file> --print_config` shows every other setting with its default.
"""
GLOBAL_BATCH_SIZE = 4_000


def starter_config(out: Path, tables: dict[str, int], relations: list[dict[str, Any]], splits: dict[str, int]) -> str:
    """The text of `config.yaml`.

    Args:
        out: the folder of the converted data.
        tables: number of ids per table.
        relations: name, lhs and rhs per relation, in the order of their index.
        splits: number of edges per split; splits without edges are left out.
    """
    config: dict[str, Any] = {
        "training": {"save_dir": f"runs/{out.resolve().name}", "num_epochs": 10},
        "model": {
            "embeddings": {"tables": [_table(name, size) for name, size in tables.items()]},
            "relations": [_relation(relation) for relation in relations],
            "translation_optimizer": {"adagrad": {"learning_rate": 0.1}},
        },
        "train_data": {
            "data_root": str(out / "edges" / "train"),
            "global_batch_size": GLOBAL_BATCH_SIZE,
            "in_batch_negatives": 50,
            "global_negatives": 50,
        },
    }
    for split, section in (("valid", "validation_data"), ("test", "test_data")):
        if splits.get(split):
            config[section] = {"data_root": str(out / "edges" / split)}
    config["vocab_dir"] = str(out / "vocab")
    return _HEADER + yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=120)


def _table(name: str, num_embeddings: int) -> dict[str, Any]:
    optimizer = {"rowwise_adagrad": {"learning_rate": 0.1}}
    return {"name": name, "num_embeddings": num_embeddings, "embedding_dim": 128, "optimizer": optimizer}


def _relation(relation: dict[str, Any]) -> dict[str, Any]:
    return {"name": relation["name"], "lhs": relation["lhs"], "rhs": relation["rhs"], "operator": "translation"}
