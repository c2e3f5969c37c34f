"""What is looked at before training begins: contradictions, disagreeing ranks, settings that will do nothing."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

from tml.common import tracking
from tml.common.device import gather_objects
from tml.common.errors import ConfigError

if TYPE_CHECKING:
    from tml.core.train_loop import TrainLoop

logger = logging.getLogger(__name__)


def check_settings(loop: TrainLoop) -> None:
    """Refuse settings that contradict each other or the other ranks; warn of those without effect.

    Raises:
        ConfigError: early stopping without an evaluation, a tracker whose package is missing, ranks that disagree.
    """
    config, runtime = loop.config, loop.runtime
    if config.early_stopping is not None and loop.evaluate is None:
        raise ConfigError(
            "early stopping has nothing to watch", where="training.early_stopping",
            fix="configure validation data, or remove early_stopping",
        )  # fmt: skip
    tracking.require_packages(
        tensorboard=runtime.tracking.tensorboard,
        wandb=runtime.tracking.wandb is not None,
        mlflow=runtime.tracking.mlflow is not None,
    )
    texts = gather_objects(json.dumps(loop.parameters, sort_keys=True))
    if len(set(texts)) > 1:
        others = [number for number, text in enumerate(texts) if text != texts[0]]
        raise ConfigError(
            "ranks have different configs", where=f"ranks {others} differ from rank 0", fix="start all with one config"
        )
    for message in settings_without_effect(loop):
        logger.warning("setting without effect: %s", message)


def settings_without_effect(loop: TrainLoop) -> list[str]:
    """What is configured but will do nothing in this run, in the user's words."""
    config, total = loop.config, loop.total_steps
    found = []
    if loop.evaluate is None and config.evaluate_every_n is not None:
        found.append("training.evaluate_every_n, as there is no validation data")
    if loop.evaluate is not None and config.num_eval_steps == 0:
        found.append("validation data, as training.num_eval_steps is 0")
    if config.profile_steps is not None and total is not None and config.profile_steps.start >= total:
        found.append(f"training.profile_steps, as it starts at {config.profile_steps.start} of {total} steps")
    if config.evaluate_every_n is not None and total is not None and config.evaluate_every_n > total:
        found.append(f"training.evaluate_every_n, as there are only {total} steps; there is one evaluation, at the end")
    if config.initial_checkpoint_dir is not None and loop.checkpoints.latest() is not None:
        found.append("training.initial_checkpoint_dir, as save_dir has a checkpoint to continue from")
    return found
