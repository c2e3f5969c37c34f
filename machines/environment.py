"""Which task of a job this process is, from torchrun's, Slurm's or a scheduler's environment variables.

torchrun's variables win, as it may run inside the others. Slurm's count only inside a step (`srun`): a batch script
sees the job's numbers too, but is one process. `TASK_TYPE` (or `SPEC_TYPE`) names the role, as Kubernetes operators
set it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from tml.machines.config import CHIEF
from tml.machines.errors import MachinesError

_ROLE_VARIABLES = ("TASK_TYPE", "SPEC_TYPE")
_ROLE_SPELLINGS = {"datasetworker": "dataset_worker", "datasetdispatcher": "dataset_dispatcher", "master": CHIEF}


@dataclass(frozen=True)
class TaskEnvironment:
    """Who this process is.

    Args:
        role: `chief`, or another role of `machines.yaml`.
        rank: among all processes of the role, from 0.
        local_rank: among those on this node, from 0.
        world_size: number of processes.
        local_world_size: number of processes on this node.
        node_rank: this node, from 0.
        num_nodes: number of nodes.
        launcher: "torchrun", "slurm" or "none".
        master_addr: host of rank 0, or None for one process without a launcher.
        master_port: port for the rendezvous there, or None.
    """

    role: str = CHIEF
    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1
    node_rank: int = 0
    num_nodes: int = 1
    launcher: str = "none"
    master_addr: str | None = None
    master_port: int | None = None

    @property
    def is_chief(self) -> bool:
        """Whether this process trains (as opposed to reading for others)."""
        return self.role == CHIEF

    @property
    def is_rank_zero(self) -> bool:
        """Whether this process speaks for the job."""
        return self.is_chief and self.rank == 0

    def as_torchrun_variables(self) -> dict[str, str]:
        """The variables that `torch.distributed.init_process_group` reads, also when Slurm started us."""
        values = {
            "RANK": self.rank, "LOCAL_RANK": self.local_rank, "WORLD_SIZE": self.world_size,
            "LOCAL_WORLD_SIZE": self.local_world_size, "GROUP_RANK": self.node_rank,
            "MASTER_ADDR": self.master_addr, "MASTER_PORT": self.master_port,
        }  # fmt: skip
        return {name: str(value) for name, value in values.items() if value is not None}


def task_environment(variables: Mapping[str, str] | None = None) -> TaskEnvironment:
    """Read who this process is; without any variables, the only process there is.

    Args:
        variables: the environment; this process's when None.

    Raises:
        MachinesError: a variable is missing, no number, or at odds with another; names it and the fix.
    """
    variables = os.environ if variables is None else variables
    role = _role(variables)
    if "RANK" in variables or "WORLD_SIZE" in variables:
        return _from_torchrun(variables, role)
    if "SLURM_STEP_NUM_TASKS" in variables:
        return _from_slurm(variables, role)
    if "LOCAL_RANK" in variables:
        raise _missing("RANK", "LOCAL_RANK is set")
    return TaskEnvironment(role=role)


def _role(variables: Mapping[str, str]) -> str:
    text = next((variables[name] for name in _ROLE_VARIABLES if variables.get(name)), CHIEF).strip().lower()
    text = text.replace("-", "_")
    return _ROLE_SPELLINGS.get(text, text)


def _from_torchrun(variables: Mapping[str, str], role: str) -> TaskEnvironment:
    world_size = _number(variables, "WORLD_SIZE", least=1)
    rank = _below(_number(variables, "RANK"), "RANK", world_size, "WORLD_SIZE")
    nodes_given = _optional(variables, "GROUP_WORLD_SIZE", least=1)
    local_world_size = _optional(variables, "LOCAL_WORLD_SIZE", least=1) or max(1, world_size // (nodes_given or 1))
    local_rank = _below(_number(variables, "LOCAL_RANK"), "LOCAL_RANK", local_world_size, "LOCAL_WORLD_SIZE")
    node_rank = _optional(variables, "GROUP_RANK")
    return TaskEnvironment(
        role=role,
        rank=rank,
        local_rank=local_rank,
        world_size=world_size,
        local_world_size=local_world_size,
        node_rank=rank // local_world_size if node_rank is None else node_rank,
        num_nodes=nodes_given or max(1, world_size // local_world_size),
        launcher="torchrun",
        master_addr=variables.get("MASTER_ADDR"),
        master_port=_optional(variables, "MASTER_PORT"),
    )


def _from_slurm(variables: Mapping[str, str], role: str) -> TaskEnvironment:
    world_size = _number(variables, "SLURM_STEP_NUM_TASKS", least=1)
    num_nodes = _optional(variables, "SLURM_STEP_NUM_NODES", least=1) or 1
    node_rank = _optional(variables, "SLURM_NODEID") or 0
    per_node = _tasks_per_node(variables.get("SLURM_STEP_TASKS_PER_NODE", ""), world_size, num_nodes)
    return TaskEnvironment(
        role=role,
        rank=_below(_number(variables, "SLURM_PROCID"), "SLURM_PROCID", world_size, "SLURM_STEP_NUM_TASKS"),
        local_rank=_number(variables, "SLURM_LOCALID"),
        world_size=world_size,
        local_world_size=per_node[min(node_rank, len(per_node) - 1)],
        node_rank=node_rank,
        num_nodes=num_nodes,
        launcher="slurm",
        master_addr=variables.get("MASTER_ADDR") or first_host(variables.get("SLURM_STEP_NODELIST", "localhost")),
        master_port=_optional(variables, "MASTER_PORT") or _port_of_job(variables),
    )


def first_host(node_list: str) -> str:
    """The first host of Slurm's compact list: `gpu[03-07,9],cpu1` -> `gpu03`."""
    match = re.match(r"([^,\[]+)(?:\[([^\],-]+))?", node_list.strip())
    return "localhost" if match is None else match[1] + (match[2] or "")


