"""What this machine really does: rates of memory and matrix products, and costs of the program's own parts.

They replace the rates on paper in a plan for processors: rows are looked up and updated by the program's tables, a
step's head runs forward and backward on random rows, a batch is made of random examples. Of a plan for accelerators
only the making of batches is measured, which runs on the host. Of a few repetitions the fastest counts, which other
work on the machine disturbs least.
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
from tml.core.planning.step_time import MeasuredCosts
from tml.core.planning.workload import HostWork, Workload
from tml.machines.launch import num_cores
from tml.machines.rates import DeviceRates

_SECONDS, _FEWEST_CALLS = 0.5, 3
_COPY_BYTES = 256 << 20
# Rows and columns of matrices that are large enough for arithmetic to be all that counts.
_PRODUCT_SIZE = 2048
# Large enough that caches hold a small share of the rows.
_TABLE_BYTES = 512 << 20
_MOST_IDS = 200_000
_TABLE_REPEATS = 7


@dataclass(frozen=True)
class Probe:
    """What was measured.

    Args:
        rates: of one device; of an accelerator they are those on paper.
        costs: of look-up, update and head; None for an accelerator.
        host: the making of batches, with its measured time.
    """

    rates: DeviceRates
    costs: MeasuredCosts | None
    host: HostWork


def measure(work: Workload, cluster: Cluster) -> Probe:
    """Measure what this machine can say about a workload, with as many threads as a rank has cores.

    Args:
        work: gives the shapes.
        cluster: the declared machines; CPU ranks are taken to be like this machine.
    """
    keep_freed_memory()
    torch.set_num_threads(min(cluster.threads_per_rank, num_cores()))
    host, head = work.host, work.head
    if host.make is not None:
        host = replace(host, make_seconds=fastest_seconds(host.make) / host.made_share)
    if not cluster.is_cpu:
        return Probe(cluster.rates, None, host)
    costs = _measure_tables(work.layout, work.num_ids) if work.layout is not None else MeasuredCosts()
    if head.run is not None:
        costs = replace(costs, head=fastest_seconds(head.run) / head.run_share)
    return Probe(_measure_rates(cluster.rates), costs, host)


def fastest_seconds(action: Callable[[], object], seconds: float = _SECONDS) -> float:
    """Of the fastest call of those that fit into about so many seconds, at least three, after one more."""
    action()
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < _FEWEST_CALLS or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return min(times)


def product_rate(kind: torch.dtype, seconds: float = _SECONDS) -> float:
    """FLOP/s of large square products of a type; a multiplication and an addition are two."""
    left, right, out = (torch.randn(_PRODUCT_SIZE, _PRODUCT_SIZE).to(kind) for _ in range(3))
    return 2 * _PRODUCT_SIZE**3 / fastest_seconds(lambda: torch.mm(left, right, out=out), seconds)


def copy_rate(seconds: float = _SECONDS) -> float:
    """Bytes/s of a copy, those read and those written."""
    source, target = (torch.ones(_COPY_BYTES // 4) for _ in range(2))
    return 2 * _COPY_BYTES / fastest_seconds(lambda: target.copy_(source), seconds)


def _measure_rates(rates: DeviceRates) -> DeviceRates:
    bandwidth = copy_rate()
    fp32, bf16 = product_rate(torch.float32), product_rate(torch.bfloat16)
    return replace(
        rates,
        name="this machine",
        memory_bandwidth=bandwidth,
        fp32_flops=fp32,
        tf32_flops=fp32,
        bf16_flops=bf16,
        host_link=bandwidth,
        memory_efficiency=1.0,
        matmul_efficiency=1.0,
    )


def _measure_tables(layout: TableLayout, num_ids: int) -> MeasuredCosts:
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
    for _ in range(_TABLE_REPEATS):
        nodes = keyed_ids(small, torch.randint(num_rows, (num_ids,), generator=generator))
        start = time.perf_counter()
        rows = tables(nodes)
        middle = time.perf_counter()
        rows.backward(gradient)
        look_ups.append(middle - start)
        updates.append(time.perf_counter() - middle)
    return MeasuredCosts(min(look_ups) / num_ids, min(updates) / num_ids)
