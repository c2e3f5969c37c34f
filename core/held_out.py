"""Held-out data of a run: which split is measured, under which checkpoint, and where its metrics are written."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol, TypeVar

from torch import nn

from tml.common.checkpointing import CheckpointManager
from tml.common.device import rank
from tml.common.errors import ConfigError
from tml.common.filesystem.atomic import write_json
from tml.common.tracking.record import ExperimentRecord
from tml.core.config.base_config import BaseConfig
from tml.core.config.training import TrainingConfig
from tml.core.custom_training_loop import only_evaluate
from tml.core.resume import model_tensors
from tml.ml_logging import get_logger

logger = get_logger(__name__)

Section = TypeVar("Section", bound=BaseConfig, covariant=True)


class HasHeldOut(Protocol[Section]):
    """A whole config with sections of held-out data."""

    @property
    def validation_data(self) -> Section | None:
        """Measured along the way."""

    @property
    def test_data(self) -> Section | None:
        """Measured once, after training."""


def held_out_section(config: HasHeldOut[Section]) -> tuple[Section, str]:
    """The test data, or without any the validation data, and the name of that split.

    Raises:
        ConfigError: there is neither.
    """
    if config.test_data is not None:
        return config.test_data, "test"
    if config.validation_data is not None:
        return config.validation_data, "validation"
    raise ConfigError(
        "there is nothing to evaluate", where="test_data, validation_data", fix="set data_root of one of them"
    )


def restore_model(model: nn.Module, save_dir: str, step: int | None = None, alone: bool = False) -> int:
    """Load a model's tensors from a run's checkpoint.

    Args:
        model: it, or the module inside its wrappers, has `checkpoint_tensors()`.
        save_dir: of the run.
        step: a committed step; the best one, or else the latest, if None.
        alone: this rank reads by itself; otherwise all ranks call this.

    Returns:
        The step.

    Raises:
        CheckpointError: there is no such checkpoint, it is damaged, or its tensors do not fit the model.
    """
    checkpoints = CheckpointManager(save_dir, max_to_keep=None, lock=False, alone=alone)
    tensors = model_tensors(model)
    checkpoints.restore(tensors, step=checkpoints.best() if step is None else step, only=set(tensors))
    assert checkpoints.restored_step is not None
    return checkpoints.restored_step


def follow_checkpoints(
    model: nn.Module, evaluate: Callable[[], Mapping[str, float]], config: TrainingConfig
) -> dict[int, dict[str, float | None]]:
    """Evaluate each checkpoint that another job writes, until its last one or a timeout; see `only_evaluate`.

    Args:
        model: is filled from each checkpoint.
        evaluate: measures that model; called on all ranks.
        config: of the other job's folder.
    """

    def evaluate_checkpoint(step: int) -> Mapping[str, float]:
        restore_model(model, config.save_dir, step)
        return evaluate()

    return only_evaluate(evaluate_checkpoint, config)


def report_metrics(
    config: TrainingConfig,
    split: str,
    step: int,
    metrics: Mapping[str, float],
    shown: Collection[str],
    identity: str | None = None,
) -> None:
    """Log the main metrics, write all of them to `save_dir/<split>_metrics.json` and to the run's record, on rank 0.

    Args:
        config: of the run.
        split: test or validation.
        step: of the model.
        metrics: by name; one that is not finite is null in the files.
        shown: what the log shows: names, with or without the part before the first dot.
        identity: a digest of all that the metrics depend on, so that the same need not be measured again.
    """
    if rank() != 0:
        return
    order = [name for wanted in shown for name in metrics if wanted in (name, name.split(".", 1)[-1])]
    listed = ", ".join(f"{name} {metrics[name]:.4f}" for name in order)
    logger.info("%s metrics at step %d: %s", split, step, listed)
    path = metrics_path(config.save_dir, split)
    plain = {name: value if math.isfinite(value) else None for name, value in sorted(metrics.items())}
    write_json(path, {"split": split, "step": step, "identity": identity, "metrics": plain})
    ExperimentRecord(config.save_dir).evaluation(step, metrics, split=split)
    logger.info("all metrics are in %s", path)


def is_reported(save_dir: str, split: str, identity: str) -> bool:
    """Whether `report_metrics` has written the metrics of just this."""
    try:
        with open(metrics_path(save_dir, split), encoding="utf-8") as file:
            return bool(json.load(file).get("identity") == identity)
    except (FileNotFoundError, ValueError, AttributeError):
        return False


def metrics_path(save_dir: str, split: str) -> str:
    """Where the metrics of a split are written."""
    return os.path.join(save_dir, f"{split}_metrics.json")


@contextmanager
def failures_recorded(save_dir: str) -> Iterator[None]:
    """What fails after training has ended is a failure of the run all the same."""
    try:
        yield
    except Exception as error:
        if rank() == 0:
            ExperimentRecord(save_dir).end("FAILED", f"{type(error).__name__}: {error}")
        raise
