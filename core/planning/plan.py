"""A run's plan: memory, sharding, traffic, time, and what to change where it does not fit.

plan = make_plan(build, Cluster.of(machines.chief), num_examples=2_000_000)
print(plan_as_text(plan))
require_fit(plan)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

from tml.common.errors import ConfigError, LaunchError
from tml.core.planning.cluster import Cluster
from tml.core.planning.memory import MemoryUse, device_memory, host_memory
from tml.core.planning.probe import Probe
from tml.core.planning.sharding import TablesPlan, plan_tables
from tml.core.planning.step_time import StepTime, memory_bytes, step_time
from tml.core.planning.tables import groups_of, row_bytes, rows_of_rank
from tml.core.planning.traffic import Exchanges, exchanges, rows_only_exchanges
from tml.core.planning.workload import Workload
from tml.machines.quantities import format_bytes

# Parts that a plan of tables decides about; the rest of a device is taken already.
_OF_TABLES = ("tables", "optimizer states of tables", "partial sums of all ranks' rows")
_MOST_NODES = 4096
# An alternative is worth a word from this share of the step on.
_WORTH_SAYING = 0.1


class BuildWorkload(Protocol):
    """How a project says what a step does."""

    def __call__(self, cluster: Cluster, global_batch: int | None = None) -> Workload:
        """A step on declared machines, with another global batch than the config's if given."""


@dataclass(frozen=True)
class RunPlan:
    """What a run needs of its machines.

    Args:
        work: of a rank.
        cluster: the machines.
        device: memory of the fullest device.
        host: memory of a node, where devices are accelerators.
        tables: where their rows lie.
        exchanges: bytes of each collective.
        local_bytes: read and written in a device's memory by a step.
        time: the phases of a step.
        num_examples: of an epoch; None if not known.
        advice: what would fit, or be faster.
        probe: what was measured on this machine; None if all rates are those on paper.
    """

    work: Workload
    cluster: Cluster
    device: MemoryUse
    host: MemoryUse | None
    tables: TablesPlan
    exchanges: Exchanges
    local_bytes: float
    time: StepTime
    num_examples: int | None
    advice: tuple[str, ...]
    probe: Probe | None = None

    @property
    def examples_per_second(self) -> float:
        """Of all ranks together."""
        return self.work.global_batch / self.time.seconds

    @property
    def epoch_seconds(self) -> float | None:
        """Time of the steps of an epoch; without evaluations and checkpoints."""
        return None if self.num_examples is None else self.num_examples / self.examples_per_second

    @property
    def fits(self) -> bool:
        """Whether all memory suffices."""
        return self.device.fits and (self.host is None or self.host.fits)


def make_plan(
    build: BuildWorkload,
    cluster: Cluster,
    num_examples: int | None = None,
    measure: Callable[[Workload, Cluster], Probe] | None = None,
) -> RunPlan:
    """Plan a run.

    Args:
        build: what a step does.
        cluster: the machines.
        num_examples: of an epoch.
        measure: probes this machine, in whose rates the plan is then made; see `probe.py`.

    Raises:
        ConfigError: the config cannot be run on so many ranks, or on such devices.
    """
    work = build(cluster)
    probe = measure(work, cluster) if measure is not None else None
    if probe is not None:
        cluster = replace(cluster, rates=probe.rates)
        work = replace(work, host=probe.host)
    device, host = device_memory(work, cluster), host_memory(work, cluster)
    room = device.limit - device.total + sum(device.parts.get(name, 0.0) for name in _OF_TABLES)
    sent = exchanges(work, cluster)
    time = step_time(work, cluster, sent, probe.costs if probe else None)
    fits = device.fits and (host is None or host.fits)
    return RunPlan(
        work=work,
        cluster=cluster,
        device=device,
        host=host,
        tables=plan_tables(work, cluster, room),
        exchanges=sent,
        local_bytes=memory_bytes(work, cluster),
        time=time,
        num_examples=num_examples,
        advice=tuple(_faster(work, cluster, time) if fits else _smaller(build, work, cluster, device, host)),
        probe=probe,
    )


