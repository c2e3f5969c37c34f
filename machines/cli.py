"""`tml launch`: the command line of `launch`. `projects/cli.py` registers it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from tml.machines.config import load_machines
from tml.machines.launch import LaunchOptions, launch

# Options that the script owns come after it and are passed on untouched.
CONTEXT_SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True}


def make_launch_command(count_accelerators: Callable[[], int]) -> Callable[..., None]:
    """The typer command, given how to count this machine's accelerators.

        app.command("launch", context_settings=CONTEXT_SETTINGS)(make_launch_command(count))

    It raises `MachinesError`, and ends with the launched job's exit code.
    """

    def launch_command(
        context: typer.Context,
        script: Annotated[str, typer.Argument(help="Python script to run on every rank.")],
        machines: Annotated[str, typer.Option(help="machines.yaml of the project.")],
        num_ranks: Annotated[int | None, typer.Option("--num_ranks", help="Ranks here [accelerators].")] = None,
        cpu_ranks: Annotated[int, typer.Option("--cpu_ranks", help="Ranks here without accelerators.")] = 1,
        max_restarts: Annotated[int, typer.Option("--max_restarts", help="Restarts after a failure.")] = 0,
        num_nodes: Annotated[str | None, typer.Option("--num_nodes", help="Nodes, N or MIN:MAX [replicas].")] = None,
        rdzv_endpoint: Annotated[str | None, typer.Option("--rdzv_endpoint", help="HOST:PORT, several nodes.")] = None,
        strict: Annotated[bool, typer.Option("--strict", help="Fewer accelerators than declared: stop.")] = False,
        dry_run: Annotated[bool, typer.Option("--dry_run", help="Print the command only.")] = False,
    ) -> None:
        """Run a training script under torchrun on what machines.yaml declares; other arguments go to the script."""
        options = LaunchOptions(num_ranks, cpu_ranks, max_restarts, num_nodes, rdzv_endpoint, strict)
        code = launch(script, context.args, load_machines(machines), options, count_accelerators, dry_run)
        raise typer.Exit(code)

    return launch_command
