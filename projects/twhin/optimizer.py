"""Optimizers of a TwHIN model: fused ones in the tables, a dense one for the relations' parameters."""

from __future__ import annotations

import torch
from torch import nn

from tml.common.modules.embedding_tables import LocalTables
from tml.common.modules.sharding import ShardedModel
from tml.common.modules.table_layout import FusedOptimizerSpec, TableLayout, TableSpec
from tml.core.config import config_hash
from tml.core.optimizers.config import OptimizerConfig
from tml.core.optimizers.fused import (
    FusedOptimizer,
    LocalFusedOptimizer,
    ShardedFusedOptimizer,
    check_fused_support,
)
from tml.core.optimizers.optimizers import Optimizers, build_dense_optimizer
from tml.core.optimizers.schedules import build_schedule
from tml.projects.twhin.config import ModelConfig
from tml.projects.twhin.models.model import TwhinModel

RELATIONS = "relations"


def table_layout(config: ModelConfig, device: torch.device) -> TableLayout:
    """The tables of a model and where each lies.

    Raises:
        ConfigError: the kernels of this device lack an optimizer.
    """
    specs = []
    for index, table in enumerate(config.embeddings.tables):
        check_fused_support(table.optimizer, device.type, where=f"model.embeddings.tables.{index}.optimizer")
        specs.append(
            TableSpec(
                name=table.name,
                num_embeddings=table.num_embeddings,
                embedding_dim=table.embedding_dim,
                optimizer=_fused_spec(table.optimizer),
                data_type=table.data_type,
                init_scale=table.init_scale,
            )
        )
    return TableLayout(specs)


def build_optimizers(config: ModelConfig, model: nn.Module) -> Optimizers:
    """All optimizers of a model and their schedules.

    Args:
        config: the `model` section.
        model: a `TwhinModel`, or a `ShardedModel` around one, on its device.
    """
    inner = model.module if isinstance(model, ShardedModel) else model
    assert isinstance(inner, TwhinModel)
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


def _fused_spec(config: OptimizerConfig) -> FusedOptimizerSpec:
    kind, section = config.chosen
    learning_rate = build_schedule(section.learning_rate)(0)
    return FusedOptimizerSpec(
        kind=kind,
        learning_rate=learning_rate,
        eps=getattr(section, "eps", 1e-8),
        betas=getattr(section, "betas", (0.9, 0.999)),
        weight_decay=section.weight_decay,
        schedule_key=config_hash(section.learning_rate),
    )
