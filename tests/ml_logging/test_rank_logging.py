import json
import logging
import os
import subprocess
import sys

import pytest

from tml.ml_logging import configure_logging, get_logger, rank, warn_once
from tml.ml_logging.rank_logging import ROOT


@pytest.fixture(autouse=True)
def _restore_logging(monkeypatch):
    for name in ("RANK", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    root = logging.getLogger(ROOT)
    level, handlers = root.level, list(root.handlers)
    yield
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)


def test_loggers_lie_under_tml():
    assert get_logger("tml.core.loop").name == "tml.core.loop"
    assert get_logger("__main__").name == "tml.main"
    assert get_logger("tmlike").name == "tml.tmlike"


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, 0),
        ({"RANK": "3"}, 3),
        ({"RANK": "x"}, 0),
        ({"SLURM_PROCID": "2"}, 0),
        ({"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "4"}, 2),
        ({"RANK": "1", "SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "4"}, 1),
    ],
)
def test_rank_comes_from_the_launcher(monkeypatch, variables, expected):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert rank() == expected


def test_rank_zero_logs_from_the_level_up(capsys):
    configure_logging("info")
    get_logger("tml.x").debug("hidden")
    get_logger("tml.x").info("shown %d", 3)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].endswith("INFO tml.x: shown 3")


def test_other_ranks_log_only_errors_and_name_themselves(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    configure_logging("debug")
    get_logger("tml.x").warning("hidden")
    get_logger("tml.x").error("broken")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("[rank 1] ")
    assert line.endswith("ERROR tml.x: broken")


@pytest.mark.parametrize("number", ["0", "1"])
def test_all_ranks_log_on_request_with_their_rank(capsys, monkeypatch, number):
    monkeypatch.setenv("RANK", number)
    configure_logging("info", all_ranks=True)
    get_logger("tml.x").info("hello")
    assert capsys.readouterr().err.startswith(f"[rank {number}] ")


def test_configuring_again_replaces_instead_of_doubling(capsys, tmp_path):
    configure_logging("info", tmp_path / "a.jsonl")
    configure_logging("warning")
    get_logger("tml.x").info("hidden")
    get_logger("tml.x").warning("once")
    assert capsys.readouterr().err.count("once") == 1
    assert (tmp_path / "a.jsonl").read_text() == ""


def test_unknown_level_is_refused():
    with pytest.raises(ValueError, match="unknown log level 'loud'; known: debug, info, warning, error"):
        configure_logging("loud")


def test_warn_once_says_it_once_per_logger_and_message(caplog):
    logger, other = get_logger("tml.once"), get_logger("tml.once.other")
    for _ in range(3):
        warn_once(logger, "100% of rows are short")
        warn_once(other, "100% of rows are short")
        warn_once(logger, "something else")
    said = [(record.name, record.getMessage()) for record in caplog.records]
    assert said == [
        ("tml.once", "100% of rows are short"),
        ("tml.once.other", "100% of rows are short"),
        ("tml.once", "something else"),
    ]


def test_json_lines_hold_every_field(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "2")
    path = tmp_path / "logs" / "run.jsonl"
    configure_logging("info", path, all_ranks=True)
    get_logger("tml.x").info("step %d", 3, extra={"step": 3, "loss": float("nan"), "path": path})
    try:
        raise ValueError("torn")
    except ValueError:
        get_logger("tml.x").exception("failed\nbadly")
    first, second = [json.loads(line) for line in path.read_text().splitlines()]
    assert first.pop("time").endswith("+00:00")
    assert first == {
        "level": "info", "rank": 2, "name": "tml.x", "message": "step 3", "step": 3, "loss": "nan", "path": str(path),
    }  # fmt: skip
    assert second["message"] == "failed\nbadly"
    assert "ValueError: torn" in second["error"]


def test_22_a_disk_that_is_full_for_logs_is_said_once_and_stops_nothing(tmp_path, capsys, monkeypatch):
    configure_logging("info", tmp_path / "run.jsonl")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    for _ in range(3):
        get_logger("tml.x").info("going on")
    said = capsys.readouterr().err
    assert said.count("cannot write log lines") == 1
    assert said.count("going on\n") == 3
    assert "No space left" in said


def test_importing_logging_imports_neither_torch_nor_rich():
    code = "import sys, tml.ml_logging; print([m for m in ('torch', 'rich', 'absl') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
