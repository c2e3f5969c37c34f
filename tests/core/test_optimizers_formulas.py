"""Optimizers of dense parameters against slow loops over single weights, and their way with sparse gradients."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from tml.common.errors import ConfigError
from tml.core.optimizers.config import OptimizerConfig
from tml.core.optimizers.lazy_adam import LazyAdam
from tml.core.optimizers.optimizers import Optimizers, build_dense_optimizer

SPARSE = {
    "sgd": {},
    "momentum": {},
    "adagrad": {"initial_accumulator": 0.1},
    "ftrl": {"l1": 0.01, "l2": 0.02},
    "lazy_adam": {},
}
DENSE = {"rmsprop": {}, "adam": {}, "rowwise_adagrad": {}}


def build(kind, weight, rate=0.1, **settings):
    config = OptimizerConfig.model_validate({kind: {"learning_rate": 1, **settings}})
    schedule = rate if callable(rate) else lambda step: rate
    return Optimizers({"dense": build_dense_optimizer(config, {"weight": weight})}, {}, {"dense": schedule})


def gradients(num_steps, shape=(4, 3), seed=0):
    return np.random.default_rng(seed).normal(size=(num_steps, *shape)).astype(np.float32)


def run(optimizers, weight, series, first=0):
    for step, gradient in enumerate(series, start=first):
        optimizers.set_learning_rates(step)
        weight.grad = gradient if isinstance(gradient, torch.Tensor) else torch.from_numpy(gradient.copy())
        optimizers.step()
    return weight.detach().numpy().astype(np.float64)


def loop(series, start, update):
    """`update(gradient, weight, state, step) -> weight`, weight by weight in float64."""
    result = np.array(start, dtype=np.float64)
    for place in np.ndindex(result.shape):
        state = {}
        for step, gradient in enumerate(series):
            result[place] = update(float(gradient[place]), result[place], state, step)
    return result


def ftrl(rate, power=0.5, initial=0.1, l1=0.0, l2=0.0):
    # McMahan et al. 2013, algorithm 1, with TensorFlow's factor 2 of l2.
    def update(gradient, weight, state, step):
        n, z = state.get("n", initial), state.get("z", 0.0)
        sigma = ((n + gradient**2) ** power - n**power) / rate
        z += gradient - sigma * weight
        n += gradient**2
        state |= {"n": n, "z": z}
        return 0.0 if abs(z) <= l1 else -(z - math.copysign(l1, z)) / (n**power / rate + 2 * l2)

    return update


@pytest.mark.parametrize(
    "settings", [{}, {"l1": 0.3}, {"l2": 0.5}, {"l1": 0.2, "l2": 0.1, "initial": 0.5, "power": 0.75}]
)
def test_ftrl_is_algorithm_1_of_mcmahan_2013(settings):
    series = gradients(25)
    weight = nn.Parameter(torch.zeros(4, 3))
    expected = loop(series, weight.tolist(), ftrl(0.2, **settings))
    names = {"initial": ("initial_accumulator", 1), "power": ("learning_rate_power", -1)}
    ours = {names.get(name, (name, 1))[0]: value * names.get(name, (name, 1))[1] for name, value in settings.items()}
    assert run(build("ftrl", weight, 0.2, **ours), weight, series) == pytest.approx(expected, rel=2e-5, abs=1e-6)
    assert (expected == 0).any() == (weight == 0).any()


@pytest.mark.parametrize(("l1", "share_of_zeros"), [(0.0, 0.0), (1.0, 1.0)])
def test_the_l1_penalty_of_ftrl_makes_weights_of_noise_exactly_zero(l1, share_of_zeros):
    torch.manual_seed(0)
    weight = nn.Parameter(torch.zeros(30))
    optimizers = build("ftrl", weight, 0.1, l1=l1)
    for step in range(60):
        x = torch.randn(100, 30)
        optimizers.zero_grad()
        optimizers.set_learning_rates(step)
        nn.functional.binary_cross_entropy_with_logits(x @ weight, (x[:, :3].sum(1) > 0).float()).backward()
        optimizers.step()
    assert (weight[:3] > 0.1).all()
    assert (weight[3:] == 0).float().mean() == share_of_zeros


def test_ftrl_without_penalties_is_adagrad_at_any_schedule_and_from_any_weights():
    start = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    a, b = nn.Parameter(start.clone()), nn.Parameter(start.clone())

    def decaying(step):
        return 0.3 / (1 + step)

    ours = run(build("ftrl", a, decaying), a, gradients(10))
    assert ours == pytest.approx(
        run(build("adagrad", b, decaying, initial_accumulator=0.1), b, gradients(10)), rel=1e-4
    )


def test_a_gradient_of_zero_leaves_the_initial_weights_of_ftrl_where_they_are():
    weight = nn.Parameter(torch.tensor([[1.0, -2.0, 0.0]]))
    optimizers = build("ftrl", weight, lambda step: 0.1 if step else 0.0, l1=0.5, l2=0.5)
    assert run(optimizers, weight, [np.zeros((1, 3), np.float32)] * 3).tolist() == [pytest.approx([1.0, -2.0, 0.0])]


def test_rmsprop_begins_with_a_mean_square_of_1():
    def update(gradient, weight, state, step):
        state["square"] = 0.9 * state.get("square", 1.0) + 0.1 * gradient**2
        state["momentum"] = 0.5 * state.get("momentum", 0.0) + gradient / (math.sqrt(state["square"]) + 1e-10)
        return weight - 0.1 * state["momentum"]

    weight = nn.Parameter(torch.ones(4, 3))
    expected = loop(gradients(12), weight.tolist(), update)
    assert run(build("rmsprop", weight, momentum=0.5), weight, gradients(12)) == pytest.approx(expected, rel=1e-5)


def test_momentum_adds_decaying_gradients():
    def update(gradient, weight, state, step):
        state["sum"] = 0.9 * state.get("sum", 0.0) + gradient
        return weight - 0.1 * state["sum"]

    weight = nn.Parameter(torch.ones(4, 3))
    expected = loop(gradients(12), weight.tolist(), update)
    assert run(build("momentum", weight), weight, gradients(12)) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_adagrad_begins_with_its_initial_accumulator():
    def update(gradient, weight, state, step):
        state["sum"] = state.get("sum", 0.1) + gradient**2
        return weight - 0.1 * gradient / (math.sqrt(state["sum"]) + 1e-8)

    weight = nn.Parameter(torch.ones(4, 3))
    expected = loop(gradients(12), weight.tolist(), update)
    ours = run(build("adagrad", weight, initial_accumulator=0.1), weight, gradients(12))
    assert ours == pytest.approx(expected, rel=1e-5, abs=1e-6)


def sparse(rows, num_rows=6, dim=3, seed=0):
    values = torch.randn(len(rows), dim, generator=torch.Generator().manual_seed(seed))
    return torch.sparse_coo_tensor(torch.tensor([rows]), values, (num_rows, dim))


def sparse_series(num_steps=8):
    picked = [[0, 2, 2], [5], [1, 0], [2, 5, 5, 5], []]
    return [sparse(picked[step % len(picked)], seed=step) for step in range(num_steps)]


def test_lazy_adam_is_sparse_adam_for_sparse_gradients():
    ours, theirs = nn.Parameter(torch.ones(6, 3)), nn.Parameter(torch.ones(6, 3))
    reference = torch.optim.SparseAdam([theirs], lr=0.1)
    run(build("lazy_adam", ours), ours, sparse_series())
    for gradient in sparse_series():
        theirs.grad = gradient.clone()
        reference.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
    assert (ours[3:5] == 1).all()


def test_lazy_adam_moves_a_row_by_hand():
    weight = nn.Parameter(torch.zeros(6, 1))
    optimizer = LazyAdam([weight], lr=0.1)
    for step, (rows, values) in enumerate([([1], [2.0]), ([0], [1.0]), ([1, 1], [1.0, 0.5])], start=1):
        weight.grad = torch.sparse_coo_tensor(torch.tensor([rows]), torch.tensor(values)[:, None], (6, 1))
        optimizer.step()
        assert optimizer.state[weight]["step"] == step
    # Row 1: step 1 moves by the rate; at step 3 its moments have decayed once, and duplicates are added first.
    m, v = 0.9 * 0.2 + 0.1 * 1.5, 0.999 * 0.004 + 0.001 * 1.5**2
    third = 0.1 * math.sqrt(1 - 0.999**3) / (1 - 0.9**3) * m / math.sqrt(v)
    second = 0.1 * math.sqrt(1 - 0.999**2) / (1 - 0.9**2) * 0.1 / math.sqrt(0.001)
    assert weight[:2, 0].tolist() == pytest.approx([-second, -0.1 - third], rel=1e-4)
    assert not weight[2:].any()


def test_lazy_adam_is_adam_to_the_bit_for_dense_gradients_also_beside_sparse_ones():
    dense, other = nn.Parameter(torch.ones(4, 3)), nn.Parameter(torch.ones(4, 3))
    rows = nn.Parameter(torch.ones(6, 3))
    ours, adam = LazyAdam([rows, dense], lr=0.1), torch.optim.Adam([other], lr=0.1)
    for step, gradient in enumerate(gradients(6)):
        dense.grad, other.grad = torch.from_numpy(gradient.copy()), torch.from_numpy(gradient.copy())
        rows.grad = sparse([step])
        ours.step(), adam.step()
    assert torch.equal(dense, other)
    assert not (rows == 1).any(dim=1).any()


@pytest.mark.parametrize("kind", sorted(set(SPARSE) - {"momentum", "lazy_adam"}))
def test_a_sparse_gradient_gives_what_its_dense_form_gives(kind):
    a, b = nn.Parameter(torch.ones(6, 3)), nn.Parameter(torch.ones(6, 3))
    settings = SPARSE[kind] | ({"l1": 0.0, "l2": 0.0} if kind == "ftrl" else {})
    run(build(kind, a, **settings), a, sparse_series())
    run(build(kind, b, **settings), b, [gradient.to_dense() for gradient in sparse_series()])
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["sgd", "adagrad", "ftrl", "lazy_adam"])
def test_rows_without_a_gradient_stay_to_the_bit(kind):
    weight = nn.Parameter(torch.randn(6, 3, generator=torch.Generator().manual_seed(3)))
    before = weight.detach().clone()
    run(build(kind, weight, **SPARSE[kind]), weight, sparse_series())
    assert torch.equal(weight[3:5], before[3:5])
    assert not (weight[[0, 1, 2, 5]] == before[[0, 1, 2, 5]]).all(dim=1).any()


@pytest.mark.parametrize("kind", sorted(SPARSE))
def test_a_resume_with_sparse_gradients_is_equal_to_the_bit(kind):
    whole = nn.Parameter(torch.ones(6, 3))
    run(build(kind, whole, **SPARSE[kind]), whole, sparse_series())
    first = nn.Parameter(torch.ones(6, 3))
    optimizers = build(kind, first, **SPARSE[kind])
    run(optimizers, first, sparse_series()[:5])
    second = nn.Parameter(first.detach().clone())
    resumed = build(kind, second, **SPARSE[kind])
    saved, target = optimizers.checkpoint_tensors(), resumed.checkpoint_tensors()
    assert target.keys() == saved.keys()
    for name, tensor in target.items():
        tensor.copy_(saved[name])
    run(resumed, second, sparse_series()[5:], first=5)
    assert torch.equal(whole, second)


@pytest.mark.parametrize("kind", sorted(DENSE))
def test_a_sparse_gradient_that_an_optimizer_cannot_use_is_refused_by_name(kind):
    weight = nn.Parameter(torch.ones(6, 3))
    with pytest.raises(ConfigError, match=r"sparse gradient(.|\n)*optimizer dense, parameter weight(.|\n)*lazy_adam"):
        run(build(kind, weight), weight, sparse_series(1))
    assert (weight == 1).all()


def test_weight_decay_with_a_sparse_gradient_is_refused():
    weight = nn.Parameter(torch.ones(6, 3))
    with pytest.raises(ConfigError, match="without weight_decay"):
        run(build("adagrad", weight, weight_decay=0.1), weight, sparse_series(1))
