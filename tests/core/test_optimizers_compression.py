"""Deep Gradient Compression against slow loops, and in DDP on two ranks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pydantic
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tests.core.toy_run import run_toy
from tests.distributed import run_ranks
from tml.common.checkpointing import load_tensors
from tml.common.errors import ConfigError
from tml.core.config.gradients import CompressionConfig
from tml.core.optimizers.compression import GradientCompression
from tml.core.optimizers.gradient_exchange import register_gradient_compression
from tml.core.optimizers.optimizers import Optimizers

LEGACY = {"unit": "row", "density": 0.3, "momentum": 0.0}


def series(num_steps: int, shape: tuple[int, ...] = (10, 4), seed: int = 0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).normal(size=(num_steps, *shape)))


def compression_of(parameter: nn.Parameter, **settings: Any) -> GradientCompression:
    return GradientCompression(CompressionConfig(**settings), {"w": parameter})


def sent(compression: GradientCompression, parameter: nn.Parameter, gradient: np.ndarray) -> np.ndarray:
    """What a step sends, in the parameter's shape."""
    indices, values = compression.take(parameter, torch.from_numpy(gradient).to(parameter.dtype))
    whole = torch.zeros_like(parameter, requires_grad=False)
    compression.parts(whole)[indices.long()] = values
    return whole.numpy()


def zeros(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape, dtype=torch.float64))


def test_elements_are_chosen_corrected_and_masked_as_in_the_paper() -> None:
    parameter = zeros(10, 4)
    compression = compression_of(parameter, density=0.2, momentum=0.7)
    velocity, residual = np.zeros(40), np.zeros(40)
    for gradient in series(20):
        velocity = 0.7 * velocity + gradient.ravel()
        residual += velocity
        top = np.argpartition(-np.abs(residual), 8)[:8]
        expected = np.zeros(40)
        expected[top] = residual[top]
        velocity[top] = residual[top] = 0
        assert sent(compression, parameter, gradient).ravel() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("settings", [{"density": 0.05}, {"density": 0.3, "unit": "row"}, {"density": 1.0}])
def test_nothing_of_the_gradient_is_lost(settings) -> None:
    parameter = zeros(10, 4)
    compression = compression_of(parameter, momentum=0.0, **settings)
    total = np.zeros((10, 4))
    for gradient in series(15):
        total += gradient
        total -= sent(compression, parameter, gradient)
        (residual,) = compression.checkpoint_tensors().values()
        assert residual.view(10, 4).numpy() == pytest.approx(total, abs=1e-12)


def test_bug_1_rows_are_ranked_by_absolute_values() -> None:
    parameter = zeros(3, 2)
    gradient = np.array([[5.0, -5.0], [1.0, 1.0], [-3.0, -3.0]])  # signed sums 0, 2, -6
    assert sent(compression_of(parameter, **LEGACY), parameter, gradient)[0].tolist() == [5.0, -5.0]


def test_bug_1_what_is_kept_is_added_to_and_not_overwritten() -> None:
    parameter = zeros(3, 1)
    compression = compression_of(parameter, **LEGACY)
    first = sent(compression, parameter, np.array([[3.0], [2.0], [0.0]]))
    second = sent(compression, parameter, np.array([[0.0], [2.0], [3.0]]))
    assert (first.ravel().tolist(), second.ravel().tolist()) == ([3.0, 0.0, 0.0], [0.0, 4.0, 0.0])


def test_bug_1_the_learning_rate_follows_its_schedule(tmp_path) -> None:
    gradients = {"compression": {**LEGACY, "density": 1.0}}
    outcome = run_toy(tmp_path / "a", momentum=0.0, gradients=gradients)
    assert outcome.record.rates == pytest.approx([0.05 / (1 + step) for step in range(6)])
    assert outcome.weight == run_toy(tmp_path / "b", momentum=0.0).weight


def test_without_accumulation_what_is_not_sent_is_dropped() -> None:
    parameter = zeros(3, 1)
    compression = compression_of(parameter, accumulate=False, **LEGACY)
    sent(compression, parameter, np.array([[3.0], [2.0], [0.0]]))
    assert sent(compression, parameter, np.array([[0.0], [2.0], [3.0]])).ravel().tolist() == [0.0, 0.0, 3.0]
    assert compression.checkpoint_tensors() == {}


@pytest.mark.parametrize("shape", [(), (5,)])
def test_parameters_without_rows_are_sent_whole(shape) -> None:
    parameter = zeros(*shape)
    gradient = np.ones(shape)
    assert (sent(compression_of(parameter, **LEGACY), parameter, gradient) == gradient).all()


