"""The declared machines as a run sees them: nodes of equal devices, one rank each."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tml.common.device import ACCELERATOR_TYPE
from tml.machines import Machine
from tml.machines.rates import DeviceRates, device_rates


@dataclass(frozen=True)
class Cluster:
    """Nodes with one rank per accelerator, or CPU ranks where there are none.

    Args:
        num_nodes: machines that train.
        ranks_per_node: of each.
        is_cpu: whether the devices are shares of processors.
        cores_per_rank: a rank's share of its node's cores.
        host_memory: bytes of a node's main memory.
        rates: of one device.
    """

    num_nodes: int
    ranks_per_node: int
    is_cpu: bool
    cores_per_rank: float
    host_memory: int
    rates: DeviceRates

    @classmethod
    def of(cls, machine: Machine, cpu_ranks: int = 1) -> Cluster:
        """The chief's machines.

        Args:
            machine: the role `chief`.
            cpu_ranks: ranks of a machine without accelerators.

        Raises:
            MachinesError: the accelerator's rates are not known.
        """
        ranks = machine.num_accelerators or cpu_ranks
        return cls(
            num_nodes=machine.replicas,
            ranks_per_node=ranks,
            is_cpu=machine.num_accelerators == 0,
            cores_per_rank=machine.cpu / ranks,
            host_memory=machine.mem,
            rates=device_rates(machine, ranks),
        )

    @property
    def num_ranks(self) -> int:
        """Ranks of all nodes."""
        return self.num_nodes * self.ranks_per_node

    @property
    def device_type(self) -> str:
        """`torch.device.type` of a rank."""
        return "cpu" if self.is_cpu else ACCELERATOR_TYPE

    @property
    def threads_per_rank(self) -> int:
        """Threads that share a CPU operation."""
        return max(1, int(self.cores_per_rank))

    @property
    def is_sharded(self) -> bool:
        """Whether tables go through torchrec; one CPU rank calls its kernels itself."""
        return not self.is_cpu or self.num_ranks > 1

    def with_nodes(self, num_nodes: int) -> Cluster:
        """The same with another number of nodes."""
        return replace(self, num_nodes=num_nodes)
