"""Memory of a device and of a host, part by part."""

from __future__ import annotations

from dataclasses import dataclass

from tml.core.planning.cluster import Cluster
from tml.core.planning.tables import groups_of, row_bytes, rows_of_rank, state_bytes
from tml.core.planning.traffic import partial_sums_bytes
from tml.core.planning.workload import Workload

# Assumptions. A device also holds the libraries' context, buffers of collectives and gaps of its allocator; a process
# of this program holds interpreter and libraries, and with an accelerator the driver's mappings.
_DEVICE_RESERVE = 0.1
_PROCESS_BYTES = 0.8e9
_PROCESS_WITH_ACCELERATOR_BYTES = 2.5e9

# The pipeline holds the batch that computes, the one whose ids travel, and the one that is copied.
_BATCHES_ON_DEVICE = 3
_DEFAULT_PREFETCH = 2
# At most so many cores, a CPU rank makes its batches itself.
_TOO_FEW_CORES_TO_PREFETCH = 2


@dataclass(frozen=True)
class MemoryUse:
    """What something holds.

    Args:
        parts: bytes by name, in the order of a report.
        limit: bytes it may hold.
    """

    parts: dict[str, float]
    limit: float

    @property
    def total(self) -> float:
        """Bytes of all parts."""
        return sum(self.parts.values())

    @property
    def excess(self) -> float:
        """Bytes over the limit; negative if there is room."""
        return self.total - self.limit

    @property
    def fits(self) -> bool:
        """Whether it does."""
        return self.excess <= 0


def num_prefetch_batches(work: Workload, cluster: Cluster) -> int:
    """Batches that lie ready, as the training loop decides it."""
    if work.num_prefetch_batches is not None:
        return work.num_prefetch_batches
    few_cores = cluster.cores_per_rank * cluster.ranks_per_node <= _TOO_FEW_CORES_TO_PREFETCH
    return 0 if cluster.is_cpu and few_cores else _DEFAULT_PREFETCH


def device_memory(work: Workload, cluster: Cluster) -> MemoryUse:
    """Of the fullest device: an accelerator, or a CPU rank's share of its machine."""
    groups, ranks = groups_of(work.layout), work.num_ranks
    rows = float(work.num_ids * work.row_bytes)
    parts = {
        "tables": sum(float(rows_of_rank(group, ranks) * row_bytes(group)) for group in groups),
        "optimizer states of tables": sum(float(rows_of_rank(group, ranks) * state_bytes(group)) for group in groups),
        "looked-up rows and their gradient": 2 * rows,
    }
    if ranks > 1 and groups:
        # The partial sums are gone before their gradients come.
        parts["partial sums of all ranks' rows"] = partial_sums_bytes(work)
    parts["activations"] = work.head.activation_bytes
    # Values, gradients, DDP's buckets of gradients, and states.
    copies = 2 if ranks == 1 else 3
    parts["dense parameters, gradients, states"] = 4.0 * sum(p.numel * (copies + p.num_states) for p in work.dense)
    parts["frozen parameters"] = work.frozen_bytes
    parts = {name: value for name, value in parts.items() if value}
    if cluster.is_cpu:
        parts |= _host_parts(work, cluster)
        return MemoryUse(parts, float(cluster.rates.memory))
    parts["batches"] = _BATCHES_ON_DEVICE * work.host.batch_bytes
    parts["reserve (context, buffers, gaps)"] = _DEVICE_RESERVE * cluster.rates.memory
    return MemoryUse(parts, float(cluster.rates.memory))


def host_memory(work: Workload, cluster: Cluster) -> MemoryUse | None:
    """Of a node whose devices are accelerators; None where the device is the host."""
    if cluster.is_cpu:
        return None
    of_rank = _host_parts(work, cluster)
    return MemoryUse({name: value * cluster.ranks_per_node for name, value in of_rank.items()}, cluster.host_memory)


def _host_parts(work: Workload, cluster: Cluster) -> dict[str, float]:
    ready = num_prefetch_batches(work, cluster) + 1
    parts = {
        "processes": _PROCESS_BYTES if cluster.is_cpu else _PROCESS_WITH_ACCELERATOR_BYTES,
        "reader (two windows)": 2 * work.host.window_bytes,
        "batches being made": ready * work.host.batch_bytes,
    }
    if work.checkpoint_copies:
        shard = sum(
            rows_of_rank(group, work.num_ranks) * (row_bytes(group) + state_bytes(group))
            for group in groups_of(work.layout)
        )
        parts["checkpoint under way"] = float(work.checkpoint_copies * shard)
    return parts
