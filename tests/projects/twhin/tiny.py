"""A planted graph and a run on it that take seconds: communities of users and tweets, four relations between them.

graph = write_graph(tmp_path / "graph")
code = run(tiny_settings(graph, tmp_path / "run"), training={"num_epochs": 2})
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from tests.runs import Settings, merged
from tml.core.config import parse_config
from tml.projects.twhin.config import TwhinConfig
from tml.projects.twhin.models.relations import RelationScorer
from tml.projects.twhin.models.scores import score_pairs

if TYPE_CHECKING:
    from tml.projects.twhin.data.chunks import ChunkedEdges


NUM_COMMUNITIES, COMMUNITY = 24, 10
# Relation: tables of its ends, its operator, and how many communities further on its right-hand sides are.
RELATIONS = {
    "follow": ("user", "user", "translation", 0),
    "fav": ("user", "tweet", "translation", 0),
    "reply": ("user", "tweet", "complex_diagonal", 3),
    "retweet": ("user", "tweet", "identity", 0),
}
NUM_USERS, NUM_TWEETS = NUM_COMMUNITIES * COMMUNITY, NUM_COMMUNITIES * COMMUNITY + 7


@dataclass(frozen=True)
class TinyGraph:
    """Folders of edges: `train` in several files and row groups, one file each for `valid` and `test`."""

    root: Path
    num_train: int
    train: str = field(init=False)
    valid: str = field(init=False)
    test: str = field(init=False)

    def __post_init__(self) -> None:
        for split in ("train", "valid", "test"):
            object.__setattr__(self, split, str(self.root / split))


def write_graph(root: Path, *, shifted: bool = True, density: float = 0.38, seed: int = 0) -> TinyGraph:
    """Edges between the communities that a relation joins, each pair with probability `density`.

    Without `shifted` all relations join each community with its namesake.
    """
    generator = np.random.default_rng(seed)
    parts = []
    for relation, (_, _, _, shift) in enumerate(RELATIONS.values()):
        for community in range(NUM_COMMUNITIES):
            hit = np.argwhere(generator.random((COMMUNITY, COMMUNITY)) < density)
            lhs = community * COMMUNITY + hit[:, 0]
            rhs = (community + shift * shifted) % NUM_COMMUNITIES * COMMUNITY + hit[:, 1]
            parts.append(np.stack([lhs, np.full(len(hit), relation), rhs], axis=1))
    edges = generator.permutation(np.concatenate(parts))
    held_out, train = edges[:300], edges[300:]
    # Files and row groups of sizes that no batch size divides.
    for number, part in enumerate(np.array_split(train, [len(train) // 5, len(train) // 2])):
        write_edges(root / "train" / f"part-{number}.parquet", part, row_group_size=257 + number)
    write_edges(root / "valid" / "part-0.parquet", held_out[:150])
    write_edges(root / "test" / "part-0.parquet", held_out[150:])
    return TinyGraph(root, len(train))


def write_edges(path: Path, edges: Any, row_group_size: int | None = None) -> None:
    """Write `[B, 3]` integers as the columns lhs, rel, rhs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = np.asarray(edges, dtype=np.int64).reshape(-1, 3)
    names = ("lhs", "rel", "rhs")
    pq.write_table(pa.table({n: columns[:, i] for i, n in enumerate(names)}), path, row_group_size=row_group_size)


def tiny_settings(graph: TinyGraph, save_dir: Path | str, **sections: Mapping[str, Any]) -> Settings:
    """The plain values of a config that trains on the graph; `sections` are laid over it, key by key."""
    rate = {"learning_rate": 0.1}
    tables = [("user", NUM_USERS), ("tweet", NUM_TWEETS)]
    settings: Settings = {
        "runtime": {"device": "cpu", "tracking": {"tensorboard": False}, "log": {"level": "warning"}},
        "training": {"save_dir": str(save_dir), "num_epochs": 1, "train_log_every_n": 1},
        "model": {
            "embeddings": {
                "tables": [
                    {"name": name, "num_embeddings": rows, "embedding_dim": 16, "optimizer": {"rowwise_adagrad": rate}}
                    for name, rows in tables
                ]
            },
            "relations": [
                {"name": name, "lhs": lhs, "rhs": rhs, "operator": operator}
                for name, (lhs, rhs, operator, _) in RELATIONS.items()
            ],
            "translation_optimizer": {"adagrad": rate},
        },
        "train_data": {
            "data_root": graph.train,
            "global_batch_size": 400,
            "in_batch_negatives": 20,
            "global_negatives": 20,
            "shuffle_window_rows": 700,
        },
    }
    return merged(settings, sections)


def tables(settings: Settings, **changes: Any) -> list[Settings]:
    """The tables of some settings with a field changed in all of them, to put into `model.embeddings`."""
    return [table | changes for table in settings["model"]["embeddings"]["tables"]]


def config_of(settings: Settings) -> TwhinConfig:
    """The validated config."""
    return parse_config(TwhinConfig, settings)


def run(settings: Settings, task: str = "train") -> int:
    """Run a task in this process and give its exit code."""
    from tml.projects.twhin.run import run_task

    torch.set_num_threads(1)
    return run_task(config_of(settings), task)


def run_recorded(settings: Settings) -> tuple[int, list[list[tuple[int, int, int]]]]:
    """Train; give the exit code and, by step of this process, the edges that this rank has trained."""
    from tml.core.train_loop import TrainLoop

    steps: list[list[tuple[int, int, int]]] = []

    def call_hooks(loop: TrainLoop, moment: str, *arguments: Any) -> None:
        if moment == "after_step":
            assert loop.result is not None
            steps.append(edges_of(loop.result.batch, settings["train_data"]["global_negatives"]))
        original(loop, moment, *arguments)

    original = TrainLoop.call_hooks
    with mock.patch.object(TrainLoop, "call_hooks", call_hooks):
        return run(settings), steps


def edges_of(batch: ChunkedEdges, num_global: int) -> list[tuple[int, int, int]]:
    """The edges of a batch, without padding."""
    size = batch.rel.shape[1]
    lhs, rhs = batch.node_ids[:, :size], batch.node_ids[:, size + num_global :][:, :size]
    filled = batch.weight > 0
    return list(zip(lhs[filled].tolist(), batch.rel[filled].tolist(), rhs[filled].tolist(), strict=True))


def read_edges_of(folder: str) -> list[tuple[int, int, int]]:
    """All edges of the files of a folder."""
    columns = pa.concat_tables(pq.read_table(path) for path in sorted(Path(folder).glob("*.parquet")))
    return list(zip(*(columns.column(name).to_pylist() for name in ("lhs", "rel", "rhs")), strict=True))


def pair_scores_of_lhs(scorer: RelationScorer, rel: torch.Tensor, lhs: torch.Tensor, rhs: torch.Tensor) -> torch.Tensor:
    """Scores that rank left-hand sides: the forward score, or the inverse's where relations are reciprocal."""
    operator = scorer.operator(int(rel[0]))
    if not scorer.reciprocal:
        return scorer.pair_scores(operator, rel, lhs, rhs)
    return score_pairs(operator, scorer.comparator, scorer.inverse_params(rel), rhs, lhs)
