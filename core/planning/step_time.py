"""How long a step takes: its phases, each bound by memory, arithmetic, a link or the host, and which of them overlap.

A phase's time is its bytes or operations over the rate of what carries it; phases of one lane follow one another, lanes
run side by side, and the longest lane is the step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tml.core.planning.cluster import Cluster
from tml.core.planning.memory import num_prefetch_batches
from tml.core.planning.tables import mean_row_bytes
from tml.core.planning.traffic import Exchanges, exchanges, partial_sums_bytes
from tml.core.planning.workload import Workload

Lane = Literal["device", "copies", "batches", "reader", "launches"]
Resource = Literal["memory", "matmul", "device link or network", "host link", "host cores", "launches"]

# fbgemm's kernels for processors update on one thread: seconds of an id, from the figures of docs/performance.md.
_ONE_THREAD_UPDATE_S = 300e-9
# Sorting the ids of an update: passes of a radix sort over int64 ids and places.
_SORT_BYTES_PER_ID = 8 * 2 * 12.0
# Values read and written by a dense optimizer, besides its states.
_DENSE_PASSES = 3


@dataclass(frozen=True)
class Phase:
    """A part of a step.

    Args:
        name: what happens.
        lane: what it follows.
        resource: what it waits for.
        seconds: on the slowest rank; ranks are taken to be equal.
    """

    name: str
    lane: Lane
    resource: Resource
    seconds: float


@dataclass(frozen=True)
class MeasuredCosts:
    """Seconds as a probe found them with the program's own tables and head; see `probe.py`.

    Args:
        look_up: of an id's row.
        update: of an id's gradient.
        head: of a rank's step; None if the head cannot be run.
    """

    look_up: float = 0.0
    update: float = 0.0
    head: float | None = None


@dataclass(frozen=True)
class StepTime:
    """The phases of a step."""

    phases: tuple[Phase, ...]

    def lane(self, lane: Lane) -> float:
        """Seconds of a lane."""
        return sum(phase.seconds for phase in self.phases if phase.lane == lane)

    @property
    def lanes(self) -> dict[Lane, float]:
        """Seconds of each lane that has phases."""
        return {phase.lane: self.lane(phase.lane) for phase in self.phases}

    @property
    def seconds(self) -> float:
        """Of the step: the longest lane."""
        return max(self.lanes.values())

    @property
    def bottleneck(self) -> Phase:
        """The longest phase of the longest lane."""
        longest = max(self.lanes, key=lambda lane: self.lanes[lane])
        return max((phase for phase in self.phases if phase.lane == longest), key=lambda phase: phase.seconds)


def step_time(
    work: Workload, cluster: Cluster, sent: Exchanges | None = None, measured: MeasuredCosts | None = None
) -> StepTime:
    """The phases of a step.

    Args:
        work: of a rank.
        cluster: the machines.
        sent: the collectives; those of the trained plan if None.
        measured: costs that replace computed ones.
    """
    sent = exchanges(work, cluster) if sent is None else sent
    device = [*_table_phases(work, cluster, measured), *_head_phases(work, cluster, measured)]
    link: Resource = "device link or network"
    device += [
        Phase("send rows", "device", link, sent.rows.seconds(cluster)),
        Phase("send gradients of rows", "device", link, sent.gradients.seconds(cluster)),
        Phase("all-reduce dense gradients", "device", link, sent.dense.seconds(cluster)),
    ]
    ids = Phase("send ids", "copies" if work.overlaps_ids else "device", link, sent.ids.seconds(cluster))
    phases = [*device, ids, *_host_phases(work, cluster), _launch_phase(work, cluster, measured)]
    return StepTime(tuple(phase for phase in phases if phase.seconds > 0))


def memory_bytes(work: Workload, cluster: Cluster) -> float:
    """Bytes that a step reads and writes in a device's memory."""
    parts = (_look_up_bytes(work), _update_bytes(work), _head_bytes(work, cluster), _dense_bytes(work))
    return sum(parts)


