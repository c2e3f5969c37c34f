"""Piecewise-linear encoding of numbers (Gorishniy, Rubachev and Babenko, arXiv 2203.05556).

A feature with boundaries `b_0 < b_1 < ... < b_n` becomes a column for each of its `n` bins, the share of the bin that
lies below the value:

    column_k(x) = min(max((x - b_(k-1)) / (b_k - b_(k-1)), 0), 1)

A layer over these columns is any continuous function of the value with bends at the boundaries. Unlike rows of an
embedding table for bins, the columns keep the order: what is learnt of a value says something of its neighbours.

Letters: `B` examples, `C` given columns, `P` columns of all features together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class PiecewiseLinear(nn.Module):
    """`[B, C] -> [B, P]`. Missing values (NaN) are zeros, like values below the first boundary.

    Args:
        columns: which of the given columns each feature is.
        boundaries: of each feature, ascending; a bin without width is left out.
        num_columns: of each feature: as many as its bins, or more, which are zeros.
    """

    columns: Tensor
    low: Tensor
    scale: Tensor

    def __init__(
        self, columns: Sequence[int], boundaries: Sequence[Sequence[float]], num_columns: Sequence[int]
    ) -> None:
        super().__init__()
        lows, scales = [torch.zeros(0)], [torch.zeros(0)]
        for edges, size in zip(boundaries, num_columns, strict=True):
            points = torch.unique(torch.tensor(list(edges), dtype=torch.float32))
            low, width = points[:-1], points.diff()
            assert len(width) <= size, "a column for each bin"
            padding = torch.zeros(size - len(width))
            lows.append(torch.cat([low, padding]))
            scales.append(torch.cat([1.0 / width, padding]))
        repeats = torch.tensor(list(num_columns), dtype=torch.int64)
        buffers = {
            "columns": torch.tensor(list(columns), dtype=torch.int64).repeat_interleave(repeats),
            "low": torch.cat(lows),
            "scale": torch.cat(scales),
        }
        for name, values in buffers.items():
            # Not part of a checkpoint: calibration is a phase of its own, kept as JSON.
            self.register_buffer(name, values, persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        """The columns, float32."""
        shares = ((values.index_select(1, self.columns) - self.low) * self.scale).clamp(0.0, 1.0)
        return torch.where(shares.isnan(), 0.0, shares)
