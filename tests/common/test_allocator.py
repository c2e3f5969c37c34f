"""glibc takes the advice, and a freed large block is not handed back to the system; tables ask for large pages."""

from __future__ import annotations

import gc
import mmap
import platform
import resource
from pathlib import Path

import pytest
import torch

from tml.common.allocator import keep_freed_memory, zeros_on_large_pages


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


@pytest.mark.parametrize("shape", [(3,), (1000, 16), (70_000, 16), (600_000,)])
def test_tables_begin_as_zeros_and_keep_what_is_written(shape: tuple[int, ...]) -> None:
    table = zeros_on_large_pages(*shape)
    assert (table.shape, table.dtype) == (torch.Size(shape), torch.float32)
    assert not table.any()
    rows = table[1:]
    rows += 1.0
    del table
    gc.collect()
    assert rows.eq(1.0).all()


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").exists() or not hasattr(mmap, "MADV_HUGEPAGE"),
    reason="this system has no large pages",
)
def test_a_large_table_asks_for_large_pages() -> None:
    table = zeros_on_large_pages(1 << 20, 16)
    assert "hg" in mapping_flags(table.data_ptr())


def mapping_flags(address: int) -> list[str]:
    """What Linux notes of the mapping that holds an address."""
    holds = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, _, rest = line.partition(" ")
        if "-" in name and not name.endswith(":"):
            start, stop = (int(end, 16) for end in name.split("-"))
            holds = start <= address < stop
        elif holds and name == "VmFlags:":
            return rest.split()
    raise AssertionError("the address is in no mapping")
