"""The parts of a run and how far it has come: what `train` works on and hooks talk to."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from tml.common.batch import Cursor
from tml.common.checkpointing import CheckpointManager
from tml.common.device import gather_objects, rng_state, set_rng_state
from tml.common.tracking import Trackers
from tml.core.batch_stream import StopKind, StopRequest, TrainingData
from tml.core.config.base_config import BaseConfig
from tml.core.config.runtime import RuntimeConfig
from tml.core.config.training import TrainingConfig
from tml.core.hooks import Hook
from tml.core.hooks.checkpointing import CheckpointHook
from tml.core.hooks.duration import DurationHook
from tml.core.hooks.evaluation import EvaluationHook
from tml.core.hooks.logging import LoggingHook
from tml.core.hooks.profiler import ProfilerHook
from tml.core.hooks.progress import ProgressHook
from tml.core.hooks.signals import SignalHook
from tml.core.hooks.stopping import StopAtTimeHook, StopIfFileExistsHook
from tml.core.optimizers.compression import GradientCompression
from tml.core.optimizers.gradients import GradientStep
from tml.core.resume import extra_of, rank_tensors, run_tensors
from tml.core.train_pipeline import StepResult, TrainPipeline

logger = logging.getLogger(__name__)

Evaluate = Callable[[StopRequest], Mapping[str, float]]


class EvaluationInterrupted(Exception):
    """An evaluation was left because training is to stop; it has no result."""


@dataclass
class TrainState:
    """How far training has come.

    Args:
        step: completed updates since the start of the run, over restarts.
        cursor: the place in the data after the last trained batch.
        num_examples: examples trained, of all ranks, each time they were seen.
        loss: mean loss of the last log line, over ranks and steps, or None.
        metrics: of the last evaluation.
        best_step: the best step by early stopping's metric, or None.
        stop_reason: why training ended before its number of steps or epochs, or None.
        exit_code: for the process: 0, or 75 if the run was preempted and is to be started again.
    """

    step: int = 0
    cursor: Cursor = field(default_factory=Cursor)
    num_examples: int = 0
    loss: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    best_step: int | None = None
    stop_reason: str | None = None
    exit_code: int = 0

    @property
    def has_trained(self) -> bool:
        """Whether there was a step at all; a stop may come before the first one, and the model is then as it began."""
        return self.step > 0

    @property
    def model_step(self) -> int:
        """The step that the model is of once training has ended: after early stopping, the best one."""
        return self.step if self.best_step is None else self.best_step


@dataclass
class TrainLoop:
    """The parts of a run, and what hooks may ask of it.

    Args:
        model: `model(batch) -> (loss, outputs)` on its device; it, or the module inside its wrappers, has
            `checkpoint_tensors()`.
        optimizers: `tml.core.optimizers.Optimizers`, or anything with its methods.
        data: this rank's batches.
        config: the training section.
        runtime: the runtime section.
        device: where batches go.
        checkpoints: of `config.save_dir`.
        evaluate: called on all ranks with the stop request, the model in evaluation mode and gradients off; gives the
            metrics, of which rank 0's count. It may poll the request and raise `EvaluationInterrupted`. None for no
            evaluation.
        hooks: called after the ones that the config asks for.
        run_config: the whole config, kept in checkpoints and compared on resume; None if there is only `config`.
        fingerprints: identities of other inputs, such as the vocabulary; the data's own is added.
    """

    model: nn.Module
    optimizers: Any
    data: TrainingData
    config: TrainingConfig
    runtime: RuntimeConfig
    device: torch.device
    checkpoints: CheckpointManager
    evaluate: Evaluate | None = None
    hooks: list[Hook] = field(default_factory=list)
    run_config: BaseConfig | None = None
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    state: TrainState = field(default_factory=TrainState)
    stop: StopRequest = field(default_factory=StopRequest)
    result: StepResult | None = None
    learning_rates: dict[str, float] = field(default_factory=dict)
    gradients: GradientStep | None = None
    compression: GradientCompression | None = None
    pipeline: TrainPipeline | None = None
    trackers: Trackers | None = None
    evaluation_seconds: float = 0.0

    def __post_init__(self) -> None:
        self.hooks = [*default_hooks(self.config), *self.hooks]
        self._saved_step: int | None = None

    @property
    def parameters(self) -> dict[str, Any]:
        """The whole config as plain values."""
        return {} if self.run_config is None else self.run_config.model_dump(mode="json")

    @property
    def total_steps(self) -> int | None:
        """Steps of the whole run, as far as they can be known, for the time left."""
        limits = [self.config.num_train_steps] if self.config.num_train_steps else []
        if self.config.num_epochs:
            per_epoch = -(-self.data.steps_per_epoch // self.config.gradient_accumulation)
            limits.append(per_epoch * self.config.num_epochs)
        return min(limits, default=None)

    @property
    def is_finished(self) -> bool:
        """Nothing is left to train: enough steps or epochs, or a stop that is not a preemption."""
        steps, epochs = self.config.num_train_steps, self.config.num_epochs
        enough_steps = steps is not None and self.state.step >= steps
        enough_epochs = epochs is not None and self.state.cursor.epoch >= epochs
        return enough_steps or enough_epochs or self.stop.agreed == StopKind.DONE

    @property
    def is_preempted(self) -> bool:
        """A signal ends the run before its time; it is to be started again."""
        return self.stop.agreed == StopKind.PREEMPTED and not self.is_finished

    def request_stop(self, reason: str, kind: StopKind = StopKind.DONE, everywhere: bool = False) -> None:
        """Ask for the end of training after this step, or after the next one where ranks have to agree first."""
        self.stop.ask(reason, kind, everywhere)

    def call_hooks(self, moment: str, *args: Any) -> None:
        """Call one method of every hook."""
        for hook in self.hooks:
            getattr(hook, moment)(self, *args)

    def save_checkpoint(self, final: bool = False) -> None:
        """Save this step unless it is saved already; with `final`, wait until it is committed."""
        if self._saved_step != self.state.step:
            self.checkpoints.save(self.state.step, run_tensors(self) | rank_tensors(self), extra_of(self))
            self._saved_step = self.state.step
        if final:
            self.checkpoints.wait()

    def mark_best(self, metric: str, value: float) -> None:
        """Protect this step, which has been saved, as the best one."""
        self.checkpoints.mark_best(self.state.step, metric, value)

    def run_evaluation(self) -> None:
        """Evaluate now and tell the hooks; random streams come out as they went in."""
        if self.evaluate is None or self.config.num_eval_steps == 0:
            return
        assert self.pipeline is not None
        start, streams = time.monotonic(), rng_state(self.device)
        try:
            with self.pipeline.paused(), evaluating(self.model):
                metrics = {name: float(value) for name, value in self.evaluate(self.stop).items()}
        except EvaluationInterrupted:
            logger.warning("evaluation at step %d left: %s", self.state.step, self.stop.reason)
            return
        finally:
            set_rng_state(streams, self.device)
            self.evaluation_seconds += time.monotonic() - start
        # Decisions follow from these numbers, so all ranks take those of rank 0 to the last bit.
        self.state.metrics = gather_objects(metrics)[0]
        self.call_hooks("after_evaluation", self.state.metrics)

    def track(self, values: Mapping[str, float]) -> None:
        """Hand values of this step to the trackers; only rank 0 has any."""
        if self.trackers is not None:
            self.trackers.track(self.state.step, values)

    def mark_restored(self) -> None:
        """Remember that this step's checkpoint exists."""
        self._saved_step = self.state.step


def default_hooks(config: TrainingConfig) -> list[Hook]:
    """The hooks that the config asks for, in the order of their calls: what stops, then what looks, then saving."""
    hooks: list[Hook] = [SignalHook(), DurationHook(config.max_duration_in_s)]
    if config.stop_at_time is not None:
        hooks.append(StopAtTimeHook(config.stop_at_time))
    if config.stop_if_file_exists is not None:
        hooks.append(StopIfFileExistsHook(config.stop_if_file_exists))
    if config.profile_steps is not None:
        folder = os.path.join(config.save_dir, "profile")
        hooks.append(ProfilerHook(config.profile_steps.start, config.profile_steps.count, folder))
    hooks += [ProgressHook(), LoggingHook(config.train_log_every_n)]
    hooks.append(EvaluationHook(config.evaluate_every_n, config.early_stopping))
    hooks.append(CheckpointHook(config.checkpoint_every_n))
    return hooks


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode and without gradients, and back in its old mode afterwards."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
