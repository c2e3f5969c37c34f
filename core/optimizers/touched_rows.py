"""Updates of a parameter whose gradient may be sparse: only rows that have a gradient are read and written."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def update_touched_rows(update: Callable[..., None], gradient: Tensor, *tensors: Tensor) -> None:
    """Apply an element-wise update where there is a gradient.

    Args:
        update: `update(gradient, *parts)` changes the parts in place; all have the same shape.
        gradient: dense `[R, ...]`, or a sparse one over the rows of such a tensor, as `nn.Embedding(sparse=True)`
            makes it. Gradients of a row that occurs several times are added first.
        tensors: the parameter and its states, each `[R, ...]`.
    """
    if not gradient.is_sparse:
        update(gradient, *tensors)
        return
    gradient = gradient.coalesce()
    rows = gradient.indices()[0]
    parts = [tensor.index_select(0, rows) for tensor in tensors]
    update(gradient.values(), *parts)
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.index_copy_(0, rows, part)


def zero_steps() -> Tensor:
    """The count of a parameter's updates; on the CPU, where reading it is free, and a tensor, so that it is saved."""
    return torch.zeros((), dtype=torch.float32)
