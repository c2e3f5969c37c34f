"""The compiled layers against torch's own: float32 to rounding, bfloat16 about as far from float64 as autocast is, to
the bit on any number of threads.

Letters: `B` examples, `O` outputs.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from tml.common.modules import dense_kernel
from tml.common.native.compiler import compiled

pytestmark = pytest.mark.skipif(compiled(dense_kernel.SOURCE) is None, reason="no C++ compiler here")


class Shape(NamedTuple):
    """What is computed: examples, widths of the input's parts, units of the hidden layers, outputs, wide units."""

    num_examples: int
    widths: list[int]
    sizes: list[int]
    num_outputs: int
    is_wide: bool


SHAPES = [
    Shape(301, [32, 6], [48, 16], 1, True),
    Shape(301, [37, 2, 9], [50, 17], 2, True),
    Shape(600, [5], [31], 3, False),
    Shape(1, [16], [16, 33, 5], 1, True),
    Shape(97, [131, 1], [130], 2, False),
]


class Network(nn.Module):
    """Random layers and parts; the second part asks for no derivative."""

    def __init__(self, shape: Shape, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.shape = shape
        self.parts = [torch.randn(shape.num_examples, width) for width in shape.widths]
        for number, part in enumerate(self.parts):
            part.requires_grad_(number != 1)
        sizes = [sum(shape.widths), *shape.sizes]
        extra = shape.num_outputs if shape.is_wide else 0
        layers = [nn.Linear(n, m + (extra if k == 0 else 0)) for k, (n, m) in enumerate(pairwise(sizes))]
        self.layers = nn.ModuleList([*layers, nn.Linear(sizes[-1], shape.num_outputs)])
        self.by_outputs = torch.randn(shape.num_examples, shape.num_outputs)

    @property
    def weights(self) -> list[tuple[Tensor, Tensor]]:
        return [(layer.weight, layer.bias) for layer in self.layers]  # type: ignore[misc]

    def operations(self) -> Tensor:
        """What the kernel computes, by torch's operations."""
        first, *others, last = self.layers
        x = first(torch.cat(self.parts, dim=1))
        x, wide = (x[:, : -self.shape.num_outputs], x[:, -self.shape.num_outputs :]) if self.shape.is_wide else (x, 0.0)
        for layer in others:
            x = layer(x.relu())
        x = x.relu()
        with torch.autocast("cpu", enabled=False):
            return last(x.to(last.weight.dtype)) + wide

    def kernel(self) -> Tensor:
        return dense_kernel.rectified_layers(self.parts, self.weights, self.shape.is_wide)

    def derivatives(self, outputs: Tensor) -> list[Tensor]:
        inputs = [part for part in self.parts if part.requires_grad] + [x for pair in self.weights for x in pair]
        return [outputs, *torch.autograd.grad(outputs, inputs, self.by_outputs.to(outputs.dtype))]


def distance(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm().clamp_min(1e-12))


@pytest.mark.parametrize("shape", SHAPES)
def test_float32_layers_and_their_derivatives_are_torchs(shape):
    network = Network(shape)
    found, expected = network.derivatives(network.kernel()), network.derivatives(network.operations())
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_bfloat16_layers_are_about_as_exact_as_autocast(shape):
    network = Network(shape)
    with torch.autocast("cpu", torch.bfloat16):
        kernel, autocast = network.kernel(), network.operations()
    assert kernel.dtype == torch.float32
    found, other = network.derivatives(kernel), network.derivatives(autocast)
    exact = Network(shape).double()
    exact.parts = [part.detach().double().requires_grad_(part.requires_grad) for part in network.parts]
    for one, by_torch, truth in zip(found, other, exact.derivatives(exact.operations()), strict=True):
        assert distance(one, truth) <= 2 * distance(by_torch, truth) + 2e-3


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.usefixtures("keep_threads")
def test_the_number_of_threads_changes_no_bit(bfloat16):
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        network = Network(Shape(1000, [64, 10], [40, 24], 2, True))
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            outputs = network.kernel()
        results.append(network.derivatives(outputs))
    for others in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(results[0], others, strict=True))


def test_a_part_may_be_a_slice_and_ask_for_its_derivative():
    network = Network(Shape(50, [20, 3], [16], 1, False))
    rows = torch.randn(50, 40, requires_grad=True)
    network.parts[0] = rows[:, 10:30]
    network.kernel().sum().backward()
    found, rows.grad = rows.grad, None
    network.operations().sum().backward()
    torch.testing.assert_close(found, rows.grad, rtol=1e-4, atol=1e-6)


def test_a_bad_number_comes_through():
    network = Network(SHAPES[0])
    network.parts[0].data[3, 4] = torch.nan
    assert torch.equal(network.kernel().isnan(), network.operations().isnan())


def test_it_runs_where_it_is_right_and_best(monkeypatch):
    network = Network(SHAPES[0])
    weights, parts = network.weights, network.parts
    assert dense_kernel.can_run(parts, weights)
    assert not dense_kernel.can_run([part.double() for part in parts], weights)
    assert not dense_kernel.can_run([part[:0] for part in parts], weights)
    turned = [(weight.t().contiguous().t(), bias) for weight, bias in weights]
    assert not dense_kernel.can_run(parts, turned)
    with torch.autocast("cpu", torch.float16):
        assert not dense_kernel.can_run(parts, weights)
    with torch.autocast("cpu", torch.bfloat16):
        for amx in (False, True):
            monkeypatch.setattr(torch.cpu, "get_capabilities", lambda amx=amx: {"amx_bf16": amx})
            assert dense_kernel.can_run(parts, weights) is not amx
