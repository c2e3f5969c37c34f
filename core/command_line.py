"""The command line of a project's run.py: a config, a task, and overrides."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TypeVar

from tml.core.config import BaseConfig, format_config, load_config

C = TypeVar("C", bound=BaseConfig)


def parse_arguments(argv: Sequence[str], description: str, tasks: Sequence[str], default: str) -> argparse.Namespace:
    """Read `--config`, `--task` (one of `tasks`), `--print_config` and the overrides."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", required=True, help="YAML file, see the project's configs folder")
    parser.add_argument("--task", choices=tasks, default=default, help=f"what to do (default: {default})")
    parser.add_argument("--print_config", action="store_true", help="print the whole resolved config and stop")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that replace the file's")
    return parser.parse_intermixed_args(argv)


def run_arguments(arguments: argparse.Namespace, config_type: type[C], run_task: Callable[[C, str], int]) -> int:
    """Read the config, and print it or run its task; the exit code.

    Raises:
        ConfigError: the config is not valid.
    """
    config = load_config(config_type, arguments.config, arguments.overrides)
    if not arguments.print_config:
        return run_task(config, arguments.task)
    print(format_config(config), end="")
    return 0
