"""Sparse and dense layers, against scipy, slow sequential references and finite differences; exports."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import MaxAbsScaler
from torch import Tensor, nn

from tests.common.onnx_session import exported
from tml.common.errors import ConfigError, DataError
from tml.common.modules.dense_blocks import CrossNetwork, DotInteraction, FullDense, mlp
from tml.common.modules.sparse_layers import (
    FactorizationMachine,
    FullSparse,
    SparseBatchNorm,
    SparseMaxNorm,
    running_max,
)
from tml.common.modules.sparse_ops import (
    SparseRows,
    compress_sample_ids,
    decompress_sample_ids,
    feature_mask,
    partition,
    partition_sparse_tensor_mod,
    stitch,
)

NUM_IDS = 30


def _batch(seed: int = 0, num_entries: int = 80, num_rows: int = 12, num_ids: int = NUM_IDS) -> SparseRows:
    random = torch.Generator().manual_seed(seed)
    return SparseRows(
        torch.randint(num_rows, (num_entries,), generator=random).sort().values,
        torch.randint(num_ids, (num_entries,), generator=random),
        torch.randn(num_entries, generator=random, dtype=torch.float64),
        num_rows,
    )


def _scipy(batch: SparseRows, values: np.ndarray | None = None) -> scipy.sparse.csr_matrix:
    data = batch.values.numpy() if values is None else values
    return scipy.sparse.csr_matrix((data, (batch.rows.numpy(), batch.ids.numpy())), shape=(batch.num_rows, NUM_IDS))


# Sparse batches


def test_dense_form_equals_scipys() -> None:
    np.testing.assert_allclose(_batch().to_dense(NUM_IDS).numpy(), _scipy(_batch()).toarray())


def test_arrays_of_different_lengths_are_refused() -> None:
    with pytest.raises(DataError, match="differ in length"):
        SparseRows(torch.zeros(2, dtype=torch.int64), torch.zeros(3, dtype=torch.int64), torch.zeros(3), 2)


@pytest.mark.parametrize(("row", "one", "name"), [(0, NUM_IDS, "id"), (0, -1, "id"), (2, 0, "row")])
def test_entries_out_of_range_are_refused(row: int, one: int, name: str) -> None:
    batch = SparseRows(torch.tensor([0, row]), torch.tensor([0, one]), torch.ones(2), 2)
    with pytest.raises(DataError, match=f"{name} of a sparse entry out of range"):
        FullSparse(NUM_IDS, 1)(batch)


def test_compressed_rows_are_the_row_lengths_of_a_csr_matrix() -> None:
    rows = _batch().rows
    counts = compress_sample_ids(rows)
    # A column for each entry, so that scipy adds none together.
    matrix = scipy.sparse.csr_matrix((np.ones(80), (rows.numpy(), np.arange(80))))
    assert counts.tolist() == np.diff(matrix.indptr).tolist()
    assert compress_sample_ids(torch.tensor([1, 1, 3])).tolist() == [0, 2, 0, 1]
    assert compress_sample_ids(torch.tensor([], dtype=torch.int64)).tolist() == []


@given(st.lists(st.integers(0, 5), max_size=20))
def test_decompressing_undoes_compressing(counts: list[int]) -> None:
    rows = decompress_sample_ids(torch.tensor(counts, dtype=torch.int64))
    assert torch.equal(rows, torch.from_numpy(np.repeat(np.arange(len(counts)), counts)).to(torch.int64))
    assert torch.equal(decompress_sample_ids(compress_sample_ids(rows)), rows)


def test_rows_that_cannot_be_compressed_are_refused() -> None:
    for rows in ([1, 0], [-1, 0]):
        with pytest.raises(DataError, match="must ascend"):
            compress_sample_ids(torch.tensor(rows))
    with pytest.raises(DataError, match="negative number"):
        decompress_sample_ids(torch.tensor([1, -1]))


def test_partition_by_modulus_deals_out_ids_and_loses_nothing() -> None:
    batch = _batch()
    parts = partition_sparse_tensor_mod(batch, 3)
    for number, part in enumerate(parts):
        chosen = batch.ids % 3 == number
        assert torch.equal(part.ids * 3 + number, batch.ids[chosen])
        assert torch.equal(part.rows, batch.rows[chosen])
        assert torch.equal(part.values, batch.values[chosen])
    assert sum(len(part.ids) for part in parts) == len(batch.ids)
    with pytest.raises(ConfigError, match="number of parts"):
        partition_sparse_tensor_mod(batch, 0)


def test_feature_mask_keeps_listed_ids() -> None:
    assert feature_mask(torch.tensor([4, 9, -2, 4]), [4, -2]).tolist() == [True, False, True, True]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=30))
def test_stitching_undoes_partitioning(part_of_entry: list[int]) -> None:
    part = torch.tensor(part_of_entry, dtype=torch.int64)
    values, keys = torch.randn(len(part), 2), torch.arange(len(part))
    (value_parts, key_parts), places = partition(part, [values, keys], 4)
    for number in range(4):
        assert key_parts[number].tolist() == [i for i, one in enumerate(part_of_entry) if one == number]
    assert torch.equal(stitch(value_parts, places), values)
    assert torch.equal(stitch(key_parts, places), keys)


def test_partition_by_a_boolean_and_its_errors() -> None:
    (parts,), _ = partition(torch.tensor([True, False, True]), [torch.tensor([1.0, 2.0, 3.0])])
    assert [part.tolist() for part in parts] == [[2], [1, 3]]
    with pytest.raises(DataError, match="part out of range"):
        partition(torch.tensor([0, 2]), [torch.zeros(2)])
    with pytest.raises(DataError, match="differ in length"):
        partition(torch.tensor([0, 1]), [torch.zeros(3)])


# FullSparse


def _filled(layer: nn.Module) -> nn.Module:
    random = torch.Generator().manual_seed(3)
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=random, dtype=torch.float64)
    return layer


def test_full_sparse_starts_with_zero_weights_and_bias_one_over_outputs() -> None:
    layer = FullSparse(NUM_IDS, 4)
    assert not layer.weight.any()
    assert layer.bias.tolist() == [0.25] * 4
    assert FullSparse(NUM_IDS, 1).bias.tolist() == [1.0]


@pytest.mark.parametrize("binary", [False, True])
def test_full_sparse_equals_scipy(binary: bool) -> None:
    batch, layer = _batch(), _filled(FullSparse(NUM_IDS, 3, use_binary_values=binary))
    matrix = _scipy(batch, np.ones(80) if binary else None)
    expected = matrix @ layer.weight.detach().numpy() + layer.bias.detach().numpy()
    np.testing.assert_allclose(layer(batch).detach().numpy(), expected, rtol=1e-12)


def test_binary_values_count_entries_of_value_zero() -> None:
    layer = FullSparse(2, 1, use_binary_values=True)
    layer.weight.data += torch.tensor([[2.0], [3.0]])
    batch = SparseRows(torch.tensor([0, 0]), torch.tensor([0, 1]), torch.tensor([0.0, -7.0]), 2)
    assert layer(batch).flatten().tolist() == [6, 1]


def test_full_sparse_adds_up_a_list_of_inputs() -> None:
    first, second = _batch(), _batch(1)
    layer = _filled(FullSparse(NUM_IDS, 3, use_binary_values=[True, False], activation=torch.tanh))
    product = _scipy(first, np.ones(80)) @ layer.weight.detach().numpy()
    product += _scipy(second) @ layer.weight.detach().numpy()
    np.testing.assert_allclose(
        layer([first, second]).detach().numpy(), np.tanh(product + layer.bias.detach().numpy()), rtol=1e-12
    )
    for inputs in (first, [first]):
        with pytest.raises(ConfigError, match="differ in number"):
            layer(inputs)


def test_sparse_gradients_equal_dense_ones_and_finite_differences() -> None:
    batch = _batch(num_entries=15, num_rows=4)
    gradients = []
    for sparse_grad in (True, False):
        layer = _filled(FullSparse(NUM_IDS, 2, sparse_grad=sparse_grad))
        layer(batch).square().sum().backward()
        gradient = layer.weight.grad
        assert gradient is not None
        assert gradient.is_sparse == sparse_grad
        gradients.append(gradient.to_dense())
    torch.testing.assert_close(*gradients)
    layer = _filled(FullSparse(NUM_IDS, 2, sparse_grad=False))

    def outputs(weight: Tensor, bias: Tensor, values: Tensor) -> Tensor:
        parameters = {"weight": weight, "bias": bias}
        return torch.func.functional_call(layer, parameters, (batch.with_entries(batch.ids, values),))

    inputs = (layer.weight.detach(), layer.bias.detach(), batch.values)
    assert torch.autograd.gradcheck(outputs, [one.clone().requires_grad_() for one in inputs])


# SparseMaxNorm


def slow_max_norm(stored: list[float], batch: SparseRows, training: bool, epsilon: float) -> list[float]:
    """libtwml's loop; `stored` is updated in training."""
    outputs = []
    for one, value in zip(batch.ids.tolist(), batch.values.tolist(), strict=True):
        largest = max(stored[one], abs(value))
        outputs.append(value / max(largest, epsilon))
        if training:
            stored[one] = largest
    return outputs


