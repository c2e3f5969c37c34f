"""The CPU's own table kernel: its update against plain loops in float64 and against fbgemm's kernel, to the bit on any
number of threads.

Letters: `V` rows of the table, `K` ids of a look-up, `B` bags, `D` embedding dim.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fbgemm_gpu.split_embedding_configs import SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import BoundsCheckMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    EmbeddingLocation,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import Tensor

from tml.common.modules import row_kernel
from tml.common.modules.embedding_tables import kernel_arguments
from tml.common.modules.row_kernel import RowKernel
from tml.common.modules.table_layout import FusedKind, FusedOptimizerSpec


@pytest.fixture(autouse=True, params=["compiled", "operations"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test of this file runs on the compiled kernel and on torch's operations."""
    if request.param == "operations":
        monkeypatch.setattr(row_kernel, "compiled", lambda source: None)
    elif row_kernel.compiled(row_kernel.SOURCE) is None:
        pytest.skip("no C++ compiler here")


KINDS: tuple[FusedKind, ...] = ("sgd", "adagrad", "rowwise_adagrad")


def make_kernel(kind: FusedKind, num_rows: int, dim: int, rate: float = 0.3, eps: float = 1e-3) -> RowKernel:
    kernel = RowKernel(num_rows, dim, FusedOptimizerSpec(kind, rate, eps=eps))
    kernel.weight.copy_(torch.randn(num_rows, dim, generator=torch.Generator().manual_seed(0)))
    return kernel


def one_id_a_bag(ids: Tensor) -> Tensor:
    return torch.arange(len(ids) + 1)


