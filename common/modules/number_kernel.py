"""Continuous features as a layer takes them, in one C++ call on one thread.

A batch has few numbers, and torch shares each of the dozen operations on them among threads: waiting for each other
takes most of their time. `common/native/numbers.cpp` does all of them in one pass; torch's operations (`Normalizer`)
are its definition, and what callers run where it cannot.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from tml.common import native
from tml.common.native.compiler import compiled
from tml.common.profiling import kernel

SOURCE = Path(native.__file__).with_name("numbers.cpp")


def can_run(values: Tensor) -> bool:
    """Whether these numbers are rows of float32 on a CPU that need no derivative, and the kernel is compiled."""
    if values.device.type != "cpu" or values.dtype != torch.float32 or values.requires_grad:
        return False
    return values.dim() == 2 and values.stride(1) == 1 and compiled(SOURCE) is not None


def scaled_and_marked(values: Tensor, shift: Tensor, scale: Tensor, limit: Tensor, is_log: Tensor) -> Tensor:
    """`(x - shift) * scale`, cut to `[-limit, limit]`, 0 where missing; then 1 where missing, else 0.

    Args:
        values: float32 `[B, F]`, NaN where missing; its rows may be parts of longer ones.
        shift: float32 `[F]`, as are `scale` and `limit`.
        scale: see `shift`.
        limit: see `shift`; infinity for none.
        is_log: bool `[F]`, where `x` is `sign(value) log(1 + |value|)` instead of the value.

    Returns:
        float32 `[B, 2 F]`.
    """
    library = compiled(SOURCE)
    assert library is not None, "look at can_run first"
    num_rows, num_features = values.shape
    out = torch.empty(num_rows, 2 * num_features)
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (shift, scale, limit, is_log, out)]
    with kernel("scale_and_mark"):
        library.tml_scale_and_mark(
            ctypes.c_void_p(values.data_ptr()),
            *map(ctypes.c_int64, (num_rows, values.stride(0), num_features)),
            *pointers,
        )
    return out
