"""Settings of a run as plain values, and looks at what a run has left in its folder."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from tml.common.checkpointing import load_tensors
from tml.common.tracking.json_lines import read_metrics
from tml.core.held_out import metrics_path

Settings = dict[str, Any]


def merged(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> Settings:
    """`settings` with `changes` laid over them, mapping by mapping; None takes the place of what was there."""
    result = copy.deepcopy(dict(settings))
    for name, value in changes.items():
        old = result.get(name)
        result[name] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def write_config(path: Path, settings: Settings) -> str:
    """Write settings as a config file; JSON is YAML."""
    path.write_text(json.dumps(settings, indent=1))
    return str(path)


def run_program(main: Callable[[list[str]], None], config: str, *arguments: str) -> int:
    """Run a project's program in this process, as a user would; its exit code."""
    try:
        main(["--config", config, *arguments])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def final_tensors(save_dir: Path | str, step: int | None = None) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, the newest by default."""
    return load_tensors(save_dir, step)


def losses(save_dir: Path | str) -> dict[int, float]:
    """The logged loss by step; fails if a step was logged twice."""
    lines = [line for line in read_metrics(f"{save_dir}/metrics.jsonl") if "train/loss" in line]
    by_step = {int(line["step"]): line["train/loss"] for line in lines}
    assert len(by_step) == len(lines), "a step was logged twice"
    return by_step


def evaluations(save_dir: Path | str) -> dict[int, dict[str, float]]:
    """The logged evaluations by step; fails if a step was evaluated twice."""
    lines = [line for line in read_metrics(f"{save_dir}/metrics.jsonl") if any(key.startswith("eval/") for key in line)]
    by_step = {int(line["step"]): {k.removeprefix("eval/"): v for k, v in line.items()} for line in lines}
    assert len(by_step) == len(lines), "a step was evaluated twice"
    return by_step


def reported(save_dir: Path | str, split: str = "test") -> dict[str, Any]:
    """What a run wrote of a split: its step and its metrics."""
    return json.loads(Path(metrics_path(str(save_dir), split)).read_text())


def metrics_of(save_dir: Path | str, split: str = "test") -> dict[str, float]:
    """The metrics that a run wrote of a split."""
    return reported(save_dir, split)["metrics"]


def assert_equal_tensors(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """The same names and, to the bit, the same values."""
    assert set(found) == set(expected)
    different = [name for name in expected if not torch.equal(found[name], expected[name])]
    assert not different, different


def assert_close_tensors(
    found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], rtol: float = 1e-4, atol: float = 1e-5
) -> None:
    """The same names and nearly the same values."""
    assert set(found) == set(expected)
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=rtol, atol=atol, msg=lambda text, n=name: f"{n}: {text}")
