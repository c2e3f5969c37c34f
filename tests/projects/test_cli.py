from __future__ import annotations

import sys

import pytest
import typer
from typer.testing import CliRunner

from tml.common.errors import DataError
from tml.projects import cli


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["tml", *arguments])
    with pytest.raises(SystemExit) as ending:
        cli.main()
    return ending.value.code


def faulty_command() -> None:
    raise DataError("node id out of range", value=7, limit="0 <= id < 7", fix="convert the data again")


@pytest.fixture
def _faulty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cli.COMMANDS, "doctor", cli.LazyCommand("", lambda: faulty_command))


def test_help_lists_every_command() -> None:
    shown = CliRunner().invoke(cli.app, ["--help"])
    assert shown.exit_code == 0
    for name, command in cli.COMMANDS.items():
        assert name in shown.output
        assert command.help in shown.output


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_loads_and_explains_itself(name: str) -> None:
    shown = CliRunner().invoke(cli.app, [name, "--help"])
    assert shown.exit_code == 0, shown.exception
    assert "Usage" in shown.output


@pytest.mark.usefixtures("_faulty")
def test_a_users_fault_is_one_message_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, "doctor") == 2
    assert capsys.readouterr().err == (
        "error: node id out of range\n  value: 7\n  limit: 0 <= id < 7\n  fix: convert the data again\n"
    )


@pytest.mark.usefixtures("_faulty")
def test_a_traceback_is_there_for_the_asking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TML_TRACEBACK", "1")
    monkeypatch.setattr(sys, "argv", ["tml", "doctor"])
    with pytest.raises(DataError):
        cli.main()


def test_a_fault_of_the_machines_room_is_a_users_fault_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, "launch", "run.py", "--machines", "no_such_machines.yaml") == 2
    assert "no_such_machines.yaml" in capsys.readouterr().err


def test_our_own_mistakes_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def mistaken() -> None:
        raise KeyError("ours")

    monkeypatch.setitem(cli.COMMANDS, "doctor", cli.LazyCommand("", lambda: mistaken))
    monkeypatch.setattr(sys, "argv", ["tml", "doctor"])
    with pytest.raises(KeyError):
        cli.main()


def test_a_commands_exit_code_is_the_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    def ends_with_7() -> None:
        raise typer.Exit(7)

    monkeypatch.setitem(cli.COMMANDS, "doctor", cli.LazyCommand("", lambda: ends_with_7))
    assert run_main(monkeypatch, "doctor") == 7


def test_a_misspelt_command_gets_a_suggestion() -> None:
    shown = CliRunner().invoke(cli.app, ["docto"])
    assert shown.exit_code == 2
    assert "Did you mean 'doctor'" in shown.output
