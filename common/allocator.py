"""The C allocator's habits."""

from __future__ import annotations

import ctypes
import sys

# Names of mallopt's parameters, from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_LARGEST = 2**31 - 1


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
