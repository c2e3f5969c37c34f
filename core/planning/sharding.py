"""Where the rows of tables lie: the plan that a run trains with, and what torchrec's planner would choose.

Both are made on meta tensors for the declared topology: no accelerator, process group or table is needed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

from torch import nn
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.planner.storage_reservations import FixedAbsoluteStorageReservation
from torchrec.distributed.planner.types import PlannerError
from torchrec.distributed.types import ModuleSharder
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward

from tml.common.device import ACCELERATOR_TYPE
from tml.common.modules.embedding_tables import ShardedTables
from tml.common.modules.sharding import OPTIMIZER_CLASSES
from tml.common.modules.table_layout import TableLayout
from tml.core.planning.cluster import Cluster
from tml.core.planning.tables import rows_of_rank
from tml.core.planning.workload import Workload


@dataclass(frozen=True)
class TableSharding:
    """How one physical table is cut.

    Args:
        table: its name.
        sharding_type: torchrec's word: row_wise, table_wise, column_wise, ...; `local` for one CPU rank's own kernel.
        num_shards: parts.
        shard_rows: rows of the largest part.
        shard_columns: its columns.
        planner_seconds: torchrec's estimate of look-up, update and exchange, of the slowest rank; None without one.
    """

    table: str
    sharding_type: str
    num_shards: int
    shard_rows: int
    shard_columns: int
    planner_seconds: float | None = None


@dataclass(frozen=True)
class TablesPlan:
    """How all tables are cut.

    Args:
        trained: what a run does.
        proposed: what torchrec's planner chooses from everything it knows.
        refusal: why it has no plan, or cannot estimate the trained one.
    """

    trained: tuple[TableSharding, ...]
    proposed: tuple[TableSharding, ...] = ()
    refusal: str | None = None


def plan_tables(work: Workload, cluster: Cluster, room: float) -> TablesPlan:
    """The plan of a run's tables.

    Args:
        work: of a rank.
        cluster: the machines.
        room: bytes of a device that tables may take, with the rows that travel.
    """
    layout = work.layout
    if layout is None:
        return TablesPlan(())
    if not cluster.is_sharded:
        return TablesPlan(_whole(layout, "local"))
    ranks = cluster.num_ranks
    trained = tuple(
        TableSharding(group.name, "row_wise", ranks, rows_of_rank(group, ranks), group.embedding_dim)
        for group in layout.groups
    )
    refusals = []
    try:
        trained = _planned(work, layout, cluster, room, ["row_wise"])
    except (PlannerError, RuntimeError) as error:
        refusals.append(f"row_wise: {_first_line(error)}")
    proposed: tuple[TableSharding, ...] = ()
    try:
        proposed = _planned(work, layout, cluster, room, None)
    except (PlannerError, RuntimeError) as error:
        refusals.append(f"any: {_first_line(error)}")
    return TablesPlan(trained, proposed, "; ".join(refusals) or None)


def _whole(layout: TableLayout, kind: str) -> tuple[TableSharding, ...]:
    return tuple(TableSharding(g.name, kind, 1, g.num_rows, g.embedding_dim) for g in layout.groups)


def _planned(
    work: Workload, layout: TableLayout, cluster: Cluster, room: float, sharding_types: list[str] | None
) -> tuple[TableSharding, ...]:
    """What the planner chooses among some sharding types, all if None.

    Raises:
        PlannerError, RuntimeError: it finds no plan, or knows none of these types on this device.
    """
    bags = ShardedTables(layout).bags
    for group in layout.groups:
        parameters = bags.embedding_bags[group.name].parameters()
        # The planner asks for the class alone, to know the size of its states.
        apply_optimizer_in_backward(OPTIMIZER_CLASSES[group.optimizer.kind], parameters, {"lr": 0.01})
    constraints = {
        group.name: ParameterConstraints(
            sharding_types=sharding_types, pooling_factors=[1.0], batch_sizes=[work.num_ids]
        )
        for group in layout.groups
    }
    with _quiet():
        topology = _topology(cluster)
        planner = EmbeddingShardingPlanner(
            topology=topology,
            batch_size=work.num_ids,
            constraints=constraints,
            storage_reservation=FixedAbsoluteStorageReservation(max(0, round(cluster.rates.memory - room))),
        )
        planner.plan(bags, [cast(ModuleSharder[nn.Module], EmbeddingBagCollectionSharder())])
    return tuple(_sharding(option) for option in planner._best_plan or ())


def _topology(cluster: Cluster) -> Topology:
    """The cluster in torchrec's words: bytes a millisecond."""
    rates = cluster.rates
    memory = rates.bytes_per_second / 1e3
    return Topology(
        world_size=cluster.num_ranks,
        local_world_size=cluster.ranks_per_node,
        compute_device="cpu" if cluster.is_cpu else ACCELERATOR_TYPE,
        hbm_cap=0 if cluster.is_cpu else rates.memory,
        ddr_cap=cluster.host_memory // cluster.ranks_per_node,
        hbm_mem_bw=memory,
        ddr_mem_bw=memory,
        hbm_to_ddr_mem_bw=rates.host_link * rates.link_efficiency / 1e3,
        intra_host_bw=rates.device_link * rates.link_efficiency / 1e3,
        # A rank's share, as torchrec counts it.
        inter_host_bw=rates.network * rates.link_efficiency / cluster.ranks_per_node / 1e3,
    )


def _sharding(option: Any) -> TableSharding:
    by_rank: dict[int, float] = {}
    for shard in option.shards:
        by_rank[shard.rank] = by_rank.get(shard.rank, 0.0) + shard.perf.total
    largest = max((tuple(shard.size) for shard in option.shards), key=lambda size: size[0] * size[1])
    return TableSharding(
        table=option.name,
        sharding_type=option.sharding_type,
        num_shards=len(option.shards),
        shard_rows=largest[0],
        shard_columns=largest[1],
        planner_seconds=max(by_rank.values()) / 1e3,
    )


def _first_line(error: Exception) -> str:
    return next(line.strip() for line in str(error).splitlines() if line.strip())


@contextmanager
def _quiet() -> Iterator[None]:
    """The planner's warnings are of its own search, nothing that a reader of the plan can act on."""
    logger = logging.getLogger("torchrec")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
