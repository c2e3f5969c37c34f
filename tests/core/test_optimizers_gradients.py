"""Noise, global norm and clipping between the backward and the optimizers of dense parameters."""

from __future__ import annotations

import math

import numpy as np
import pydantic
import pytest
import torch
from torch import nn

from tests.core.toy_run import run_toy
from tests.distributed import run_ranks
from tml.common.errors import ConfigError, NonFiniteError
from tml.common.tracking.json_lines import read_metrics
from tml.core.config.gradients import GradientsConfig
from tml.core.optimizers.gradients import GradientStep, add_noise
from tml.core.optimizers.optimizers import Optimizers


class _Recorded:
    """Parameters whose gradients are looked at when the optimizer would step."""

    def __init__(self, *gradients: torch.Tensor) -> None:
        self.parameters = [nn.Parameter(torch.zeros(gradient.shape)) for gradient in gradients]
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient.clone()
        self.seen: list[torch.Tensor] = []

    def dense_parameters(self) -> list[nn.Parameter]:
        return self.parameters

    def step(self) -> None:
        self.seen = [parameter.grad.to_dense().clone() for parameter in self.parameters]


def _stepped(optimizers: _Recorded, step: int = 0, seed: int = 0, wants_norm: bool = False, **settings) -> GradientStep:
    stage = GradientStep(optimizers, GradientsConfig(**settings), seed, wants_norm=lambda _: wants_norm)
    stage.begin(step)
    stage.step()
    return stage


def _gradients() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(5, 3, generator=generator), torch.randn(7, generator=generator)


@pytest.mark.parametrize("clip_norm", [0.5, 100.0])
def test_clipping_is_that_of_clip_grad_norm_over_all_parameters_together(clip_norm) -> None:
    ours, theirs = _Recorded(*_gradients()), _Recorded(*_gradients())
    stage = _stepped(ours, clip_norm=clip_norm)
    norm = torch.nn.utils.clip_grad_norm_(theirs.parameters, clip_norm)
    assert all(torch.equal(mine, other.grad) for mine, other in zip(ours.seen, theirs.parameters, strict=True))
    assert torch.equal(stage.norm, norm)


def test_a_sparse_gradient_counts_each_row_once_with_its_sum() -> None:
    sparse = torch.sparse_coo_tensor(torch.tensor([[1, 1]]), torch.tensor([[3.0, 0.0], [0.0, 4.0]]), (4, 2))
    ours = _Recorded(sparse, torch.tensor([12.0]))
    stage = _stepped(ours, clip_norm=6.5)
    assert float(stage.norm) == 13.0  # 3, 4, 12
    assert ours.seen[0].tolist() == [[0, 0], pytest.approx([1.5, 2.0]), [0, 0], [0, 0]]


def test_noise_has_the_mean_bounds_and_deviation_of_a_normal_cut_at_two_deviations() -> None:
    noise = torch.zeros(200_000)
    add_noise([noise], 0.5, seed=3, step=7)
    assert abs(float(noise.mean())) < 0.005
    assert float(noise.abs().max()) <= 1.0
    # Var = 1 - 2 * 2 phi(2) / (Phi(2) - Phi(-2))
    phi = math.exp(-2) / math.sqrt(2 * math.pi)
    assert float(noise.std()) == pytest.approx(0.5 * math.sqrt(1 - 4 * phi / math.erf(math.sqrt(2))), rel=0.01)


def test_noise_is_a_function_of_seed_and_step() -> None:
    def drawn(seed: int, step: int) -> list[torch.Tensor]:
        ours = _Recorded(*_gradients())
        _stepped(ours, seed=seed, step=step, noise_scale=0.1)
        return ours.seen

    first = drawn(0, 5)
    torch.manual_seed(123)
    assert all(torch.equal(a, b) for a, b in zip(first, drawn(0, 5), strict=True))
    for other in (drawn(0, 6), drawn(1, 5)):
        assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_noise_comes_before_clipping() -> None:
    ours = _Recorded(*_gradients())
    _stepped(ours, noise_scale=10.0, clip_norm=1.0)
    assert float(torch.cat([seen.flatten() for seen in ours.seen]).norm()) == pytest.approx(1.0, rel=1e-4)


