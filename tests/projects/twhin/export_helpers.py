"""A model of two tables and two relations, small enough to compare by eye, and the vocabularies of its tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from tml.projects.twhin.models.relations import RelationScorer, RelationSpec

DIM = 4
NUM_ROWS = {"user": 7, "tweet": 11}
RELATIONS = [RelationSpec("follow", "user", "user"), RelationSpec("fav", "user", "tweet", "diagonal")]


def make_tables() -> dict[str, Tensor]:
    """The rows of each table."""
    torch.manual_seed(0)
    return {name: torch.randn(rows, DIM) for name, rows in NUM_ROWS.items()}


def make_scorer() -> RelationScorer:
    """Both relations with reciprocal parameters."""
    scorer = RelationScorer(RELATIONS, DIM, "dot", reciprocal=True)
    torch.nn.init.normal_(scorer.weight)
    return scorer


def write_vocab(folder: Path, extra_rows: int = 0, first_index: int = 0) -> Path:
    """Users have string ids, tweets large integers."""
    folder.mkdir(exist_ok=True)
    for name, rows in NUM_ROWS.items():
        num = rows + (extra_rows if name == "user" else 0)
        ids = [f"u{row * 7 % 100}" for row in range(num)] if name == "user" else [10**15 + row for row in range(num)]
        index = np.arange(first_index, first_index + num)
        pq.write_table(pa.table({"id": ids, "index": index, "count": index}), folder / f"{name}.parquet")
    return folder


def read_card(folder: Path) -> dict[str, Any]:
    """The model card of `folder/model`."""
    return json.loads((folder / "model" / "model_card.json").read_text())