def _tasks_per_node(text: str, world_size: int, num_nodes: int) -> list[int]:
    """Slurm's `4(x2),3` as [4, 4, 3]."""
    counts = []
    for count, repeat in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        counts += [int(count)] * int(repeat or 1)
    return counts or [max(1, world_size // num_nodes)]


def _port_of_job(variables: Mapping[str, str]) -> int:
    # All tasks of a job must choose the same port, and two jobs on one node different ones.
    job = variables.get("SLURM_JOB_ID", "0")
    return 20_000 + (int(job) % 10_000 if job.isdecimal() else 0)


def _number(variables: Mapping[str, str], name: str, least: int = 0) -> int:
    text = variables.get(name)
    if text is None:
        raise _missing(name, "other variables of its launcher are set")
    if not text.strip().isdecimal():
        raise _not_right(name, text, "a whole number")
    if int(text) < least:
        raise _not_right(name, int(text), f"{name} >= {least}")
    return int(text)


def _optional(variables: Mapping[str, str], name: str, least: int = 0) -> int | None:
    return _number(variables, name, least) if name in variables else None


def _below(value: int, name: str, bound: int, bound_name: str) -> int:
    if value >= bound:
        raise _not_right(name, value, f"0 <= {name} < {bound_name} = {bound}")
    return value


def _missing(name: str, why: str) -> MachinesError:
    return MachinesError(
        f"environment variable {name} is not set, but {why}", where="environment",
        limit="RANK, LOCAL_RANK and WORLD_SIZE together, or none of them",
        fix=f"start with torchrun or tml launch, or set {name} (for one process: unset RANK and WORLD_SIZE)",
    )  # fmt: skip


def _not_right(name: str, value: object, limit: str) -> MachinesError:
    return MachinesError(
        f"environment variable {name} is not right", where="environment", value=value, limit=limit,
        fix="start with torchrun or tml launch, or correct the variable",
    )  # fmt: skip
