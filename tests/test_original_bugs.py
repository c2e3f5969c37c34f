"""The faults of the published the-algorithm-ml that are short to test; index/original_bugs.txt has them all."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from tests.projects.twhin.tiny import (
    TinyGraph,
    config_of,
    edges_of,
    read_edges_of,
    run,
    tables,
    tiny_settings,
    write_edges,
    write_graph,
)
from tests.runs import final_tensors, losses, merged
from tml.common.batch import Cursor
from tml.common.checkpointing import CheckpointManager, read_extra
from tml.common.errors import ConfigError
from tml.common.modules.table_layout import FusedOptimizerSpec, TableLayout, TableSpec
from tml.common.tracking.json_lines import read_metrics
from tml.core.config import parse_config
from tml.core.losses import LossType, build_loss
from tml.core.metrics import StableMean
from tml.core.optimizers.config import OptimizerConfig
from tml.projects.twhin.config import RelationConfig
from tml.projects.twhin.data.chunks import ChunkAssembler, ChunkShape
from tml.projects.twhin.data.dataset import EdgesDataset
from tml.projects.twhin.data.edges import EdgeArrays, EdgeSchema
from tml.projects.twhin.models.build import edge_schema
from tml.projects.twhin.models.live_tables import head_of
from tml.projects.twhin.models.losses import LOSSES
from tml.projects.twhin.models.relations import RelationScorer, RelationSpec
from tml.projects.twhin.run import build_run
from tml.projects.twhin.tables import table_layout

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def graph(tmp_path_factory) -> TinyGraph:
    return write_graph(tmp_path_factory.mktemp("graph"))


# Model and loss


@pytest.mark.parametrize("name", LOSSES)
def test_b01_the_loss_pushes_positives_up_and_negatives_down(name):
    generator = torch.Generator().manual_seed(0)
    positive, negative = torch.randn(5, generator=generator), torch.randn(5, 7, generator=generator)
    _, by_positive, by_negative = LOSSES[name](positive, negative, 5.0)
    assert (by_positive < 0).all()
    assert (by_negative >= 0).all()
    assert by_negative.any()


def test_b02_translations_get_gradients_and_move(graph, tmp_path):
    parts = build_run(config_of(tiny_settings(graph, tmp_path)), CPU)
    weight = head_of(parts.model).scorer.weight
    start = weight.detach().clone()
    batches = iter(parts.data)
    for step in range(2):
        parts.optimizers.zero_grad()
        parts.optimizers.set_learning_rates(step)
        parts.model(next(batches))[0].backward()
        parts.optimizers.step()
    batches.close()
    assert weight.grad is not None
    for relation in (0, 1):
        assert weight.grad[relation].any()
        assert not torch.equal(weight[relation].detach(), start[relation])


def test_b03_negatives_are_scored_with_their_relation():
    scorer = RelationScorer([RelationSpec("a", "user", "user"), RelationSpec("b", "user", "user")], 3)
    with torch.no_grad():
        scorer.weight.copy_(torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, 3.0]]))
    lhs, candidates = torch.ones(2, 3), torch.eye(3)
    scores = scorer.rhs_scores(scorer.operator(0), torch.tensor([0, 1]), lhs, candidates)
    assert scores.tolist() == [[1, 1, 1], [2, 3, 4]]


def test_b04_a_true_edge_of_the_chunk_is_no_negative(graph, tmp_path):
    """Every pair there can be is an edge, so nothing is left to be a negative: no loss, no update."""
    write_edges(tmp_path / "edges" / "part.parquet", [(user, 1, tweet) for user in range(2) for tweet in range(3)])
    settings = tiny_settings(graph, tmp_path / "run", train_data={"data_root": str(tmp_path / "edges")})
    user, tweet = tables(settings)
    settings["model"]["embeddings"]["tables"] = [user | {"num_embeddings": 2}, tweet | {"num_embeddings": 3}]
    parts = build_run(config_of(settings), CPU)
    loss, _ = parts.model(next(iter(parts.data)))
    assert loss.item() == pytest.approx(0, abs=1e-6)


def test_b05_each_kind_of_negatives_works_alone_and_both_act(graph, tmp_path):
    found = {}
    for in_batch, uniform in ((20, 0), (0, 20), (20, 20)):
        data = {"in_batch_negatives": in_batch, "global_negatives": uniform, "chunk_size": 20}
        settings = tiny_settings(graph, tmp_path / f"{in_batch}-{uniform}", train_data=data)
        settings["training"] |= {"num_epochs": None, "num_train_steps": 1}
        assert run(settings) == 0
        found[in_batch, uniform] = losses(tmp_path / f"{in_batch}-{uniform}")[1]
    # At the start all scores are nearly equal: the softmax loss is the logarithm of the number of candidates.
    for number, expected in (((20, 0), 20), ((0, 20), 21), ((20, 20), 40)):
        assert found[number] == pytest.approx(math.log(expected), abs=0.3)
    assert found[20, 20] > max(found[20, 0], found[0, 20]) + 0.3


@pytest.mark.parametrize("name", ["logistic", "ranking"])
def test_b06_the_gradient_of_an_edge_does_not_shrink_with_its_negatives(name):
    positive, few = torch.tensor([0.3]), torch.tensor([[0.1, -0.4]])
    _, by_few, _ = LOSSES[name](positive, few.clone(), 1.0)
    _, by_many, by_each = LOSSES[name](positive, few.repeat(1, 50), 1.0)
    assert by_many.item() == pytest.approx(by_few.item(), rel=1e-5)
    assert by_each.sum().item() == pytest.approx(LOSSES[name](positive, few.clone(), 1.0)[2].sum().item(), rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 7, 400, 5000])
def test_b07_and_b13_batches_of_any_size_are_trained(batch_size, graph, tmp_path):
    settings = tiny_settings(graph, tmp_path / "run", train_data={"global_batch_size": batch_size, "limit": 3000})
    settings["training"] |= {"num_train_steps": 9}
    assert run(settings) == 0
    assert read_extra(tmp_path / "run")["num_examples"] == min(9 * batch_size, 3000)
    assert all(map(math.isfinite, losses(tmp_path / "run").values()))


def test_b08_a_table_whose_name_begins_another_keeps_its_own_optimizer(graph, tmp_path):
    moved = {}
    for rate in (0.1, 0.3):
        settings = tiny_settings(graph, tmp_path / str(rate))
        user, tweet = tables(settings, init_scale=0.1)
        user["optimizer"] = {"sgd": {"learning_rate": 0.1}}
        tweet |= {"name": "user2", "optimizer": {"sgd": {"learning_rate": rate}}}
        settings["model"]["embeddings"]["tables"] = [user, tweet]
        for relation in settings["model"]["relations"][1:]:
            relation["rhs"] = "user2"
        parts = build_run(config_of(settings), CPU)
        before = {name: tensor.clone() for name, tensor in parts.model.checkpoint_tensors().items()}
        parts.optimizers.set_learning_rates(0)
        parts.model(next(iter(parts.data)))[0].backward()
        after = parts.model.checkpoint_tensors()
        # With equal rates both lie in one physical table.
        moved[rate] = torch.cat(
            [(after[n] - before[n]) for n in sorted(after) if n.endswith("weight") and "tables" in n]
        )
    users = settings["model"]["embeddings"]["tables"][0]["num_embeddings"]
    torch.testing.assert_close(moved[0.3][:users], moved[0.1][:users], rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(moved[0.3][users:], 3 * moved[0.1][users:], rtol=1e-3, atol=1e-7)


def test_b09_the_operator_moves_the_left_hand_side_and_is_read():
    lhs, rhs = torch.tensor([[1.0, 2.0]]), torch.tensor([[4.0, 6.0]])
    found = {}
    for operator in ("translation", "diagonal"):
        scorer = RelationScorer([RelationSpec("a", "user", "user", operator)], 2, comparator="l2")
        with torch.no_grad():
            scorer.weight.copy_(torch.tensor([[3.0, 4.0]]))
        found[operator] = scorer.pair_scores(scorer.operator(0), torch.tensor([0]), lhs, rhs).item()
    # |(1, 2) + (3, 4) - (4, 6)| = 0, and |(3, 8) - (4, 6)| = sqrt(5).
    assert found["translation"] == pytest.approx(0, abs=1e-3)
    assert found["diagonal"] == pytest.approx(-math.sqrt(5), rel=1e-5)


@pytest.mark.parametrize(("key", "value"), [("operater", "diagonal"), ("operator", "rotation")])
def test_b09_a_relation_refuses_unknown_keys_and_operators(key, value):
    with pytest.raises(ConfigError, match=key):
        parse_config(RelationConfig, {"name": "fav", "lhs": "user", "rhs": "tweet", key: value})


# Data


def _epochs(graph: TinyGraph, seed: int, num_ranks: int, num_epochs: int = 2) -> Iterator[list[Any]]:
    """The edges of each epoch, rank after rank."""
    config = config_of(tiny_settings(graph, "unused"))
    ranks = [
        EdgesDataset(
            config.train_data, edge_schema(config.model), table_layout(config.model, "cpu"), seed=seed, rank=rank,
            num_ranks=num_ranks,
        )
        for rank in range(num_ranks)
    ]  # fmt: skip
    batches = [iter(data) for data in ranks]
    for _ in range(num_epochs):
        yield [edges_of(next(each), 20) for each in batches for _ in range(ranks[0].steps_per_epoch)]
    for each in batches:
        each.close()


def test_b10_and_b11_every_edge_is_read_once_an_epoch_by_one_rank_in_an_order_of_the_seed(graph):
    expected = Counter(read_edges_of(graph.train))
    orders = []
    for num_ranks in (1, 2):
        first, second = _epochs(graph, seed=1, num_ranks=num_ranks)
        for epoch in (first, second):
            assert Counter(edge for batch in epoch for edge in batch) == expected
        assert first != second
        orders.append(first)
    assert orders[0] == next(_epochs(graph, seed=1, num_ranks=1))
    assert orders[0] != next(_epochs(graph, seed=2, num_ranks=1))


def test_b12_offset_limit_epochs_and_the_files_of_each_split_act(graph, tmp_path):
    settings = tiny_settings(
        graph,
        tmp_path / "run",
        training={"num_epochs": 3},
        train_data={"offset": 50, "limit": 900},
        validation_data={"data_root": graph.valid, "limit": 70},
    )
    assert run(settings) == 0
    extra = read_extra(tmp_path / "run")
    assert extra["step"] == 9
    assert extra["num_examples"] == 2700
    assert extra["metrics"]["num_edges"] == 70


def test_b13_ids_beyond_32_bits_come_through():
    rows = 2**33
    spec = FusedOptimizerSpec("sgd", 0.1)
    layout = TableLayout([TableSpec("user", rows, 4, spec), TableSpec("tweet", rows, 4, spec)])
    schema = EdgeSchema([RelationSpec("fav", "user", "tweet")], {"user": rows, "tweet": rows})
    edges = EdgeArrays(*(np.array([value], dtype=np.int64) for value in (rows - 1, 0, rows - 2)))
    schema.check(edges)
    batch = ChunkAssembler(schema, layout, ChunkShape(1, 1, 2), seed=0).assemble([(0, edges)], 1, 1, Cursor())
    assert rows - 1 in batch.nodes.values().tolist()
    assert 2 * rows - 2 in batch.nodes.values().tolist()
    assert edges_of(batch, 2) == [(rows - 1, 0, rows - 2)]


# Training loop


def test_b15_b16_b18_and_b20_steps_saves_and_examples_are_counted_right(graph, tmp_path):
    settings = tiny_settings(
        graph,
        tmp_path / "run",
        training={"train_log_every_n": 4, "checkpoint_every_n": 3, "checkpoint_max_to_keep": None, "num_epochs": 1},
    )
    settings["train_data"]["limit"] = 3100
    assert run(settings) == 0
    assert CheckpointManager(tmp_path / "run", max_to_keep=None, lock=False).steps() == [3, 6, 8]
    assert list(losses(tmp_path / "run")) == [4, 8]
    extra = read_extra(tmp_path / "run")
    assert extra["num_examples"] == 3100
    assert extra["cursor"] == {"epoch": 1, "row": 0}


def test_b21_precision_settings_reach_the_computation(graph, tmp_path):
    precisions, found = [], {}

    def recording(parts: Any, batch: Any) -> Any:
        precisions.append((torch.get_float32_matmul_precision(), torch.is_autocast_enabled("cpu")))
        return original(parts, batch)

    from tml.projects.twhin.models.model import TwhinModel

    original = TwhinModel.forward
    for setting in ("enable_amp", "enable_tensorfloat32", "deterministic"):
        settings = tiny_settings(graph, tmp_path / setting, runtime={setting: True})
        settings["training"] |= {"num_epochs": None, "num_train_steps": 1}
        with mock.patch.object(TwhinModel, "forward", recording):
            assert run(settings) == 0
        found[setting] = precisions[-1]
    torch.set_float32_matmul_precision("highest")
    torch.use_deterministic_algorithms(False)
    assert found["enable_amp"] == ("highest", True)
    assert found["enable_tensorfloat32"] == ("medium", False)
    assert found["deterministic"] == ("highest", False)


def test_b22_schedules_of_tables_and_relations_act(graph, tmp_path):
    def stepped(first: float, second: float) -> dict[str, Any]:
        return {"sgd": {"learning_rate": {"piecewise_constant": {"boundaries": [2], "values": [first, second]}}}}

    settings = tiny_settings(graph, tmp_path / "run")
    settings["training"] |= {"num_epochs": None, "checkpoint_every_n": 1, "num_train_steps": 4}
    settings["training"]["checkpoint_max_to_keep"] = None
    settings["model"] |= {"translation_optimizer": stepped(0.5, 0.0)}
    settings["model"]["embeddings"]["tables"] = tables(settings, init_scale=0.1, optimizer=stepped(0.0, 2.0))
    assert run(settings) == 0
    weights = [final_tensors(tmp_path / "run", step) for step in (1, 2, 3, 4)]
    table, relations = "tables.user+tweet.weight", "relations.weight"
    assert torch.equal(weights[0][table], weights[1][table])
    assert not torch.equal(weights[1][table], weights[2][table])
    assert not torch.equal(weights[0][relations], weights[1][relations])
    assert torch.equal(weights[1][relations], weights[3][relations])
    logged = [line["train/learning_rate/user+tweet"] for line in read_metrics(f"{tmp_path}/run/metrics.jsonl")
              if "train/loss" in line]  # fmt: skip
    assert logged == [0.0, 0.0, 2.0, 2.0]


def test_b24_settings_of_saving_act_without_a_schedulers_variables(graph, tmp_path, monkeypatch):
    for name in ("SPEC_TYPE", "TASK_TYPE"):
        monkeypatch.delenv(name, raising=False)
    settings = tiny_settings(graph, tmp_path / "run")
    settings["training"] |= {"num_train_steps": 5, "checkpoint_every_n": 1, "checkpoint_max_to_keep": 2}
    assert run(settings) == 0
    assert sorted(os.listdir(tmp_path / "run")) == [
        "experiment.json", "metrics.jsonl", "step-00000004", "step-00000005",
    ]  # fmt: skip
    assert run(merged(settings, {"training": {"overwrite_save_dir": True, "num_train_steps": 2}})) == 0
    assert list(losses(tmp_path / "run")) == [1, 2]
    assert read_extra(tmp_path / "run")["step"] == 2


# Metrics, losses, optimizers


@pytest.mark.filterwarnings("ignore")
def test_b28_a_mean_without_weight_is_no_division_by_zero():
    metric = StableMean("probabilities")
    metric.update({"logits": torch.ones(2), "probabilities": torch.ones(2), "labels": torch.ones(2),
                   "weights": torch.zeros(2)})  # fmt: skip
    assert math.isnan(metric.compute())


@pytest.mark.parametrize("loss_type", LossType)
def test_b29_every_loss_that_has_a_name_can_be_built(loss_type):
    logits = torch.zeros(3, 2) if loss_type is LossType.CROSS_ENTROPY else torch.zeros(3)
    labels = torch.tensor([0, 1, 1])
    assert build_loss(loss_type)(logits, labels).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("kind", OptimizerConfig.one_of[0])
def test_b30_every_optimizer_that_has_a_name_can_be_built_for_relations(kind, graph, tmp_path):
    settings = tiny_settings(graph, tmp_path / "run")
    settings["model"]["translation_optimizer"] = {kind: {"learning_rate": 0.25}}
    parts = build_run(config_of(settings), CPU)
    weight = head_of(parts.model).scorer.weight
    start = weight.detach().clone()
    weight.grad = torch.ones_like(weight)
    assert parts.optimizers.set_learning_rates(0)["relations"] == 0.25
    parts.optimizers.step()
    # The first step of each is the rate times the gradient, or times its sign; FTRL's accumulator starts at 0.1.
    moved = 0.25 / math.sqrt(0.1 + 1.0) if kind == "ftrl" else 0.25
    torch.testing.assert_close(weight.detach(), start - moved, rtol=1e-5, atol=1e-5)
