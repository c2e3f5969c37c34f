"""Numbers inside the graph, in as few operators as they take.

Letters: `B` rows, `C` continuous features of the side, `K` of them that keep their value, `P` columns of
piecewise-linear encodings, `V` values of vectors.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tml.common.modules.normalizers import signed_log
from tml.projects.light_ranker.models.inputs import DenseInputs


class GraphNumbers(nn.Module):
    """The same numbers as `DenseInputs`, `(continuous [B, C], vectors [B, V]) -> [B, 2 K + P + V]`.

    Columns whose logarithm is taken come first, so that no operator chooses between two results for every value, and
    missing values, which stay NaN through all operators, are cleared away once. `order` says where each column went.

    Args:
        inputs: the model's, of this side.
        num_columns: `C`.

    Attributes:
        order: column of `DenseInputs` at each place.
    """

    shift: Tensor
    scale: Tensor
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
        self.register_buffer("shift", normalizer.shift[first])
        self.register_buffer("scale", normalizer.scale[first])
        self.pieces = inputs.pieces

    def forward(self, continuous: Tensor, vectors: Tensor) -> Tensor:
        """The columns, float32 `[B, 2 K + P + V]`."""
        parts = self._values(continuous) if self.num_kept else []
        parts += [] if self.pieces is None else [self.pieces(continuous)]
        parts += [vectors] if vectors.shape[1] or not parts else []
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]

    def _values(self, continuous: Tensor) -> list[Tensor]:
        given = continuous if self.columns is None else continuous.index_select(1, self.columns)
        missing = given.isnan()
        x = self._limited((self._logs(given) - self.shift) * self.scale)
        return [torch.where(missing, 0.0, x), missing.to(torch.float32)]

    def _logs(self, given: Tensor) -> Tensor:
        if self.num_logs in (0, self.num_kept):
            return signed_log(given) if self.num_logs else given
        return torch.cat([signed_log(given[:, : self.num_logs]), given[:, self.num_logs :]], dim=1)

    def _limited(self, x: Tensor) -> Tensor:
        if self.common_limit is not None:
            return x.clamp(-self.common_limit, self.common_limit)
        return torch.minimum(torch.maximum(x, -self.limit), self.limit)