def test_max_norm_equals_the_sequential_loop_in_training_and_evaluation() -> None:
    layer, stored = SparseMaxNorm(NUM_IDS), [0.0] * NUM_IDS
    for seed in range(4):
        batch = _batch(seed)
        layer.train(seed < 3)
        expected = slow_max_norm(stored, batch, seed < 3, 1e-5)
        np.testing.assert_allclose(layer(batch).values.detach().numpy(), expected, rtol=1e-6)
        np.testing.assert_allclose(layer.max_abs.numpy(), stored, rtol=1e-6)


def test_max_norm_after_a_whole_pass_equals_scikit_learns_scaler() -> None:
    dense = np.random.default_rng(0).normal(size=(50, NUM_IDS))
    rows, ids = np.nonzero(dense)
    batch = SparseRows(torch.from_numpy(rows), torch.from_numpy(ids), torch.from_numpy(dense[rows, ids]), 50)
    layer = SparseMaxNorm(NUM_IDS)
    layer(batch)
    scaled = MaxAbsScaler().fit_transform(dense)
    np.testing.assert_allclose(layer.eval()(batch).to_dense(NUM_IDS).detach().numpy(), scaled, rtol=1e-6)


def test_max_norm_divides_by_epsilon_at_least_and_learns_only_its_bias() -> None:
    layer = SparseMaxNorm(2)
    values = torch.tensor([1e-7, 0.0], requires_grad=True)
    out = layer(SparseRows(torch.tensor([0, 0]), torch.tensor([0, 1]), values, 1)).values
    torch.testing.assert_close(out.detach(), torch.tensor([1e-2, 0.0]))
    (out * torch.tensor([2.0, 5.0])).sum().backward()
    assert values.grad is None
    assert layer.bias is not None
    assert layer.bias.grad is not None
    assert layer.bias.grad.tolist() == [2, 5]
    assert SparseMaxNorm(2, use_bias=False).bias is None


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.floats(0, 100, width=32)), max_size=40))
def test_running_maxima_equal_a_loop(pairs: list[tuple[int, float]]) -> None:
    so_far: dict[int, float] = {}
    expected = []
    for one, value in pairs:
        so_far[one] = max(so_far.get(one, 0.0), value)
        expected.append(so_far[one])
    ids = torch.tensor([one for one, _ in pairs], dtype=torch.int64)
    assert running_max(ids, torch.tensor([value for _, value in pairs])).tolist() == expected


