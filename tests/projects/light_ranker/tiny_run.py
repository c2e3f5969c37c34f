"""A prepared folder with a planted truth, settings that train on it in a second, and looks at what a run left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from tests.projects.light_ranker.export.tiny_ranker import FEATURES, write_features
from tests.runs import Settings, merged
from tml.core.config import parse_config
from tml.projects.light_ranker.config import LightRankerConfig
from tml.projects.light_ranker.features.spec import FeatureSpec

SIZES = {"train": 4000, "valid": 800, "test": 800}


@dataclass(frozen=True)
class TinyData:
    """A prepared folder: features, vocabularies, and a folder of encoded rows for each split."""

    root: Path
    spec: FeatureSpec

    def split(self, name: str) -> str:
        """The folder of a split's rows."""
        return str(self.root / name)


def write_data(root: Path, *, groups: bool = False, seed: int = 0) -> TinyData:
    """Rows whose click depends on ids, numbers, vectors and on a product of two ids."""
    text = FEATURES + ("group: request\n" if groups else "")
    spec = write_features(root, text).spec
    generator = np.random.default_rng(seed)
    truth = _truth(spec, np.random.default_rng(99))
    for split, size in SIZES.items():
        columns = random_rows(spec, size, generator)
        logit = sum(effect[np.maximum(columns[name], 0)] * (columns[name] >= 0) for name, effect in truth.items())
        likes = columns["x.likes"]
        logit = logit + np.where(np.isnan(likes), -1.0, np.tanh(np.log(np.maximum(likes, 1e-3)) / 2)) - 0.5
        click = generator.random(size) < 1 / (1 + np.exp(-logit))
        columns["y.click"] = click.astype(np.float32)
        columns["y.watch_time"] = (click * np.exp(2 + 0.5 * logit)).astype(np.float32)
        if groups:
            columns["group"] = np.arange(size, dtype=np.int64) // 5
        # Files and row groups of sizes that no batch size divides.
        parts = np.array_split(np.arange(size), [size // 3])
        for number, rows in enumerate(parts):
            part = {name: values[rows] for name, values in columns.items()}
            write_rows(root / split / f"part-{number}.parquet", spec, part, row_group_size=257)
    return TinyData(root, spec)


def _truth(spec: FeatureSpec, generator: np.random.Generator) -> dict[str, np.ndarray]:
    """Encoded column -> effect of each of its ids."""
    return {
        name: generator.normal(size=feature.num_rows) * (1.0 if feature.num_slots == 1 else 0.5)
        for feature in spec.ids
        for name in feature.columns()
    }


def random_rows(spec: FeatureSpec, size: int, generator: np.random.Generator) -> dict[str, np.ndarray]:
    """Encoded columns without labels' signal: all ids, lists of all lengths, missing numbers."""
    columns: dict[str, np.ndarray] = {}
    for feature in spec.ids:
        length = generator.integers(1, feature.num_slots + 1, size)
        for slot, name in enumerate(feature.columns()):
            ids = generator.integers(0, feature.num_rows, size)
            columns[name] = np.where(slot < length, ids, -1).astype(np.int64)
    for number in spec.continuous:
        values = np.exp(generator.normal(1.0, 1.0, size)).astype(np.float32)
        columns[f"x.{number.name}"] = np.where(generator.random(size) < 0.1, np.float32(np.nan), values)
    for vector in spec.vectors:
        columns |= {name: generator.normal(size=size).astype(np.float32) for name in vector.columns()}
    columns |= {f"y.{label.name}": np.zeros(size, np.float32) for label in spec.labels}
    columns["w"] = generator.choice(np.array([0.5, 1.0, 2.0], np.float32), size)
    if spec.has_group:
        columns["group"] = np.zeros(size, np.int64)
    return columns


def write_rows(path: Path, spec: FeatureSpec, columns: Mapping[str, Any], row_group_size: int | None = None) -> None:
    """Write encoded columns in the order of the spec."""
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = pa.schema(list(spec.columns().items()))
    pq.write_table(pa.table({name: columns[name] for name in schema.names}, schema=schema), path, row_group_size)


def read_rows(folder: str) -> dict[str, np.ndarray]:
    """All rows of a folder, in the order of files."""
    table = pa.concat_tables(pq.read_table(path) for path in sorted(Path(folder).glob("*.parquet")))
    return {name: table.column(name).to_numpy() for name in table.column_names}


def tiny_settings(data: TinyData, save_dir: Path | str, **sections: Mapping[str, Any] | None) -> Settings:
    """The plain values of a config that trains on the data; `sections` are laid over it, key by key."""
    settings: Settings = {
        "runtime": {"device": "cpu", "tracking": {"tensorboard": False}, "log": {"level": "warning"}},
        "training": {"save_dir": str(save_dir), "num_epochs": 2, "train_log_every_n": 1},
        "features_dir": str(data.root),
        "model": {"mlp": {"embedding_dim": 8, "hidden_sizes": [16, 8], "dense_optimizer": _rate("adam", 0.01)}},
        "loss": {"watch_time_label": "watch_time", "beta": 0.1},
        "train_data": {"data_root": data.split("train"), "global_batch_size": 200, "shuffle_window_rows": 700},
        "validation_data": {"data_root": data.split("valid")},
        "test_data": {"data_root": data.split("test")},
        "isotonic": {"num_bins": 20},
        "evaluation": {"batch_size": 300},
    }
    return merged(settings, sections)


def _rate(kind: str, learning_rate: float) -> Settings:
    return {kind: {"learning_rate": learning_rate}}


LOLLY: Settings = {
    "model": {"mlp": None, "lolly_lr": {"input_size_bits": 12, "num_bins": 8, "optimizer": _rate("adagrad", 0.1)}},
    "loss": {"watch_time_label": None},
}


def config_of(settings: Settings) -> LightRankerConfig:
    """The validated config."""
    return parse_config(LightRankerConfig, settings)


def run(settings: Settings, task: str = "all") -> int:
    """Run a task in this process and give its exit code."""
    from tml.projects.light_ranker.run import run_task

    torch.set_num_threads(1)
    return run_task(config_of(settings), task)
