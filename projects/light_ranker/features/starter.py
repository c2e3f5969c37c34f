"""The starter config that lies beside prepared data, ready for training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tml.projects.light_ranker.features.spec import FeatureSpec

_HEADER = """\
# Written by `tml light-ranker prepare`: a starting point that trains as it is.
# `--print_config` shows every other setting with its default.
"""
# The batch size is a power of two with at least so many steps an epoch, within limits: few steps learn little, and
# large batches are fast.
_STEPS_PER_EPOCH, _MIN_BATCH_SIZE, _MAX_BATCH_SIZE = 50, 32, 4_096
_SECTIONS = {"train": "train_data", "valid": "validation_data", "test": "test_data"}


def starter_config(out: Path, spec: FeatureSpec, num_rows: Mapping[str, int]) -> str:
    """The text of `config.yaml`.

    Args:
        out: the folder of the prepared data.
        spec: of its rows.
        num_rows: split -> its number of rows; splits without any are left out.
    """
    config: dict[str, Any] = {
        "training": {"save_dir": f"runs/{out.resolve().name}", "num_epochs": 1},
        "features_dir": str(out),
        "model": {"mlp": {"embedding_dim": 16}},
        "loss": _loss(spec),
    }
    for split in (split for split, count in num_rows.items() if count):
        config[_SECTIONS[split]] = {"data_root": str(out / split)}
    config["train_data"]["global_batch_size"] = batch_size_for(num_rows["train"])
    return _HEADER + yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=120)


def batch_size_for(num_rows: int) -> int:
    """A batch size to start with, for so many training rows."""
    power = 1 << max(0, (num_rows // _STEPS_PER_EPOCH).bit_length() - 1)
    return min(max(power, _MIN_BATCH_SIZE), _MAX_BATCH_SIZE)


def _loss(spec: FeatureSpec) -> dict[str, str]:
    first = {kind: next((label.name for label in spec.labels if label.kind == kind), None) for kind in _LABEL_KEYS}
    return {key: name for kind, key in _LABEL_KEYS.items() if (name := first[kind]) is not None}


_LABEL_KEYS = {"binary": "click_label", "nonnegative": "watch_time_label"}
