"""Where memory comes from: the C allocator's habits, and large pages for tables."""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
import sys

import torch
from torch import Tensor

# Names of mallopt's parameters, from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_LARGEST = 2**31 - 1

_LARGE_PAGE_BYTES = 2 << 20


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory instead of giving it back to the system; True if it took the advice.

    A step frees and allocates the same large tensors again and again. Given back, each of them costs a page fault for
    every 4 KiB. The peak of memory stays the same. Does nothing with another C library.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    taken = [
        mallopt(_M_MMAP_THRESHOLD, 1 << 30),
        mallopt(_M_TRIM_THRESHOLD, _LARGEST),
        mallopt(_M_TOP_PAD, 64 << 20),
    ]
    return all(taken)


def zeros_on_large_pages(*shape: int) -> Tensor:
    """float32 zeros, in pages of 2 MiB where the system has such and the tensor fills one.

    For tables whose rows are read in random order: a processor remembers where a few thousand pages are, and looks the
    others up in memory first. Small pages of 4 KiB make that one more miss for nearly every row.
    """
    num_bytes = 4 * math.prod(shape)
    if not hasattr(mmap, "MADV_HUGEPAGE") or num_bytes < _LARGE_PAGE_BYTES:
        return torch.zeros(shape)
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without them: the memory is as good, but for its speed
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.float32).view(shape)
