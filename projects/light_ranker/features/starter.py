"""The starter config that lies beside prepared data, ready for training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tml.projects.light_ranker.features.spec import FeatureSpec

_HEADER = """\
# Written by `tml light-ranker prepare`: a starting point that trains as it is.
# `--print_config` shows every other setting with its default.
"""
GLOBAL_BATCH_SIZE = 4_096
_SECTIONS = {"train": "train_data", "valid": "validation_data", "test": "test_data"}


def starter_config(out: Path, spec: FeatureSpec, splits: list[str]) -> str:
    """The text of `config.yaml`.

    Args:
        out: the folder of the prepared data.
        spec: of its rows.
        splits: those that hold rows.
    """
    config: dict[str, Any] = {
        "training": {"save_dir": f"runs/{out.resolve().name}", "num_epochs": 1},
        "features_dir": str(out),
        "model": {"mlp": {"embedding_dim": 16}},
        "loss": _loss(spec),
    }
    for split in splits:
        config[_SECTIONS[split]] = {"data_root": str(out / split)}
    config["train_data"]["global_batch_size"] = GLOBAL_BATCH_SIZE
    return _HEADER + yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=120)


def _loss(spec: FeatureSpec) -> dict[str, str]:
    first = {kind: next((label.name for label in spec.labels if label.kind == kind), None) for kind in _LABEL_KEYS}
    return {key: name for kind, key in _LABEL_KEYS.items() if (name := first[kind]) is not None}


_LABEL_KEYS = {"binary": "click_label", "nonnegative": "watch_time_label"}
