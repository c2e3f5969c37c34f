from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.sharding_plan import construct_module_sharding_plan, row_wise
from torchrec.distributed.types import ShardingEnv, ShardingPlan
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward

from tests.core.id_batches import NUM_IDS, IdBatch, id_batch
from tests.distributed import RankFailure, run_ranks
from tml.common.batch import Cursor
from tml.common.errors import ConfigError, NonFiniteError
from tml.core import train_pipeline
from tml.core.batch_stream import accumulate
from tml.core.train_pipeline import FiniteGuard, TrainPipeline, choose_engine, pipelined_modules

_CPU = torch.device("cpu")
_DIM = 4


class BagModel(nn.Module):
    """Bags of ids under a linear layer, squared error."""

    def __init__(self, device: torch.device = _CPU) -> None:
        super().__init__()
        config = EmbeddingBagConfig(name="t", num_embeddings=NUM_IDS, embedding_dim=_DIM, feature_names=["ids"])
        self.bags = EmbeddingBagCollection(tables=[config], device=device)
        self.head = nn.Linear(_DIM, 1)

    def forward(self, batch: IdBatch) -> tuple[Tensor, dict[str, Tensor]]:
        scores = self.head(self.bags(batch.features).values()).squeeze(1)
        return (scores - batch.labels).square().mean(), {"scores": scores.detach()}


def _model(seed: int = 0) -> BagModel:
    torch.manual_seed(seed)
    model = BagModel()
    nn.init.normal_(model.bags.embedding_bags["t"].weight)
    return model


def _train(pipeline: TrainPipeline, batches: Iterator[IdBatch]) -> list[float]:
    losses = []
    while True:
        try:
            losses.append(float(pipeline.step(batches).loss))
        except StopIteration:
            return losses


def _sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


@pytest.fixture(params=["on the host", "copying"])
def plain_engine(request, monkeypatch) -> None:
    """Both of the plain engines on a processor: the copying one is the GPU's."""
    if request.param == "copying":
        monkeypatch.setattr(train_pipeline, "_OnHost", train_pipeline._Plain)


def test_b18_every_batch_is_trained_before_the_end(plain_engine) -> None:
    model, seen = _model(), []
    optimizer = _sgd(model)
    pipeline = TrainPipeline(model, optimizer, _CPU, guard=lambda result: seen.append(result.batch.cursor.row))
    _train(pipeline, iter([id_batch(step) for step in range(5)]))
    assert seen == [4, 8, 12, 16, 20]


def test_a_step_is_one_update_by_the_gradient_of_its_batch(plain_engine) -> None:
    model, reference = _model(), _model()
    result = TrainPipeline(model, _sgd(model), _CPU).step(iter([id_batch(0)]))
    loss, outputs = reference(id_batch(0))
    loss.backward()
    assert float(result.loss) == float(loss)
    assert torch.equal(result.outputs["scores"], outputs["scores"])
    assert result.batch.cursor == Cursor(0, 4)
    for trained, parameter in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(trained, parameter - 0.1 * parameter.grad)


def test_the_loss_of_a_result_carries_no_graph() -> None:
    model = _model()
    assert not TrainPipeline(model, _sgd(model), _CPU).step(iter([id_batch(0)])).loss.requires_grad


def test_fault_23_non_finite_loss_stops_before_any_parameter_changes(plain_engine, tmp_path) -> None:
    model = _model()
    bad = id_batch(0)
    bad.labels[0] = math.nan
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pipeline = TrainPipeline(model, _sgd(model), _CPU, guard=FiniteGuard(debug_dir=str(tmp_path), first_step=41))
    with pytest.raises(NonFiniteError, match=r"step 42, rank 0"):
        pipeline.step(iter([bad]))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    saved = torch.load(tmp_path / "non-finite-step-42-rank-0.pt", weights_only=True)
    assert torch.equal(saved["batch.features.values"], bad.features.values())
    assert math.isnan(saved["batch.labels"][0])


def test_finite_check_keeps_its_interval() -> None:
    model = _model()
    bad = id_batch(0)
    bad.labels[0] = math.inf
    pipeline = TrainPipeline(model, _sgd(model), _CPU, guard=FiniteGuard(every_n=2))
    batches = iter([bad, bad])
    pipeline.step(batches)
    with pytest.raises(NonFiniteError, match="step 2"):
        pipeline.step(batches)


def test_amp_computes_dense_layers_in_bfloat16_and_keeps_parameters_in_float32() -> None:
    seen = []
    model = _model()
    model.head.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    TrainPipeline(model, _sgd(model), _CPU, amp=True).step(iter([id_batch(0)]))
    TrainPipeline(model, _sgd(model), _CPU, amp=False).step(iter([id_batch(0)]))
    assert seen == [torch.bfloat16, torch.float32]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_b17_accumulating_three_batches_equals_one_batch_of_three_times_the_size() -> None:
    micro = [id_batch(step) for step in range(7)]
    accumulated, reference = _model(), _model()
    losses = _train(TrainPipeline(accumulated, _sgd(accumulated), _CPU), accumulate(iter(micro), 3))
    whole = [IdBatch.concat(micro[0:3]), IdBatch.concat(micro[3:6]), micro[6]]
    assert _train(TrainPipeline(reference, _sgd(reference), _CPU), iter(whole)) == losses
    assert len(losses) == 3
    assert all(torch.equal(a, b) for a, b in zip(accumulated.parameters(), reference.parameters(), strict=True))


