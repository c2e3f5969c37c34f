"""Bytes of a step on each link, and the collectives that cause them.

Letters: `W` ranks, `g` ranks of a node, `n` nodes.

Rings are assumed: a reduce-scatter or an all-gather of `S` bytes passes `S (W - 1) / W` over every link of the ring,
of which one leaves each node; an all-reduce passes twice as much. Of what a rank sends in an all-to-all, `(g - 1) / W`
stays within its node and `(W - g) / W` leaves it, over the network that the node's ranks share.
"""

from __future__ import annotations

from dataclasses import dataclass

from tml.core.planning.cluster import Cluster
from tml.core.planning.workload import Workload

# Start of a collective, within a node and between nodes: assumptions, of no weight beside megabytes.
_START_S, _START_BETWEEN_NODES_S = 20e-6, 60e-6


@dataclass(frozen=True)
class Transfer:
    """Bytes of one collective.

    Args:
        device_link: sent by each device to others of its node.
        network: sent by each node to others.
    """

    device_link: float = 0.0
    network: float = 0.0

    def seconds(self, cluster: Cluster) -> float:
        """Of the slower of both links."""
        if cluster.num_ranks == 1:
            return 0.0
        rates = cluster.rates
        start = _START_S if cluster.num_nodes == 1 else _START_BETWEEN_NODES_S
        slower = max(self.device_link / rates.device_link, self.network / rates.network)
        return start + slower / rates.link_efficiency

    def __add__(self, other: Transfer) -> Transfer:
        return Transfer(self.device_link + other.device_link, self.network + other.network)


def ring(num_bytes: float, cluster: Cluster) -> Transfer:
    """A reduce-scatter or all-gather of `num_bytes`, counted before it is scattered or after it is gathered."""
    passed = num_bytes * (cluster.num_ranks - 1) / cluster.num_ranks
    within = passed if cluster.ranks_per_node > 1 else 0.0
    return Transfer(within, passed if cluster.num_nodes > 1 else 0.0)


def all_to_all(num_bytes: float, cluster: Cluster) -> Transfer:
    """Every rank has `num_bytes` to send, equally much to each."""
    ranks, of_node = cluster.num_ranks, cluster.ranks_per_node
    return Transfer(num_bytes * (of_node - 1) / ranks, of_node * num_bytes * (ranks - of_node) / ranks)


@dataclass(frozen=True)
class Exchanges:
    """The collectives of a step.

    Args:
        ids: of the look-up, to the ranks that hold their rows, with the lengths of bags.
        rows: from there.
        gradients: of the rows, back.
        dense: of replicated parameters.
    """

    ids: Transfer = Transfer()
    rows: Transfer = Transfer()
    gradients: Transfer = Transfer()
    dense: Transfer = Transfer()

    @property
    def total(self) -> Transfer:
        """All of them."""
        return self.ids + self.rows + self.gradients + self.dense


def exchanges(work: Workload, cluster: Cluster) -> Exchanges:
    """The collectives of a step with tables that lie row-wise on all ranks, as bags.

    Bags of one id could lie anywhere, so every rank makes (mostly empty) partial sums for the look-ups of all ranks:
    the reduce-scatter that adds them, and the all-gather of their gradients, carry `W` times a rank's rows.
    """
    if cluster.num_ranks == 1:
        return Exchanges()
    dense = ring(2 * 4.0 * work.dense_numel, cluster)
    if work.layout is None:
        return Exchanges(dense=dense)
    # int64 ids, and an int32 length of each bag of every physical table for every destination.
    lengths = 4.0 * work.num_ids * len(work.layout.groups) * cluster.num_ranks
    rows = ring(partial_sums_bytes(work), cluster)
    return Exchanges(all_to_all(8.0 * work.num_ids + lengths, cluster), rows, rows, dense)


def rows_only_exchanges(work: Workload, cluster: Cluster) -> Exchanges:
    """The same if only the rows that are asked for travelled, as with torchrec's EmbeddingCollection."""
    rows = all_to_all(float(work.num_ids * work.row_bytes), cluster)
    bags = exchanges(work, cluster)
    return Exchanges(bags.ids, rows, rows, bags.dense)


def partial_sums_bytes(work: Workload) -> float:
    """Rows of all ranks' look-ups, which every rank holds once before and once after an exchange."""
    return float(work.num_ranks * work.num_ids * work.row_bytes)
