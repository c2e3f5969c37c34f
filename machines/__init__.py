"""Machines: what `machines.yaml` declares, which task this process is, and how to launch."""

from tml.machines.config import Machine, Machines, load_machines, parse_machines
from tml.machines.environment import TaskEnvironment, task_environment
from tml.machines.errors import MachinesError

__all__ = [
    "Machine",
    "Machines",
    "MachinesError",
    "TaskEnvironment",
    "load_machines",
    "parse_machines",
    "task_environment",
]
