"""Schedules reach real kernels: fbgemm's directly, and through torchrec's sharded modules."""

import os

import pytest
import torch
from torch import nn

from tml.common.errors import ConfigError
from tml.core.optimizers.config import LearningRateConfig, OptimizerConfig
from tml.core.optimizers.fused import LocalFusedOptimizer, ShardedFusedOptimizer
from tml.core.optimizers.optimizers import Optimizers, build_dense_optimizer
from tml.core.optimizers.schedules import build_schedule

HALVED_AT_STEP_2 = build_schedule(
    LearningRateConfig.model_validate({"piecewise_constant": {"boundaries": [2], "values": [0.5, 0.25]}})
)
CPU = torch.device("cpu")


def make_kernel(optimizer_name="EXACT_SGD", **settings):
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice,
        EmbeddingLocation,
        SplitTableBatchedEmbeddingBagsCodegen,
    )

    kernel = SplitTableBatchedEmbeddingBagsCodegen(
        [(4, 4, EmbeddingLocation.HOST, ComputeDevice.CPU)], optimizer=EmbOptimType[optimizer_name], **settings
    )
    kernel.split_embedding_weights()[0].fill_(1.0)
    return kernel


def test_schedule_changes_the_update_of_a_kernel_at_exactly_its_step():
    kernel = make_kernel(learning_rate=0.01)
    optimizers = Optimizers({}, {"tables": LocalFusedOptimizer(kernel)}, {"tables": HALVED_AT_STEP_2})
    moved = []
    for step in range(4):
        optimizers.zero_grad()
        assert optimizers.set_learning_rates(step) == {"tables": HALVED_AT_STEP_2(step)}
        before = kernel.split_embedding_weights()[0][1, 0].item()
        kernel(torch.tensor([1]), torch.tensor([0, 1])).sum().backward()
        optimizers.step()
        moved.append(before - kernel.split_embedding_weights()[0][1, 0].item())
    assert moved == [0.5, 0.5, 0.25, 0.25]


def test_dense_rowwise_adagrad_equals_the_fused_one():
    kernel = make_kernel("EXACT_ROWWISE_ADAGRAD", learning_rate=0.01, eps=1e-8)
    weight = nn.Parameter(torch.ones(4, 4))
    config = OptimizerConfig.model_validate({"rowwise_adagrad": {"learning_rate": 0.5}})
    optimizers = Optimizers(
        {"dense": build_dense_optimizer(config, {"weight": weight})},
        {"tables": LocalFusedOptimizer(kernel)},
        {"dense": HALVED_AT_STEP_2, "tables": HALVED_AT_STEP_2},
    )
    gradient = torch.tensor([[1.0, 2.0, -3.0, 0.5], [0.1, 0.2, 0.3, 0.4]])
    for step in range(4):
        optimizers.zero_grad()
        optimizers.set_learning_rates(step)
        ((step + 1) * gradient * kernel(torch.tensor([2, 0]), torch.tensor([0, 1, 2]))).sum().backward()
        ((step + 1) * gradient * weight[[2, 0]]).sum().backward()
        optimizers.step()
    torch.testing.assert_close(weight.data, kernel.split_embedding_weights()[0])


@pytest.fixture
def one_rank():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    saved = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")}
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")
    yield
    torch.distributed.destroy_process_group()
    for name, value in saved.items():
        os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


def shard(rate_by_table):
    """A sharded collection with a table of 4 rows of ones per name, in a kernel for each distinct rate."""
    from torch.distributed.optim import _apply_optimizer_in_backward as apply_optimizer_in_backward
    from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
    from torchrec.distributed import DistributedModelParallel
    from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
    from torchrec.distributed.sharding_plan import construct_module_sharding_plan, row_wise
    from torchrec.distributed.types import ShardingPlan

    tables = [
        EmbeddingBagConfig(name=name, embedding_dim=4, num_embeddings=4, feature_names=[name]) for name in rate_by_table
    ]
    module = EmbeddingBagCollection(tables=tables, device=CPU)
    for name, rate in rate_by_table.items():
        apply_optimizer_in_backward(torch.optim.SGD, module.embedding_bags[name].parameters(), {"lr": rate})
    sharder = EmbeddingBagCollectionSharder()
    plan = construct_module_sharding_plan(
        module,
        {name: row_wise() for name in rate_by_table},
        sharder=sharder,
        local_size=1,
        world_size=1,
        device_type="cpu",
    )
    model = DistributedModelParallel(module, device=CPU, plan=ShardingPlan(plan={"": plan}), sharders=[sharder])
    for tensor in model.state_dict().values():
        tensor.local_shards()[0].tensor.fill_(1.0)
    return model


def row_of_ones(names):
    from torchrec import KeyedJaggedTensor

    return KeyedJaggedTensor(
        keys=list(names), values=torch.tensor([1] * len(names)), lengths=torch.tensor([1] * len(names))
    )


def first_weights(model):
    return {
        key.split(".")[-2]: tensor.local_shards()[0].tensor[1, 0].item() for key, tensor in model.state_dict().items()
    }


def test_schedules_change_the_updates_of_sharded_tables_at_exactly_their_steps(one_rank):
    model = shard({"user": 0.01, "user2": 0.02})
    # B8: the rate of "user", which is set last, must not fall upon "user2" too.
    fused = {name: ShardedFusedOptimizer(model.fused_optimizer, [name]) for name in ("user2", "user")}
    optimizers = Optimizers({}, fused, {"user": HALVED_AT_STEP_2, "user2": lambda step: 0.125 * step})
    moved = {"user": [], "user2": []}
    for step in range(4):
        optimizers.zero_grad()
        optimizers.set_learning_rates(step)
        before = first_weights(model)
        model(row_of_ones(["user", "user2"])).values().sum().backward()
        optimizers.step()
        for name, weight in first_weights(model).items():
            moved[name].append(before[name] - weight)
    assert moved == {"user": [0.5, 0.5, 0.25, 0.25], "user2": [0.0, 0.125, 0.25, 0.375]}


def test_one_rate_for_all_sharded_tables_reaches_every_kernel(one_rank):
    model = shard({"user": 0.01, "tweet": 0.02})
    ShardedFusedOptimizer(model.fused_optimizer).set_learning_rate(0.5)
    model(row_of_ones(["user", "tweet"])).values().sum().backward()
    assert first_weights(model) == {"user": 0.5, "tweet": 0.5}


def test_own_rate_for_a_table_that_shares_its_kernel_is_refused(one_rank):
    model = shard({"user": 0.01, "tweet": 0.01})
    with pytest.raises(ConfigError, match=r"share a kernel(.|\n)*tweet(.|\n)*user"):
        ShardedFusedOptimizer(model.fused_optimizer, ["user"])
