"""The training loop: restore, step, hooks, save; and evaluation, of a model in memory or of another job's checkpoints.

    with runtime_session(config.runtime, config.training.save_dir) as device:
        model, optimizers, data = ...
        with open_checkpoints(config.training) as checkpoints:
            loop = TrainLoop(model, optimizers, data, config.training, config.runtime, device, checkpoints,
                             evaluate=lambda stop: evaluate(model, validation, metrics, device, stop=stop),
                             run_config=config)
            state = train(loop)
    sys.exit(state.exit_code)

A step is one update of the parameters; `state.step` counts completed ones.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from typing import Any

import torch
from torch import nn

from tml.common import tracking
from tml.common.checkpointing import CheckpointManager, iterate_new, read_extra
from tml.common.device import gather_numbers, gather_objects, rank
from tml.common.errors import DataError
from tml.common.tracking.json_lines import read_metrics
from tml.core.batch_stream import AgreedBatches, Prefetcher, StopKind, StopRequest, accumulate, batches_of_epochs
from tml.core.config.training import TrainingConfig
from tml.core.hooks.signals import PREEMPTED_EXIT_CODE
from tml.core.optimizers.gradient_exchange import register_gradient_compression
from tml.core.optimizers.gradients import GradientStep
from tml.core.resume import empty_save_dir, restore_run, run_tensors
from tml.core.run_checks import check_settings
from tml.core.train_loop import EvaluationInterrupted, TrainLoop, TrainState, evaluating
from tml.core.train_pipeline import FiniteGuard, TrainPipeline
from tml.machines.launch import num_cores

__all__ = [
    "EvaluationInterrupted",
    "TrainLoop",
    "TrainState",
    "evaluate",
    "only_evaluate",
    "open_checkpoints",
    "train",
]

logger = logging.getLogger(__name__)


def open_checkpoints(config: TrainingConfig) -> CheckpointManager:
    """The checkpoints of `save_dir`; emptied first if the config says so."""
    checkpoints = CheckpointManager(
        config.save_dir,
        max_to_keep=config.checkpoint_max_to_keep,
        async_save=config.checkpoint_async,
        strict=config.strict_resume,
    )
    if config.overwrite_save_dir:
        empty_save_dir(checkpoints)
    return checkpoints


def train(loop: TrainLoop) -> TrainState:
    """Train until the configured number of steps or epochs, or until something asks for a stop.

    Continues by itself from the latest checkpoint of `save_dir`. Whatever ends training, short of an error, leaves a
    checkpoint of the last step. With early stopping the model is the best one when this returns.

    Raises:
        ConfigError: settings contradict each other, the other ranks, or the run that is to be continued.
        NonFiniteError: a loss is not finite; all ranks raise.
        DataError: a batch cannot be made; all ranks raise.
    """
    check_settings(loop)
    _prepare_gradients(loop)
    restore_run(loop)
    if loop.state.step > 0:
        loop.mark_restored()
    _open_trackers(loop)
    try:
        loop.pipeline = _build_pipeline(loop)
        loop.model.train()
        # What the imports and the model left is not looked through again: a full collection takes a tenth of a second.
        gc.collect()
        gc.freeze()
        loop.call_hooks("on_train_start")
        with closing(_batches(loop)) as batches:
            while not _is_over(loop) and _train_step(loop, batches):
                loop.call_hooks("after_step")
        loop.call_hooks("on_train_end")
        _go_back_to_best(loop)
    except BaseException as error:
        loop.call_hooks("on_error", error)
        _close_trackers(loop, "failed", f"{type(error).__name__}: {error}")
        raise
    finally:
        gc.unfreeze()
        if loop.pipeline is not None:
            loop.pipeline.close()
    return _ended(loop)


def evaluate(
    model: nn.Module,
    batches: Iterable[Any],
    metrics: Any,
    device: torch.device,
    *,
    num_steps: int = -1,
    stop: StopRequest | None = None,
) -> dict[str, float]:
    """Metrics of a model over batches, reduced over ranks; the loss, weighted by examples, is always among them.

    Args:
        model: `model(batch) -> (loss, outputs)`.
        batches: this rank's; as many on every rank.
        metrics: a torchmetrics collection that is updated with the outputs of each batch, or None.
        device: where batches go.
        num_steps: batches to use; -1 for all.
        stop: polled once a batch.

    Raises:
        DataError: there is no batch, or ranks have unequal numbers of them.
        EvaluationInterrupted: `stop` was asked for on some rank.
    """
    source = AgreedBatches(Prefetcher(batches, depth=1), stop, must_agree=True)
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    num_done = 0
    if metrics is not None:
        metrics.reset()
    with closing(source), evaluating(model):
        while num_done != num_steps and (batch := next(source, None)) is not None:
            batch = batch.to(device, non_blocking=True)
            loss, outputs = model(batch)
            sums += torch.stack([loss.detach().double() * batch.num_examples, sums.new_tensor(batch.num_examples)])
            if metrics is not None:
                metrics.update(outputs)
            num_done += 1
    if stop is not None and stop.agreed > StopKind.NONE:
        raise EvaluationInterrupted
    if num_done == 0:
        raise DataError("nothing to evaluate", limit="at least one batch", fix="check the evaluation data's files")
    weighted, weight = (sum(told) for told in zip(*gather_numbers(sums.tolist()), strict=True))
    computed = {} if metrics is None else {name: float(value) for name, value in metrics.compute().items()}
    return {"loss": weighted / weight} | computed


def only_evaluate(
    evaluate_checkpoint: Callable[[int], Mapping[str, float]], config: TrainingConfig
) -> dict[int, dict[str, float | None]]:
    """Evaluate each checkpoint that another job commits to `save_dir`, once, until its last one or a timeout.

    Results are appended to `save_dir/evaluations.jsonl`; steps that are there already are not evaluated again.

    Args:
        evaluate_checkpoint: called on all ranks with a committed step; loads and evaluates it.
        config: `save_dir`, `eval_poll_every_s` and `eval_timeout_in_s` are used.

    Returns:
        Metrics by step, those of earlier calls too.
    """
    path = os.path.join(config.save_dir, "evaluations.jsonl")
    results: dict[int, dict[str, float | None]] = gather_objects(_recorded(path))[0]
    for step in iterate_new(config.save_dir, poll_s=config.eval_poll_every_s, timeout_s=config.eval_timeout_in_s):
        if step not in results:
            results[step] = {name: float(value) for name, value in evaluate_checkpoint(step).items()}
            logger.info("evaluation of step %d: %s", step, results[step])
            if rank() == 0:
                with open(path, "a", encoding="utf-8") as file:
                    file.write(json.dumps({"step": step, "time": round(time.time(), 3)} | results[step]) + "\n")
        if gather_objects(_is_last(config.save_dir, step))[0]:
            break
    return results


def _prepare_gradients(loop: TrainLoop) -> None:
    config, every_n = loop.config.gradients, loop.config.train_log_every_n
    loop.gradients = GradientStep(
        loop.optimizers, config, loop.runtime.seed, wants_norm=lambda step: (step + 1) % every_n == 0
    )
    if config.compression is not None:
        loop.compression = register_gradient_compression(loop.model, loop.optimizers, config.compression)


def _build_pipeline(loop: TrainLoop) -> TrainPipeline:
    guard = FiniteGuard(
        loop.config.check_finite_every_n, os.path.join(loop.config.save_dir, "debug"), first_step=loop.state.step
    )
    return TrainPipeline(
        loop.model,
        loop.gradients,
        loop.device,
        engine=loop.runtime.pipeline,
        amp=loop.runtime.enable_amp,
        guard=guard,
    )


def _batches(loop: TrainLoop) -> AgreedBatches:
    batches = batches_of_epochs(loop.data, loop.state.cursor, loop.config.num_epochs)
    joined = accumulate(batches, loop.config.gradient_accumulation)
    pin = (lambda batch: batch.pin_memory()) if loop.device.type != "cpu" else None
    return AgreedBatches(Prefetcher(joined, _num_prefetch_batches(loop), pin), loop.stop)


def _num_prefetch_batches(loop: TrainLoop) -> int:
    wanted = loop.runtime.num_prefetch_batches
    if wanted is not None:
        return wanted
    return 0 if loop.device.type == "cpu" and num_cores() <= 2 else 2


def _is_over(loop: TrainLoop) -> bool:
    return loop.is_finished or loop.is_preempted


def _train_step(loop: TrainLoop, batches: AgreedBatches) -> bool:
    assert loop.pipeline is not None
    assert loop.gradients is not None
    for part in (loop.gradients, loop.compression):
        if part is not None:
            part.begin(loop.state.step)
    loop.learning_rates = loop.optimizers.set_learning_rates(loop.state.step)
    try:
        loop.result = loop.pipeline.step(batches)
    except StopIteration:
        return False
    loop.state.step += 1
    loop.state.cursor = loop.result.batch.cursor
    loop.state.num_examples += loop.result.batch.num_examples
    return True


def _go_back_to_best(loop: TrainLoop) -> None:
    best = loop.state.best_step
    if loop.config.early_stopping is None or loop.is_preempted or best is None or best == loop.state.step:
        return
    tensors = run_tensors(loop)
    loop.checkpoints.restore(tensors, step=best, only=set(tensors))
    logger.info("the model is that of step %d, the best one", best)


def _open_trackers(loop: TrainLoop) -> None:
    if rank() == 0:
        sections = {name: getattr(loop.runtime.tracking, name) for name in ("wandb", "mlflow")}
        loop.trackers = tracking.open_trackers(
            loop.config.save_dir,
            step=loop.state.step,
            run_config=loop.parameters,
            tensorboard=loop.runtime.tracking.tensorboard,
            **{name: None if section is None else section.model_dump() for name, section in sections.items()},
        )


def _close_trackers(loop: TrainLoop, status: str, message: str | None = None) -> None:
    if loop.trackers is not None:
        loop.trackers.close(status, message)
        loop.trackers = None


def _ended(loop: TrainLoop) -> TrainState:
    loop.state.stop_reason = loop.stop.reason
    loop.state.exit_code = PREEMPTED_EXIT_CODE if loop.is_preempted else 0
    _close_trackers(loop, "preempted" if loop.is_preempted else "finished")
    logger.info(
        "training ended at step %d, epoch %d%s",
        loop.state.step,
        loop.state.cursor.epoch,
        f": {loop.stop.reason}" if loop.stop.reason else "",
    )
    if not loop.state.has_trained and not loop.is_preempted:
        logger.warning(
            "nothing was trained, so what comes after training is left out: %s; fix: take away what stopped it, and "
            "start the run again",
            loop.stop.reason or "the data gave no batch",
        )
    return loop.state


def _is_last(save_dir: str, step: int) -> bool:
    return bool(read_extra(save_dir, step).get("finished"))


def _recorded(path: str) -> dict[int, dict[str, float | None]]:
    lines = read_metrics(path)
    return {int(line["step"] or 0): {k: v for k, v in line.items() if k not in ("step", "time")} for line in lines}
