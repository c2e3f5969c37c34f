"""Dense blocks of rankers: fully connected layers, and interactions of features.

Letters: `B` examples, `N` vectors of an example, `D` their dim, `X` inputs of a layer, `r` rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from tml.common.errors import ConfigError

ActivationName = Literal["relu", "tanh", "sigmoid", "gelu", "leaky_relu"]

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
    "leaky_relu": nn.LeakyReLU,
}


class FullDense(nn.Linear):
    """`activation(x W^T + b)` with Glorot's uniform weights and a zero bias, as the original's dense layer starts.

    Args:
        input_size: X.
        output_size: of the layer.
        activation: of the sum; None is linear.
    """

    def __init__(self, input_size: int, output_size: int, activation: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__(input_size, output_size)
        self.activation = activation

    def reset_parameters(self) -> None:
        """Glorot uniform weights, zero bias."""
        nn.init.xavier_uniform_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, input_size] -> [B, output_size]`."""
        outputs = super().forward(x)
        return outputs if self.activation is None else self.activation(outputs)


def mlp(
    sizes: Sequence[int], activation: ActivationName = "relu", last_activation: bool = True, dropout: float = 0.0
) -> nn.Sequential:
    """Fully connected layers with an activation after each.

    Args:
        sizes: of the input, then of each layer's output, at least two.
        activation: its name.
        last_activation: whether one follows the last layer too.
        dropout: the share of activations to drop in training.

    Raises:
        ConfigError: fewer than two sizes, or an activation that is not known.
    """
    if len(sizes) < 2 or min(sizes) < 1:
        raise ConfigError("layers cannot be built", where="mlp", value=list(sizes), limit="two or more positive sizes")
    if activation not in _ACTIVATIONS:
        raise ConfigError("unknown activation", where="mlp", value=activation, limit=sorted(_ACTIVATIONS))
    layers: list[nn.Module] = []
    for index, (inputs, outputs) in enumerate(pairwise(sizes), start=1):
        layers.append(FullDense(inputs, outputs))
        if index < len(sizes) - 1 or last_activation:
            layers.append(_ACTIVATIONS[activation]())
            if dropout:
                layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers)


class DotInteraction(nn.Module):
    """Dot products of all pairs of an example's vectors (DLRM, arXiv 1906.00091).

    Args:
        num_vectors: N.
        with_self: whether each vector is paired with itself too.
    """

    pairs: Tensor

    def __init__(self, num_vectors: int, with_self: bool = False) -> None:
        super().__init__()
        first, second = torch.triu_indices(num_vectors, num_vectors, offset=0 if with_self else 1)
        self.register_buffer("pairs", first * num_vectors + second, persistent=False)

    @property
    def output_size(self) -> int:
        """Number of pairs: `N (N - 1) / 2`, or `N (N + 1) / 2` with self."""
        return len(self.pairs)

    def forward(self, vectors: Tensor) -> Tensor:
        """`[B, N, D] -> [B, pairs]`, pairs (0, 1), (0, 2), ... in the order of the upper triangle."""
        products = torch.bmm(vectors, vectors.transpose(1, 2))
        return products.flatten(1).index_select(1, self.pairs)


class CrossNetwork(nn.Module):
    """Cross layers of DCN-v2 (arXiv 2008.13535): `x_(l+1) = x_0 * (W_l x_l + b_l) + x_l`.

    Args:
        input_size: X.
        num_layers: L; the output holds products of up to L + 1 inputs.
        rank: of `W = U V^T` with U and V `[X, r]`; None means a full `W`.
    """

    def __init__(self, input_size: int, num_layers: int, rank: int | None = None) -> None:
        super().__init__()
        if num_layers < 1 or (rank is not None and not 1 <= rank <= input_size):
            raise ConfigError(
                "cross network cannot be built", where="CrossNetwork", value=(num_layers, rank),
                limit=f"num_layers at least 1, rank in 1..{input_size} or none",
            )  # fmt: skip
        self.layers = nn.ModuleList(
            FullDense(input_size, input_size)
            if rank is None
            else nn.Sequential(nn.Linear(input_size, rank, bias=False), FullDense(rank, input_size))
            for _ in range(num_layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        """`[B, X] -> [B, X]`."""
        crossed = x
        for layer in self.layers:
            crossed = x * layer(crossed) + crossed
        return crossed