class Loops:
    """The definition: for every row that was looked up the sum of its gradients, and one step with it; float64."""

    def __init__(self, kind: FusedKind, kernel: RowKernel, rate: float, eps: float) -> None:
        self.kind, self.rate, self.eps = kind, rate, eps
        self.weight = kernel.weight.double().numpy().copy()
        self.state = np.zeros_like(self.weight)

    def update(self, ids: list[int], bag_of_id: list[int], gradient: np.ndarray) -> None:
        sums: dict[int, np.ndarray] = {}
        for row, bag in zip(ids, bag_of_id, strict=True):
            sums[row] = sums.get(row, 0.0) + gradient[bag]
        for row, total in sums.items():
            if self.kind == "sgd":
                self.weight[row] -= self.rate * total
                continue
            self.state[row] += total**2 if self.kind == "adagrad" else (total**2).mean()
            self.weight[row] -= self.rate * total / (np.sqrt(self.state[row]) + self.eps)

    def assert_equal(self, kernel: RowKernel) -> None:
        np.testing.assert_allclose(kernel.weight.numpy(), self.weight, rtol=1e-5, atol=1e-6)
        if self.kind == "sgd":
            assert kernel.states() == []
            return
        (state,) = kernel.states()
        expected = self.state if self.kind == "adagrad" else self.state[:, 0]
        np.testing.assert_allclose(state.numpy(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dim", [1, 5, 16])
@pytest.mark.parametrize("kind", KINDS)
def test_look_ups_and_updates_equal_plain_loops_where_ids_repeat(kind: FusedKind, dim: int) -> None:
    kernel = make_kernel(kind, 11, dim)
    loops = Loops(kind, kernel, 0.3, 1e-3)
    rng = np.random.default_rng(dim)
    for _ in range(4):
        ids = rng.integers(0, 9, 40)  # some rows often, rows 9 and 10 never
        gradient = rng.standard_normal((40, dim)).astype(np.float32)
        rows = kernel(torch.from_numpy(ids), one_id_a_bag(ids))
        assert torch.equal(rows, kernel.weight[ids])
        rows.backward(torch.from_numpy(gradient))
        loops.update(ids.tolist(), list(range(40)), gradient.astype(np.float64))
    loops.assert_equal(kernel)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_are_not_looked_up_stay_as_they_are(kind: FusedKind) -> None:
    kernel = make_kernel(kind, 6, 4)
    before = kernel.weight.clone()
    ids = torch.tensor([4, 1, 4])
    kernel(ids, one_id_a_bag(ids)).sum().backward()
    assert torch.equal(kernel.weight[[0, 2, 3, 5]], before[[0, 2, 3, 5]])
    assert (kernel.weight[[1, 4]] < before[[1, 4]]).all()
    for state in kernel.states():
        assert not state[[0, 2, 3, 5]].any()
        assert (state[[1, 4]] > 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_bags_of_zero_or_one_give_zeros_or_the_row_and_only_full_ones_update(kind: FusedKind) -> None:
    kernel = make_kernel(kind, 5, 3)
    loops = Loops(kind, kernel, 0.3, 1e-3)
    ids, offsets = torch.tensor([2, 4, 2]), torch.tensor([0, 0, 1, 1, 2, 3, 3])
    gradient = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
    rows = kernel(ids, offsets)
    assert torch.equal(rows[[1, 3, 4]], kernel.weight[[2, 4, 2]])
    assert not rows[[0, 2, 5]].any()
    rows.backward(gradient)
    loops.update([2, 4, 2], [1, 3, 4], gradient.double().numpy())
    loops.assert_equal(kernel)


@pytest.mark.parametrize("num_bags", [0, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_a_look_up_of_nothing_gives_zeros_and_changes_nothing(kind: FusedKind, num_bags: int) -> None:
    kernel = make_kernel(kind, 5, 3)
    before = kernel.weight.clone()
    rows = kernel(torch.empty(0, dtype=torch.int64), torch.zeros(num_bags + 1, dtype=torch.int64))
    assert rows.shape == (num_bags, 3)
    assert not rows.any()
    rows.sum().backward()
    assert torch.equal(kernel.weight, before)
    assert not any(state.any() for state in kernel.states())


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_that_cancel_leave_a_finite_row(kind: FusedKind) -> None:
    kernel = make_kernel(kind, 2, 3, eps=1e-8)
    before = kernel.weight.clone()
    kernel(torch.tensor([1, 1]), torch.arange(3)).backward(torch.tensor([[1.0] * 3, [-1.0] * 3]))
    assert torch.equal(kernel.weight, before)


@pytest.mark.parametrize("kind", KINDS)
def test_without_gradients_rows_are_looked_up_and_nothing_is_kept_for_a_backward(kind: FusedKind) -> None:
    kernel = make_kernel(kind, 5, 3)
    ids = torch.tensor([3, 0])
    with torch.no_grad():
        rows = kernel(ids, one_id_a_bag(ids))
    assert torch.equal(rows, kernel.weight[ids])
    assert not rows.requires_grad
    assert rows.grad_fn is None


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_learning_rate_holds_from_the_next_backward_on(kind: FusedKind) -> None:
    kernel = make_kernel(kind, 4, 2)
    loops = Loops(kind, kernel, 0.3, 1e-3)
    ids, gradient = torch.tensor([1, 3]), torch.tensor([[1.0, 2.0], [-3.0, 0.5]])
    for rate in (0.3, 0.05, 0.0):
        rows = kernel(ids, one_id_a_bag(ids))
        kernel.set_learning_rate(rate)
        loops.rate = rate
        rows.backward(gradient)
        loops.update([1, 3], [0, 1], gradient.double().numpy())
        loops.assert_equal(kernel)


@pytest.mark.parametrize("kind", KINDS)
def test_several_steps_equal_those_of_fbgemms_kernel(kind: FusedKind) -> None:
    num_rows, dim = 300, 32
    kernel = make_kernel(kind, num_rows, dim, rate=0.1)
    fused = SplitTableBatchedEmbeddingBagsCodegen(
        [(num_rows, dim, EmbeddingLocation.HOST, ComputeDevice.CPU)],
        weights_precision=SparseType.FP32,
        bounds_check_mode=BoundsCheckMode.NONE,
        **kernel_arguments(FusedOptimizerSpec(kind, 0.1, eps=1e-3)),  # type: ignore[arg-type]
    )
    fused.split_embedding_weights()[0].copy_(kernel.weight)
    generator = torch.Generator().manual_seed(2)
    for _ in range(5):
        ids = (torch.rand(2_000, generator=generator) ** 2 * num_rows).long()
        gradient = torch.randn(2_000, dim, generator=generator)
        found, expected = kernel(ids, one_id_a_bag(ids)), fused(ids, one_id_a_bag(ids))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        found.backward(gradient)
        expected.backward(gradient)
    torch.testing.assert_close(kernel.weight, fused.split_embedding_weights()[0], rtol=1e-4, atol=1e-5)
    if kind != "sgd":
        (state,) = kernel.states()
        torch.testing.assert_close(state, fused.split_optimizer_states()[0][0], rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("keep_threads")
@pytest.mark.parametrize("kind", KINDS)
def test_one_and_two_threads_give_the_same_bits(kind: FusedKind) -> None:
    kernels = []
    for num_threads in (1, 2):
        torch.set_num_threads(num_threads)
        kernel = make_kernel(kind, 3_000, 16)
        generator = torch.Generator().manual_seed(3)
        for _ in range(3):
            ids = (torch.rand(50_000, generator=generator) ** 3 * 3_000).long()
            kernel(ids, one_id_a_bag(ids)).backward(torch.randn(50_000, 16, generator=generator))
        kernels.append(kernel)
    assert torch.equal(kernels[0].weight, kernels[1].weight)
    assert all(map(torch.equal, kernels[0].states(), kernels[1].states()))
