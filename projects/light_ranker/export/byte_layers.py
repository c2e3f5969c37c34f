"""Hidden layers in 8 bits, by operators of ONNX Runtime that multiply bytes and write bytes.

Column `k` of a layer's input is `(byte - zero) * step_k`. The steps are found beforehand, over rows (static
quantisation), and go into the weights: `sum_k w_jk x_k = sum_k (w_jk step_k) (byte_k - zero)`, whose first bracket is
rounded to int8 in steps of its own for every unit `j`. So each column has a step that fits it, at no cost when serving.
A layer's output leaves the product as bytes too, cut off below 0, which is the ReLU; that of the last one is floats.

Letters: `U` users, one or as many as candidates; `N` candidates, `K` columns, `H` units.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tml.common.modules.sorted_search import is_exporting

# Inputs lie around this byte, `LARGEST` steps on either side; outputs of hidden layers begin at byte 0.
ZERO, LARGEST, HIGHEST = 128, 127, 255
_MOST_SUM = 2**30
# A unit of tiny weights still has to hold its bias in an int32.
_SMALLEST_STEP = 2**-12


def to_bytes(steps: Tensor) -> Tensor:
    """Numbers of steps, float32, as uint8 around `ZERO`; those beyond are cut off."""
    if is_exporting():
        inputs = (steps, torch.tensor(1.0), torch.tensor(ZERO, dtype=torch.uint8))
        return torch.onnx.ops.symbolic("QuantizeLinear", inputs, dtype=torch.uint8, shape=steps.shape)
    return (steps.round() + ZERO).clamp(0, HIGHEST).to(torch.uint8)


class FromBytes(nn.Module):
    """The floats that bytes stand for, `(byte - ZERO) * step`.

    Args:
        steps: broadcast against the bytes.
    """

    steps: Tensor

    def __init__(self, steps: Tensor) -> None:
        super().__init__()
        self.register_buffer("steps", steps)

    def forward(self, values: Tensor) -> Tensor:
        """float32 of the same shape."""
        return (values.to(torch.float32) - ZERO) * self.steps


class ByteLinear(nn.Module):
    """`W x + b` of an input in bytes.

    Args:
        weight: W, float32 `[H, K]`.
        steps: of the input's columns `[K]`.
        zero: byte of an input of 0.
        out_steps: `[H]`; the output is bytes from 0 on in these steps, cut off at both ends. None for floats.
    """

    matrix: Tensor
    unit_steps: Tensor
    scale: Tensor
    zero: Tensor
    zeros: Tensor

    def __init__(self, weight: Tensor, steps: Tensor, zero: int, out_steps: Tensor | None) -> None:
        super().__init__()
        products = (weight.detach() * steps).double()
        unit_steps = products.abs().amax(1) / LARGEST
        unit_steps = unit_steps.clamp_min(
            max(float(unit_steps.max()) * _SMALLEST_STEP, torch.finfo(torch.float32).tiny)
        )
        self.gives_bytes = out_steps is not None
        self.register_buffer("matrix", (products / unit_steps[:, None]).round().to(torch.int8).T.contiguous())
        self.register_buffer("unit_steps", unit_steps.float())
        self.register_buffer("scale", (unit_steps / (1.0 if out_steps is None else out_steps)).float())
        self.register_buffer("zero", torch.tensor(zero, dtype=torch.uint8))
        self.register_buffer("zeros", torch.zeros(len(weight), dtype=torch.int8))

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """uint8 or float32 `[N, H]`, from uint8 `[N, K]` and b, float32 `[U, H]`."""
        start = (bias / self.unit_steps).round().clamp(-_MOST_SUM, _MOST_SUM).to(torch.int32)
        if is_exporting():
            return self._recorded(x, start)
        # Products of bytes are exact in float64, as in int32.
        sums = (x.double() - self.zero) @ self.matrix.double() + start
        outputs = (sums * self.scale).float()
        return outputs.round().clamp(0, HIGHEST).to(torch.uint8) if self.gives_bytes else outputs

    def _recorded(self, x: Tensor, start: Tensor) -> Tensor:
        one = torch.tensor(1.0)
        inputs = [x, one, self.zero, self.matrix, self.scale, self.zeros, start]
        inputs += [one, torch.tensor(0, dtype=torch.uint8)] if self.gives_bytes else []
        kind = torch.uint8 if self.gives_bytes else torch.float32
        shape = (x.shape[0], self.matrix.shape[1])
        return torch.onnx.ops.symbolic("com.microsoft::QGemm", inputs, dtype=kind, shape=shape, version=1)


class ByteLayers(nn.Module):
    """What `HiddenLayers` does, in bytes.

    Args:
        first: weight of the first layer `[H + num_wide, K]`.
        others: the layers behind it.
        num_wide: units of the first layer that go to the outputs.
        steps: of the first layer's input `[K]`.
        largest: largest output of every layer's units but the last's, `[H]` each.
    """

    inverse: Tensor

    def __init__(
        self, first: Tensor, others: list[nn.Linear], num_wide: int, steps: Tensor, largest: list[Tensor]
    ) -> None:
        super().__init__()
        self.size = len(first) - num_wide
        weights = [first[: self.size], *(layer.weight for layer in others)]
        outputs = [*(values / HIGHEST for values in largest), None]
        inputs = [(steps, ZERO), *((step, 0) for step in outputs[:-1])]
        self.layers = nn.ModuleList(
            ByteLinear(weight, step, zero, out)  # type: ignore[arg-type]
            for weight, (step, zero), out in zip(weights, inputs, outputs, strict=True)
        )
        self.wide = ByteLinear(first[self.size :], steps, ZERO, None) if num_wide else None
        self.biases = [layer.bias.detach().unsqueeze(0).clone() for layer in others]
        self.register_buffer("inverse", 1 / steps)

    def forward(self, base: Tensor, columns: list[Tensor]) -> tuple[Tensor, Tensor | None]:
        """The last hidden layer, and what goes to the outputs, float32 `[N, H]` and `[N, num_wide]`.

        Args:
            base: what the first layer's sums begin with, float32 `[U, H + num_wide]`.
            columns: its input, `[N, K]` together, all in bytes or all in floats.
        """
        x = torch.cat(columns, dim=1)
        x = x if x.dtype == torch.uint8 else to_bytes(x * self.inverse)
        wide = None if self.wide is None else self.wide(x, base[:, self.size :])
        first, *others = self.layers
        x = first(x, base[:, : self.size])
        for layer, bias in zip(others, self.biases, strict=True):
            x = layer(x, bias)
        return torch.relu(x), wide