def _table_phases(work: Workload, cluster: Cluster, measured: MeasuredCosts | None) -> list[Phase]:
    rates, ids = cluster.rates, work.num_ids
    look_up = _look_up_bytes(work) / rates.bytes_per_second + ids * rates.row_seconds
    update = _update_bytes(work) / rates.bytes_per_second + ids * rates.row_seconds
    if measured is not None:
        look_up, update = ids * measured.look_up, ids * measured.update
    if cluster.is_cpu and cluster.is_sharded:
        update = max(update, ids * _ONE_THREAD_UPDATE_S)
    return [Phase("look up rows", "device", "memory", look_up), Phase("update rows", "device", "memory", update)]


def _look_up_bytes(work: Workload) -> float:
    # Rows are read where they lie and written as float32: of sharded tables as partial sums for all ranks.
    return work.num_ids * mean_row_bytes(work.layout)[0] + partial_sums_bytes(work)


def _update_bytes(work: Workload) -> float:
    """Every id of a batch is taken to be another row: what repeats is updated once, so this is the most it can be."""
    if work.layout is None:
        return 0.0
    row, state = mean_row_bytes(work.layout)
    return work.num_ids * (_SORT_BYTES_PER_ID + work.row_bytes + 2 * row + 2 * state)


def _head_phases(work: Workload, cluster: Cluster, measured: MeasuredCosts | None) -> list[Phase]:
    rates, head = cluster.rates, work.head
    products = head.flops / rates.flops(work.matmul)
    rest = _head_bytes(work, cluster) / rates.bytes_per_second + head.num_scores * rates.score_seconds
    if measured is not None and measured.head is not None:
        # What products would take at the machine's best rate, and what the head takes beside that.
        products = min(products, measured.head)
        rest = measured.head - products
    return [
        Phase("matrix products", "device", "matmul", products),
        Phase("scores, loss, elementwise", "device", "memory", rest),
        Phase("dense optimizer", "device", "memory", _dense_bytes(work) / rates.bytes_per_second),
    ]


def _head_bytes(work: Workload, cluster: Cluster) -> float:
    return work.head.cached_bytes if cluster.is_cpu else work.head.memory_bytes


def _dense_bytes(work: Workload) -> float:
    return sum(4.0 * part.numel * (_DENSE_PASSES + 2 * part.num_states) for part in work.dense)


def _host_phases(work: Workload, cluster: Cluster) -> list[Phase]:
    """Decoding has a thread of its own; making batches has one where batches are made ahead."""
    make, decode = work.host.make_seconds, work.host.decode_seconds
    if num_prefetch_batches(work, cluster) == 0:
        # The step makes its batch itself, while one of the cores decodes.
        own = decode / max(1.0, cluster.cores_per_rank)
        return [
            Phase("make batch", "device", "host cores", make),
            Phase("read and decode", "device", "host cores", own),
        ]
    # Two threads and the one that trains: with fewer cores than that they take turns.
    share = max(1.0, 3.0 / cluster.cores_per_rank)
    phases = [
        Phase("make batch", "batches", "host cores", make * share),
        Phase("read and decode", "reader" if share == 1.0 else "batches", "host cores", decode * share),
    ]
    if not cluster.is_cpu:
        rates = cluster.rates
        copy = work.host.batch_bytes / (rates.host_link * rates.link_efficiency)
        phases.append(Phase("copy batch to device", "copies", "host link", copy))
    return phases


def _launch_phase(work: Workload, cluster: Cluster, measured: MeasuredCosts | None) -> Phase:
    is_in_head = measured is not None and measured.head is not None
    operations = work.num_operations + (0 if is_in_head else work.head.num_operations)
    seconds = operations * cluster.rates.launch_seconds
    return Phase("launch operations", "device" if cluster.is_cpu else "launches", "launches", seconds)
