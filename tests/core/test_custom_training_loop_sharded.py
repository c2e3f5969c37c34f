"""The loop with the real parts: parquet reader, sharded fused tables, data-parallel head, checkpoints, two ranks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.sharding_plan import construct_module_sharding_plan, row_wise
from torchrec.distributed.types import ShardingEnv, ShardingPlan
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from tests.core.toy_run import CPU, RecordHook, toy_config
from tests.distributed import run_ranks
from tml.common.batch import Cursor, DataclassBatch
from tml.common.checkpointing import load_tensors
from tml.common.device import process_group
from tml.common.reader import ParquetReader
from tml.core.batch_stream import StopKind
from tml.core.config.runtime import RuntimeConfig
from tml.core.custom_training_loop import TrainLoop, evaluate, open_checkpoints, train
from tml.core.optimizers.optimizers import Optimizers

# torchrec cannot send row-wise pooled rows over gloo if ranks have unequal numbers of bags, so 8 divides the rows.
_NUM_ROWS, _NUM_IDS, _DIM = 48, 16, 4


@dataclass
class IdBatch(DataclassBatch):
    features: KeyedJaggedTensor
    rows: Tensor
    cursor: Cursor
    num_examples: int = field(metadata={"concat": "sum"})


class IdData:
    """Batches of a parquet file's rows."""

    def __init__(self, path: str) -> None:
        size, rank = dist.get_world_size(), dist.get_rank()
        self.reader = ParquetReader(
            [path], {"row": pa.int64()}, global_batch_size=8, rank=rank, world_size=size, seed=1, num_epochs=None
        )
        self.steps_per_epoch = self.reader.steps_per_epoch
        self.load_cursor, self.fingerprint = self.reader.load_cursor, self.reader.fingerprint

    def __iter__(self) -> Iterator[IdBatch]:
        for rows in self.reader:
            numbers = torch.from_numpy(rows.columns["row"])
            ids = (numbers * 7 + 3) % _NUM_IDS
            features = KeyedJaggedTensor(["id"], ids, lengths=torch.ones(len(ids), dtype=torch.int64))
            yield IdBatch(features, numbers, rows.cursor, rows.global_num_rows)


class IdModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        config = EmbeddingBagConfig(name="t", num_embeddings=_NUM_IDS, embedding_dim=_DIM, feature_names=["id"])
        self.bags = EmbeddingBagCollection(tables=[config], device=torch.device("meta"))
        apply_optimizer_in_backward(RowWiseAdagrad, self.bags.parameters(), {"lr": 0.2})
        self.head = nn.Linear(_DIM, 1)

    def forward(self, batch: IdBatch) -> tuple[Tensor, dict[str, Tensor]]:
        scores = self.head(self.bags(batch.features).values()).squeeze(1)
        targets = torch.cos(batch.rows.to(torch.float32))
        return (scores - targets).square().mean(), {"scores": scores.detach()}


