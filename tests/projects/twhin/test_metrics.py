"""Held-out edges of a run: checked at once, ranked against all that is known, which is read when it is needed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.projects.twhin.tiny import NUM_TWEETS, TinyGraph, config_of, tiny_settings, write_edges, write_graph
from tml.common.errors import DataError
from tml.projects.twhin import metrics
from tml.projects.twhin.data.dataset import read_edges
from tml.projects.twhin.data.edges import concatenate
from tml.projects.twhin.evaluation import LinkPredictionEvaluator
from tml.projects.twhin.metrics import LinkPrediction, ranking_options
from tml.projects.twhin.models.build import build_model, edge_schema
from tml.projects.twhin.models.live_tables import embedding_source, head_of
from tml.projects.twhin.tables import table_layout

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def graph(tmp_path_factory) -> TinyGraph:
    return write_graph(tmp_path_factory.mktemp("graph"))


@pytest.fixture
def run(graph):
    """A config with all three splits, its schema, and a model at its start."""
    held_out = {f"{name}_data": {"data_root": getattr(graph, split)} for name, split in
                (("validation", "valid"), ("test", "test"))}  # fmt: skip
    config = config_of(tiny_settings(graph, "unused", **held_out))
    model = build_model(config.model, config.train_data, table_layout(config.model, "cpu"), CPU, seed=3)
    return config, edge_schema(config.model), model


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize("max_edges", [None, 40])
def test_ranks_are_those_against_every_edge_of_every_split(run, split, max_edges):
    config, schema, model = run
    section = getattr(config, f"{split}_data")
    found = LinkPrediction(config, section, schema, max_edges).evaluate(model, CPU)
    every = [read_edges(part, schema) for part in (config.train_data, config.validation_data, config.test_data)]
    evaluator = LinkPredictionEvaluator(concatenate(*every), ranking_options(config, max_edges))
    expected = evaluator.evaluate(read_edges(section, schema), head_of(model).scorer, embedding_source(model, CPU))
    assert found == expected
    assert found["filtered.mrr"] > found["raw.mrr"]


def test_the_training_edges_are_read_by_the_first_evaluation_and_only_by_it(run, monkeypatch):
    config, schema, model = run
    read = []
    blocks = metrics.edge_blocks
    monkeypatch.setattr(metrics, "edge_blocks", lambda section: read.append(section) or blocks(section))
    metric = LinkPrediction(config, config.validation_data, schema)
    assert read == []
    first = metric.evaluate(model, CPU)
    assert sorted(section.data_root for section in read) == sorted(
        section.data_root for section in (config.train_data, config.validation_data, config.test_data)
    )
    assert metric.evaluate(model, CPU) == first
    assert len(read) == 3


def test_a_bad_held_out_edge_shows_before_training(graph, run, tmp_path):
    config, schema, _ = run
    write_edges(tmp_path / "valid" / "part-0.parquet", np.array([[0, 1, NUM_TWEETS]]))
    bad = config.validation_data.model_copy(update={"data_root": str(tmp_path / "valid")})
    with pytest.raises(DataError, match="row 0"):
        LinkPrediction(config, bad, schema)
