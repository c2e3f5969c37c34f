"""A plan to be read by people, and the same numbers for programs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from tml.core.planning.memory import MemoryUse
from tml.core.planning.plan import RunPlan
from tml.core.planning.probe import Probe
from tml.core.planning.sharding import TableSharding
from tml.machines.quantities import format_bytes


def plan_as_text(plan: RunPlan) -> str:
    """The whole plan in sections."""
    sections = [
        _head(plan),
        _memory("Memory of the fullest device", plan.device),
        _memory("Memory of a host", plan.host) if plan.host else "",
        _tables(plan),
        _links(plan),
        _time(plan),
        "\n".join(["Advice", *(f"  - {line}" for line in plan.advice)]) if plan.advice else "",
    ]
    return "\n\n".join(section for section in sections if section)


def plan_as_dict(plan: RunPlan) -> dict[str, Any]:
    """The plan in plain values: bytes, seconds, operations."""
    work, cluster, time = plan.work, plan.cluster, plan.time
    return {
        "project": work.project,
        "fits": plan.fits,
        "cluster": {
            "num_nodes": cluster.num_nodes,
            "ranks_per_node": cluster.ranks_per_node,
            "num_ranks": cluster.num_ranks,
            "device": cluster.rates.name,
            "rates": asdict(cluster.rates),
        },
        "global_batch": work.global_batch,
        "ids_per_rank": work.num_ids,
        "memory": {"device": _memory_dict(plan.device), "host": _memory_dict(plan.host) if plan.host else None},
        "sharding": {
            "trained": [asdict(table) for table in plan.tables.trained],
            "planner": [asdict(table) for table in plan.tables.proposed],
            "planner_refusal": plan.tables.refusal,
        },
        "bytes_per_step": _bytes(plan),
        "exchanges": asdict(plan.exchanges),
        "flops_per_step": {"device": work.head.flops, "all": work.head.flops * work.num_ranks},
        "step": {
            "seconds": time.seconds,
            "lanes": time.lanes,
            "phases": [asdict(phase) for phase in time.phases],
            "bottleneck": asdict(time.bottleneck),
        },
        "examples_per_second": plan.examples_per_second,
        "num_examples": plan.num_examples,
        "epoch_seconds": plan.epoch_seconds,
        "advice": list(plan.advice),
        "measured": _probe_dict(plan.probe) if plan.probe else None,
    }


def _head(plan: RunPlan) -> str:
    work, cluster = plan.work, plan.cluster
    kind = f"CPU rank{'s'[: cluster.num_ranks > 1]}" if cluster.is_cpu else cluster.rates.name
    share = f"{work.global_batch // work.num_ranks:,}"
    return "\n".join([
        f"{work.project} on {cluster.num_nodes} x {cluster.ranks_per_node} {kind}, {work.matmul} products",
        f"a step: {work.global_batch:,} {work.unit}, {share} a rank, which looks up {work.num_ids:,} rows",
        "rates: measured on this machine" if plan.probe and cluster.is_cpu else "rates: on paper, see docs/planning.md",
    ])  # fmt: skip


def _memory(title: str, use: MemoryUse) -> str:
    rows = [(name, format_bytes(round(value)) if value >= 1 else "0 B") for name, value in use.parts.items()]
    rows.append(("total", f"{format_bytes(round(use.total))} of {format_bytes(round(use.limit))}"))
    verdict = "" if use.fits else f"; {format_bytes(round(use.excess))} too much"
    return f"{title}{verdict}\n{_columns(rows)}"


def _tables(plan: RunPlan) -> str:
    tables = plan.tables
    if not tables.trained:
        return "Tables: none"
    lines = ["Tables", "  as trained:", _columns(map(_sharding, tables.trained), indent=4)]
    if tables.proposed:
        lines += ["  torchrec's planner would choose:", _columns(map(_sharding, tables.proposed), indent=4)]
    if tables.refusal:
        lines.append(f"  torchrec's planner has no plan for {tables.refusal}")
    return "\n".join(lines)


def _sharding(table: TableSharding) -> tuple[str, ...]:
    estimate = "" if table.planner_seconds is None else f"planner's estimate {_milliseconds(table.planner_seconds)}"
    shards = f"{table.num_shards} x [{table.shard_rows:,}, {table.shard_columns}]"
    return table.table, table.sharding_type, shards, estimate


def _links(plan: RunPlan) -> str:
    rows = []
    for name, (num_bytes, rate) in _link_rates(plan).items():
        if num_bytes:
            seconds = f"{_milliseconds(num_bytes / rate)} at {rate / 1e9:.4g} GB/s"
            rows.append((name, format_bytes(round(num_bytes)), seconds))
    flops, rate = plan.work.head.flops, plan.cluster.rates.flops(plan.work.matmul)
    seconds = f"{_milliseconds(flops / rate)} at {rate / 1e12:.3g} TFLOP/s"
    rows.append(("products of a device", f"{flops / 1e9:.4g} GFLOP", seconds))
    return "Bytes and operations of a step\n" + _columns(rows)


def _link_rates(plan: RunPlan) -> dict[str, tuple[float, float]]:
    """Bytes of a step and the reached rate, by link."""
    rates, sent = plan.cluster.rates, plan.exchanges.total
    efficiency = rates.link_efficiency
    copied = 0.0 if plan.cluster.is_cpu else plan.work.host.batch_bytes
    return {
        "memory of a device": (plan.local_bytes, rates.bytes_per_second),
        "link between devices of a node, each": (sent.device_link, rates.device_link * efficiency),
        "network of a node": (sent.network, rates.network * efficiency),
        "link from host to a device": (copied, rates.host_link * efficiency),
    }


def _time(plan: RunPlan) -> str:
    time = plan.time
    lanes = sorted(time.lanes, key=lambda lane: -time.lanes[lane])
    lines = ["Time of a step, lanes side by side"]
    for lane in lanes:
        lines.append(f"  {lane}: {_milliseconds(time.lanes[lane])}")
        phases = [phase for phase in time.phases if phase.lane == lane]
        lines.append(_columns([(p.name, _milliseconds(p.seconds), p.resource) for p in phases], indent=4))
    bottleneck = time.bottleneck
    lines.append(f"  step {_milliseconds(time.seconds)}; bottleneck: {bottleneck.name} ({bottleneck.resource})")
    rate = f"  {plan.examples_per_second:,.0f} {plan.work.unit}/s"
    if plan.epoch_seconds is not None:
        rate += f"; an epoch of {plan.num_examples:,} {plan.work.unit} takes {_duration(plan.epoch_seconds)}"
    return "\n".join([*lines, rate])


def _bytes(plan: RunPlan) -> dict[str, float]:
    names = ("device_memory", "device_link", "network_of_node", "host_link")
    return dict(zip(names, (amount for amount, _ in _link_rates(plan).values()), strict=True))


def _memory_dict(use: MemoryUse) -> dict[str, Any]:
    return {"parts": use.parts, "total": use.total, "limit": use.limit, "fits": use.fits}


def _probe_dict(probe: Probe) -> dict[str, Any]:
    costs = asdict(probe.costs) if probe.costs else None
    return {"rates": asdict(probe.rates), "costs": costs, "make_batch_seconds": probe.host.make_seconds}


def _columns(rows: Iterable[Sequence[str]], indent: int = 2) -> str:
    """Rows with their columns aligned."""
    rows = list(rows)
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(" " * indent + line.rstrip() for line in lines)


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds * 1e3:,.0f} ms"


def _duration(seconds: float) -> str:
    for limit, unit in ((90, 1), (5400, 60), (172_800, 3600)):
        if seconds < limit:
            return f"{seconds / unit:.3g} {({1: 's', 60: 'min', 3600: 'h'})[unit]}"
    return f"{seconds / 86_400:.3g} days"
