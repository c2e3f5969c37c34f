from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tml.projects import cli as tml_cli
from tml.projects.light_ranker import cli


def test_help_lists_every_command() -> None:
    shown = CliRunner().invoke(cli.app, ["--help"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    for name, command in cli.COMMANDS.items():
        assert name in shown.output
        assert command.help in shown.output


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_loads_and_explains_itself(name: str) -> None:
    shown = CliRunner().invoke(cli.app, [name, "--help"])
    assert shown.exit_code == 0, shown.exception
    assert "Usage" in shown.output


@pytest.mark.parametrize("arguments", [["--help"], ["light-ranker", "--help"], ["light-ranker", "train", "--help"]])
def test_help_does_not_wait_for_torch(arguments: list[str]) -> None:
    code = (
        f"import sys; sys.argv[1:] = {arguments}\n"
        "from tml.projects.cli import app\ntry:\n    app()\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'torchrec', 'onnxruntime', 'duckdb') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[4]
    )
    assert "Usage" in done.stdout
    assert done.stdout.strip().endswith("[]")


def test_the_group_is_a_command_of_tml() -> None:
    shown = CliRunner().invoke(tml_cli.app, ["light-ranker", "--help"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    assert "lolly-export" in shown.output


@pytest.mark.parametrize(("command", "task"), [("train", "all"), ("calibrate", "calibrate"), ("evaluate", "evaluate")])
def test_a_run_command_hands_its_task_and_overrides_on(
    command: str, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[list[str]] = []
    monkeypatch.setattr("tml.projects.light_ranker.run.main", called.append)
    done = CliRunner().invoke(cli.app, [command, "--config", "c.yaml", "training.num_epochs=3", "--print_config"])
    assert done.exit_code == 0, done.output
    assert called == [["--config", "c.yaml", "--task", task, "training.num_epochs=3", "--print_config"]]