def test_the_number_of_rows_is_at_least_one_and_rounded_down() -> None:
    for num_rows, expected in ((2, 1), (9, 2), (10, 3)):
        parameter = zeros(num_rows, 2)
        result = sent(compression_of(parameter, **LEGACY), parameter, np.ones((num_rows, 2)))
        assert (result != 0).all(axis=1).sum() == expected


def test_the_warm_up_of_the_paper_has_sparsities_of_75_to_99_9_per_cent() -> None:
    compression = compression_of(zeros(4), density=0.001, density_decay={"every_n": 100})
    found = []
    for step in (0, 99, 100, 200, 300, 400, 10_000):
        compression.begin(step)
        found.append(1 - compression.density)
    assert found == pytest.approx([0.75, 0.75, 0.9375, 0.984375, 0.99609375, 0.999, 0.999], abs=3e-5)


def test_the_decay_of_the_original_is_its_formula() -> None:
    decay = {"initial_density": 0.4, "rate": 0.5, "every_n": 7}
    compression = compression_of(zeros(4), density=0.1, density_decay=decay)
    for step in range(30):
        compression.begin(step)
        assert compression.density == max(0.1, 0.4 * 0.5 ** math.floor(step / 7))


def test_a_large_gradient_is_scaled_down_before_it_is_added() -> None:
    parameter = zeros(2)
    compression = compression_of(parameter, density=1.0, clip_norm=2.5)
    assert sent(compression, parameter, np.array([3.0, 4.0])).tolist() == pytest.approx([1.5, 2.0])
    assert sent(compression, parameter, np.array([0.3, 0.4])).tolist() == pytest.approx([0.3, 0.4])


@pytest.mark.parametrize("unit", ["element", "row"])
def test_density_1_is_plain_gradient_descent_to_the_bit(tmp_path, unit) -> None:
    compression = {"unit": unit, "density": 1.0}
    outcome = run_toy(tmp_path / "a", momentum=0.0, num_epochs=2, gradients={"compression": compression})
    assert outcome.weight == run_toy(tmp_path / "b", momentum=0.0, num_epochs=2).weight


def test_a_resumed_run_is_equal_to_the_bit(tmp_path) -> None:
    settings = {"momentum": 0.0, "num_epochs": 2, "gradients": {"compression": {"density": 0.5}}}
    whole = run_toy(tmp_path / "whole", **settings)
    run_toy(tmp_path / "run", num_train_steps=5, **settings)
    assert run_toy(tmp_path / "run", seed_of_model=9, **settings).weight == whole.weight
    assert whole.weight != run_toy(tmp_path / "plain", momentum=0.0, num_epochs=2).weight
    names = {name for name in load_tensors(tmp_path / "run") if name.startswith("compression")}
    assert names == {"compression.dense.weight.residual", "compression.dense.weight.velocity"}


@pytest.mark.parametrize(
    ("optimizer", "named"),
    [(torch.optim.Adam, "Adam"), (lambda parameters, lr: torch.optim.SGD(parameters, lr, momentum=0.5), "SGD")],
)
def test_any_optimizer_but_plain_sgd_is_refused(optimizer, named) -> None:
    model = nn.Linear(2, 1)
    optimizers = Optimizers({"dense": optimizer(model.named_parameters(), lr=0.1)}, {}, {"dense": float})
    with pytest.raises(ConfigError, match=rf"optimizer dense(.|\n)*{named}(.|\n)*sgd without momentum"):
        register_gradient_compression(model, optimizers, CompressionConfig())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"density": 0}, "greater than 0"),
        ({"density": 1.1}, "less than or equal to 1"),
        ({"accumulate": False}, "momentum is of what accumulates"),
        ({"density": 0.5, "density_decay": {"every_n": 5}}, "must be above density"),
    ],
)
def test_fault_27_settings_that_do_not_fit_are_refused(settings, message) -> None:
    with pytest.raises(pydantic.ValidationError, match=message):
        CompressionConfig(**settings)


