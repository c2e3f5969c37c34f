"""Optimizers of a TwHIN model: fused ones in the tables, a dense one for the relations' parameters."""

from __future__ import annotations

from torch import nn

from tml.common.modules.embedding_tables import LocalTables
from tml.common.modules.sharding import ShardedModel
from tml.core.optimizers.fused import FusedOptimizer, LocalFusedOptimizer, ShardedFusedOptimizer
from tml.core.optimizers.optimizers import Optimizers, build_dense_optimizer
from tml.core.optimizers.schedules import build_schedule
from tml.projects.twhin.config import ModelConfig
from tml.projects.twhin.models.live_tables import unwrapped

RELATIONS = "relations"


def build_optimizers(config: ModelConfig, model: nn.Module) -> Optimizers:
    """All optimizers of a model and their schedules.

    Args:
        config: the `model` section.
        model: a `TwhinModel`, or a `ShardedModel` around one, on its device.
    """
    inner = unwrapped(model)
    relations = {"weight": inner.head.scorer.weight}
    dense = {RELATIONS: build_dense_optimizer(config.translation_optimizer, relations)}
    schedules = {RELATIONS: build_schedule(config.translation_optimizer.learning_rate)}
    fused: dict[str, FusedOptimizer] = {}
    of_table = {table.name: table.optimizer for table in config.embeddings.tables}
    for index, group in enumerate(inner.tables.layout.groups):
        schedules[group.name] = build_schedule(of_table[group.tables[0].name].learning_rate)
        if isinstance(model, ShardedModel):
            fused[group.name] = ShardedFusedOptimizer(model.fused_optimizer, [group.name])
        else:
            assert isinstance(inner.tables, LocalTables)
            fused[group.name] = LocalFusedOptimizer(inner.tables.kernels[index])
    return Optimizers(dense, fused, schedules)
