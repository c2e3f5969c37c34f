"""What a step is said to do, held against the model that does it."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.projects.twhin.tiny import TinyGraph, config_of, tables, tiny_settings, write_graph
from tml.common.errors import ConfigError
from tml.core.planning.cluster import Cluster
from tml.core.planning.plan import make_plan
from tml.machines import Machine
from tml.projects.twhin.config import TwhinConfig
from tml.projects.twhin.models.build import build_model
from tml.projects.twhin.models.chunk_kernel import ChunkKernel
from tml.projects.twhin.tables import table_layout
from tml.projects.twhin.workload import build_workload, count_examples

CPU = torch.device("cpu")
LAPTOP = Machine(mem=8 * 2**30, cpu=2)
ACCELERATED = Cluster.of(Machine(mem=2**40, cpu=32, num_accelerators=1, accelerator_type="h100"))


def _ranks(number: int) -> Cluster:
    return Cluster.of(LAPTOP, cpu_ranks=number)


@pytest.fixture(scope="module")
def graph(tmp_path_factory) -> TinyGraph:
    return write_graph(tmp_path_factory.mktemp("graph"))


def _config(graph: TinyGraph, **sections) -> TwhinConfig:
    return config_of(tiny_settings(graph, "unused", **sections))


def _model(config: TwhinConfig):
    return build_model(config.model, config.train_data, table_layout(config.model, "cpu"), CPU, config.runtime.seed)


@pytest.mark.parametrize(
    "model",
    [
        {},
        {"loss": "logistic"},
        {"reciprocal_relations": True, "comparator": "l2"},
        {"comparator": "l2"},
        {"comparator": "cosine", "loss": "ranking"},
    ],
)
def test_operations_are_those_that_torch_counts(graph, model, monkeypatch):
    monkeypatch.setattr(ChunkKernel, "is_built", lambda: False)  # a compiled head is not seen by the counter
    # Operators in equal parts of the relations, which a random batch has only on average: one for all.
    plain = tiny_settings(graph, "unused")["model"]["relations"]
    relations = [relation | {"operator": "translation"} for relation in plain]
    config = _config(graph, model={**model, "relations": relations})
    work = build_workload(config, ACCELERATED)  # by torch's operations, as without the compiled head
    with FlopCounterMode(display=False) as counter:
        loss, _ = _model(config)(work.host.make())
        loss.backward()
    assert work.head.flops == counter.get_total_flops()


def test_the_batch_and_tables_are_the_runs_own(graph):
    config = _config(graph)
    work = build_workload(config, _ranks(1))
    batch, model = work.host.make(), _model(config)
    assert work.num_ids == len(batch.nodes.values())
    assert work.host.batch_bytes == sum(t.numel() * t.element_size() for t in batch.named_tensors().values())
    plan = make_plan(lambda *arguments: build_workload(config, *arguments), Cluster.of(LAPTOP))
    held = {name: t.numel() * t.element_size() for name, t in model.tables.checkpoint_tensors().items()}
    assert plan.device.parts["tables"] == sum(size for name, size in held.items() if "weight" in name)
    assert plan.device.parts["optimizer states of tables"] == sum(s for name, s in held.items() if "momentum" in name)
    parameters = sum(tensor.numel() for tensor in model.dense_tensors().values())
    assert work.dense_numel == parameters


def test_examples_are_counted_from_the_files_footers(graph):
    assert count_examples(_config(graph)) == graph.num_train
    assert count_examples(_config(graph, train_data={"limit": 100})) == 100


def test_ranks_share_the_batch_and_each_decodes_all_of_it(graph):
    config = _config(graph)
    one, four = (build_workload(config, _ranks(ranks)) for ranks in (1, 4))
    assert four.global_batch == one.global_batch
    assert one.num_ids / 4 < four.num_ids < one.num_ids
    assert four.host.decode_seconds == one.host.decode_seconds
    with pytest.raises(ConfigError, match="shared evenly"):
        build_workload(config, _ranks(3))


def test_a_large_batch_is_counted_from_a_part_of_it(graph):
    small = build_workload(_config(graph, train_data={"global_batch_size": 2**15}), _ranks(1))
    large = build_workload(_config(graph, train_data={"global_batch_size": 2**18}), _ranks(1))
    assert large.num_ids == pytest.approx(8 * small.num_ids, rel=0.01)
    assert large.host.batch_bytes == pytest.approx(8 * small.host.batch_bytes, rel=0.01)
    assert large.host.made_share == pytest.approx(1 / 8)


def test_accumulated_batches_are_one_step(graph):
    once = build_workload(_config(graph), _ranks(1))
    twice = build_workload(_config(graph, training={"gradient_accumulation": 2}), _ranks(1))
    assert (twice.global_batch, twice.num_ids) == (2 * once.global_batch, 2 * once.num_ids)


def test_a_compiled_head_keeps_scores_in_the_cache(graph):
    config = _config(graph)
    compiled, plain = (build_workload(config, cluster).head for cluster in (_ranks(1), ACCELERATED))
    amp = build_workload(_config(graph, runtime={"enable_amp": True}), _ranks(1)).head
    assert compiled.cached_bytes < amp.cached_bytes < amp.memory_bytes == plain.memory_bytes
    assert compiled.num_scores > 0 == amp.num_scores
    assert compiled.flops < plain.flops == amp.flops
    reciprocal = build_workload(_config(graph, model={"reciprocal_relations": True}), _ranks(1)).head
    assert reciprocal.flops == plain.flops
    regularized = _config(graph, model={"regularization": {"kind": "n3", "weight": 0.1}})
    assert build_workload(regularized, ACCELERATED).head.memory_bytes > plain.memory_bytes


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"runtime": {"enable_tensorfloat32": True}},
        {"runtime": {"enable_amp": True}},
        {"model": {"comparator": "l2"}},
        {"model": {"regularization": {"kind": "n3", "weight": 0.1}, "reciprocal_relations": True}},
    ],
)
@pytest.mark.parametrize("dim", [16, 20])
def test_what_a_probe_runs_is_what_the_plan_counts(graph, sections, dim, monkeypatch):
    calls = []
    losses = ChunkKernel.losses

    def watched(kernel, *arguments):
        calls.append(torch.get_float32_matmul_precision())
        return losses(kernel, *arguments)

    monkeypatch.setattr(ChunkKernel, "losses", watched)
    model = {"embeddings": {"tables": tables(tiny_settings(graph, "unused"), embedding_dim=dim)}}
    config = _config(graph, **sections | {"model": model | sections.get("model", {})})
    work = build_workload(config, _ranks(1))
    before = torch.get_float32_matmul_precision()
    by_rows, by_relations = work.head.run()
    assert torch.get_float32_matmul_precision() == before
    is_compiled = work.head.num_scores > 0
    assert (
        is_compiled is bool(calls) is (dim == 16 and "comparator" not in str(sections) and "amp" not in str(sections))
    )
    assert set(calls) <= {"medium" if config.runtime.enable_tensorfloat32 else "highest"}
    assert by_rows.shape == (work.num_ids * work.head.run_share, dim)
    assert (by_rows.isfinite().all(), by_rows.any(), by_relations.any()) == (True, True, True)


@pytest.mark.parametrize(("operator", "shares"), [("identity", True), ("translation", True), ("diagonal", False)])
def test_in_batch_scores_are_counted_once_where_the_kernel_makes_them_once(graph, operator, shares):
    plain = tiny_settings(graph, "unused")["model"]["relations"]
    # Relations of one signature share chunks.
    relations = [plain[1] | {"name": f"relation {number}", "operator": operator} for number in range(3)]
    config = _config(graph, model={"relations": relations})
    compiled, by_operations = (build_workload(config, cluster).head for cluster in (_ranks(1), ACCELERATED))
    # 20 of 40 candidates are endpoints, and each of their three products is one of two.
    assert compiled.flops == by_operations.flops * (0.75 if shares else 1.0)


@pytest.mark.parametrize(
    ("runtime", "on_processors", "on_accelerators"),
    [({}, "fp32", "fp32"), ({"enable_tensorfloat32": True}, "bf16", "tf32"), ({"enable_amp": True}, "bf16", "bf16")],
)
def test_products_have_the_type_that_the_config_allows(graph, runtime, on_processors, on_accelerators):
    config = _config(graph, runtime=runtime)
    assert build_workload(config, _ranks(1)).matmul == on_processors
    assert build_workload(config, ACCELERATED).matmul == on_accelerators


def test_an_optimizer_that_processors_lack_is_refused_there_alone(graph):
    settings = tiny_settings(graph, "unused")
    adam = tables(settings, optimizer={"adam": {"learning_rate": 0.01}})
    config = _config(graph, model={"embeddings": {"tables": adam}})
    with pytest.raises(ConfigError, match="Adam"):
        build_workload(config, _ranks(1))
    plan = make_plan(
        lambda *arguments: build_workload(config, *arguments),
        Cluster.of(Machine(mem=2**40, cpu=32, num_accelerators=8, accelerator_type="h100")),
    )
    assert plan.device.parts["optimizer states of tables"] == 2 * plan.device.parts["tables"]
