"""Sharding: a model with `ShardedTables` becomes one that trains on several ranks or a GPU.

Tables are sharded row-wise over all ranks by an explicit plan (torchrec's planner refuses row-wise bags on a CPU),
everything else is replicated by DDP. Table gradients are averaged over ranks, as DDP's are.
"""

from __future__ import annotations

from typing import Any, Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.sharding_plan import construct_module_sharding_plan, row_wise
from torchrec.distributed.types import ModuleSharder, ShardingEnv, ShardingPlan
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from tml.common.modules.embedding_tables import ShardedTables, init_rows
from tml.common.modules.table_layout import FusedKind, FusedOptimizerSpec

OPTIMIZER_CLASSES: dict[FusedKind, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adagrad": torch.optim.Adagrad,
    "rowwise_adagrad": RowWiseAdagrad,
    "adam": torch.optim.Adam,
}


class TableModel(Protocol):
    """What `ShardedModel` needs of a model: its tables under `tables`, and its other tensors by name."""

    tables: ShardedTables

    def dense_tensors(self) -> dict[str, Tensor]:
        """Live parameters outside the tables, by their name in a checkpoint."""


class ShardedModel(DistributedModelParallel):
    """A model whose `tables` are sharded row-wise over all ranks.

    Args:
        model: a `TableModel`.
        device: of this rank.
        seed: of the initial rows; the same rows for any number of ranks.
    """

    def __init__(self, model: nn.Module, device: torch.device, seed: int) -> None:
        tables = cast(ShardedTables, model.tables)
        self._layout = tables.layout
        for group in tables.layout.groups:
            # A fresh dict each time: the callee rewrites the caller's.
            apply_optimizer_in_backward(
                OPTIMIZER_CLASSES[group.optimizer.kind],
                tables.bags.embedding_bags[group.name].parameters(),
                _optimizer_arguments(group.optimizer),
            )
        sharder = cast(ModuleSharder[nn.Module], EmbeddingBagCollectionSharder())
        num_ranks = dist.get_world_size()
        plan = construct_module_sharding_plan(
            tables.bags,
            {group.name: row_wise() for group in tables.layout.groups},
            sharder,
            local_size=num_ranks,
            world_size=num_ranks,
            device_type=device.type,
        )
        super().__init__(
            model,
            env=ShardingEnv.from_process_group(dist.group.WORLD),
            device=device,
            plan=ShardingPlan({"tables.bags": plan}),
            sharders=[sharder],
        )
        self._init_rows(seed)

    def checkpoint_tensors(self) -> dict[str, Any]:
        """Live weights and optimizer states by the names that `LocalTables` uses; tables as ShardedTensors."""
        weights = self.state_dict()
        tensors: dict[str, Any] = {}
        for group in self._layout.groups:
            key = f"tables.bags.embedding_bags.{group.name}.weight"
            tensors[f"tables.{group.name}.weight"] = weights[key]
            state = self.fused_optimizer.state_dict()["state"].get(key, {})
            for name, value in state.items():
                if not isinstance(value, dict):
                    tensors[f"tables.{name}"] = value
        return tensors | cast(TableModel, self.module).dense_tensors()

    @torch.no_grad()
    def _init_rows(self, seed: int) -> None:
        tensors = self.checkpoint_tensors()
        for group in self._layout.groups:
            for shard in tensors[f"tables.{group.name}.weight"].local_shards():
                rows = torch.empty(shard.tensor.shape)
                init_rows(group, rows, seed, first_row=shard.metadata.shard_offsets[0])
                shard.tensor.copy_(rows)


def _optimizer_arguments(optimizer: FusedOptimizerSpec) -> dict[str, object]:
    arguments: dict[str, object] = {"lr": optimizer.learning_rate}
    if optimizer.weight_decay:
        arguments["weight_decay"] = optimizer.weight_decay
    if optimizer.kind != "sgd":
        arguments["eps"] = optimizer.eps
    if optimizer.kind == "adam":
        arguments["betas"] = optimizer.betas
    return arguments
