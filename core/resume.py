"""Where a run goes on: what checkpoints keep beside tensors, which changes between runs are allowed, warm starts."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from tml.common.batch import Cursor
from tml.common.checkpointing import CheckpointManager, load_tensors, read_extra
from tml.common.checkpointing.layout import scan
from tml.common.checkpointing.retention import BEST_NAME, delete_folder
from tml.common.device import gather_objects, rank, rng_state, seed_everything, set_rng_state, world_size
from tml.common.differences import differences
from tml.common.errors import ConfigError
from tml.common.tracking.record import RECORD_NAME
from tml.core.config import with_todays_defaults
from tml.core.config.training import changeable_paths

if TYPE_CHECKING:
    from tml.core.train_loop import TrainLoop

logger = logging.getLogger(__name__)


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """`checkpoint_tensors()` of the model inside whatever wraps it."""
    inner: Any = model
    while not hasattr(inner, "checkpoint_tensors"):
        inner = inner.module
    tensors: dict[str, Tensor] = inner.checkpoint_tensors()
    return tensors


def run_tensors(loop: TrainLoop) -> dict[str, Tensor]:
    """All tensors of a run by name: the model's and the optimizers'."""
    of_model, of_optimizers = model_tensors(loop.model), loop.optimizers.checkpoint_tensors()
    assert not set(of_model) & set(of_optimizers), sorted(set(of_model) & set(of_optimizers))
    return of_model | of_optimizers


def rank_tensors(loop: TrainLoop) -> dict[str, Tensor]:
    """What each rank has of its own, as its row of a tensor of all ranks: the memory of compressed gradients."""
    return {} if loop.compression is None else loop.compression.checkpoint_tensors()


def extra_of(loop: TrainLoop) -> dict[str, Any]:
    """What a checkpoint keeps beside tensors, JSON-able; all ranks have to ask together."""
    state = loop.state
    return {
        "step": state.step,
        "cursor": state.cursor.to_dict(),
        "num_examples": state.num_examples,
        "loss": _finite(state.loss),
        "metrics": {name: _finite(value) for name, value in state.metrics.items()},
        "finished": loop.is_finished,
        "stop_reason": loop.stop.reason,
        "seed": loop.runtime.seed,
        "rng": gather_objects(rng_state(loop.device)),
        "hooks": {type(hook).__name__: hook.state_dict() for hook in loop.hooks},
        "config": _plain(loop.parameters),
        "fingerprints": all_fingerprints(loop),
    }


def all_fingerprints(loop: TrainLoop) -> dict[str, Any]:
    """The identity of everything outside the config that a run depends on."""
    return {"data": loop.data.fingerprint(), **loop.fingerprints}


def restore_run(loop: TrainLoop) -> None:
    """Continue from the latest checkpoint of `save_dir`; without one warm-start, if asked to; else start anew.

    Raises:
        ConfigError: the config or the data have changed since the checkpoint was written.
        CheckpointError: no checkpoint can be trusted, or its tensors do not fit the model.
    """
    if any(gather_objects(loop.checkpoints.latest() is not None)):
        require_same_run(read_extra(loop.checkpoints.directory), loop)
        _continue_from(_restore_tensors(loop), loop)
        logger.info("continuing at step %d, epoch %d", loop.state.step, loop.state.cursor.epoch)
    elif loop.config.initial_checkpoint_dir is not None:
        warm_start(loop.config.initial_checkpoint_dir, loop.model)


def warm_start(directory: str, model: nn.Module) -> None:
    """Load what the model itself keeps (parameters, and the state of fused optimizers) from another run's latest step.

    Raises:
        CheckpointError: no checkpoint there, or tensors of the model are missing in it or of another shape.
    """
    other = CheckpointManager(Path(directory), max_to_keep=None, lock=False)
    tensors = model_tensors(model)
    other.restore(tensors, only=set(tensors))
    logger.info("warm start from step %d of %s", other.restored_step, directory)


def empty_save_dir(checkpoints: CheckpointManager) -> None:
    """Delete the checkpoints and metrics of a folder, for a run that is to start anew; all ranks call it together."""
    folder = checkpoints.directory
    if rank() == 0:
        for entry in scan(folder):
            delete_folder(entry.path)
        for name in (BEST_NAME, RECORD_NAME, "metrics.jsonl", "evaluations.jsonl", "wandb_run_id", "mlflow_run_id"):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / "tensorboard", ignore_errors=True)
        logger.warning("overwrite_save_dir: the checkpoints and metrics in %s have been deleted", folder)
    gather_objects(None)


def require_same_run(saved: Mapping[str, Any], loop: TrainLoop) -> None:
    """Refuse to continue a run whose config or data were different, except in fields that may change.

    Raises:
        ConfigError: lists every difference.
    """
    before, config = saved.get("config", {}), loop.run_config
    allowed = set(loop.config.allow_config_changes)
    if config is not None:
        # A setting that has come with a newer version of the program had its default before.
        before = with_todays_defaults(before, config)
        allowed |= changeable_paths(type(config))
    before = {**before, "fingerprints": saved.get("fingerprints", {})}
    now = _plain({**loop.parameters, "fingerprints": all_fingerprints(loop)})
    found = [change for change in differences(before, now) if not change.lies_below(*allowed)]
    if found:
        raise ConfigError(
            "the run has changed since its checkpoint:\n    " + "\n    ".join(map(str, found)),
            where=loop.config.save_dir,
            limit="no change but in length, logging, saving and evaluation",
            fix="undo it, choose another training.save_dir, or add to training.allow_config_changes: "
            f"{[change.path for change in found]}",
        )


def _restore_tensors(loop: TrainLoop) -> dict[str, Any]:
    everywhere, of_ranks = run_tensors(loop), rank_tensors(loop)
    num_ranks_before = len(read_extra(loop.checkpoints.directory)["rng"])
    if not of_ranks or num_ranks_before == world_size():
        return loop.checkpoints.restore(everywhere | of_ranks)
    extra = loop.checkpoints.restore(everywhere, only=set(everywhere))
    assert loop.compression is not None
    step = loop.checkpoints.restored_step
    loop.compression.take_over(load_tensors(loop.checkpoints.directory, step, set(of_ranks)))
    return extra


def _continue_from(extra: Mapping[str, Any], loop: TrainLoop) -> None:
    state = loop.state
    state.step, state.num_examples = int(extra["step"]), int(extra["num_examples"])
    state.cursor, state.loss = Cursor.from_dict(extra["cursor"]), extra.get("loss")
    state.metrics = dict(extra.get("metrics", {}))
    for hook in loop.hooks:
        if type(hook).__name__ in extra["hooks"]:
            hook.load_state_dict(extra["hooks"][type(hook).__name__])
    if len(extra["rng"]) == world_size():
        set_rng_state(extra["rng"][rank()], loop.device)
    else:
        # Streams of other ranks mean nothing here; new ones that depend on the step do not repeat old draws.
        seed_everything(loop.runtime.seed + 1_000_003 * state.step, rank())
        logger.warning("the number of ranks has changed from %d to %d", len(extra["rng"]), world_size())


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
