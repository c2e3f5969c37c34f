"""Builds the model that a config describes, on the device and ranks at hand."""

from __future__ import annotations

import torch
from torch import nn

from tml.common.device import world_size
from tml.common.modules.embedding_tables import LocalTables, ShardedTables
from tml.common.modules.sharding import ShardedModel
from tml.common.modules.table_layout import TableLayout
from tml.projects.twhin.config import ModelConfig, TrainDataConfig
from tml.projects.twhin.data.dataset import chunk_shape
from tml.projects.twhin.data.edges import EdgeSchema
from tml.projects.twhin.models.model import HeadSettings, TwhinHead, TwhinModel
from tml.projects.twhin.models.relations import RelationScorer, RelationSpec


def relation_specs(config: ModelConfig) -> list[RelationSpec]:
    """The relations in order of their index."""
    return [RelationSpec(r.name, r.lhs, r.rhs, r.operator) for r in config.relations]


def edge_schema(config: ModelConfig) -> EdgeSchema:
    """What an edge may hold."""
    return EdgeSchema(relation_specs(config), {table.name: table.num_embeddings for table in config.embeddings.tables})


def build_scorer(config: ModelConfig) -> RelationScorer:
    """The relations' parameters, at their start."""
    return RelationScorer(
        relation_specs(config),
        config.embeddings.tables[0].embedding_dim,
        config.comparator,
        config.reciprocal_relations,
    )


def build_head(config: ModelConfig, data: TrainDataConfig) -> TwhinHead:
    """The model without its tables, with relations at their start."""
    regularization = config.regularization
    settings = HeadSettings(
        shape=chunk_shape(data),
        loss=config.loss,
        margin=config.margin_in_effect,
        regularizer=regularization.kind if regularization else None,
        regularization_weight=regularization.weight if regularization else 0.0,
        num_ranks=world_size(),
    )
    return TwhinHead(build_scorer(config), settings)


def build_model(
    config: ModelConfig, data: TrainDataConfig, layout: TableLayout, device: torch.device, seed: int
) -> nn.Module:
    """A model ready to train.

    Args:
        config: the `model` section.
        data: the `train_data` section, which says what a chunk holds.
        layout: where each table lies.
        device: of this rank.
        seed: of the initial rows.

    Returns:
        A `TwhinModel` over `LocalTables` on one CPU rank, else a `ShardedModel` around one over `ShardedTables`.
    """
    head = build_head(config, data)
    if device.type == "cpu" and world_size() == 1:
        return TwhinModel(LocalTables(layout, seed), head)
    return ShardedModel(TwhinModel(ShardedTables(layout), head.to(device)), device, seed)
