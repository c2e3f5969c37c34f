"""A small graph, settings that train on it in four steps, and the program as a user sees it."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.projects.twhin.tiny import TinyGraph, tiny_settings, write_graph
from tests.runs import Settings, run_program
from tml.projects.twhin.run import main


@pytest.fixture(scope="module")
def graph(tmp_path_factory) -> TinyGraph:
    return write_graph(tmp_path_factory.mktemp("graph"))


@pytest.fixture
def small(graph, tmp_path) -> Settings:
    """Four steps."""
    return tiny_settings(graph, tmp_path / "run", train_data={"limit": 1600})


@pytest.fixture
def fault(tmp_path, capfd) -> Callable[..., str]:
    """Runs the program and gives its message: exit code 2, on stderr alone, without a traceback."""

    def message(settings: Settings | str, *arguments: str) -> str:
        path = tmp_path / "config.yaml"
        path.write_text(settings if isinstance(settings, str) else json.dumps(settings))
        capfd.readouterr()
        code = run_program(main, str(path), *arguments)
        err = capfd.readouterr().err
        assert code == 2, err
        text = err[err.index("\nerror: ") + 1 :] if "\nerror: " in err else err
        assert text.startswith("error: ")
        assert "Traceback" not in text
        return text

    return message
