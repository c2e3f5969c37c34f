"""The same run on one rank and on two, sharded and not, pipelined and plain, in one batch and in several: equal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed import run_ranks
from tests.projects.twhin.tiny import TinyGraph, run, tables, tiny_settings, write_graph
from tests.runs import Settings, assert_close_tensors, evaluations, final_tensors, losses, merged

# 3310 or so edges in batches of 400: the last batch of an epoch leaves nothing to the second rank.
NUM_STEPS = 18


@pytest.fixture(scope="module")
def graph(tmp_path_factory) -> TinyGraph:
    graph = write_graph(tmp_path_factory.mktemp("graph"))
    assert 0 < graph.num_train % 400 < 200
    return graph


def _settings(graph: TinyGraph, save_dir: Path, **sections: Any) -> Settings:
    """Two epochs in two blocks a batch; relations of two operators over two tables."""
    base: Settings = {
        "training": {"num_epochs": 2},
        "train_data": {"assembly_blocks": 2},
        "validation_data": {"data_root": graph.valid},
    }
    return tiny_settings(graph, save_dir, **merged(base, sections))


def _one_group(settings: Settings) -> Settings:
    return settings


def _two_groups(settings: Settings) -> Settings:
    """An optimizer and a schedule per table, so two physical tables."""
    user, tweet = tables(settings)
    tweet["optimizer"] = {"sgd": {"learning_rate": {"exponential": {
        "learning_rate": 2.0, "decay_rate": 0.5, "decay_steps": 10,
    }}}}  # fmt: skip
    return merged(settings, {"model": {"embeddings": {"tables": [user, tweet]}}})


def _elaborate(settings: Settings) -> Settings:
    """Every operator, weights, reciprocal parameters, a penalty, Adagrad per weight, another loss and comparator."""
    operators = ("diagonal", "identity", "complex_diagonal", "translation")
    model = {
        "embeddings": {"tables": tables(settings, optimizer={"adagrad": {"learning_rate": 0.05}})},
        "relations": [
            relation | {"operator": operators[number], "weight": 0.5 + number}
            for number, relation in enumerate(settings["model"]["relations"])
        ],
        "loss": "logistic",
        "comparator": "cosine",
        "reciprocal_relations": True,
        "regularization": {"kind": "l2", "weight": 0.001},
    }
    return merged(settings, {"model": model})


def _assert_same_run(found: Settings, expected: Settings, metrics: bool = True) -> None:
    one, other = found["training"]["save_dir"], expected["training"]["save_dir"]
    assert len(losses(other)) == NUM_STEPS
    assert losses(one) == pytest.approx(losses(other), rel=1e-4)
    assert_close_tensors(final_tensors(one), final_tensors(other))
    if metrics:
        assert evaluations(one)[NUM_STEPS]["filtered.mrr"] == pytest.approx(
            evaluations(other)[NUM_STEPS]["filtered.mrr"], abs=0.01
        )


@pytest.mark.parametrize("make", [_one_group, _two_groups, _elaborate])
def test_two_ranks_equal_one_rank(make, graph, tmp_path):
    one = make(_settings(graph, tmp_path / "one"))
    two = merged(one, {"training": {"save_dir": str(tmp_path / "two")}})
    assert run(one) == 0
    assert run_ranks(run, 2, two) == [0, 0]
    _assert_same_run(two, one)


def test_two_ranks_equal_one_rank_for_a_batch_smaller_than_the_kinds_of_edges(graph, tmp_path):
    settings = _settings(
        graph,
        tmp_path / "one",
        training={"num_epochs": None, "num_train_steps": NUM_STEPS},
        train_data={"global_batch_size": 2, "limit": 7},
    )
    two = merged(settings, {"training": {"save_dir": str(tmp_path / "two")}})
    assert run(settings) == 0
    assert run_ranks(run, 2, two) == [0, 0]
    _assert_same_run(two, settings, metrics=False)


def test_each_rank_may_have_its_own_number_of_edges(graph, tmp_path):
    settings = tiny_settings(graph, tmp_path / "run")
    settings["train_data"] |= {"global_batch_size": None, "per_replica_batch_size": 200}
    assert run_ranks(run, 2, settings) == [0, 0]
    assert len(losses(tmp_path / "run")) == -(-graph.num_train // 400)


def _run_sharded(settings: Settings) -> int:
    """A run on one rank whose tables are sharded all the same, as they are on a GPU."""
    from unittest import mock

    from tml.common.modules.embedding_tables import ShardedTables
    from tml.common.modules.sharding import ShardedModel
    from tml.projects.twhin.models import build
    from tml.projects.twhin.models.model import TwhinModel

    def sharded(tables: Any, head: Any) -> Any:
        return ShardedModel(TwhinModel(ShardedTables(tables), head), torch.device("cpu"), seed=0)

    with (
        mock.patch.object(build, "LocalTables", lambda layout, seed: layout),
        mock.patch.object(build, "TwhinModel", sharded),
    ):
        return run(settings)


@pytest.mark.parametrize("make", [_one_group, _two_groups])
def test_sharded_equals_unsharded(make, graph, tmp_path):
    settings = make(_settings(graph, tmp_path / "local"))
    assert run(settings) == 0
    sharded = merged(settings, {"training": {"save_dir": str(tmp_path / "sharded")}})
    assert _run_sharded(sharded) == 0
    _assert_same_run(sharded, settings)


def test_pipelined_equals_plain(graph, tmp_path):
    plain = _two_groups(_settings(graph, tmp_path / "plain", runtime={"pipeline": "plain"}))
    plain["training"]["evaluate_every_n"] = 4
    pipelined = merged(
        plain, {"training": {"save_dir": str(tmp_path / "pipelined")}, "runtime": {"pipeline": "sparse_dist"}}
    )
    assert run_ranks(run, 2, plain) == [0, 0]
    assert run_ranks(run, 2, pipelined) == [0, 0]
    _assert_same_run(pipelined, plain)
    assert losses(tmp_path / "pipelined") == losses(tmp_path / "plain")


@pytest.mark.parametrize("num", [2, 4])
def test_b17_accumulating_batches_equals_one_batch_of_all_of_them(num, graph, tmp_path):
    whole = _settings(graph, tmp_path / "whole", train_data={"assembly_blocks": num})
    parts = merged(
        whole,
        {
            "training": {"save_dir": str(tmp_path / "parts"), "gradient_accumulation": num},
            "train_data": {"global_batch_size": 400 // num, "assembly_blocks": 1},
        },
    )
    assert run(whole) == 0
    assert run(parts) == 0
    _assert_same_run(parts, whole)