# SparseBatchNorm


def test_batch_norm_equals_welfords_loop() -> None:
    layer = SparseBatchNorm(NUM_IDS)
    count, mean, squares = np.zeros(NUM_IDS), np.zeros(NUM_IDS), np.zeros(NUM_IDS)
    for seed in range(3):
        batch = _batch(seed)
        out = layer(batch).values
        for one, value in zip(batch.ids.tolist(), batch.values.tolist(), strict=True):
            count[one] += 1
            delta = value - mean[one]
            mean[one] += delta / count[one]
            squares[one] += delta * (value - mean[one])
        ids = batch.ids.numpy()
        expected = (batch.values.numpy() - mean[ids]) / np.sqrt(squares[ids] / count[ids] + 1e-5)
        np.testing.assert_allclose(out.numpy(), expected, rtol=1e-9, atol=1e-12)


def test_batch_norm_stores_nothing_in_evaluation_and_leaves_unknown_ids_nearly_alone() -> None:
    layer = SparseBatchNorm(NUM_IDS).eval()
    out = layer(_batch()).values
    assert not layer.count.any()
    torch.testing.assert_close(out, _batch().values, rtol=1e-4, atol=0)


# FactorizationMachine


@pytest.mark.parametrize("subtract", [True, False])
def test_factorization_machine_equals_the_sum_over_pairs(subtract: bool) -> None:
    batch = _batch(num_entries=20, num_rows=5)
    layer = _filled(FactorizationMachine(NUM_IDS, 4, subtract_self_cross=subtract))
    vectors = layer.weight.detach().numpy()[batch.ids.numpy()] * batch.values.numpy()[:, None]
    expected = np.zeros((5, 1))
    for i in range(20):
        for j in range(20):
            if batch.rows[i] == batch.rows[j] and (i != j or not subtract):
                expected[batch.rows[i]] += vectors[i] @ vectors[j]
    np.testing.assert_allclose(layer(batch).detach().numpy(), expected, rtol=1e-9, atol=1e-12)


def test_factorization_machine_gradients_and_empty_rows() -> None:
    batch = SparseRows(torch.tensor([0, 0, 2]), torch.tensor([1, 2, 1]), torch.tensor([1.0, 2.0, 3.0]).double(), 4)
    layer = FactorizationMachine(3, 2, sparse_grad=False).double()
    assert layer(batch)[[1, 3]].tolist() == [[0], [0]]

    def outputs(weight: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"weight": weight}, (batch,))

    assert torch.autograd.gradcheck(outputs, torch.randn(3, 2, dtype=torch.float64, requires_grad=True))
    layer(batch).sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.any(), "vectors that start at zero would never learn"


