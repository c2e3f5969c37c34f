"""Conversions that are cut off, repeated, changed or interfered with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.projects.twhin.convert_helpers import run, tree, write
from tml.common.errors import ConfigError, DataError
from tml.projects.twhin.data.convert import arrange
from tml.projects.twhin.data.convert.options import ConvertOptions
from tml.projects.twhin.data.convert.pipeline import convert

# Runs a conversion in its own process and dies by SIGKILL when `function` of `module` is called for the n-th time.
KILLED = """
import importlib, os, signal, sys
from pathlib import Path
from tml.projects.twhin.data.convert.options import ConvertOptions
from tml.projects.twhin.data.convert.pipeline import convert
owner = importlib.import_module("tml." + sys.argv[1])
*path, name = sys.argv[2].split(".")
for part in path:
    owner = getattr(owner, part)
original, calls = getattr(owner, name), []
def dying(*args, **kwargs):
    calls.append(1)
    if len(calls) == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args, **kwargs)
setattr(owner, name, dying)
options = ConvertOptions(inputs=(sys.argv[4], sys.argv[5]), single_table="n", seed=3, split_fractions=(0.8, 0.1, 0.1))
convert(options, Path(sys.argv[6]))
"""

PLACES = [
    ("projects.twhin.data.convert.scan", "_as_batch", 2),  # in the second file
    ("projects.twhin.data.convert.scan", "write_json", 1),  # a file is scanned but not marked
    ("projects.twhin.data.convert.encode", "_encoded", 1),  # nodes are numbered, edges not yet
    ("projects.twhin.data.convert.arrange", "_write", 1),
    ("projects.twhin.data.convert.arrange", "_cuts", 1),
    ("projects.twhin.data.convert.write", "write_edges", 1),  # vocabularies are written
    ("projects.twhin.data.convert.write", "PartWriter._flush", 2),
    ("common.workspace", "Workspace.publish", 1),
    ("common.workspace", "write_json", 6),  # all is written, but the stage is not marked
    ("common.workspace", "write_json", 7),  # all is in place but meta.json
]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("in")
    return [
        write(folder / f"{f}.tsv", "".join(f"n{i * 7 % 50}\tr{i % 3}\tn{(i * i + f) % 50}\n" for i in range(400)))
        for f in range(2)
    ]


def _convert(inputs: list[str], out: Path, **settings) -> dict:
    return run(out, *inputs, **({"single_table": "n", "seed": 3, "split_fractions": (0.8, 0.1, 0.1)} | settings))


@pytest.fixture(scope="module")
def uninterrupted(inputs: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("whole") / "out"
    _convert(inputs, out)
    return tree(out)


@pytest.mark.parametrize(("module", "function", "call"), PLACES)
def test_killed_midway_then_restarted_gives_the_same_bytes(
    inputs: list[str], uninterrupted: dict[str, bytes], tmp_path: Path, module: str, function: str, call: int
) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLED, module, function, str(call), *inputs, str(out)]
    killed = subprocess.run(command, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert not (out / "meta.json").exists()
    _convert(inputs, out)
    found = tree(out)
    assert found.keys() == uninterrupted.keys()
    for name, content in uninterrupted.items():
        if name != "config.yaml":  # which names the folder
            assert found[name] == content, name


def test_restart_does_not_read_finished_files_again(
    inputs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(arrange, "_write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            _convert(inputs, out)
    monkeypatch.setattr("tml.projects.twhin.data.convert.scan._scan_file", lambda *_: pytest.fail("scanned again"))
    monkeypatch.setattr("tml.projects.twhin.data.convert.encode.encode", lambda *_: pytest.fail("numbered again"))
    assert sum(_convert(inputs, out)["edges"].values()) == 800


def test_a_complete_folder_is_left_alone(inputs: list[str], tmp_path: Path) -> None:
    first = _convert(inputs, tmp_path / "out")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    assert _convert(inputs, tmp_path / "out") == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == times


def test_other_settings_for_a_complete_folder_are_refused_with_a_diff(inputs: list[str], tmp_path: Path) -> None:
    _convert(inputs, tmp_path / "out")
    before = tree(tmp_path / "out")
    with pytest.raises(ConfigError, match="holds another conversion") as caught:
        _convert(inputs, tmp_path / "out", seed=4, drop_duplicates=True)
    assert "options.seed: 3 -> 4; options.drop_duplicates: false -> true" in str(caught.value)
    assert tree(tmp_path / "out") == before
    options = ConvertOptions(inputs=tuple(inputs), single_table="n", split_fractions=(1.0, 0.0, 0.0))
    assert convert(options, tmp_path / "out", overwrite=True)["edges"]["train"] == 800
    assert not (tmp_path / "out/edges/valid").exists()


def test_a_changed_input_file_is_refused_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "e.tsv", "a\tr\tb\n")
    run(tmp_path / "out", path, single_table="n")
    write(tmp_path / "e.tsv", "a\tr\tb\nb\tr\tc\n")
    with pytest.raises(ConfigError, match="holds another conversion") as caught:
        run(tmp_path / "out", path, single_table="n")
    assert "sources.0.size: 6 -> 12" in str(caught.value)


def test_a_file_that_changes_while_it_is_read_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tml.projects.twhin.data.convert import pipeline

    path = write(tmp_path / "e.tsv", "a\tr\tb\n")
    original = pipeline.scan

    def scan_then_change(*args: object) -> None:
        original(*args)
        write(tmp_path / "e.tsv", "a\tr\tb\nb\tr\tc\n")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "scan", scan_then_change)
        with pytest.raises(DataError, match="changed while it was read"):
            run(tmp_path / "out", path, single_table="n")
    assert run(tmp_path / "out", path, single_table="n")["edges"]["train"] == 2


def test_a_folder_with_files_of_something_else_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "e.tsv", "a\tr\tb\n")
    write(tmp_path / "out/config.yaml", "mine: true\n")
    with pytest.raises(ConfigError, match="files of something else"):
        run(tmp_path / "out", path, single_table="n")
    assert (tmp_path / "out/config.yaml").read_text() == "mine: true\n"


def test_a_disk_that_is_full_is_an_error_and_the_next_run_continues(
    inputs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("tml.projects.twhin.data.convert.write.PartWriter._flush", full)
        with pytest.raises(DataError, match="cannot write") as caught:
            _convert(inputs, tmp_path / "out")
    assert "No space left" in str(caught.value)
    assert json.loads((tmp_path / "out/.convert/plan.json").read_text())["options"]["seed"] == 3
    assert sum(_convert(inputs, tmp_path / "out")["edges"].values()) == 800
