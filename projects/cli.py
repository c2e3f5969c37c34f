"""The `tml` command.

Commands are imported when they are run, so that `tml --help` does not wait for torch. `COMMANDS` says where each one
lives; a new project adds a line.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Annotated, Any

import typer

import tml
from tml.common.errors import TmlError
from tml.common.lazy_commands import LazyCommand, attribute, lazy_app


def _launch() -> Any:
    """`machines` lies below the room that can count GPUs, so it is told how."""
    make = import_module("tml.machines.cli").make_launch_command
    return make(lambda: import_module("tml.common.device").num_accelerators())


_TWHIN_DATA = "tml.projects.twhin.data.cli"

COMMANDS = {
    "doctor": LazyCommand(
        "Check this installation and machine, and say what to do.", attribute("tml.projects.doctor", "doctor_command")
    ),
    "sample-graph": LazyCommand(
        "Write a made-up graph of users and tweets.", attribute(_TWHIN_DATA, "sample_graph_command")
    ),
    "convert": LazyCommand(
        "Turn edges with ids of your own into training data.", attribute(_TWHIN_DATA, "convert_command")
    ),
    "twhin": LazyCommand(
        "Graph embeddings: train, evaluate, export, look up.", attribute("tml.projects.twhin.cli", "app")
    ),
    "light-ranker": LazyCommand(
        "Light rankers: prepare, train, export, score, serve.",
        attribute("tml.projects.light_ranker.cli", "app"),
    ),
    "launch": LazyCommand(
        "Run a training script on what machines.yaml declares.",
        _launch,
        settings={"allow_extra_args": True, "ignore_unknown_options": True},
    ),
    "plan": LazyCommand(
        "What a run would need of declared machines, on paper.",
        attribute("tml.projects.plan", "plan_command"),
        settings={"allow_extra_args": True},
    ),
}


app = lazy_app(COMMANDS, help="Graph embeddings and light rankers on PyTorch and TorchRec.")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tml {tml.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Graph embeddings and light rankers on PyTorch and TorchRec."""


def main() -> None:
    """Run `tml`. A fault the user can mend is one message and exit code 2; TML_TRACEBACK=1 shows where it arose."""
    try:
        app()
    except Exception as error:
        if os.environ.get("TML_TRACEBACK") == "1" or not isinstance(error, _users_errors()):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _users_errors() -> tuple[type[Exception], ...]:
    return (TmlError, import_module("tml.machines.errors").MachinesError)


if __name__ == "__main__":
    main()