def require_fit(plan: RunPlan) -> None:
    """Refuse a plan that does not fit.

    Raises:
        LaunchError: says what is too full, by how much, and what to change.
    """
    for where, use in (("each device", plan.device), ("each host", plan.host)):
        if use is not None and not use.fits:
            raise LaunchError(
                "the run does not fit in memory",
                where=f"{where}, {plan.cluster.num_nodes} x {plan.cluster.ranks_per_node} {plan.cluster.rates.name}",
                value=f"{format_bytes(round(use.total))} needed",
                limit=f"{format_bytes(round(use.limit))}: {format_bytes(round(use.excess))} too much",
                fix="; or ".join(plan.advice) or "use devices with more memory",
            )


def _fits(work: Workload, cluster: Cluster) -> bool:
    host = host_memory(work, cluster)
    return device_memory(work, cluster).fits and (host is None or host.fits)


def _smaller(
    build: BuildWorkload, work: Workload, cluster: Cluster, device: MemoryUse, host: MemoryUse | None
) -> Iterator[str]:
    """Changes of one thing each, after which the run would fit."""
    nodes = _nodes_that_fit(build, cluster)
    if nodes is not None:
        ranks = nodes * cluster.ranks_per_node
        yield f"{nodes} nodes ({ranks} devices): set replicas of the chief"
    wide = [group for group in groups_of(work.layout) if group.data_type == "fp32"]
    saved = sum(rows_of_rank(group, work.num_ranks) * row_bytes(group) / 2 for group in wide)
    if saved and saved >= device.excess and (host is None or host.fits):
        yield f"tables in half the bytes (data_type: fp16), which saves {format_bytes(round(saved))} on each device"
    batch = _batch_that_fits(build, work, cluster)
    if batch is not None:
        yield f"a global batch of {batch:,} {work.unit} instead of {work.global_batch:,}"
    if host is not None and not host.fits and device.fits:
        yield f"hosts with {format_bytes(round(host.total))} of memory"


def _nodes_that_fit(build: BuildWorkload, cluster: Cluster) -> int | None:
    """The smallest number of nodes, in doublings of those declared, on which the run fits."""
    nodes = cluster.num_nodes * 2
    while nodes <= _MOST_NODES:
        larger = cluster.with_nodes(nodes)
        try:
            if _fits(build(larger), larger):
                return nodes
        except ConfigError:
            return None  # the batch cannot be shared among so many
        nodes *= 2
    return None


def _batch_that_fits(build: BuildWorkload, work: Workload, cluster: Cluster) -> int | None:
    """The largest global batch, in halvings, with which the run fits."""
    batch = work.global_batch // 2
    while batch >= cluster.num_ranks:
        try:
            if _fits(build(cluster, batch), cluster):
                return batch
        except ConfigError:
            return None  # it cannot be shared among the ranks
        batch //= 2
    return None


def _faster(work: Workload, cluster: Cluster, time: StepTime) -> Iterator[str]:
    """What the longest lane could do without."""
    if time.bottleneck.resource == "host cores" and time.bottleneck.lane != "device":
        device = time.lane("device") * 1e3
        yield f"the hosts cannot keep up: a step of the devices takes {device:.3g} ms"
        if time.bottleneck.name == "read and decode":
            yield "every rank decodes the rows of all ranks: more ranks do not shorten this"
    if cluster.num_ranks > 1:
        rows = step_time(work, cluster, rows_only_exchanges(work, cluster))
        if time.seconds - rows.seconds > _WORTH_SAYING * time.seconds:
            yield (
                "row-wise bags carry partial sums of all ranks' look-ups; if only the rows asked for travelled "
                f"(EmbeddingCollection), a step would take {rows.seconds * 1e3:.3g} ms instead of "
                f"{time.seconds * 1e3:.3g}"
            )
