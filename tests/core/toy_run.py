"""A run small enough for a test: 1-D regression over rows that know their number."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tml.common.batch import Cursor, DataclassBatch
from tml.common.device import rank, world_size
from tml.core.config.base_config import BaseConfig
from tml.core.config.runtime import RuntimeConfig
from tml.core.config.training import TrainingConfig
from tml.core.custom_training_loop import TrainLoop, TrainState, open_checkpoints, train
from tml.core.hooks import Hook
from tml.core.optimizers.optimizers import Optimizers

CPU = torch.device("cpu")


class ToyConfig(BaseConfig):
    """The whole config of a run."""

    training: TrainingConfig
    runtime: RuntimeConfig


@dataclass
class RowsBatch(DataclassBatch):
    rows: Tensor  # int64 [B]
    x: Tensor  # [B, 2]
    y: Tensor  # [B]
    cursor: Cursor
    num_examples: int = field(metadata={"concat": "sum"})


class Rows:
    """`num_rows` rows in batches of `batch_size` over all ranks, in an order of (seed, epoch)."""

    def __init__(self, num_rows: int = 22, batch_size: int = 4, seed: int = 3, version: str = "a") -> None:
        self.num_rows, self.batch_size, self.seed, self.version = num_rows, batch_size, seed, version
        self.steps_per_epoch = -(-num_rows // batch_size)
        self.cursor = Cursor()

    def load_cursor(self, cursor: Cursor) -> None:
        self.cursor = cursor

    def fingerprint(self) -> str:
        return f"rows-{self.num_rows}-{self.version}"

    def __iter__(self) -> Iterator[RowsBatch]:
        epoch = self.cursor.epoch
        order = torch.randperm(self.num_rows, generator=torch.Generator().manual_seed(self.seed + 1000 * epoch))
        for first in range(self.cursor.row, self.num_rows, self.batch_size):
            stop = min(first + self.batch_size, self.num_rows)
            after = Cursor(epoch, stop) if stop < self.num_rows else Cursor(epoch + 1, 0)
            mine = order[first:stop].tensor_split(world_size())[rank()]
            yield rows_batch(mine, after, stop - first)


def rows_batch(rows: Tensor, cursor: Cursor, num_examples: int) -> RowsBatch:
    x = torch.stack([torch.sin(rows.float()), torch.cos(rows.float())], dim=1)
    return RowsBatch(rows, x, x[:, 0] - 2 * x[:, 1] + 0.3, cursor, num_examples)


class ToyModel(nn.Module):
    """Linear with dropout, so that random streams matter."""

    def __init__(self, seed: int = 0, dropout: float = 0.2) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, generator=torch.Generator().manual_seed(seed)))
        self.dropout = nn.Dropout(dropout)

    def forward(self, batch: RowsBatch) -> tuple[Tensor, dict[str, Tensor]]:
        scores = self.dropout(batch.x) @ self.weight
        loss = (scores - batch.y).square().sum() / max(len(batch.y), 1)
        return loss, {"scores": scores.detach(), "loss": loss.detach()}

    def checkpoint_tensors(self) -> dict[str, Tensor]:
        return {"weight": self.weight.detach()}


def toy_optimizers(model: ToyModel, momentum: float = 0.9) -> Optimizers:
    dense = torch.optim.SGD([("weight", model.weight)], lr=0.0, momentum=momentum)
    return Optimizers({"dense": dense}, {}, {"dense": lambda step: 0.05 / (1 + step)})


class RecordHook(Hook):
    """Remembers what was trained; `at` runs actions once a step is complete."""

    def __init__(self, at: Mapping[int, Callable[[TrainLoop], None]] | None = None) -> None:
        self.at = dict(at or {})
        self.rows: list[list[int]] = []
        self.losses: list[float] = []
        self.rates: list[float] = []
        self.evaluations: list[tuple[int, dict[str, float]]] = []

    def after_step(self, loop: TrainLoop) -> None:
        assert loop.result is not None
        self.rows.append(loop.result.batch.rows.tolist())
        self.losses.append(float(loop.result.loss))
        self.rates.append(loop.learning_rates["dense"])
        if loop.state.step in self.at:
            self.at[loop.state.step](loop)

    def after_evaluation(self, loop: TrainLoop, metrics: dict[str, float]) -> None:
        self.evaluations.append((loop.state.step, metrics))


class Crash(Exception):
    """What `crash` ends a run with."""


def crash(loop: TrainLoop) -> None:
    """An action of `RecordHook`."""
    raise Crash


@dataclass
class Outcome:
    state: TrainState
    weight: list[float]
    momentum: list[float]
    record: RecordHook
    steps: list[int]
    best: int | None


def toy_config(save_dir: Path | str, **settings: Any) -> TrainingConfig:
    return TrainingConfig(**({"save_dir": str(save_dir), "train_log_every_n": 3} | settings))


def run_toy(
    save_dir: Path | str,
    *,
    at: Mapping[int, Callable[[TrainLoop], None]] | None = None,
    evaluate: Any = None,
    data: Any = None,
    runtime: Mapping[str, Any] | None = None,
    seed_of_model: int = 0,
    momentum: float = 0.9,
    config_type: Callable[..., BaseConfig] = ToyConfig,
    wrap: Callable[[nn.Module], nn.Module] = lambda model: model,
    **settings: Any,
) -> Outcome:
    """Train the toy, wrapped, in `save_dir`; `settings` are those of `TrainingConfig`."""
    config = toy_config(save_dir, **settings)
    runtime_config = RuntimeConfig(**({"tracking": {"tensorboard": False}} | dict(runtime or {})))
    model, record = ToyModel(seed_of_model), RecordHook(at)
    optimizers = toy_optimizers(model, momentum)
    torch.manual_seed(5 + rank())
    with open_checkpoints(config) as checkpoints:
        loop = TrainLoop(
            wrap(model),
            optimizers,
            data or Rows(),
            config,
            runtime_config,
            CPU,
            checkpoints,
            evaluate=evaluate,
            hooks=[record],
            run_config=config_type(training=config, runtime=runtime_config),
        )
        state = train(loop)
        steps, best = checkpoints.steps(), checkpoints.best()
    state_of_weight = optimizers.dense["dense"].state[model.weight]
    buffer = state_of_weight["momentum_buffer"].tolist() if momentum else []
    return Outcome(state, model.weight.tolist(), buffer, record, steps, best)