def _sharded_model() -> DistributedModelParallel:
    model = BagModel(device=torch.device("meta"))
    apply_optimizer_in_backward(torch.optim.SGD, model.bags.parameters(), {"lr": 0.1})
    torch.manual_seed(0)
    model.head = nn.Linear(_DIM, 1)
    env = ShardingEnv.from_process_group(dist.group.WORLD)
    plan = construct_module_sharding_plan(
        model.bags, {"t": row_wise()}, EmbeddingBagCollectionSharder(), env.world_size, env.world_size, "cpu"
    )
    sharded = DistributedModelParallel(
        model, env, _CPU, ShardingPlan({"bags": plan}), [EmbeddingBagCollectionSharder()]
    )
    full = torch.randn(NUM_IDS, _DIM, generator=torch.Generator().manual_seed(5))
    for tensor in sharded.module.bags.state_dict().values():
        for shard in tensor.local_shards():
            first = shard.metadata.shard_offsets[0]
            shard.tensor.copy_(full[first : first + len(shard.tensor)])
    return sharded


def _run_engine(engine: str) -> tuple[list[float], list[float], list[float], list[str]]:
    model = _sharded_model()
    optimizer = torch.optim.SGD(model.module.head.parameters(), lr=0.1)
    pipeline = TrainPipeline(model, optimizer, _CPU, engine=engine)
    batches = iter([id_batch(step, dist.get_rank()) for step in range(6)])
    losses, evaluated = [], []
    for step in range(6):
        losses.append(float(pipeline.step(batches).loss))
        if step in (1, 4):
            with pipeline.paused(), torch.no_grad():
                evaluated.append(float(model(id_batch(99, dist.get_rank()))[0]))
    with pytest.raises(StopIteration):
        pipeline.step(batches)
    shards = [shard.tensor for t in model.module.bags.state_dict().values() for shard in t.local_shards()]
    return losses, evaluated, torch.cat(shards).flatten().tolist(), pipeline.pipelined_modules


def _both_engines() -> tuple[list, list, str]:
    auto = choose_engine("auto", _sharded_model(), _CPU)
    return list(_run_engine("plain")), list(_run_engine("sparse_dist")), auto


def test_pipelined_equals_plain_on_two_ranks() -> None:
    for plain, pipelined, auto in run_ranks(_both_engines, 2):
        assert plain[:3] == pipelined[:3]
        assert plain[3] == []
        assert pipelined[3] == ["bags"], "trap 11: the wrapper hides the tables from the pipeline"
        assert auto == "sparse_dist"


def _nan_on_rank_1(engine: str) -> tuple[str, bool]:
    model = _sharded_model()
    optimizer = torch.optim.SGD(model.module.head.parameters(), lr=0.1)
    pipeline = TrainPipeline(model, optimizer, _CPU, engine=engine, guard=FiniteGuard())
    batches = [id_batch(step, dist.get_rank()) for step in range(3)]
    if dist.get_rank() == 1:
        batches[1].labels[0] = math.nan
    source = iter(batches)
    pipeline.step(source)
    before = [t.local_shards()[0].tensor.clone() for t in model.module.bags.state_dict().values()]
    try:
        pipeline.step(source)
    except NonFiniteError as error:
        after = [t.local_shards()[0].tensor for t in model.module.bags.state_dict().values()]
        return str(error), all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    return "no error", False


@pytest.mark.parametrize("engine", ["plain", "sparse_dist"])
def test_fault_23_nan_on_one_rank_stops_all_before_the_tables_change(engine: str) -> None:
    for message, unchanged in run_ranks(_nan_on_rank_1, 2, engine):
        assert "step 2, rank 1" in message
        assert unchanged


def test_auto_is_plain_on_one_cpu_rank_and_sparse_dist_needs_sharded_modules() -> None:
    assert choose_engine("auto", _model(), _CPU) == "plain"
    assert pipelined_modules(_model()) == []
    with pytest.raises(ConfigError, match="nothing can be pipelined"):
        choose_engine("sparse_dist", _model(), _CPU)


def _one_rank_raises_in_forward() -> None:
    model = _sharded_model()
    pipeline = TrainPipeline(model, torch.optim.SGD(model.module.head.parameters(), lr=0.1), _CPU, engine="plain")
    if dist.get_rank() == 1:
        raise RuntimeError("broken model on purpose")
    pipeline.step(iter([id_batch(0)]))


def test_fault_15_an_error_on_one_rank_ends_the_others() -> None:
    with pytest.raises(RankFailure, match="broken model on purpose") as caught:
        run_ranks(_one_rank_raises_in_forward, 2, timeout=60)
    assert set(caught.value.errors) == {0, 1}
