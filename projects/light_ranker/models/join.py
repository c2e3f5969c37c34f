"""Columns side by side, in the type in which the first layer multiplies."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def join_columns(parts: list[Tensor]) -> Tensor:
    """`torch.cat(parts, dim=1)`; under autocast it is in the reduced type already.

    Concatenating first and casting then would go through memory three times instead of once, in each direction.
    """
    device = parts[0].device.type
    if torch.is_autocast_enabled(device) and torch.is_grad_enabled():
        joined: Tensor = _Join.apply(torch.get_autocast_dtype(device), *parts)  # type: ignore[no-untyped-call]
        return joined
    return torch.cat(parts, dim=1)


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *parts: Tensor) -> Tensor:
        ctx.widths, ctx.dtypes = [part.shape[1] for part in parts], [part.dtype for part in parts]
        joined = torch.empty(len(parts[0]), sum(ctx.widths), dtype=dtype, device=parts[0].device)
        for columns, part in zip(joined.split(ctx.widths, dim=1), parts, strict=True):
            columns.copy_(part)
        return joined

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        columns = gradient.split(ctx.widths, dim=1)
        needed = ctx.needs_input_grad[1:]
        return None, *(
            part.to(dtype, memory_format=torch.contiguous_format) if asked else None
            for part, dtype, asked in zip(columns, ctx.dtypes, needed, strict=True)
        )