class ShardedModel(nn.Module):
    """What a project has to offer: forward, and the tensors of a checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        model, env = IdModel(), ShardingEnv.from_process_group(dist.group.WORLD)
        sharder = EmbeddingBagCollectionSharder()
        plan = construct_module_sharding_plan(
            model.bags, {"t": row_wise()}, sharder, env.world_size, env.world_size, "cpu"
        )
        self.dmp = DistributedModelParallel(model, env, CPU, ShardingPlan({"bags": plan}), [sharder])
        full = torch.randn(_NUM_IDS, _DIM, generator=torch.Generator().manual_seed(5))
        for tensor in self.dmp.module.bags.state_dict().values():
            for shard in tensor.local_shards():
                first = shard.metadata.shard_offsets[0]
                shard.tensor.copy_(full[first : first + len(shard.tensor)])

    def tensors(self) -> dict[str, Any]:
        states = self.dmp.fused_optimizer.state_dict()["state"]
        momenta = {f"momentum.{name}": next(iter(state.values())) for name, state in states.items()}
        return dict(self.dmp.state_dict()) | momenta


def _run(
    folder: str, path: str, engine: str, preempt_at: int | None, num_epochs: int, momentum: float = 0.9, **settings: Any
) -> dict[str, Any]:
    parts = ShardedModel()
    model = parts.dmp
    model.module.checkpoint_tensors = parts.tensors
    head = torch.optim.SGD(model.module.head.named_parameters(), lr=0.0, momentum=momentum)
    optimizers = Optimizers({"head": head}, {}, {"head": lambda step: 0.1})
    config = toy_config(folder, num_epochs=num_epochs, checkpoint_every_n=None, evaluate_every_n=3, **settings)
    runtime = RuntimeConfig(tracking={"tensorboard": False}, pipeline=engine)
    at = {preempt_at: lambda loop: loop.request_stop("test", StopKind.PREEMPTED)} if preempt_at else {}
    record = RecordHook()
    record.after_step = _recorder(record, at)  # type: ignore[method-assign]
    evaluation = lambda stop: evaluate(model, _one_epoch(path), None, CPU, num_steps=2, stop=stop)  # noqa: E731
    with open_checkpoints(config) as checkpoints:
        loop = TrainLoop(
            model, optimizers, IdData(path), config, runtime, CPU, checkpoints, evaluate=evaluation, hooks=[record]
        )
        state = train(loop)
    return {
        "step": state.step,
        "rows": record.rows,
        "losses": record.losses,
        "evaluations": record.evaluations,
        "engine": loop.pipeline.engine if loop.pipeline else None,
    }


def _one_epoch(path: str) -> Iterator[IdBatch]:
    for batch in IdData(path):
        if batch.cursor.epoch > 0:
            return
        yield batch


def _recorder(record: RecordHook, at: dict) -> Any:
    def after_step(loop: TrainLoop) -> None:
        assert loop.result is not None
        record.rows.append(loop.result.batch.rows.tolist())
        record.losses.append(float(loop.result.loss))
        if loop.state.step in at:
            at[loop.state.step](loop)

    return after_step


@pytest.fixture
def path(tmp_path) -> str:
    file = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"row": np.arange(_NUM_ROWS, dtype=np.int64)}), file, row_group_size=11)
    return str(file)


def test_two_ranks_resume_to_the_bit_and_pipelined_equals_plain(tmp_path, path) -> None:
    whole = run_ranks(_run, 2, str(tmp_path / "whole"), path, "auto", None, 2)
    plain = run_ranks(_run, 2, str(tmp_path / "plain"), path, "plain", None, 2)
    broken = run_ranks(_run, 2, str(tmp_path / "broken"), path, "auto", 4, 2)
    resumed = run_ranks(_run, 2, str(tmp_path / "broken"), path, "auto", None, 2)
    assert [rank["engine"] for rank in whole + plain] == ["sparse_dist"] * 2 + ["plain"] * 2
    for rank in range(2):
        assert plain[rank]["losses"] == whole[rank]["losses"]
        assert plain[rank]["evaluations"] == whole[rank]["evaluations"]
        assert 4 <= broken[rank]["step"] < 12
        assert broken[rank]["rows"] + resumed[rank]["rows"] == whole[rank]["rows"]
        assert broken[rank]["losses"] + resumed[rank]["losses"] == whole[rank]["losses"]
    tables = [load_tensors(tmp_path / name) for name in ("whole", "plain", "broken")]
    assert {name for name in tables[0] if "momentum" in name} >= {"head.weight.momentum_buffer"}
    for name, tensor in tables[0].items():
        assert torch.equal(tables[1][name], tensor), name
        assert torch.equal(tables[2][name], tensor), name


def _run_compressed(folder: str, path: str, density: float) -> dict[str, Any]:
    gradients = {"compression": {"density": density}} if density else {}
    return _run(folder, path, "auto", None, 2, momentum=0.0, gradients=gradients)


def test_gradients_of_the_data_parallel_head_beside_sharded_tables_can_be_compressed(tmp_path, path) -> None:
    plain, whole, few = (
        run_ranks(_run_compressed, 2, str(tmp_path / str(density)), path, density)[0]["losses"]
        for density in (0.0, 1.0, 0.3)
    )
    assert whole == pytest.approx(plain, rel=1e-5)
    assert few != pytest.approx(plain, rel=1e-3)
    assert few[-1] < few[0]


def test_fault_7_a_run_of_two_ranks_goes_on_with_one_and_reads_every_row_once(tmp_path, path, monkeypatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    broken = run_ranks(_run, 2, str(tmp_path / "run"), path, "auto", 3, 1)
    with process_group(CPU):
        alone = _run(str(tmp_path / "run"), path, "auto", None, 1)
    rows = [row for rank in [*broken, alone] for batch in rank["rows"] for row in batch]
    assert sorted(rows) == list(range(_NUM_ROWS))
    assert alone["step"] == 6
