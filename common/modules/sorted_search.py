"""Look-ups in sorted rows that can be exported: torch.searchsorted has no counterpart in ONNX.

`#{boundary < value}` is what `numpy.searchsorted(row, value, side="left")` and C++'s `lower_bound` return.
Letters: `R` rows, `P` places of a row, `B` examples, `F` features.
"""

from __future__ import annotations

import torch
from torch import Tensor


def is_exporting() -> bool:
    """Whether torch.export is recording, as torch.onnx.export does: the place for an operator's exportable form."""
    return torch.compiler.is_exporting()


def padded_rows(rows: Tensor) -> Tensor:
    """Lengthen sorted rows `[R, P]` to `2 ** k - 1` places with the largest value of their type, for `count_below`."""
    largest = torch.inf if rows.is_floating_point() else torch.iinfo(rows.dtype).max
    length = (1 << rows.shape[1].bit_length()) - 1
    # Not torch.nn.functional.pad: it takes the value as a float, and 2 ** 63 - 1 comes out as -2 ** 63.
    return torch.cat([rows, rows.new_full((len(rows), length - rows.shape[1]), largest)], dim=1)


def count_below(padded: Tensor, row: Tensor, values: Tensor, or_equal: bool = False) -> Tensor:
    """`#{place of the value's row < value}` by a binary search in gathers, log2(P) of them.

    Args:
        padded: `[R, 2 ** k - 1]`, rows in ascending order (`padded_rows`).
        row: int64, any shape: the row in which each value is looked up.
        values: of the shape of `row`. NaN counts nothing.
        or_equal: count places equal to the value too (C++'s `upper_bound`).

    Returns:
        int64 of the shape of `row`.
    """
    flat, first = padded.flatten(), row * padded.shape[1]
    count = torch.zeros_like(row)
    step = (padded.shape[1] + 1) // 2
    while step:
        place = flat[first + count + (step - 1)]
        below = place <= values if or_equal else place < values
        count = count + below.to(torch.int64) * step
        step //= 2
    return count


def count_below_in_columns(boundaries: Tensor, values: Tensor) -> Tensor:
    """`#{boundaries[f] < values[:, f]}` for every feature at once.

    Args:
        boundaries: `[F, P]`, rows in ascending order.
        values: `[B, F]`; what is counted for NaN is not defined.

    Returns:
        int64 `[B, F]`.
    """
    if not is_exporting():
        return torch.searchsorted(boundaries, values.t().contiguous()).t()
    # Sums of floats are what ONNX Runtime does fastest here; counts are far below 2 ** 24.
    return (boundaries.unsqueeze(0) < values.unsqueeze(-1)).to(torch.float32).sum(-1).to(torch.int64)
