"""Layers over sparse batches (`SparseRows`): the affine layer, normalisers that learn per id, factorization machine.

They follow the layers of twml and the operators of libtwml of the same names. Letters: `N` entries, `R` rows,
`O` outputs, `K` latent variables.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tml.common.errors import ConfigError
from tml.common.modules.sparse_ops import SparseRows

Activation = Callable[[Tensor], Tensor]


class FullSparse(nn.Module):
    """`activation(S W + b)` of a sparse matrix S. Weights start at zero, the bias at `1 / output_size`.

    Args:
        num_ids: columns of S.
        output_size: O.
        use_binary_values: let every entry count as 1, whatever its value (also 0.0); one flag for each input if the
            layer is given a list.
        sparse_grad: gradients of the weights hold just the rows of a batch (for SGD, SparseAdam, Adagrad).
        activation: of the sum; None is linear.
    """

    def __init__(
        self,
        num_ids: int,
        output_size: int,
        use_binary_values: bool | Sequence[bool] = False,
        sparse_grad: bool = True,
        activation: Activation | None = None,
    ) -> None:
        super().__init__()
        self.num_ids = num_ids
        self.use_binary_values = use_binary_values
        self.sparse_grad = sparse_grad
        self.activation = activation
        self.weight = nn.Parameter(torch.zeros(num_ids, output_size))
        self.bias = nn.Parameter(torch.full((output_size,), 1 / output_size))

    def forward(self, inputs: SparseRows | Sequence[SparseRows]) -> Tensor:
        """Outputs `[R, O]`; those of several inputs of equal R are added up.

        Raises:
            ConfigError: a list of flags that does not match the inputs.
            DataError: an id or row out of range.
        """
        batches = [inputs] if isinstance(inputs, SparseRows) else list(inputs)
        total = sum(self._product(batch, binary) for batch, binary in zip(batches, self._flags(inputs), strict=True))
        outputs = total + self.bias
        return outputs if self.activation is None else self.activation(outputs)

    def _product(self, entries: SparseRows, binary: bool) -> Tensor:
        entries.check(self.num_ids, where="FullSparse")
        rows = F.embedding(entries.ids, self.weight, sparse=self.sparse_grad)
        if not binary:
            rows = rows * entries.values.to(rows.dtype).unsqueeze(1)
        return rows.new_zeros(entries.num_rows, self.weight.shape[1]).index_add(0, entries.rows, rows)

    def _flags(self, inputs: SparseRows | Sequence[SparseRows]) -> Sequence[bool]:
        flags = self.use_binary_values
        if isinstance(flags, bool):
            return [flags] * (1 if isinstance(inputs, SparseRows) else len(inputs))
        if isinstance(inputs, SparseRows) or len(flags) != len(inputs):
            raise ConfigError(
                "flags and inputs differ in number", where="FullSparse.use_binary_values", value=list(flags),
                limit="one flag for each input of the list", fix="give one flag for all, or one each",
            )  # fmt: skip
        return flags


class SparseMaxNorm(nn.Module):
    """Divides each value by the largest absolute value that its id has had, `[-1, 1]`, and adds a learnt bias per id.

    In training the maxima run through the batch in the order of its entries: an entry is divided by the maximum up to
    and with itself. In evaluation an entry larger than the stored maximum is divided by itself, and nothing is stored.
    No gradient flows through the normalised value, only to the bias.

    Args:
        num_ids: how many ids.
        epsilon: the least divisor.
        use_bias: whether there is a bias.
    """

    max_abs: Tensor

    def __init__(self, num_ids: int, epsilon: float = 1e-5, use_bias: bool = True) -> None:
        super().__init__()
        self.num_ids, self.epsilon = num_ids, epsilon
        self.register_buffer("max_abs", torch.zeros(num_ids))
        self.bias = nn.Parameter(torch.zeros(num_ids)) if use_bias else None

    def forward(self, entries: SparseRows) -> SparseRows:
        """Entries with values `v / max(maximum, epsilon) + bias[id]`."""
        entries.check(self.num_ids, where="SparseMaxNorm")
        with torch.no_grad():
            size = entries.values.abs()
            largest = torch.maximum(self.max_abs[entries.ids], size)
            if self.training:
                largest = running_max(entries.ids, largest)
                self.max_abs.scatter_reduce_(0, entries.ids, size.to(self.max_abs.dtype), "amax")
            normalised = entries.values / torch.clamp(largest, min=self.epsilon)
        if self.bias is not None:
            normalised = normalised + self.bias[entries.ids]
        return entries.with_entries(entries.ids, normalised)


class SparseBatchNorm(nn.Module):
    """Standardises each value by the mean and variance of its id over all training entries so far.

    `(v - mean) / sqrt(variance + epsilon)`, after the batch has been counted in (Welford's sums, merged a batch at a
    time after Chan, Golub and LeVeque). An id that was never trained has mean 0 and variance 1. No gradient flows.

    Args:
        num_ids: how many ids.
        epsilon: added to the variance.
    """

    count: Tensor
    mean: Tensor
    squares: Tensor

    def __init__(self, num_ids: int, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.num_ids, self.epsilon = num_ids, epsilon
        for name in ("count", "mean", "squares"):
            self.register_buffer(name, torch.zeros(num_ids, dtype=torch.float64))

    @torch.no_grad()
    def forward(self, entries: SparseRows) -> SparseRows:
        """Entries with standardised values, of the type of the values."""
        entries.check(self.num_ids, where="SparseBatchNorm")
        values = entries.values.to(torch.float64)
        if self.training:
            self._count_in(entries.ids, values)
        count = self.count[entries.ids]
        variance = torch.where(count > 0, self.squares[entries.ids] / torch.clamp(count, min=1), 1.0)
        normalised = (values - self.mean[entries.ids]) / torch.sqrt(variance + self.epsilon)
        return entries.with_entries(entries.ids, normalised.to(entries.values.dtype))

    def _count_in(self, ids: Tensor, values: Tensor) -> None:
        # Work and memory follow the batch, not the number of ids.
        seen, place = torch.unique(ids, return_inverse=True)
        zeros = values.new_zeros(len(seen))
        added = zeros.index_add(0, place, torch.ones_like(values))
        batch_mean = zeros.index_add(0, place, values) / added
        batch_squares = zeros.index_add(0, place, (values - batch_mean[place]).square())
        before = self.count[seen]
        delta = batch_mean - self.mean[seen]
        self.count[seen] = before + added
        self.mean[seen] += delta * added / (before + added)
        self.squares[seen] += batch_squares + delta.square() * before * added / (before + added)


class FactorizationMachine(nn.Module):
    """`sum_k ((sum_i v_ik x_i)^2 - sum_i (v_ik x_i)^2)`, the original's form: without Rendle's factor one half.

    Args:
        num_ids: how many ids.
        num_latent: K.
        sparse_grad: gradients hold just the rows of a batch.
        subtract_self_cross: whether the second sum is taken off.
        init_scale: standard deviation of the initial vectors. The original starts at zero, where the gradient is zero
            too and nothing is ever learnt.
    """

    def __init__(
        self,
        num_ids: int,
        num_latent: int = 10,
        sparse_grad: bool = True,
        subtract_self_cross: bool = True,
        init_scale: float = 0.01,
    ) -> None:
        super().__init__()
        self.num_ids, self.sparse_grad, self.subtract_self_cross = num_ids, sparse_grad, subtract_self_cross
        self.weight = nn.Parameter(torch.randn(num_ids, num_latent) * init_scale)

    def forward(self, entries: SparseRows) -> Tensor:
        """`[R, 1]`; 0 for a row without entries."""
        entries.check(self.num_ids, where="FactorizationMachine")
        vectors = F.embedding(entries.ids, self.weight, sparse=self.sparse_grad)
        vectors = vectors * entries.values.to(vectors.dtype).unsqueeze(1)
        zeros = vectors.new_zeros(entries.num_rows, vectors.shape[1])
        crosses = zeros.index_add(0, entries.rows, vectors).square()
        if self.subtract_self_cross:
            crosses = crosses - zeros.index_add(0, entries.rows, vectors.square())
        return crosses.sum(1, keepdim=True)


def running_max(ids: Tensor, values: Tensor) -> Tensor:
    """The largest of an entry's value and those of earlier entries of the same id.

    Args:
        ids: int64 `[N]`.
        values: `[N]`.

    Returns:
        `[N]`, in the order of the entries. Entries are sorted by id, then maxima spread over distances that double.
    """
    order = torch.argsort(ids, stable=True)
    sorted_ids, largest = ids[order], values[order].clone()
    distance = 1
    while distance < len(ids):
        same = sorted_ids[distance:] == sorted_ids[:-distance]
        if not bool(same.any()):
            break
        spread = torch.where(same, largest[:-distance], largest[distance:])
        largest = torch.cat([largest[:distance], torch.maximum(largest[distance:], spread)])
        distance *= 2
    return torch.empty_like(largest).index_copy(0, order, largest)
