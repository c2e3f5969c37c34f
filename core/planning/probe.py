"""What this machine really does: rates of matrix products, rows, memory and batches, in a few seconds.

They replace the rates on paper in a plan for processors; of a plan for accelerators only the making of batches, which
runs on the host. Of a few repetitions the fastest counts, which other work on the machine disturbs least.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from tml.common.allocator import keep_freed_memory
from tml.common.modules.embedding_tables import LocalTables, keyed_ids
from tml.common.modules.table_layout import TableLayout, TableSpec
from tml.core.planning.cluster import Cluster
from tml.core.planning.step_time import MeasuredTables
from tml.core.planning.workload import HostWork, Workload
from tml.machines.launch import num_cores
from tml.machines.rates import DeviceRates

_REPEATS = 7
_COPY_BYTES = 256 << 20
# Large enough that caches hold a small share of the rows.
_TABLE_BYTES = 512 << 20
_MOST_IDS = 200_000
# A block of scores that stays in a core's cache.
_SCORES_SHAPE = (64, 50, 100)


@dataclass(frozen=True)
class Probe:
    """What was measured.

    Args:
        rates: of one device; of an accelerator they are those on paper.
        tables: costs of an id; None for an accelerator, or without tables.
        host: the making of batches, with its measured time.
    """

    rates: DeviceRates
    tables: MeasuredTables | None
    host: HostWork


def measure(work: Workload, cluster: Cluster) -> Probe:
    """Measure what this machine can say about a workload, with as many threads as a rank has cores.

    Args:
        work: gives the shapes.
        cluster: the declared machines; CPU ranks are taken to be like this machine.
    """
    keep_freed_memory()
    torch.set_num_threads(max(1, min(int(cluster.cores_per_rank), num_cores())))
    host = work.host
    if host.make is not None:
        host = replace(host, make_seconds=_seconds(host.make) / host.made_share)
    if not cluster.is_cpu:
        return Probe(cluster.rates, None, host)
    tables = _measure_tables(work.layout, work.num_ids) if work.layout is not None else None
    return Probe(_measure_rates(work, cluster.rates), tables, host)


def _measure_rates(work: Workload, rates: DeviceRates) -> DeviceRates:
    bandwidth = _measure_copy()
    fp32, bf16 = (_measure_products(work.head.product, dtype) for dtype in (torch.float32, torch.bfloat16))
    return replace(
        rates,
        name="this machine",
        memory_bandwidth=bandwidth,
        fp32_flops=fp32,
        # Without instructions for it, nothing takes the shorter type by itself.
        tf32_flops=max(fp32, bf16),
        bf16_flops=bf16,
        host_link=bandwidth,
        memory_efficiency=1.0,
        matmul_efficiency=1.0,
        score_seconds=_measure_scores(),
    )


def _measure_copy() -> float:
    """Bytes/s, read and written."""
    source = torch.ones(_COPY_BYTES // 4)
    target = torch.empty_like(source)
    return 2 * _COPY_BYTES / _seconds(lambda: target.copy_(source))


def _measure_products(shape: tuple[int, int, int, int], dtype: torch.dtype) -> float:
    """FLOP/s of batched products."""
    num, rows, inner, columns = shape
    left = torch.randn(num, rows, inner).to(dtype)
    right = torch.randn(num, inner, columns).to(dtype)
    return 2.0 * num * rows * inner * columns / _seconds(lambda: torch.bmm(left, right))


def _measure_scores() -> float:
    """Seconds of a score's softmax."""
    scores = torch.randn(_SCORES_SHAPE)
    return _seconds(lambda: torch.softmax(scores, -1)) / scores.numel()


def _measure_tables(layout: TableLayout, num_ids: int) -> MeasuredTables:
    """Look-up and update of uniformly drawn rows of one table like the first of `layout`, of at most `_TABLE_BYTES`."""
    group = layout.groups[0]
    num_rows = min(group.num_rows, _TABLE_BYTES // (4 * group.embedding_dim))
    spec = TableSpec("probe", num_rows, group.embedding_dim, group.optimizer, group.data_type)
    small = TableLayout([spec])
    tables = LocalTables(small, seed=0)
    num_ids = min(num_ids, _MOST_IDS)
    generator = torch.Generator().manual_seed(0)
    gradient = torch.full((num_ids, group.embedding_dim), 1e-3)
    look_ups, updates = [], []
    for _ in range(_REPEATS):
        nodes = keyed_ids(small, torch.randint(num_rows, (num_ids,), generator=generator))
        start = time.perf_counter()
        rows = tables(nodes)
        middle = time.perf_counter()
        rows.backward(gradient)
        look_ups.append(middle - start)
        updates.append(time.perf_counter() - middle)
    return MeasuredTables(min(look_ups) / num_ids, min(updates) / num_ids)


def _seconds(work: Callable[[], object]) -> float:
    """Of the fastest of some calls, after one that is not counted."""
    work()
    found = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return min(found)
