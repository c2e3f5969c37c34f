"""Tables: layout, look-ups, exact fused updates, equal starts, and sharded tables that train like local ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed._shard.sharded_tensor import ShardedTensor

from tests.distributed import run_ranks
from tml.common.modules.embedding_tables import LocalTables, ShardedTables, init_rows, keyed_ids
from tml.common.modules.sharding import ShardedModel
from tml.common.modules.table_layout import FusedKind, FusedOptimizerSpec, TableLayout, TableSpec

ROWWISE = FusedOptimizerSpec("rowwise_adagrad", 0.1)


def _layout(
    kinds: tuple[FusedKind, FusedKind] = ("rowwise_adagrad", "rowwise_adagrad"), **table: object
) -> TableLayout:
    return TableLayout(
        TableSpec(name, rows, 4, FusedOptimizerSpec(kind, 0.1), init_scale=1.0, **table)  # type: ignore[arg-type]
        for (name, rows), kind in zip((("user", 7), ("tweet", 5)), kinds, strict=True)
    )


def test_tables_of_equal_kind_share_one_physical_table() -> None:
    layout = _layout()
    assert [group.name for group in layout.groups] == ["user+tweet"]
    assert layout.to_dict() == {
        "user": {"group": "user+tweet", "offset": 0, "num_embeddings": 7},
        "tweet": {"group": "user+tweet", "offset": 7, "num_embeddings": 5},
    }


def test_tables_with_different_optimizers_lie_apart() -> None:
    layout = _layout(("sgd", "adagrad"))
    assert [group.name for group in layout.groups] == ["user", "tweet"]
    assert layout.offset == {"user": 0, "tweet": 0}


def test_rows_are_looked_up_in_one_and_in_several_groups() -> None:
    layout = _layout()
    tables = LocalTables(layout, seed=1)
    weight = tables.weights()[0]
    torch.testing.assert_close(tables(keyed_ids(layout, torch.tensor([3, 11, 3]))), weight[[3, 11, 3]])
    layout = _layout(("sgd", "adagrad"))
    tables = LocalTables(layout, seed=1)
    user, tweet = tables.weights()
    rows = tables(keyed_ids(layout, torch.tensor([4, 2, 6]), torch.tensor([1, 0, 0])))
    torch.testing.assert_close(rows, torch.stack([tweet[4], user[2], user[6]]))


@pytest.mark.parametrize("kind", ["sgd", "adagrad", "rowwise_adagrad"])
def test_fused_update_equals_the_formula_and_sums_duplicate_ids(kind: FusedKind) -> None:
    layout = TableLayout([TableSpec("t", 6, 4, FusedOptimizerSpec(kind, 0.5, eps=1e-8), init_scale=1.0)])
    tables = LocalTables(layout, seed=0)
    expected = tables.weights()[0].detach().clone().double()
    state = torch.zeros(6, 4, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        ids = torch.tensor([1, 4, 1])
        grads = torch.randn(3, 4, generator=generator)
        tables(keyed_ids(layout, ids)).backward(grads)
        total = torch.zeros(6, 4, dtype=torch.float64).index_add_(0, ids, grads.double())
        if kind == "sgd":
            step = total
        else:
            square = total.square()
            state += square.mean(1, keepdim=True) if kind == "rowwise_adagrad" else square
            step = total / (state.sqrt() + 1e-8)
        expected -= 0.5 * step
    torch.testing.assert_close(tables.weights()[0].double(), expected, rtol=1e-5, atol=1e-6)


def test_learning_rate_reaches_the_kernel_for_the_next_backward() -> None:
    layout = TableLayout([TableSpec("t", 2, 4, FusedOptimizerSpec("sgd", 1.0))])
    tables = LocalTables(layout, seed=0)
    before = tables.weights()[0].detach().clone()
    tables.set_learning_rate(0, 0.25)
    tables(keyed_ids(layout, torch.tensor([1]))).sum().backward()
    torch.testing.assert_close(before[1] - tables.weights()[0][1], torch.full((4,), 0.25))


def test_half_precision_tables_return_float32_rows_and_learn() -> None:
    layout = _layout(data_type="fp16")
    tables = LocalTables(layout, seed=0)
    assert tables.weights()[0].dtype == torch.float16
    before = tables.weights()[0].clone()
    rows = tables(keyed_ids(layout, torch.tensor([0, 8])))
    assert rows.dtype == torch.float32
    rows.sum().backward()
    assert (tables.weights()[0][[0, 8]] < before[[0, 8]]).all()
    assert torch.equal(tables.weights()[0][1:8], before[1:8])


@pytest.mark.parametrize("cut", [1, 7, 16_384, 20_000])
def test_initial_rows_do_not_depend_on_how_a_table_is_cut(cut: int) -> None:
    group = TableLayout(
        [TableSpec("a", 17_000, 2, ROWWISE, init_scale=0.5), TableSpec("b", 20_000, 2, ROWWISE, init_scale=2.0)]
    ).groups[0]
    whole, first, second = torch.empty(37_000, 2), torch.empty(cut, 2), torch.empty(37_000 - cut, 2)
    init_rows(group, whole, seed=5)
    init_rows(group, first, seed=5)
    init_rows(group, second, seed=5, first_row=cut)
    assert torch.equal(whole, torch.cat([first, second]))
    assert whole[:17_000].std().item() == pytest.approx(0.5, rel=0.05)
    assert whole[17_000:].std().item() == pytest.approx(2.0, rel=0.05)


class _Probe(torch.nn.Module):
    """The least model that `ShardedModel` takes."""

    def __init__(self, tables: torch.nn.Module) -> None:
        super().__init__()
        self.tables = tables
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, nodes):  # type: ignore[no-untyped-def]
        return (self.tables(nodes) * self.scale).square().sum()

    def dense_tensors(self) -> dict[str, torch.Tensor]:
        return {"scale": self.scale}


def _full(tensor: object) -> np.ndarray:
    if not isinstance(tensor, ShardedTensor):
        return tensor.detach().numpy().copy()  # type: ignore[attr-defined]
    whole = torch.zeros(tensor.size()) if dist.get_rank() == 0 else None
    tensor.gather(0, whole)
    return np.zeros(0) if whole is None else whole.numpy()


def _train_sharded(kinds: tuple[FusedKind, FusedKind], rank_ids: list[list[int]]) -> dict[str, np.ndarray]:
    layout = _layout(kinds)
    model = ShardedModel(_Probe(ShardedTables(layout)), torch.device("cpu"), seed=1)
    ids = torch.tensor(rank_ids[dist.get_rank()])
    for _ in range(3):
        model(keyed_ids(layout, ids, _groups(layout, ids))).backward()
    return {name: _full(tensor) for name, tensor in model.checkpoint_tensors().items()}


def _groups(layout: TableLayout, ids: torch.Tensor) -> torch.Tensor | None:
    return None if len(layout.groups) == 1 else ids % 2


@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.parametrize(
    "kinds", [("rowwise_adagrad", "rowwise_adagrad"), ("sgd", "adagrad"), ("adagrad", "rowwise_adagrad")]
)
def test_sharded_tables_start_and_train_like_local_ones(num_ranks: int, kinds: tuple[FusedKind, FusedKind]) -> None:
    ids = [0, 3, 3, 4, 1, 0]
    layout = _layout(kinds)
    local = _Probe(LocalTables(layout, seed=1))
    for _ in range(3):
        # Gradients are averaged over ranks, so one rank with all ids counts each of them `num_ranks` times as much.
        loss = local(keyed_ids(layout, torch.tensor(ids), _groups(layout, torch.tensor(ids)))) / num_ranks
        loss.backward()
    share = len(ids) // num_ranks
    results = run_ranks(_train_sharded, num_ranks, kinds, [ids[r * share : (r + 1) * share] for r in range(num_ranks)])
    expected = local.tables.checkpoint_tensors()  # type: ignore[operator]
    assert set(results[0]) == set(expected) | {"scale"}
    for name, tensor in expected.items():
        np.testing.assert_allclose(results[0][name], tensor.detach().numpy(), rtol=1e-5, atol=1e-6, err_msg=name)