class _Bags(nn.Module):
    """Dense layers, one with a sparse gradient among them, on rows that differ from rank to rank."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.bag = nn.EmbeddingBag(20, 4, mode="sum", sparse=True)
        self.hidden, self.head = nn.Linear(4, 8), nn.Linear(8, 1)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.hidden(self.bag(ids)))).square().mean()


def _trained_in_ddp(settings: dict[str, Any] | None, num_steps: int = 6) -> dict[str, Any]:
    model = DistributedDataParallel(_Bags())
    optimizer = torch.optim.SGD(model.module.named_parameters(), lr=0.1)
    optimizers = Optimizers({"dense": optimizer}, {}, {"dense": lambda step: 0.1})
    compression = None
    if settings is not None:
        compression = register_gradient_compression(model, optimizers, CompressionConfig(**settings))
    generator = torch.Generator().manual_seed(dist.get_rank())
    for step in range(num_steps):
        if compression is not None:
            compression.begin(step)
        optimizers.zero_grad()
        optimizers.set_learning_rates(step)
        model(torch.randint(20, (5, 3), generator=generator)).backward()
        optimizers.step()
    return {name: parameter.detach() for name, parameter in model.module.named_parameters()}


def _of_all_settings() -> list[dict[str, Any]]:
    every = [
        None,
        {"density": 1.0},
        {"unit": "row", "density": 1.0},
        {"density": 0.1},
        {"density": 0.1, "clip_norm": 1},
    ]
    return [_trained_in_ddp(settings) for settings in every]


def test_two_ranks_stay_equal_and_density_1_is_ddp() -> None:
    first, second = run_ranks(_of_all_settings, 2)
    for mine, others in zip(first, second, strict=True):
        assert all(torch.equal(mine[name], others[name]) for name in mine)
    plain, elements, rows, sparse, clipped = first
    for name in plain:
        torch.testing.assert_close(elements[name], plain[name], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(rows[name], plain[name], rtol=1e-5, atol=1e-7)
    assert not torch.equal(sparse["hidden.weight"], plain["hidden.weight"])
    assert not torch.equal(sparse["hidden.weight"], clipped["hidden.weight"])


def _exchanged_and_kept() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One parameter on two ranks: the mean gradients that came back, the rank's own gradients, and what it keeps."""
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Linear(30, 1, bias=False).double())
    optimizer = torch.optim.SGD(model.module.named_parameters(), lr=0.1)
    optimizers = Optimizers({"dense": optimizer}, {}, {"dense": lambda step: 0.1})
    compression = register_gradient_compression(model, optimizers, CompressionConfig(density=0.2, momentum=0.0))
    received, own = torch.zeros(30).double(), torch.zeros(30).double()
    generator = torch.Generator().manual_seed(dist.get_rank())
    for _ in range(7):
        optimizers.zero_grad()
        x = torch.randn(30, generator=generator, dtype=torch.float64)
        model(x).sum().backward()
        received += model.module.weight.grad[0]
        own += x
    kept = compression._by_rank["dense.weight.residual"].flatten()
    return received, own, kept


def test_what_two_ranks_receive_and_keep_is_the_sum_of_their_gradients() -> None:
    (received, own_0, kept_0), (again, own_1, kept_1) = run_ranks(_exchanged_and_kept, 2)
    assert torch.equal(received, again)
    torch.testing.assert_close(received + (kept_0 + kept_1) / 2, (own_0 + own_1) / 2)
    assert not torch.equal(kept_0, kept_1)


_RUN: dict[str, Any] = {"momentum": 0.0, "wrap": DistributedDataParallel, "num_epochs": 2}
_RUN["gradients"] = {"compression": {"density": 0.5}}


def _run_on_ranks(folder: str, num_train_steps: int | None) -> list[float]:
    return run_toy(folder, num_train_steps=num_train_steps, seed_of_model=3, **_RUN).weight


def _whole_and_resumed(folder: str) -> tuple[list[float], list[float]]:
    whole = _run_on_ranks(f"{folder}/whole", None)
    _run_on_ranks(f"{folder}/run", 5)
    return whole, _run_on_ranks(f"{folder}/run", None)


def test_a_resumed_run_of_two_ranks_is_equal_to_the_bit(tmp_path) -> None:
    (whole, resumed), others = run_ranks(_whole_and_resumed, 2, str(tmp_path))
    assert whole == resumed
    assert others == (whole, resumed)
    residual = load_tensors(tmp_path / "run", 5)["compression.dense.weight.residual"]
    assert residual.shape == (2, 2, 1)
    assert not torch.equal(residual[0], residual[1])


def test_another_number_of_ranks_goes_on_from_the_mean_of_what_was_kept(tmp_path) -> None:
    run_ranks(_run_on_ranks, 2, str(tmp_path), 5)
    before = load_tensors(tmp_path, 5)["compression.dense.weight.residual"]
    taken: list[torch.Tensor] = []
    take_over = GradientCompression.take_over

    def seen(self: GradientCompression, memories: Any) -> None:
        take_over(self, memories)
        taken.append(self.checkpoint_tensors()["compression.dense.weight.residual"].clone())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GradientCompression, "take_over", seen)
        outcome = run_toy(tmp_path, **{**_RUN, "wrap": lambda model: model})
    assert torch.equal(taken[0], before.mean(0, keepdim=True))
    assert outcome.state.step == 12
