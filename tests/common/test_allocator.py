"""glibc takes the advice, and a freed large block is not handed back to the system."""

from __future__ import annotations

import platform
import resource

import pytest
import torch

from tml.common.allocator import keep_freed_memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_used_again_without_page_faults() -> None:
    assert keep_freed_memory()
    # An aligned block does not fit exactly into the hole of one of its size: some must lie side by side first.
    for _ in range(16):
        torch.zeros(16 << 20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.zeros(16 << 20)
    # 64 MiB are 16,384 pages; all of them five times over would be 81,920 faults.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 8_192