def test_noise_of_a_sparse_gradient_stays_in_its_rows() -> None:
    sparse = torch.sparse_coo_tensor(torch.tensor([[2, 0]]), torch.zeros(2, 3), (4, 3))
    ours = _Recorded(sparse)
    _stepped(ours, noise_scale=1.0)
    assert (ours.seen[0] != 0).any(dim=1).tolist() == [True, False, True, False]


def test_by_default_gradients_are_left_alone_and_the_norm_is_taken_where_it_is_logged() -> None:
    ours = _Recorded(*_gradients())
    assert _stepped(ours).norm is None
    assert float(_stepped(ours, wants_norm=True).norm) == pytest.approx(
        float(np.linalg.norm(np.concatenate([gradient.flatten() for gradient in _gradients()]))), rel=1e-6
    )
    assert all(torch.equal(a, b) for a, b in zip(ours.seen, _gradients(), strict=True))


def test_a_model_without_dense_parameters_has_no_norm() -> None:
    assert _stepped(_Recorded(), noise_scale=1.0, clip_norm=1.0).norm is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_fault_23_a_gradient_that_is_not_finite_never_reaches_the_parameters(value) -> None:
    ours = _Recorded(torch.tensor([1.0, value]))
    with pytest.raises(NonFiniteError, match="step 5"):
        _stepped(ours, step=4, clip_norm=1.0)
    assert ours.seen == []


@pytest.mark.parametrize("settings", [{"clip_norm": 0}, {"clip_norm": math.inf}, {"noise_scale": -1}])
def test_fault_27_gradient_settings_out_of_range_are_refused(settings) -> None:
    with pytest.raises(pydantic.ValidationError, match=next(iter(settings))):
        GradientsConfig(**settings)


def test_the_description_says_that_tables_are_no_part_of_it() -> None:
    assert "Embedding tables with a fused optimizer are no part of this" in (GradientsConfig.__doc__ or "")


_BOTH = {"gradients": {"noise_scale": 0.3, "clip_norm": 0.5}}


def test_a_resumed_run_with_noise_and_clipping_is_equal_to_the_bit(tmp_path) -> None:
    whole = run_toy(tmp_path / "whole", num_epochs=2, **_BOTH)
    plain = run_toy(tmp_path / "plain", num_epochs=2)
    run_toy(tmp_path / "run", num_epochs=2, num_train_steps=5, **_BOTH)
    resumed = run_toy(tmp_path / "run", num_epochs=2, seed_of_model=9, **_BOTH)
    assert (resumed.weight, resumed.momentum) == (whole.weight, whole.momentum)
    assert whole.weight != plain.weight


def test_the_gradient_norm_is_tracked_with_every_log_line(tmp_path) -> None:
    run_toy(tmp_path / "a", num_train_steps=6)
    norms = [line.get("train/gradient_norm") for line in read_metrics(str(tmp_path / "a" / "metrics.jsonl"))]
    assert [norm is not None and norm > 0 for norm in norms] == [True, True]


def test_gradient_settings_may_not_change_on_resume(tmp_path) -> None:
    run_toy(tmp_path)
    with pytest.raises(ConfigError, match=r"training\.gradients\.clip_norm: null -> 1"):
        run_toy(tmp_path, num_epochs=2, gradients={"clip_norm": 1.0})


def _trained_on_ranks(folder: str) -> list[float]:
    wrap = torch.nn.parallel.DistributedDataParallel
    return run_toy(folder, wrap=wrap, num_epochs=2, **_BOTH).weight


def test_two_ranks_draw_the_same_noise_and_stay_equal(tmp_path) -> None:
    first, second = run_ranks(_trained_on_ranks, 2, str(tmp_path))
    assert first == second


def test_optimizers_name_their_dense_parameters() -> None:
    a, b = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(2))
    optimizers = Optimizers(
        {"x": torch.optim.SGD([("a", a)], lr=1.0), "y": torch.optim.SGD([b], lr=1.0)}, {}, {"x": float, "y": float}
    )
    assert list(optimizers.named_dense_parameters()) == ["x.a", "y.0"]
    assert all(found is wanted for found, wanted in zip(optimizers.dense_parameters(), (a, b), strict=True))