# Dense blocks


def test_full_dense_starts_as_glorot_and_equals_numpy() -> None:
    layer = FullDense(200, 100, activation=torch.relu)
    limit = np.sqrt(6 / 300)
    assert layer.weight.abs().max() <= limit
    assert layer.weight.std().item() == pytest.approx(limit / np.sqrt(3), rel=0.02)
    assert not layer.bias.any()
    x = torch.randn(7, 200)
    expected = np.maximum(x.numpy() @ layer.weight.detach().numpy().T + layer.bias.detach().numpy(), 0)
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, rtol=1e-4, atol=1e-5)


def test_mlp_has_the_layers_and_parameters_asked_for() -> None:
    block = mlp([20, 256, 128, 1], last_activation=False)
    assert [type(layer).__name__ for layer in block] == ["FullDense", "ReLU", "FullDense", "ReLU", "FullDense"]
    assert sum(parameter.numel() for parameter in block.parameters()) == 21 * 256 + 257 * 128 + 129
    assert [type(layer).__name__ for layer in mlp([4, 2], "tanh", dropout=0.1)] == ["FullDense", "Tanh", "Dropout"]


@pytest.mark.parametrize(("sizes", "activation"), [([4], "relu"), ([4, 0], "relu"), ([4, 2], "swishy")])
def test_impossible_mlps_are_refused(sizes: list[int], activation: str) -> None:
    with pytest.raises(ConfigError):
        mlp(sizes, activation)  # type: ignore[arg-type]


@pytest.mark.parametrize("with_self", [False, True])
def test_dot_interaction_is_the_upper_triangle_of_dot_products(with_self: bool) -> None:
    vectors, layer = torch.randn(5, 4, 3), DotInteraction(4, with_self)
    expected = [
        [float(example[i] @ example[j]) for i in range(4) for j in range(i if with_self else i + 1, 4)]
        for example in vectors.numpy()
    ]
    assert layer.output_size == len(expected[0])
    np.testing.assert_allclose(layer(vectors).numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rank", [None, 2])
def test_cross_network_equals_the_papers_formula(rank: int | None) -> None:
    layer = _filled(CrossNetwork(5, 2, rank))
    x = torch.randn(6, 5, dtype=torch.float64)
    crossed = x.numpy()
    for one in layer.layers:
        parts = [one] if rank is None else list(one)
        w = parts[-1].weight.detach().numpy() @ (parts[0].weight.detach().numpy() if rank else np.eye(5))
        crossed = x.numpy() * (crossed @ w.T + parts[-1].bias.detach().numpy()) + crossed
    np.testing.assert_allclose(layer(x).detach().numpy(), crossed, rtol=1e-9)
    with pytest.raises(ConfigError, match="cross network"):
        CrossNetwork(5, 1, rank=6)


def test_gradients_of_dense_blocks_equal_finite_differences() -> None:
    x = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(DotInteraction(4), x)
    flat = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(_filled(CrossNetwork(4, 2, rank=2)), flat)
    assert torch.autograd.gradcheck(_filled(mlp([4, 5, 2], "tanh")), flat)


class _Blocks(nn.Module):
    """What may stand between a served model's inputs and its logit."""

    def __init__(self) -> None:
        super().__init__()
        self.dot, self.cross = DotInteraction(4), CrossNetwork(6, 2, rank=3)
        self.hidden, self.sparse = mlp([6, 8, 1], last_activation=False), FullSparse(NUM_IDS, 1)
        self.norm, self.machine = SparseMaxNorm(NUM_IDS), FactorizationMachine(NUM_IDS, 3)

    def forward(self, vectors: Tensor, ids: Tensor, values: Tensor) -> tuple[Tensor, ...]:
        rows = torch.arange(vectors.shape[0]).repeat_interleave(3)
        entries = self.norm(SparseRows(rows, ids.flatten(), values.flatten(), vectors.shape[0]))
        return self.hidden(self.cross(self.dot(vectors))), self.sparse(entries), self.machine(entries)


def test_exported_blocks_equal_eager_ones(tmp_path: Path) -> None:
    module = _Blocks()
    module.sparse.weight.data.normal_()
    module.norm.max_abs.fill_(0.5)
    module.eval()
    inputs = torch.randn(9, 4, 5), torch.randint(NUM_IDS, (9, 3)), torch.randn(9, 3)
    run = exported(module, tuple(one[:4] for one in inputs), tmp_path)
    for ours, onnx in zip(module(*inputs), run(*inputs), strict=True):
        torch.testing.assert_close(ours, onnx, rtol=1e-4, atol=1e-5)
