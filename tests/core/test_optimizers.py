import pytest
import torch
from torch import nn

from tml.common.errors import ConfigError
from tml.core.optimizers.config import LearningRateConfig, OptimizerConfig
from tml.core.optimizers.optimizers import Optimizers, build_dense_optimizer
from tml.core.optimizers.schedules import build_schedule

ALL = {
    "sgd": {"learning_rate": 0.1, "momentum": 0.8},
    "momentum": {"learning_rate": 0.1},
    "adagrad": {"learning_rate": 0.1, "initial_accumulator": 0.1},
    "rowwise_adagrad": {"learning_rate": 0.1},
    "rmsprop": {"learning_rate": 0.1, "momentum": 0.5, "centered": True},
    "ftrl": {"learning_rate": 0.1, "l1": 0.01},
    "lazy_adam": {"learning_rate": 0.1},
    "adam": {"learning_rate": 0.1, "weight_decay": 0.1},
}


def config_of(kind, **settings):
    return OptimizerConfig.model_validate({kind: settings or ALL[kind]})


def parameters(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "theta": nn.Parameter(torch.randn(3, 2, generator=generator)),
        "bias": nn.Parameter(torch.randn(2, 1, generator=generator)),
    }


def build(kind, params, schedule=lambda step: 0.1 / (1 + step)):
    return Optimizers({"dense": build_dense_optimizer(config_of(kind), params)}, {}, {"dense": schedule})


def train(optimizers, params, steps):
    for step in steps:
        optimizers.zero_grad()
        optimizers.set_learning_rates(step)
        loss = sum(((step + 1) * p).pow(2).sum() for p in params.values())
        loss.backward()
        optimizers.step()


def test_sgd_moves_by_rate_times_gradient_at_the_scheduled_steps():
    weight = nn.Parameter(torch.tensor([[1.0]]))
    schedule = build_schedule(
        LearningRateConfig.model_validate({"piecewise_constant": {"boundaries": [2], "values": [0.5, 0.25]}})
    )
    optimizer = build_dense_optimizer(config_of("sgd", learning_rate=1), {"weight": weight})
    optimizers = Optimizers({"dense": optimizer}, {}, {"dense": schedule})
    moved = []
    for step in range(4):
        before = weight.item()
        optimizers.zero_grad()
        assert optimizers.set_learning_rates(step) == {"dense": 0.5 if step < 2 else 0.25}
        weight.sum().backward()
        optimizers.step()
        moved.append(before - weight.item())
    assert moved == [0.5, 0.5, 0.25, 0.25]


def test_adagrad_first_step_is_the_rate_in_every_direction():
    weight = nn.Parameter(torch.tensor([[0.0, 0.0]]))
    optimizer = build_dense_optimizer(config_of("adagrad", learning_rate=0.1), {"weight": weight})
    optimizers = Optimizers({"dense": optimizer}, {}, {"dense": lambda step: 0.1})
    optimizers.set_learning_rates(0)
    (weight * torch.tensor([[3.0, -4.0]])).sum().backward()
    optimizers.step()
    torch.testing.assert_close(weight.data, torch.tensor([[-0.1, 0.1]]))


def test_rowwise_adagrad_divides_by_the_root_mean_square_of_the_row():
    weight = nn.Parameter(torch.tensor([[0.0, 0.0], [5.0, 5.0]]))
    optimizers = build("rowwise_adagrad", {"weight": weight}, lambda step: 0.1)
    optimizers.set_learning_rates(0)
    (weight * torch.tensor([[3.0, 4.0], [0.0, 0.0]])).sum().backward()
    optimizers.step()
    # sqrt((9 + 16) / 2) = 3.5355
    expected = torch.tensor([[-0.3 / 3.5355339, -0.4 / 3.5355339], [5.0, 5.0]])
    torch.testing.assert_close(weight.data, expected)


# B31
@pytest.mark.parametrize("kind", ["adagrad", "rowwise_adagrad"])
def test_adagrad_leaves_rows_that_never_had_a_gradient_finite(kind):
    weight = nn.Parameter(torch.ones(2, 2))
    optimizers = build(kind, {"weight": weight})
    optimizers.set_learning_rates(0)
    weight[0].sum().backward()
    optimizers.step()
    assert weight[1].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("kind", sorted(ALL))
def test_ready_made_state_does_not_change_the_training(kind):
    ours, plain = parameters(), parameters()
    train(build(kind, ours), ours, range(3))
    optimizer = build_dense_optimizer(config_of(kind), plain)
    for step in range(3):
        optimizer.param_groups[0]["lr"] = 0.1 / (1 + step)
        optimizer.zero_grad()
        sum(((step + 1) * p).pow(2).sum() for p in plain.values()).backward()
        optimizer.step()
    for name in ours:
        assert torch.equal(ours[name], plain[name])


