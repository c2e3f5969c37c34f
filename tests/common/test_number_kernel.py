"""The compiled transform of continuous features against `Normalizer`, and its logarithm against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tml.common.modules import number_kernel
from tml.common.modules.normalizers import signed_log
from tml.common.native.compiler import compiled

pytestmark = pytest.mark.skipif(compiled(number_kernel.SOURCE) is None, reason="no C++ compiler here")

INF = torch.inf


def by_operations(values: Tensor, shift: Tensor, scale: Tensor, limit: Tensor, is_log: Tensor) -> Tensor:
    x = (torch.where(is_log, signed_log(values), values) - shift) * scale
    missing = values.isnan()
    return torch.cat([x.clamp(-limit, limit).masked_fill(missing, 0.0), missing.float()], dim=1)


@pytest.mark.parametrize("num_features", [1, 13, 16, 40])
def test_numbers_of_all_sizes_are_scaled_cut_and_marked(num_features):
    torch.manual_seed(num_features)
    rows = torch.randn(301, num_features + 3) * torch.logspace(-8, 7, 301)[:, None]
    rows[torch.rand_like(rows) < 0.2] = torch.nan
    rows[5], rows[6] = 0.0, -0.0
    shift, scale = torch.randn(num_features), torch.rand(num_features)
    limit = torch.where(torch.rand(num_features) < 0.5, 10.0, INF)
    is_log = torch.rand(num_features) < 0.6
    values = rows[:, 1 : num_features + 1]
    assert number_kernel.can_run(values)
    found = number_kernel.scaled_and_marked(values, shift, scale, limit, is_log)
    torch.testing.assert_close(found, by_operations(values, shift, scale, limit, is_log), rtol=2e-6, atol=2e-6)


def test_the_logarithm_is_exact_to_two_units_in_the_last_place():
    values = torch.cat([torch.logspace(-30, 38, 20_001), torch.linspace(0.0, 3.0, 20_001)])[:, None]
    plain = torch.zeros(1), torch.ones(1), torch.full((1,), INF), torch.ones(1, dtype=torch.bool)
    for sign in (1, -1):
        found = number_kernel.scaled_and_marked(sign * values, *plain)[:, 0].double()
        exact = sign * values[:, 0].double().log1p()
        assert ((found - exact).abs() <= 2 * 2.0**-23 * exact.abs()).all()


def test_other_numbers_are_left_to_torch():
    values = torch.rand(8, 3)
    assert not number_kernel.can_run(values.double())
    assert not number_kernel.can_run(values.t())
    assert not number_kernel.can_run(values.clone().requires_grad_())
