"""One set of settings, and what it means in the words of tml and of the other systems.

Features, config and job are made here, side by side, so that what is compared is equal by construction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tml.projects.light_ranker.features.spec import FeatureSpec

CLICK, WATCH_TIME = "click", "watch_time"


@dataclass(frozen=True)
class Settings:
    """What all systems do.

    Attributes:
        dim: length of an embedding.
        hidden_sizes: units of the layers with ReLU.
        batch_size: rows of a step.
        beta: factor of the watch time's squared error beside the click's cross-entropy; 0 leaves the output out.
        min_count: tables have a row for each id seen in so many training rows; None: for each id that there may be.
        workers: threads.
        seed: of initial values and the order of rows.
        dense_rate: Adam's rate, of tml's layers and of all that the others learn.
        table_rate: row-wise Adagrad's, of tml's embeddings.
        table_eps: added to the root of its accumulator; near the size of a gradient, so that rare ids do not leap.
        wide: tml's linear part beside the layers (`model.mlp.wide`), which the other models have not.
        init_scale: standard deviation of the initial embeddings.
        steps_per_call: steps of a call of Keras's compiled function.
    """

    dim: int = 16
    hidden_sizes: tuple[int, ...] = (256, 128)
    batch_size: int = 4_096
    beta: float = 0.0
    min_count: int | None = None
    workers: int = 2
    seed: int = 0
    dense_rate: float = 1e-3
    table_rate: float = 0.05
    table_eps: float = 1e-4
    wide: bool = True
    init_scale: float = 0.01
    steps_per_call: int = 8


def click_features(vocab: Sequence[int] | None, min_count: int = 1) -> dict[str, Any]:
    """The feature config of the made-up clicks, as of any table with their columns.

    Args:
        vocab: values of each id column, which are 0, 1, ...: every one gets a row. None: those that were seen.
        min_count: and in so many training rows.
    """

    def ids(columns: range, side: str) -> list[dict[str, Any]]:
        seen = {"vocabulary": {"min_count": min_count}}
        return [
            {"name": f"C{column}", "side": side, "kind": "categorical"}
            | ({"identity": {"num_ids": vocab[column - 1]}} if vocab else seen)
            for column in columns
        ]

    return {
        "features": [
            *ids(range(1, 14), "user"),
            *ids(range(14, 27), "candidate"),
            {"match": "I[1-6]", "side": "user", "kind": "continuous"},
            {"match": "I([7-9]|1[0-3])", "side": "candidate", "kind": "continuous"},
        ],
        "labels": [{"name": CLICK, "kind": "binary"}, {"name": WATCH_TIME, "kind": "nonnegative"}],
    }


def ranker_config(settings: Settings, data: Path, bf16: bool) -> dict[str, Any]:
    """tml's config: everything of the whole loop but evaluation, and a checkpoint at the end only.

    Args:
        data: the prepared folder.
        bf16: layers in bfloat16 (autocast), parameters in float32.
    """
    mlp = {
        "embedding_dim": settings.dim,
        "hidden_sizes": list(settings.hidden_sizes),
        "init_scale": settings.init_scale,
        "wide": settings.wide,
        "table_optimizer": {"rowwise_adagrad": {"learning_rate": settings.table_rate, "eps": settings.table_eps}},
        "dense_optimizer": {"adam": {"learning_rate": settings.dense_rate}},
    }
    loss = {"click_label": CLICK}
    if settings.beta:
        loss |= {"watch_time_label": WATCH_TIME, "beta": settings.beta}
    return {
        "runtime": {
            "device": "cpu",
            "num_threads": settings.workers,
            "enable_amp": bf16,
            "seed": settings.seed,
        },
        "training": {
            "num_epochs": 1,
            "checkpoint_every_n": None,
            "train_log_every_n": max(1, 200_000 // settings.batch_size),
            "num_eval_steps": 0,
        },
        "features_dir": str(data),
        "model": {"mlp": mlp},
        "loss": loss,
        "train_data": {
            "data_root": str(data / "train"),
            "global_batch_size": settings.batch_size,
        },
        "validation_data": None,
        "isotonic": None,
    }


def peer_job(settings: Settings, data: Path, out: Path, max_examples: int | None) -> dict[str, Any]:
    """What the worker of another system is told.

    Args:
        data: the prepared folder that tml trains on as well.
        out: folder of its predictions and timing.
        max_examples: rows of the epoch that it trains on; all if None.
    """
    spec = FeatureSpec.load(data)
    return {
        "data": str(data),
        "out": str(out),
        "id_columns": [f"id.{feature.name}" for feature in spec.ids],
        "table_rows": [feature.num_rows for feature in spec.ids],
        "number_columns": [f"x.{feature.name}" for feature in spec.continuous],
        "label_columns": [f"y.{CLICK}", *([f"y.{WATCH_TIME}"] if settings.beta else [])],
        "dim": settings.dim,
        "hidden_sizes": list(settings.hidden_sizes),
        "batch_size": settings.batch_size,
        "workers": settings.workers,
        "seed": settings.seed,
        "learning_rate": settings.dense_rate,
        "init_scale": settings.init_scale,
        "max_examples": max_examples,
    }


def keras_extras(settings: Settings, bf16: bool) -> dict[str, Any]:
    """What Keras's worker is told beside."""
    return {
        "beta": settings.beta,
        "precision": "mixed_bfloat16" if bf16 else "float32",
        "steps_per_execution": settings.steps_per_call,
    }