@pytest.mark.parametrize("kind", sorted(ALL))
def test_building_leaves_parameters_gradients_and_rates_as_they_were(kind):
    params = parameters()
    params["theta"].grad = torch.full((3, 2), 7.0)
    optimizer = build_dense_optimizer(config_of(kind), params)
    optimizer.param_groups[0]["lr"] = 0.375
    Optimizers({"dense": optimizer}, {}, {"dense": lambda step: 0.1})
    for name, expected in parameters().items():
        assert torch.equal(params[name], expected)
    assert params["theta"].grad.tolist() == [[7.0, 7.0]] * 3
    assert params["bias"].grad is None
    assert optimizer.param_groups[0]["lr"] == 0.375


@pytest.mark.parametrize("kind", sorted(ALL))
def test_state_loaded_before_the_first_step_continues_bit_equal(kind):
    whole = parameters()
    train(build(kind, whole), whole, range(6))

    first = parameters()
    optimizers = build(kind, first)
    train(optimizers, first, range(3))
    saved = {name: tensor.clone() for name, tensor in optimizers.checkpoint_tensors().items()}

    second = {name: nn.Parameter(p.detach().clone()) for name, p in first.items()}
    resumed = build(kind, second)
    target = resumed.checkpoint_tensors()
    assert target.keys() == saved.keys()
    for name, tensor in target.items():
        tensor.copy_(saved[name])
    train(resumed, second, range(3, 6))
    for name in whole:
        assert torch.equal(whole[name], second[name])


@pytest.mark.parametrize("kind", sorted(set(ALL) - {"sgd"}))
def test_the_state_of_every_optimizer_that_has_one_is_in_the_checkpoint_from_the_start(kind):
    params = parameters()
    optimizers = build(kind, params)
    at_the_start = {name: tensor.shape for name, tensor in optimizers.checkpoint_tensors().items()}
    train(optimizers, params, range(2))
    assert {name: tensor.shape for name, tensor in optimizers.checkpoint_tensors().items()} == at_the_start
    assert {name.split(".")[1] for name in at_the_start} == {"theta", "bias"}


def test_checkpoint_names_optimizer_parameter_and_state():
    tensors = build("adam", parameters()).checkpoint_tensors()
    assert sorted(tensors) == sorted(
        f"dense.{parameter}.{state}" for parameter in ("theta", "bias") for state in ("step", "exp_avg", "exp_avg_sq")
    )
    assert tensors["dense.theta.exp_avg"].shape == (3, 2)
    assert all(not tensor.any() for tensor in tensors.values())


# B30: any torch optimizer will do, also one that does not know its parameters' names.
def test_foreign_optimizer_is_taken_and_its_parameters_are_numbered():
    params = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))]
    optimizers = Optimizers({"mine": torch.optim.RMSprop(params)}, {}, {"mine": lambda step: 0.5})
    assert optimizers.checkpoint_tensors()["mine.1.square_avg"].shape == (3,)
    assert optimizers.set_learning_rates(0) == {"mine": 0.5}
    assert optimizers.dense["mine"].param_groups[0]["lr"] == 0.5


def test_every_parameter_group_gets_the_rate_of_its_own_optimizer():
    a, b, c = (nn.Parameter(torch.ones(1)) for _ in range(3))
    two_groups = torch.optim.SGD([{"params": [a]}, {"params": [b]}], lr=1.0)
    schedules = {"z": lambda step: 0.5, "a": lambda step: 0.125}
    Optimizers({"z": two_groups, "a": torch.optim.SGD([c], lr=1.0)}, {}, schedules).set_learning_rates(0)
    assert [group["lr"] for group in two_groups.param_groups] == [0.5, 0.5]


@pytest.mark.parametrize("schedules", [{}, {"dense": float, "tables": float}])
def test_an_optimizer_without_schedule_or_a_schedule_without_optimizer_is_refused(schedules):
    optimizer = build_dense_optimizer(config_of("sgd"), parameters())
    with pytest.raises(ValueError, match="schedule of its name"):
        Optimizers({"dense": optimizer}, {}, schedules)


def test_rowwise_adagrad_refuses_parameters_without_rows():
    with pytest.raises(ConfigError, match=r"parameter scale(.|\n)*use adagrad"):
        build_dense_optimizer(config_of("rowwise_adagrad"), {"scale": nn.Parameter(torch.ones(3))})


def test_optimizer_without_parameters_is_refused():
    with pytest.raises(ConfigError, match="no parameters"):
        build_dense_optimizer(config_of("adam"), {})
