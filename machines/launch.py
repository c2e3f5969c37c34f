"""Starting a training script under torchrun with the ranks that `machines.yaml` declares."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from tml.machines.config import Machine, Machines
from tml.machines.errors import MachinesError
from tml.machines.exit_codes import FOLDER_VARIABLE, recorded_exit_code
from tml.machines.quantities import format_bytes
from tml.ml_logging import get_logger

_logger = get_logger(__name__)
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


@dataclass(frozen=True)
class LaunchOptions:
    """How to launch, beyond what `machines.yaml` says.

    Args:
        num_ranks: ranks on this node; None takes the chief's accelerators.
        cpu_ranks: ranks on this node when there are no accelerators.
        max_restarts: how often torchrun may start the group again after a failure.
        num_nodes: nodes, as torchrun's --nnodes ("2" or "1:4"); None takes the chief's replicas.
        rdzv_endpoint: host:port of the rendezvous; needed for more than one node.
        strict: fewer accelerators than declared is an error instead of a warning.
    """

    num_ranks: int | None = None
    cpu_ranks: int = 1
    max_restarts: int = 0
    num_nodes: str | None = None
    rdzv_endpoint: str | None = None
    strict: bool = False


def choose_num_ranks(machine: Machine, options: LaunchOptions, num_accelerators_here: int) -> int:
    """Ranks on this node: one per accelerator, or CPU ranks where there is none.

    Fewer accelerators than declared are used and said at WARNING, with both numbers.

    Raises:
        MachinesError: fewer than declared, and `strict`; or a number of ranks below 1.
    """
    for name, value in (("num_ranks", options.num_ranks), ("cpu_ranks", options.cpu_ranks)):
        if value is not None and value < 1:
            raise MachinesError(f"{name} is too small", where="launch", value=value, limit=f"{name} >= 1")
    wanted = machine.num_accelerators
    if options.num_ranks is not None:
        if 0 < num_accelerators_here < options.num_ranks:
            _say_fewer(options.num_ranks, num_accelerators_here, "asked for", options.strict)
        return options.num_ranks
    if wanted == 0:
        return options.cpu_ranks
    if num_accelerators_here < wanted:
        kind = f" ({machine.accelerator_type})" if machine.accelerator_type else ""
        _say_fewer(wanted, num_accelerators_here, f"declared{kind}", options.strict)
    return min(wanted, num_accelerators_here) or options.cpu_ranks


def build_torchrun_command(
    script: str, script_args: Sequence[str], machines: Machines, num_ranks: int, options: LaunchOptions
) -> list[str]:
    """The command that runs `script` under torchrun on this node.

    Args:
        script: path of the Python script.
        script_args: its arguments, passed on unchanged.
        machines: the chief's replicas are the number of nodes unless the options say otherwise.
        num_ranks: ranks on this node, from `choose_num_ranks`.
        options: restarts, nodes and rendezvous.

    Raises:
        MachinesError: several nodes without a rendezvous endpoint.
    """
    num_nodes = options.num_nodes or str(machines.chief.replicas)
    command = [sys.executable, "-m", "torch.distributed.run"]
    if options.rdzv_endpoint is None:
        if num_nodes != "1":
            raise MachinesError(
                "several nodes need a rendezvous", where="launch", value=f"{num_nodes} nodes",
                fix="pass --rdzv_endpoint HOST:PORT, the same on every node, or --num_nodes 1",
            )  # fmt: skip
        # The address is said because a machine need not be able to resolve its own name.
        command += ["--standalone", "--local-addr", "127.0.0.1"]
    else:
        command += ["--nnodes", num_nodes, "--rdzv-backend", "c10d", "--rdzv-endpoint", options.rdzv_endpoint]
    command += ["--nproc-per-node", str(num_ranks), "--max-restarts", str(options.max_restarts)]
    return [*command, script, *script_args]


def launch_variables(num_ranks: int, machine: Machine, variables: Mapping[str, str]) -> dict[str, str]:
    """The environment of the launch: `OMP_NUM_THREADS` shares the declared or present cores among the ranks, unless
    it is set."""
    cores = min(machine.cpu, num_cores())
    return {"OMP_NUM_THREADS": str(max(1, cores // num_ranks)), **variables}


def launch(
    script: str,
    script_args: Sequence[str],
    machines: Machines,
    options: LaunchOptions,
    count_accelerators: Callable[[], int],
    dry_run: bool = False,
) -> int:
    """Run `script` under torchrun and wait for it, passing signals on.

    Args:
        script: path of the Python script.
        script_args: its arguments.
        machines: from `load_machines`.
        options: see `LaunchOptions`.
        count_accelerators: how many accelerators this machine has.
        dry_run: print the command instead of running it.

    Returns:
        The exit code: 0, the code that the ranks recorded (75: preempted and saved), torchrun's own, or 128 + the
        number of the signal that ended it.

    Raises:
        MachinesError: the script is missing, or the machine is not as it must be.
    """
    if not os.path.isfile(script):
        raise MachinesError("no such script", where=script, fix="check the path")
    num_ranks = choose_num_ranks(machines.chief, options, count_accelerators())
    warn_of_small_machine(machines.chief)
    command = build_torchrun_command(script, script_args, machines, num_ranks, options)
    variables = launch_variables(num_ranks, machines.chief, os.environ)
    if dry_run:
        print(f"OMP_NUM_THREADS={variables['OMP_NUM_THREADS']} {shlex.join(command)}")
        return 0
    _logger.info("launching %d rank(s) with %s thread(s) each", num_ranks, variables["OMP_NUM_THREADS"])
    with tempfile.TemporaryDirectory(prefix="tml-launch-") as folder:
        code, was_signalled = run_forwarding_signals(command, {**variables, FOLDER_VARIABLE: folder})
        # Unless it was told to stop, torchrun gives up only after its last restart; earlier records are stale then.
        recorded = recorded_exit_code(folder, None if was_signalled else options.max_restarts)
    return recorded if code != 0 and recorded is not None else code


def run_forwarding_signals(command: Sequence[str], variables: Mapping[str, str]) -> tuple[int, bool]:
    """Run a command to its end; SIGTERM, SIGINT, SIGHUP and SIGQUIT that reach us are passed on to it.

    Returns:
        Its exit code (128 + number when a signal ended it), and whether any signal was passed on.
    """
    signals: list[int] = []
    children: list[subprocess.Popen[bytes]] = []

    def forward(number: int, _: FrameType | None) -> None:
        signals.append(number)
        for child in children:
            child.send_signal(number)

    with _handling(forward):
        # In a group of its own, so that Ctrl-C reaches it through us alone: twice means "at once" to the ranks.
        child = subprocess.Popen(command, env=dict(variables), process_group=0)
        children.append(child)
        for number in signals:
            child.send_signal(number)
        code = child.wait()
    return (code if code >= 0 else 128 - code), bool(signals)


@contextmanager
def _handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    previous = {number: signal.signal(number, handler) for number in _FORWARDED}
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


def num_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def warn_of_small_machine(machine: Machine) -> None:
    """Say at WARNING where this machine has fewer cores or less memory than declared."""
    if num_cores() < machine.cpu:
        _logger.warning("machines.yaml declares %d cores for the chief, this machine has %d", machine.cpu, num_cores())
    memory_here = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if memory_here < machine.mem:
        _logger.warning(
            "machines.yaml declares %s of memory for the chief, this machine has %s",
            format_bytes(machine.mem), format_bytes(memory_here),
        )  # fmt: skip


def _say_fewer(wanted: int, here: int, how: str, strict: bool) -> None:
    if strict:
        raise MachinesError(
            "this machine has fewer accelerators than wanted", where="chief", value=here, limit=f"{wanted} {how}",
            fix="run on the declared machine, correct num_accelerators, or leave out --strict",
        )  # fmt: skip
    _logger.warning("the chief's accelerators: %d %s, %d on this machine; going on with those", wanted, how, here)
