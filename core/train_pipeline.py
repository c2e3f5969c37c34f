"""One optimizer step over torchrec's pipelines: copy, forward, finite check, backward, update.

    pipeline = TrainPipeline(model, optimizers, device, guard=FiniteGuard(every_n=1, debug_dir="runs/a/debug"))
    try:
        while True:
            result = pipeline.step(batches)
    except StopIteration:          # every batch that `batches` gave has been trained
        pass

Two engines stand behind one door. `plain` copies a batch to the device while the one before computes (a processor has
nothing to copy); `sparse_dist` also sends the ids of the next batch between ranks. Both call
`model(batch) -> (loss, outputs)`. Tables are updated inside backward, so the finite check comes before it.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.train_pipeline import Tracer, TrainPipelineBase, TrainPipelineSparseDist
from torchrec.distributed.train_pipeline.tracing import _get_leaf_module_names
from torchrec.distributed.types import ShardedModule
from torchrec.streamable import Pipelineable

from tml.common.batch import DataclassBatch
from tml.common.device import autocast, gather_numbers, rank, world_size
from tml.common.errors import ConfigError, NonFiniteError
from tml.common.profiling import phase

logger = logging.getLogger(__name__)

Pipelineable.register(DataclassBatch)


@dataclass(frozen=True)
class StepResult:
    """What one step gave.

    Args:
        loss: this rank's loss, scalar, detached, on the device.
        outputs: what the model returned beside the loss.
        batch: the batch that was trained, on the device; its cursor is where the data goes on.
    """

    loss: Tensor
    outputs: dict[str, Any]
    batch: Any


class FiniteGuard:
    """Stops all ranks before the backward if the loss of any is not finite.

    Args:
        every_n: steps between checks; a check waits for the device.
        debug_dir: where a rank with a bad loss leaves its batch, or None for nowhere.
        first_step: completed steps at the start.
    """

    def __init__(self, every_n: int = 1, debug_dir: str | None = None, first_step: int = 0) -> None:
        self._every_n, self._debug_dir = every_n, debug_dir
        self._step = first_step

    def __call__(self, result: StepResult) -> None:
        """Check the loss of the step that is being made.

        Raises:
            NonFiniteError: on all ranks, naming the first rank with a bad loss.
        """
        self._step += 1
        if self._step % self._every_n:
            return
        losses = [loss for [loss] in gather_numbers([float(result.loss)])]
        bad = [number for number, loss in enumerate(losses) if not math.isfinite(loss)]
        if not bad:
            return
        path = self._save_batch(result) if rank() in bad else None
        raise NonFiniteError(
            "the loss is not finite",
            where=f"step {self._step}, rank {bad[0]}" + (f"; its batch is in {path}" if path else ""),
            value=losses[bad[0]],
            limit="a finite number",
            fix="lower the learning rate or look for bad values in the batch; the last checkpoint is from before it",
        )

    def _save_batch(self, result: StepResult) -> str | None:
        if self._debug_dir is None:
            return None
        path = os.path.join(self._debug_dir, f"non-finite-step-{self._step}-rank-{rank()}.pt")
        tensors = {"loss": result.loss}
        tensors |= {f"outputs.{name}": v for name, v in result.outputs.items() if isinstance(v, Tensor)}
        tensors |= {f"batch.{name}": tensor for name, tensor in result.batch.named_tensors().items()}
        try:
            os.makedirs(self._debug_dir, exist_ok=True)
            torch.save({name: tensor.detach().cpu() for name, tensor in tensors.items()}, path)
        except OSError as error:
            logger.warning("the batch of the bad loss cannot be saved to %s: %s", path, error)
            return None
        return path


class TrainPipeline:
    """Trains one batch per `step`.

    Args:
        model: `model(batch) -> (loss, outputs)`, on its device, sharded if it is to be.
        optimizers: has `zero_grad()` and `step()`: the optimizers, or a `GradientStep` before them.
        device: where batches go.
        engine: 'plain', 'sparse_dist' or 'auto'.
        amp: dense layers in bfloat16.
        guard: called with the result of every forward, before the backward; raises to prevent it.

    Raises:
        ConfigError: 'sparse_dist' was asked for, but nothing in the model can be pipelined.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Any,
        device: torch.device,
        *,
        engine: str = "auto",
        amp: bool = False,
        guard: Callable[[StepResult], None] | None = None,
    ) -> None:
        self.engine = choose_engine(engine, model, device)
        self._forward = _Forward(model, device, amp, guard or (lambda result: None))
        kind = _SparseDist if self.engine == "sparse_dist" else _OnHost if device.type == "cpu" else _Plain
        self._engine: Any = kind(self._forward, optimizers, device)
        self.pipelined_modules = pipelined_modules(model) if self.engine == "sparse_dist" else []
        if self.engine == "sparse_dist":
            logger.info("pipelined modules: %s", ", ".join(self.pipelined_modules))

    def step(self, batches: Iterator[Any]) -> StepResult:
        """Train the next batch of `batches`, always the same iterator, which is read up to two batches ahead.

        Raises:
            StopIteration: all batches have been trained.
            NonFiniteError: from the guard; no parameter has been changed by this batch.
        """
        result: StepResult = self._engine.progress(batches)
        return result

    def close(self) -> None:
        """Give the model its own forward back; batches under way are dropped."""
        if self.engine == "sparse_dist":
            self._engine.detach()
        self._engine.reset()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """While open, the model's forward can be called directly, as in an evaluation; batches under way are kept."""
        if self.engine != "sparse_dist":
            yield
            return
        self._engine.detach()
        try:
            yield
        finally:
            self._engine.resume()


