"""Checkpoints of two ranks: one error for all, no hang, and any sharding from any other (fault 7)."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._shard.sharded_tensor import init_from_local_shards
from torch.distributed._shard.sharded_tensor.shard import Shard

from tests.distributed import RankFailure, run_ranks
from tests.faults import data_files, fail_at, flip_bit, kill_at
from tml.common.checkpointing import CheckpointManager, iterate_new, load_tensors
from tml.common.checkpointing.layout import read_commit, step_folder
from tml.common.checkpointing.lock import LOCK_NAME
from tml.common.errors import CheckpointError

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is")

_ROWS, _DIM = 11, 3


def _table(value: float = 1.0) -> Tensor:
    return torch.arange(_ROWS * _DIM, dtype=torch.float32).reshape(_ROWS, _DIM) * value


def _sharded(full: Tensor, counts: list[int]) -> tuple[Any, Tensor]:
    """`full` by rows over the ranks, `counts[rank]` each; a rank with count 0 holds no shard at all."""
    rank = dist.get_rank()
    start = sum(counts[:rank])
    local = full[start : start + counts[rank]].clone()
    shards = []
    if counts[rank]:
        offsets = [start, *[0] * (full.dim() - 1)]
        shards = [Shard.from_tensor_and_offsets(local, offsets, rank)]
    return init_from_local_shards(shards, *full.size()), local


def _message(action: Any) -> str:
    try:
        action()
    except CheckpointError as error:
        return str(error)
    return ""


# ---- one outcome on all ranks


_FAULTS = {
    False: [("planning", 1), ("writing", 0), ("writing", 1), ("before_commit", 0)],
    True: [("writing", 1), ("staging", 1)],
}


def _save_with_faults(directory: Path, async_save: bool) -> list[tuple[str, list[int]]]:
    tensors = {"table": _sharded(_table(), [6, 5])[0], "bias": torch.ones(2)}
    answers = []
    with CheckpointManager(directory, max_to_keep=None, async_save=async_save) as manager:
        for step, (stage, rank) in enumerate(_FAULTS[async_save]):
            with fail_at(stage, rank=rank):
                message = _message(lambda step=step: (manager.save(step, tensors, {}), manager.wait()))
            answers.append((message, manager.steps()))
            dist.barrier()
        manager.save(100, tensors, {})
        manager.wait()
        answers.append(("", manager.steps()))
    return answers


@pytest.mark.parametrize("async_save", [False, True])
def test_fault_4_a_failing_rank_is_one_error_on_all_ranks_and_no_commit(tmp_path: Path, async_save: bool) -> None:
    answers, others = run_ranks(_save_with_faults, 2, tmp_path, async_save, timeout=60.0)
    assert others == answers
    for step, (stage, rank) in enumerate(_FAULTS[async_save]):
        message, steps = answers[step]
        assert "No space left" in message
        assert f"rank {rank}" in message
        if stage in ("writing", "before_commit"):
            assert str(tmp_path / f"step-{step:08d}.tmp") in message
            assert "GiB" in message
        assert steps == []
    assert answers[-1] == ("", [100])
    assert not list(tmp_path.glob("*.tmp"))


def _save_with_death(directory: Path) -> str:
    tensors = {"table": _sharded(_table(), [6, 5])[0]}
    manager = CheckpointManager(directory, max_to_keep=None)
    manager.save(1, tensors, {})
    with kill_at("writing", rank=1, step=2):
        raise RuntimeError(_message(lambda: manager.save(2, tensors, {})))


def test_fault_1_a_rank_killed_while_writing_is_an_error_elsewhere_not_a_hang(tmp_path: Path) -> None:
    with pytest.raises(RankFailure) as caught:
        run_ranks(_save_with_death, 2, tmp_path, timeout=60.0)
    assert caught.value.errors[1] is None
    assert "nothing was committed" in str(caught.value.errors[0])
    with CheckpointManager(tmp_path, max_to_keep=None) as manager:
        assert manager.steps() == [1]
    assert torch.equal(load_tensors(tmp_path, 1)["table"], _table())


def _disagreeing(directory: Path) -> list[str]:
    messages = []
    with CheckpointManager(directory, max_to_keep=None) as manager:
        table = _sharded(_table(), [6, 5])[0]
        manager.save(1, {"table": table}, {})
        names = {"table": table} if dist.get_rank() == 0 else {"tabel": table}
        messages.append(_message(lambda: manager.restore(names)))
        messages.append(_message(lambda: manager.save(2, names, {})))
        bad = {"a": torch.ones(1)} if dist.get_rank() == 0 else {"a": "text"}
        messages.append(_message(lambda: manager.save(3, bad, {})))  # type: ignore[arg-type]
        messages.append(str(manager.steps()))
    return messages


def test_ranks_that_disagree_on_names_get_the_same_error(tmp_path: Path) -> None:
    first, second = run_ranks(_disagreeing, 2, tmp_path)
    assert first == second
    assert "only in the model: ['tabel']" in first[0]
    assert "volume" in first[1]
    assert "tensors['a']" in first[2]
    assert first[3] == "[1]"


def _open_locked(directory: Path) -> str:
    return _message(lambda: CheckpointManager(directory, max_to_keep=None))


def test_fault_12_a_lock_is_refused_on_all_ranks(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path, max_to_keep=None):
        first, second = run_ranks(_open_locked, 2, tmp_path)
    assert first == second
    assert f"host {socket.gethostname()}, pid {os.getpid()}" in first
    assert not (tmp_path / LOCK_NAME).exists()


def _fall_back(directory: Path) -> tuple[dict[str, Any], Tensor, list[int]]:
    sharded, local = _sharded(torch.zeros(_ROWS, _DIM), [4, 7])
    with CheckpointManager(directory, max_to_keep=None, lock=False) as manager:
        extra = manager.restore({"table": sharded})
    return extra, local, list(iterate_new(directory, poll_s=0.001, timeout_s=0.0 if dist.get_rank() else 0.01))


def test_fault_3_all_ranks_fall_back_together_and_watch_together(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path, max_to_keep=None) as manager:
        manager.save(1, {"table": _table(1)}, {"step": 1})
        manager.save(2, {"table": _table(2)}, {"step": 2})
    flip_bit(data_files(step_folder(tmp_path, 2))[0])
    answers = run_ranks(_fall_back, 2, tmp_path)
    assert [extra for extra, _, _ in answers] == [{"step": 1}] * 2
    assert torch.equal(torch.cat([local for _, local, _ in answers]), _table(1))
    assert [steps for _, _, steps in answers] == [[1, 2]] * 2


# ---- resharding


_COUNTS = [[6, 5], [0, 11], [7, 4]]


def _reshard(directory: Path, async_save: bool) -> list[tuple[Tensor, Tensor, Tensor]]:
    answers = []
    for number, counts in enumerate(_COUNTS):
        table, local = _sharded(_table(), counts)
        momentum, _ = _sharded(torch.arange(float(_ROWS)), counts)
        with CheckpointManager(directory / str(number), max_to_keep=None, async_save=async_save) as manager:
            manager.save(1, {"table": table, "momentum": momentum, "bias": torch.full((2,), 5.0)}, {})
            local.fill_(-1)
            answers.append(_load_rows(manager, _COUNTS[number - 1]))
    return answers


def _load_rows(manager: CheckpointManager, counts: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    table, local_table = _sharded(torch.zeros(_ROWS, _DIM), counts)
    momentum, local_momentum = _sharded(torch.zeros(_ROWS), counts)
    bias = torch.zeros(2)
    manager.restore({"table": table, "momentum": momentum, "bias": bias})
    return local_table, local_momentum, bias


@pytest.mark.parametrize("async_save", [False, True])
def test_fault_7_row_wise_shards_load_as_plain_tensors_and_as_other_shards(tmp_path: Path, async_save: bool) -> None:
    first, second = run_ranks(_reshard, 2, tmp_path, async_save)
    for number in range(len(_COUNTS)):
        loaded = load_tensors(tmp_path / str(number))
        assert read_commit(step_folder(tmp_path / str(number), 1)).world_size == 2
        assert torch.equal(loaded["table"], _table())
        assert torch.equal(loaded["momentum"], torch.arange(float(_ROWS)))
        assert torch.equal(torch.cat([first[number][0], second[number][0]]), _table())
        assert torch.equal(torch.cat([first[number][1], second[number][1]]), torch.arange(float(_ROWS)))
        assert first[number][2].tolist() == second[number][2].tolist() == [5, 5]


def test_fault_7_a_shard_of_no_rows_is_saved_and_loaded(tmp_path: Path) -> None:
    assert run_ranks(_one_row_on_two_ranks, 2, tmp_path) == [[7.0], []]


def _one_row_on_two_ranks(directory: Path) -> list[float]:
    full = torch.full((1, 1), 7.0)
    local = full.clone() if dist.get_rank() == 0 else torch.zeros(0, 1)
    tensor = init_from_local_shards([Shard.from_tensor_and_offsets(local, [dist.get_rank(), 0], dist.get_rank())], 1, 1)
    with CheckpointManager(directory, max_to_keep=None) as manager:
        manager.save(1, {"t": tensor}, {})
        local.zero_()
        manager.restore({"t": tensor})
    return local.flatten().tolist()


# ---- torchrec: row-wise tables under DistributedModelParallel


_TABLES = {"user": 13, "tweet": 6}


def _sharded_model() -> Any:
    from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
    from torchrec.distributed import DistributedModelParallel
    from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
    from torchrec.distributed.sharding_plan import construct_module_sharding_plan, row_wise
    from torchrec.distributed.types import ModuleSharder, ShardingEnv, ShardingPlan
    from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
    from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

    configs = [
        EmbeddingBagConfig(name=name, embedding_dim=8, num_embeddings=rows, feature_names=[name])
        for name, rows in _TABLES.items()
    ]
    tables = EmbeddingBagCollection(tables=configs, device=torch.device("meta"))
    for bag in tables.embedding_bags.values():
        apply_optimizer_in_backward(RowWiseAdagrad, bag.parameters(), {"lr": 0.5, "eps": 1e-6})
    sharder: ModuleSharder = EmbeddingBagCollectionSharder()
    plan = construct_module_sharding_plan(
        tables, {name: row_wise() for name in _TABLES}, sharder, dist.get_world_size(), dist.get_world_size(), "cpu"
    )
    return DistributedModelParallel(
        module=tables,
        env=ShardingEnv.from_process_group(dist.group.WORLD),
        device=torch.device("cpu"),
        sharders=[sharder],
        plan=ShardingPlan(plan={"": plan}),
    )


def _state(model: Any) -> dict[str, Tensor]:
    state = dict(model.state_dict())
    for name, values in model.fused_optimizer.state_dict()["state"].items():
        state |= {f"{name}/{key}": value for key, value in values.items()}
    return state


def _step(model: Any, step: int) -> float:
    from torchrec import KeyedJaggedTensor

    generator = torch.Generator().manual_seed(100 * step + dist.get_rank())
    ids = torch.cat([torch.randint(0, rows, (4,), generator=generator) for rows in _TABLES.values()])
    batch = KeyedJaggedTensor.from_lengths_sync(
        keys=list(_TABLES), values=ids, lengths=torch.ones(8, dtype=torch.int64)
    )
    loss = ((model(batch).values() - 1) ** 2).mean()
    loss.backward()
    return float(loss.detach())


def _train_sharded(directory: Path, continued: Path) -> list[float]:
    model = _sharded_model()
    for name, tensor in sorted(model.state_dict().items()):
        for shard in tensor.local_shards():
            shard.tensor.copy_(torch.randn(shard.tensor.shape, generator=torch.Generator().manual_seed(len(name))))
    for step in range(3):
        _step(model, step)
    with CheckpointManager(directory, max_to_keep=None, async_save=True) as manager:
        manager.save(3, _state(model), {})
        losses = [_step(model, step) for step in range(3, 6)]
    with CheckpointManager(continued, max_to_keep=None) as manager:
        manager.save(6, _state(model), {})
    return losses


def _resume_sharded(directory: Path, continued: Path) -> list[float]:
    model = _sharded_model()
    with CheckpointManager(directory, max_to_keep=None, lock=False) as manager:
        manager.restore(_state(model))
    losses = [_step(model, step) for step in range(3, 6)]
    with CheckpointManager(continued, max_to_keep=None) as manager:
        manager.save(6, _state(model), {})
    return losses


def _names(loaded: dict[str, Tensor]) -> Iterator[str]:
    return (name for name in loaded if "momentum" in name)


def test_fault_7_two_row_wise_ranks_to_one_plain_process_and_back_momentum_included(tmp_path: Path) -> None:
    losses = run_ranks(_train_sharded, 2, tmp_path / "two", tmp_path / "uninterrupted")
    plain = load_tensors(tmp_path / "two")
    assert {tuple(tensor.shape) for tensor in plain.values()} == {(13, 8), (6, 8), (13,), (6,)}
    assert len(list(_names(plain))) == 2
    assert all(plain[name].count_nonzero() > 3 for name in _names(plain))
    # One process holds plain tensors of the same names and global shapes, loads in place, and saves them again.
    live = {name: torch.zeros_like(tensor) for name, tensor in plain.items()}
    with CheckpointManager(tmp_path / "two", max_to_keep=None) as manager:
        manager.restore(live)
    with CheckpointManager(tmp_path / "one", max_to_keep=None) as manager:
        manager.save(3, live, {})
    assert all(torch.equal(live[name], plain[name]) for name in plain)
    assert run_ranks(_resume_sharded, 2, tmp_path / "one", tmp_path / "resumed") == losses
    whole, resumed = load_tensors(tmp_path / "uninterrupted"), load_tensors(tmp_path / "resumed")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not any(torch.equal(whole[name], plain[name]) for name in whole)


def test_collectives_of_ranks_name_a_lost_peer() -> None:
    with pytest.raises(RankFailure) as caught:
        run_ranks(_lose_a_peer, 2)
    assert "lost touch with another rank" in str(caught.value.errors[0])


def _lose_a_peer() -> None:
    from tml.common.checkpointing.ranks import Ranks

    ranks = Ranks.create()
    if dist.get_rank() == 1:
        os._exit(3)
    ranks.gather(timedelta(0))


def _read_alone(directory: str) -> list[float]:
    values = torch.zeros(3)
    with CheckpointManager(directory, max_to_keep=None) as manager:
        manager.save(1, {"x": torch.tensor([1.0, 2.0, 3.0])}, {})
    if dist.get_rank() == 0:
        CheckpointManager(directory, max_to_keep=None, lock=False, alone=True).restore({"x": values})
    return [float(value) for value in values]


def test_one_of_several_ranks_reads_alone(tmp_path: Path) -> None:
    assert run_ranks(_read_alone, 2, str(tmp_path)) == [[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]
