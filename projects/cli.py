"""The `tml` command.

Commands are imported when they are run, so that `tml --help` does not wait for torch. `COMMANDS` says where each one
lives; a new project adds a line.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

import tml
from tml.common.errors import TmlError


@dataclass(frozen=True)
class LazyCommand:
    """A command, or a group of commands, that is imported on use.

    Args:
        help: the line `tml --help` shows.
        load: gives a function (one command) or a `typer.Typer` (a group).
        settings: click's context settings, for a function.
    """

    help: str
    load: Callable[[], Any]
    settings: dict[str, Any] = field(default_factory=dict)


def _attribute(module: str, name: str) -> Callable[[], Any]:
    return lambda: getattr(import_module(module), name)


def _launch() -> Any:
    """`machines` lies below the room that can count GPUs, so it is told how."""
    make = import_module("tml.machines.cli").make_launch_command
    return make(lambda: import_module("tml.common.device").num_accelerators())


_TWHIN_DATA = "tml.projects.twhin.data.cli"

COMMANDS = {
    "doctor": LazyCommand(
        "Check this installation and machine, and say what to do.", _attribute("tml.projects.doctor", "doctor_command")
    ),
    "sample-graph": LazyCommand(
        "Write a made-up graph of users and tweets.", _attribute(_TWHIN_DATA, "sample_graph_command")
    ),
    "convert": LazyCommand(
        "Turn edges with ids of your own into training data.", _attribute(_TWHIN_DATA, "convert_command")
    ),
    "twhin": LazyCommand(
        "Graph embeddings: train, evaluate, export, look up.", _attribute("tml.projects.twhin.cli", "app")
    ),
    "launch": LazyCommand(
        "Run a training script on what machines.yaml declares.",
        _launch,
        settings={"allow_extra_args": True, "ignore_unknown_options": True},
    ),
}


class LazyGroup(TyperGroup):
    """Shows the lines of `COMMANDS`, and replaces the one that is run by the real thing."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """The command's name, the loaded command, and its arguments."""
        name, command, rest = super().resolve_command(ctx, args)
        if name not in COMMANDS:
            return name, command, rest
        return name, _load(name, COMMANDS[name]), rest


def _load(name: str, command: LazyCommand) -> Any:
    loaded = command.load()
    if not isinstance(loaded, typer.Typer):
        app = typer.Typer(add_completion=False)
        app.command(name, context_settings=command.settings)(loaded)
        loaded = app
    # Typer's own markup would swallow the [brackets] of shapes and defaults in help texts.
    loaded.rich_markup_mode = "markdown"
    return get_command(loaded)


app = typer.Typer(
    cls=LazyGroup,
    help="Graph embeddings and light rankers on PyTorch and TorchRec.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for _name, _command in COMMANDS.items():
    app.command(_name, help=_command.help)(lambda: None)


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
