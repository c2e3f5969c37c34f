"""Numbers inside the graph, in as few operators as they take.

Letters: `B` rows, `C` continuous features of the side, `K` of them that keep their value, `P` columns of
piecewise-linear encodings, `V` values of vectors.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tml.common.modules.normalizers import signed_log
from tml.projects.light_ranker.export.byte_layers import HIGHEST, LARGEST, ZERO, to_bytes
from tml.projects.light_ranker.models.inputs import DenseInputs

# Beyond so many columns a product with a diagonal matrix takes longer than going through the rows.
_MOST_IN_A_PRODUCT = 32


class Scaled(nn.Module):
    """`(x - shift) * scale`, by column of `[B, K]`.

    ONNX Runtime adds a row to a matrix one short row after the other. For few columns it is done sooner by one product
    with a diagonal matrix; the other columns' values must be finite then.

    Args:
        shift, scale: `[K]`.
    """

    factor: Tensor
    offset: Tensor

    def __init__(self, shift: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.shift, self.scale = shift, scale
        self.is_product = len(scale) <= _MOST_IN_A_PRODUCT
        self.register_buffer("factor", torch.diag(scale) if self.is_product else scale)
        self.register_buffer("offset", -shift * scale)

    def forward(self, x: Tensor) -> Tensor:
        """The scaled values `[B, K]`."""
        return torch.addmm(self.offset, x, self.factor) if self.is_product else x * self.factor + self.offset


class GraphNumbers(nn.Module):
    """The same numbers as `DenseInputs`, `(continuous [B, C], vectors [B, V]) -> [B, 2 K + P + V]`.

    Columns whose logarithm is taken come first, so that no operator chooses between two results for every value.
    `order` says where each column went.

    Args:
        inputs: the model's, of this side.
        num_columns: `C`.

    Attributes:
        order: column of `DenseInputs` at each place.
    """

    limit: Tensor

    def __init__(self, inputs: DenseInputs, num_columns: int) -> None:
        super().__init__()
        normalizer, num_kept = inputs.normalizer, len(inputs.kept)
        first = torch.argsort((~normalizer.is_log).to(torch.int64), stable=True)
        self.order = [*first.tolist(), *(num_kept + first).tolist(), *range(2 * num_kept, inputs.num_columns)]
        self.num_kept, self.num_logs = num_kept, int(normalizer.is_log.sum())
        columns = inputs.columns[first]
        self.columns = None if columns.tolist() == list(range(num_columns)) else columns
        limit = torch.minimum(normalizer.limit, inputs.limit)[first]
        self.common_limit = float(limit[0]) if num_kept and bool((limit == limit[0]).all()) else None
        self.register_buffer("limit", limit)
        self.scaled = Scaled(normalizer.shift[first], normalizer.scale[first])
        self.pieces = inputs.pieces

    def forward(self, continuous: Tensor, vectors: Tensor) -> Tensor:
        """The columns, float32 `[B, 2 K + P + V]`."""
        parts = self.others(continuous, vectors)
        if self.num_kept:
            values, missing = self.values(continuous)
            parts = [torch.where(missing, 0.0, self._limited(self.scaled(values))), missing.to(torch.float32), *parts]
        return torch.cat(parts, dim=1) if parts else vectors

    def values(self, continuous: Tensor) -> tuple[Tensor, Tensor]:
        """Unscaled values, 0 where missing, and where that is, `[B, K]` each."""
        given = continuous if self.columns is None else continuous.index_select(1, self.columns)
        missing = given.isnan()
        return self._logs(torch.where(missing, 0.0, given)), missing

    def others(self, continuous: Tensor, vectors: Tensor) -> list[Tensor]:
        """Piecewise-linear encodings and vectors, those that there are."""
        return [*([] if self.pieces is None else [self.pieces(continuous)]), *([vectors] if vectors.shape[1] else [])]

    def _logs(self, given: Tensor) -> Tensor:
        if self.num_logs in (0, self.num_kept):
            return signed_log(given) if self.num_logs else given
        return torch.cat([signed_log(given[:, : self.num_logs]), given[:, self.num_logs :]], dim=1)

    def _limited(self, x: Tensor) -> Tensor:
        if self.common_limit is not None:
            return x.clamp(-self.common_limit, self.common_limit)
        return torch.minimum(torch.maximum(x, -self.limit), self.limit)


class ByteNumbers(nn.Module):
    """The columns of `GraphNumbers` in bytes, each a number of steps of its column; bytes end where limits do.

    Args:
        numbers: the columns in floats.
        largest: `[2 K + P + V]`, each column's largest absolute value.

    Attributes:
        steps: `[2 K + P + V]`, what a step of each column is worth.
    """

    steps: Tensor
    inverse: Tensor
    zero: Tensor
    one: Tensor

    def __init__(self, numbers: GraphNumbers, largest: Tensor) -> None:
        super().__init__()
        num_kept, scaled = numbers.num_kept, numbers.scaled
        self.numbers = numbers
        steps = largest / LARGEST
        # The flag of a missing value is 1, or 0 in all rows that were looked at.
        steps[num_kept : 2 * num_kept] = 1 / LARGEST
        self.scaled = Scaled(scaled.shift, scaled.scale / steps[:num_kept])
        self.register_buffer("steps", steps)
        self.register_buffer("inverse", 1 / steps[2 * num_kept :])
        self.register_buffer("zero", torch.tensor(ZERO, dtype=torch.uint8))
        self.register_buffer("one", torch.tensor(HIGHEST, dtype=torch.uint8))

    def forward(self, continuous: Tensor, vectors: Tensor) -> list[Tensor]:
        """The columns, uint8 `[B, 2 K + P + V]` together."""
        others, parts = self.numbers.others(continuous, vectors), []
        if self.numbers.num_kept:
            values, missing = self.numbers.values(continuous)
            parts = [torch.where(missing, self.zero, to_bytes(self.scaled(values)))]
            parts.append(torch.where(missing, self.one, self.zero))
        if others:
            parts.append(to_bytes(torch.cat(others, dim=1) * self.inverse))
        return parts
