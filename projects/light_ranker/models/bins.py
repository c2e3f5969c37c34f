"""Bins of continuous features: a value becomes the row of its bin, on the host and in an exported graph alike.

Letters: `B` rows, `N` binned features, `K` boundaries of the feature that has most.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# The code of a missing value; a value lies in one of the codes from 1 on.
MISSING_CODE = 0


class Bins:
    """Maps `code -> row` after `value -> code`: 0 for NaN, else 1 + the number of boundaries below the value.

    Unlike the shared `DenseDiscretizer` it gives rows of whatever table follows, and closes intervals on either side,
    as lolly texts need. And it is no module: batches are made in a thread, and while a pipeline traces the model no
    thread may call one.

    Args:
        columns: int64 `[N]`, which column of the continuous features each is.
        boundaries: for each feature, ascending.
        rows: for each feature, the row of each code: one for missing and one for each of its intervals.
        left_closed: intervals are `[a, b)` if True, else `(a, b]`.
    """

    def __init__(
        self,
        columns: Sequence[int],
        boundaries: Sequence[Sequence[float]],
        rows: Sequence[Sequence[int]],
        left_closed: bool = False,
    ) -> None:
        self.left_closed = left_closed
        width = max((len(edges) for edges in boundaries), default=0)
        padded = torch.full((len(boundaries), width), torch.inf)
        row_of_code = torch.zeros(len(boundaries), width + 2, dtype=torch.int64)
        for index, (edges, of_code) in enumerate(zip(boundaries, rows, strict=True)):
            assert len(of_code) == len(edges) + 2, "a row for missing and one for each interval"
            padded[index, : len(edges)] = torch.tensor(edges, dtype=torch.float64).float()
            row_of_code[index, : len(of_code)] = torch.tensor(of_code, dtype=torch.int64)
        self.columns = torch.tensor(columns, dtype=torch.int64)
        self.boundaries, self.rows = padded, row_of_code

    def codes(self, continuous: Tensor) -> Tensor:
        """int64 `[B, N]` from float32 `[B, C]`; padding boundaries are infinite, so no finite value passes them."""
        values = continuous[:, self.columns].T.contiguous()
        codes = torch.searchsorted(self.boundaries, values, right=self.left_closed).T + 1
        return torch.where(values.T.isnan(), MISSING_CODE, codes)

    def __call__(self, continuous: Tensor) -> Tensor:
        """The rows of the values' bins, int64 `[B, N]`."""
        codes = self.codes(continuous)
        return self.rows.gather(1, codes.T).T