def choose_engine(engine: str, model: nn.Module, device: torch.device) -> str:
    """'plain' or 'sparse_dist': the one asked for, or for 'auto' the better one for this model and device."""
    sharded = any(isinstance(module, ShardedModule) for module in model.modules())
    if engine == "plain" or (engine == "auto" and not (sharded and (world_size() > 1 or device.type != "cpu"))):
        return "plain"
    try:
        found, reason = pipelined_modules(model), "no sharded module takes a field of the batch as its input"
    except Exception as error:  # torch.fx has no error class of its own
        found, reason = [], f"the model cannot be traced: {error}"
    if found:
        return "sparse_dist"
    if engine == "sparse_dist":
        raise ConfigError(
            "nothing can be pipelined", where="runtime.pipeline", value=engine, limit=reason, fix="use auto or plain"
        )
    logger.warning("using the plain pipeline: %s", reason)
    return "plain"


def pipelined_modules(model: nn.Module) -> list[str]:
    """Names of the sharded modules whose input distribution can run ahead: their input is a field of the batch."""
    inner = model.module if isinstance(model, DistributedModelParallel) else model
    sharded = {name for name, module in inner.named_modules() if isinstance(module, ShardedModule)}
    graph = Tracer(leaf_modules=_get_leaf_module_names(inner)).trace(inner)
    calls = [node for node in graph.nodes if node.op == "call_module" and node.target in sharded]
    return [str(node.target) for node in calls if all(_is_field_of_batch(argument) for argument in node.args)]


def _is_field_of_batch(argument: Any) -> bool:
    while isinstance(argument, torch.fx.Node) and argument.op == "call_function":
        if argument.target is not getattr:
            return False
        argument = argument.args[0]
    return isinstance(argument, torch.fx.Node) and argument.op == "placeholder"


class _Forward(nn.Module):
    """The model's forward under autocast; remembers the result for the guard and hands the loss on for the backward."""

    def __init__(self, model: nn.Module, device: torch.device, amp: bool, guard: Callable[[StepResult], None]) -> None:
        super().__init__()
        self.model = model
        self._device, self._amp, self._guard = device, amp, guard
        self._result: StepResult | None = None

    def forward(self, batch: Any) -> tuple[Tensor, StepResult]:
        with autocast(self._device, self._amp):
            loss, outputs = self.model(batch)
        self._result = StepResult(loss.detach(), outputs, batch)
        return loss, self._result

    def backward(self, losses: Tensor) -> None:
        """Of the losses that the last forward gave, unless the guard prevents it."""
        assert self._result is not None
        result, self._result = self._result, None
        with phase("check"):
            self._guard(result)
        with phase("backward"):
            losses.backward()


class _OnHost:
    """A step where there is nothing to copy and nobody to wait for.

    Torchrec's pipelines would mark each of their stages for a profiler, and ask every tensor of a batch where it lies,
    which alone took .3 ms of the light ranker's step of 16.
    """

    def __init__(self, forward: _Forward, optimizers: Any, device: torch.device) -> None:
        self._forward, self._optimizers = forward, optimizers

    def progress(self, batches: Iterator[Any]) -> StepResult:
        with phase("read"):
            batch = next(batches)
        self._optimizers.zero_grad()
        with phase("forward"):
            loss, result = self._forward(batch)
        self._forward.backward(loss)
        with phase("update"):
            self._optimizers.step()
        return result

    def reset(self) -> None:
        """Nothing is under way between steps."""


class _Plain(TrainPipelineBase):  # type: ignore[type-arg]
    def __init__(self, forward: _Forward, optimizers: Any, device: torch.device) -> None:
        super().__init__(forward, optimizers, device)
        self._checked = forward

    def _backward(self, losses: Tensor) -> None:
        self._checked.backward(losses)


class _SparseDist(TrainPipelineSparseDist):  # type: ignore[type-arg]
    def __init__(self, forward: _Forward, optimizers: Any, device: torch.device) -> None:
        super().__init__(forward.model, optimizers, device, execute_all_batches=True, custom_model_fwd=forward)
        self._checked = forward

    def _backward(self, losses: Tensor) -> None:
        self._checked.backward(losses)

    def resume(self) -> None:
        self.attach(self._model)
