"""The command line of `train.py`: documented options and the original's, turned into what a trainer takes.

Options are those of `argument_table.py`. A learning-rate decay with options of its own may come last:

    train.py --train_data_path T --eval_data_path E --model_dir M --learning_rate 0.01 \
        inverse_learning_rate_decay --decay_rate 0.0004 --min_learning_rate 0.001
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from tml.common.errors import ConfigError
from tml.projects.light_ranker.argument_table import DECAYS, OPTIONS, WEIGHTED_LABELS, Option, to_bool

NO_DECAY = "no_learning_rate_decay"


@dataclass(frozen=True)
class Arguments:
    """What was given on the command line.

    Args:
        values: first name of an option -> value, of the options that were given.
        decay: name of the learning-rate decay.
        decay_values: its options, with their defaults.
    """

    values: Mapping[str, Any]
    decay: str = NO_DECAY
    decay_values: Mapping[str, Any] | None = None

    def get(self, name: str, default: Any = None) -> Any:
        """The value of an option, by its first name."""
        return self.values.get(name, default)

    def settings(self) -> dict[str, Any]:
        """Dotted path -> value, of the options that are fields of the run's config."""
        return {option.field: self.values[option.names[0]] for option in OPTIONS if option.field and self.has(option)}

    def has(self, option: Option) -> bool:
        """Whether an option was given."""
        return option.names[0] in self.values

    def example_weights(self) -> dict[str, float]:
        """Engagement -> weight, of those that were given."""
        given = {label: self.get(f"weight.{label}") for label in WEIGHTED_LABELS}
        return {label: weight for label, weight in given.items() if weight is not None}


def parse_arguments(argv: Sequence[str]) -> Arguments:
    """The options of a command line.

    Raises:
        ConfigError: an option is unknown, given twice, has no meaning here, or a value cannot be read.
    """
    place = next((index for index, word in enumerate(argv) if word in DECAYS), len(argv))
    values = _values(_parser(), argv[:place])
    _refuse_meaningless(values)
    if place == len(argv):
        return Arguments(values)
    decay = argv[place]
    given = _values(_decay_parser(decay), argv[place + 1 :])
    defaults = {name: default for name, (_, default) in DECAYS[decay].items()}
    missing = [name for name, default in defaults.items() if default is None and name not in given]
    if missing:
        raise ConfigError("option of the learning-rate decay is missing", where=decay, value=f"--{missing[0]}")
    return Arguments(values, decay, {**defaults, **given})


class _Parser(argparse.ArgumentParser):
    """Reports faults as the rest of the house does."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError("the command line cannot be read", where=self.prog, value=message, fix="see --help")


class _Once(argparse.Action):
    """Stores a value; a second one, under whatever name, is a fault."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, name: Any = None):  # type: ignore[no-untyped-def]
        if hasattr(namespace, self.dest):
            raise ConfigError(
                "option is given twice", where=str(name), value=values, limit="once",
                fix=f"give one of {', '.join(self.option_strings)}",
            )  # fmt: skip
        setattr(namespace, self.dest, values)


def _parser() -> _Parser:
    parser = _Parser(
        prog="train.py",
        description="Train a light ranker: calibrate, train, calibrate probabilities, export.",
        epilog="A learning-rate decay may follow: " + ", ".join(DECAYS),
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    for option in OPTIONS:
        names = [f"--{name}" for name in option.names]
        settings: dict[str, Any] = {"dest": option.names[0], "type": option.kind, "action": _Once, "help": option.help}
        if option.names[0] == "set":
            settings |= {"action": "append", "metavar": "SECTION.KEY=VALUE"}
        elif option.kind is to_bool or option.refused:
            settings |= {"nargs": "?", "const": True, "metavar": "true|false"}
        if option.refused:
            settings["help"] = argparse.SUPPRESS
        parser.add_argument(*names, **settings)
    return parser


def _decay_parser(decay: str) -> _Parser:
    parser = _Parser(prog=f"train.py {decay}", argument_default=argparse.SUPPRESS, allow_abbrev=False)
    for name, (kind, default) in DECAYS[decay].items():
        parser.add_argument(f"--{name}", type=kind, action=_Once, help="required" if default is None else str(default))
    return parser


def _values(parser: _Parser, argv: Sequence[str]) -> dict[str, Any]:
    found, rest = parser.parse_known_args(list(argv))
    if rest:
        word = rest[0].split("=")[0]
        near = difflib.get_close_matches(word, parser._option_string_actions, n=1)
        raise ConfigError(
            "unknown option", where=parser.prog, value=rest[0],
            fix=f"did you mean {near[0]}?" if near else "see --help; other settings of a run: --set section.key=value",
        )  # fmt: skip
    return vars(found)


def _refuse_meaningless(values: Mapping[str, Any]) -> None:
    for option in OPTIONS:
        if option.refused and option.names[0] in values:
            raise ConfigError(
                "option has no meaning here", where=f"--{option.names[0]}", value=values[option.names[0]],
                limit=option.refused, fix="leave it out",
            )  # fmt: skip
