"""Commands of a command line that are imported when they are run, so that a help text does not wait for torch.

COMMANDS = {"export": LazyCommand("Write the files for serving.", attribute("tml.projects.x.export", "export_command"))}
app = lazy_app(COMMANDS, help="Everything about x.")
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, ClassVar

import typer
from typer.core import TyperGroup
from typer.main import get_command


@dataclass(frozen=True)
class LazyCommand:
    """A command, or a group of commands, that is imported on use.

    Args:
        help: the line that the help of the group shows.
        load: gives a function (one command) or a `typer.Typer` (a group).
        settings: click's context settings, for a function.
    """

    help: str
    load: Callable[[], Any]
    settings: dict[str, Any] = field(default_factory=dict)


def attribute(module: str, name: str) -> Callable[[], Any]:
    """Loads an attribute of a module by importing it."""
    return lambda: getattr(import_module(module), name)


class LazyGroup(TyperGroup):
    """Shows the lines of `lazy`, and replaces the one that is run by the real thing."""

    lazy: ClassVar[Mapping[str, LazyCommand]] = {}

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """The command's name, the loaded command, and its arguments."""
        name, command, rest = super().resolve_command(ctx, args)
        if name is None or name not in self.lazy:
            return name, command, rest
        return name, _load(name, self.lazy[name]), rest


def lazy_app(commands: Mapping[str, LazyCommand], help: str) -> typer.Typer:
    """An app of lazy commands; more can be added to it as usual. Later changes of `commands` are seen when one is run.

    Args:
        commands: by name, in the order of the help.
        help: of the app.
    """
    group = type("Commands", (LazyGroup,), {"lazy": commands})
    app = typer.Typer(cls=group, help=help, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
    for name, command in commands.items():
        app.command(name, help=command.help)(lambda: None)
    return app


def _load(name: str, command: LazyCommand) -> Any:
    loaded = command.load()
    if not isinstance(loaded, typer.Typer):
        app = typer.Typer(add_completion=False)
        app.command(name, context_settings=command.settings)(loaded)
        loaded = app
    # Typer's own markup would swallow the [brackets] of shapes and defaults in help texts.
    loaded.rich_markup_mode = "markdown"
    return get_command(loaded)
