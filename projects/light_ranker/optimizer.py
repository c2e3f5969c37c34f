"""Optimizers of a light ranker: a fused one in the tables, dense ones for everything else."""

from __future__ import annotations

from torch import nn

from tml.common.modules.embedding_tables import LocalTables
from tml.common.modules.sharding import ShardedModel
from tml.core.optimizers.config import OptimizerConfig
from tml.core.optimizers.fused import FusedOptimizer, LocalFusedOptimizer, ShardedFusedOptimizer
from tml.core.optimizers.optimizers import Optimizers, build_dense_optimizer
from tml.core.optimizers.schedules import build_schedule
from tml.projects.light_ranker.config import MlpConfig, ModelConfig
from tml.projects.light_ranker.models.build import unwrapped
from tml.projects.light_ranker.models.mlp import MlpRanker

DENSE, PRETRAINED, TABLES, LOLLY = "dense", "pretrained", "tables", "lolly"
FINE_TUNING = OptimizerConfig.model_validate({"sgd": {"learning_rate": 0.01}})


def build_optimizers(config: ModelConfig, model: nn.Module) -> Optimizers:
    """All optimizers of a model and their schedules.

    Args:
        config: the `model` section.
        model: of `build_model`, on its device.
    """
    inner = unwrapped(model)
    if isinstance(inner, MlpRanker):
        assert config.mlp is not None
        return _of_mlp(config.mlp, model, inner)
    assert config.lolly_lr is not None
    section = config.lolly_lr.optimizer
    parameters = {"weight": inner.weight, "bias": inner.bias}
    return Optimizers(
        {LOLLY: build_dense_optimizer(section, parameters)}, {}, {LOLLY: build_schedule(section.learning_rate)}
    )


def _of_mlp(config: MlpConfig, model: nn.Module, inner: MlpRanker) -> Optimizers:
    of_tables = {f"pretrained.{name}.weight" for name in inner.pretrained}
    learning = {name: p for name, p in inner.head.named_parameters() if p.requires_grad}
    dense = {DENSE: build_dense_optimizer(config.dense_optimizer, _without(learning, of_tables))}
    schedules = {DENSE: build_schedule(config.dense_optimizer.learning_rate)}
    tuned = {name: parameter for name, parameter in learning.items() if name in of_tables}
    if tuned:
        section = config.pretrained_optimizer or FINE_TUNING
        dense[PRETRAINED] = build_dense_optimizer(section, tuned)
        schedules[PRETRAINED] = build_schedule(section.learning_rate)
    fused: dict[str, FusedOptimizer] = {}
    if inner.tables is not None:
        schedules[TABLES] = build_schedule(config.table_optimizer.learning_rate)
        fused[TABLES] = _fused(model, inner)
    return Optimizers(dense, fused, schedules)


def _fused(model: nn.Module, inner: MlpRanker) -> FusedOptimizer:
    if isinstance(model, ShardedModel):
        return ShardedFusedOptimizer(model.fused_optimizer)
    assert isinstance(inner.tables, LocalTables)
    return LocalFusedOptimizer(*inner.tables.kernels)


def _without(parameters: dict[str, nn.Parameter], names: set[str]) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in parameters.items() if name not in names}
