"""One set of settings, and what it means in the words of tml and of PyTorch-BigGraph (PBG).

Both configs are made here, side by side, so that what is compared is equal by construction.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Settings:
    """What both systems do.

    Attributes:
        dim: length of an embedding.
        in_batch: negatives of an edge and side from its chunk of as many edges.
        uniform: negatives of a chunk and side drawn uniformly.
        num_epochs: passes over the training edges.
        workers: threads of tml, processes of PBG.
        batch_size: edges of a step of tml.
        pbg_batch_size: edges of a batch of each PBG worker.
        learning_rate: of tables and relations.
        init_scale: standard deviation of the initial embeddings.
    """

    dim: int = 128
    in_batch: int = 50
    uniform: int = 50
    num_epochs: int = 1
    workers: int = 2
    batch_size: int = 10_000
    pbg_batch_size: int = 1_000
    learning_rate: float = 0.1
    init_scale: float = 1e-3


@dataclass(frozen=True)
class Graph:
    """A folder of `tml convert`: its tables' sizes, and its relations as (name, lhs, rhs) in order of their index."""

    folder: Path
    tables: dict[str, int]
    relations: list[tuple[str, str, str]]

    @classmethod
    def read(cls, folder: Path) -> Graph:
        """Read what the folder's starter config says.

        Raises:
            SystemExit: the folder is not a conversion.
        """
        starter = folder / "config.yaml"
        if not starter.is_file():
            raise SystemExit(f"{folder} holds no config.yaml: give a folder that `tml convert` made")
        model = yaml.safe_load(starter.read_text(encoding="utf-8"))["model"]
        tables = {table["name"]: table["num_embeddings"] for table in model["embeddings"]["tables"]}
        return cls(folder, tables, [(r["name"], r["lhs"], r["rhs"]) for r in model["relations"]])

    def edges(self, split: str) -> Path:
        """The folder of a split's parquet files."""
        return self.folder / "edges" / split


def twhin_config(settings: Settings, graph: Graph) -> dict[str, Any]:
    """tml's config: everything of the whole loop but evaluation, and a checkpoint at the end only."""
    rowwise = {"rowwise_adagrad": {"learning_rate": settings.learning_rate}}
    table = {"embedding_dim": settings.dim, "init_scale": settings.init_scale, "optimizer": rowwise}
    return {
        "runtime": {"device": "cpu", "num_threads": settings.workers},
        "training": {
            "num_epochs": settings.num_epochs,
            "checkpoint_every_n": None,
            "train_log_every_n": max(1, 200_000 // settings.batch_size),
            "num_eval_steps": 0,
        },
        "model": {
            "embeddings": {
                "tables": [{"name": name, "num_embeddings": size} | table for name, size in graph.tables.items()]
            },
            "relations": [
                {"name": name, "lhs": lhs, "rhs": rhs, "operator": "translation"} for name, lhs, rhs in graph.relations
            ],
            "comparator": "dot",
            "loss": "softmax",
            "translation_optimizer": {"adagrad": {"learning_rate": settings.learning_rate}},
        },
        "train_data": {
            "data_root": str(graph.edges("train")),
            "global_batch_size": settings.batch_size,
            "in_batch_negatives": settings.in_batch,
            "global_negatives": settings.uniform,
        },
        "test_data": {"data_root": str(graph.edges("test"))},
    }


def pbg_config(settings: Settings, graph: Graph, data: Path, checkpoint: Path) -> dict[str, Any]:
    """PBG's config.

    Row-wise Adagrad for entities and Adagrad for relations are what PBG always uses; its chunks are as large as its
    number of in-batch negatives. `hogwild_delay` would let all workers but the first sleep through the first two
    seconds; 0 is in PBG's favour.

    Args:
        data: folder of the converted edges and entity counts.
        checkpoint: folder that PBG writes.
    """
    return {
        "entity_path": str(data),
        "edge_paths": [str(data / "train")],
        "checkpoint_path": str(checkpoint),
        "entities": {name: {"num_partitions": 1} for name in graph.tables},
        "relations": [
            {"name": name, "lhs": lhs, "rhs": rhs, "operator": "translation"} for name, lhs, rhs in graph.relations
        ],
        "dimension": settings.dim,
        "init_scale": settings.init_scale,
        "comparator": "dot",
        "loss_fn": "softmax",
        "global_emb": False,
        "num_epochs": settings.num_epochs,
        "batch_size": settings.pbg_batch_size,
        "num_batch_negs": settings.in_batch,
        "num_uniform_negs": settings.uniform,
        "lr": settings.learning_rate,
        "workers": settings.workers,
        "eval_fraction": 0.0,
        "hogwild_delay": 0.0,
    }
