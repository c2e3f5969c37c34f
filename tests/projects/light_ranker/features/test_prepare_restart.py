"""A preparation that is cut off continues; one that is changed is refused; the result is a function of its plan."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.projects.light_ranker.features.prepare_helpers import run, tree, write_table
from tml.common.errors import ConfigError, DataError
from tml.projects.light_ranker.features import counting, prepare

FEATURES = [
    {"name": "user", "kind": "categorical", "side": "user"},
    {"name": "age", "kind": "continuous", "side": "candidate"},
    {"name": "rate", "kind": "target_encoding", "side": "user", "keys": ["user"], "label": "click"},
]
CONFIG = {"features": FEATURES}
SETTINGS = {"split_fractions": (0.8, 0.1, 0.1), "split_time": "age", "seed": 3, "row_group_size": 100}

# Prepares in its own process and dies by SIGKILL when `function` of `module` is called for the n-th time.
KILLED = """
import importlib, os, signal, sys
from pathlib import Path
from tml.projects.light_ranker.features.prepare import prepare
from tml.projects.light_ranker.features.prepare_options import PrepareOptions
module, function, call, folder = sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])
owner = importlib.import_module("tml." + module)
*path, name = function.split(".")
for part in path:
    owner = getattr(owner, part)
original, calls = getattr(owner, name), []
def dying(*args, **kwargs):
    calls.append(1)
    if len(calls) == call:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args, **kwargs)
setattr(owner, name, dying)
inputs = {"train": [str(folder / f"{i}.parquet") for i in range(2)]}
settings = dict(split_fractions=(0.8, 0.1, 0.1), split_time="age", seed=3, row_group_size=100)
prepare(PrepareOptions(str(folder / "features.yaml"), inputs, **settings), folder / "out")
"""

PLACES = [
    ("projects.light_ranker.features.counting", "times_of", 2),  # in the second file
    ("projects.light_ranker.features.counting", "count_targets", 2),  # in the second file
    ("projects.light_ranker.features.counting", "write_vocabulary", 1),
    ("projects.light_ranker.features.counting", "write_target_table", 1),
    ("projects.light_ranker.features.encoded_files", "EncodedFile._flush", 7),  # in the second file
    ("common.workspace", "write_json", 9),  # all is written, but not marked
    ("common.workspace", "write_json", 10),  # all is in place but meta.json
]


def _inputs(folder: Path) -> list[str]:
    rng = np.random.default_rng(0)
    draws = [{"user": rng.integers(0, 50, 400), "age": rng.random(400), "click": rng.integers(0, 2, 400)} for _ in "12"]
    return [write_table(folder / f"{i}.parquet", **columns) for i, columns in enumerate(draws)]


@pytest.mark.parametrize(("module", "function", "call"), PLACES)
def test_killed_midway_then_restarted_gives_the_same_bytes(tmp_path: Path, module: str, function: str, call: int):
    inputs = _inputs(tmp_path)
    (tmp_path / "features.yaml").write_text(json.dumps({"labels": [{"name": "click", "kind": "binary"}], **CONFIG}))
    command = [sys.executable, "-c", KILLED, module, function, str(call), str(tmp_path)]
    killed = subprocess.run(command, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert not (tmp_path / "out/meta.json").exists()
    run(tmp_path, CONFIG, inputs, **SETTINGS)
    run(tmp_path, CONFIG, inputs, out="whole", **SETTINGS)
    found, whole = tree(tmp_path / "out"), tree(tmp_path / "whole")
    assert found.keys() == whole.keys()
    for name, content in whole.items():
        if name not in ("config.yaml", "meta.json"):  # which name the folder
            assert found[name] == content, name


def test_a_complete_preparation_is_not_done_again(tmp_path: Path, monkeypatch):
    inputs = _inputs(tmp_path)
    first = run(tmp_path, CONFIG, inputs, **SETTINGS)
    monkeypatch.setattr(prepare._Preparation, "run", lambda *_: pytest.fail("done again"))
    assert run(tmp_path, CONFIG, inputs, **SETTINGS) == first


def test_a_restart_does_not_count_again(tmp_path: Path, monkeypatch):
    inputs = _inputs(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "to_table", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, CONFIG, inputs, **SETTINGS)
    monkeypatch.setattr(counting, "count_ids", lambda *_: pytest.fail("counted again"))
    run(tmp_path, CONFIG, inputs, **SETTINGS)


@pytest.mark.parametrize(
    ("config", "settings", "says"),
    [
        ({}, {"seed": 4}, r"options\.seed: 3 -> 4"),
        ({"features": [{**FEATURES[0], "vocabulary": {"min_count": 2}}]}, {}, "features"),
        ({"bad_values": {"labels": "skip"}}, {}, r"features\.bad_values"),
    ],
)
def test_another_plan_is_refused_with_the_difference(tmp_path: Path, config, settings, says):
    inputs = _inputs(tmp_path)
    run(tmp_path, CONFIG, inputs, **SETTINGS)
    with pytest.raises(ConfigError, match=f"another preparation[\\s\\S]*{says}"):
        run(tmp_path, {**CONFIG, **config}, inputs, **{**SETTINGS, **settings})
    run(tmp_path, {**CONFIG, **config}, inputs, overwrite=True, **{**SETTINGS, **settings})


def test_a_changed_input_is_another_plan(tmp_path: Path):
    inputs = _inputs(tmp_path)
    run(tmp_path, CONFIG, inputs, **SETTINGS)
    write_table(tmp_path / "1.parquet", user=[1, 2], age=[0.1, 0.2], click=[0, 1])
    with pytest.raises(ConfigError, match=r"files\.train\.1\.size"):
        run(tmp_path, CONFIG, inputs, **SETTINGS)


def test_an_input_that_changes_meanwhile_is_told(tmp_path: Path, monkeypatch):
    inputs, original = _inputs(tmp_path), prepare.to_table

    def meddling(*args):
        os.utime(inputs[0])
        return original(*args)

    monkeypatch.setattr(prepare, "to_table", meddling)
    with pytest.raises(DataError, match=r"changed while it was read[\s\S]*0\.parquet"):
        run(tmp_path, CONFIG, inputs, **SETTINGS)


def test_after_an_error_the_data_may_be_mended(tmp_path: Path):
    bad = write_table(tmp_path / "t.parquet", user=[1, 2], age=[0.1, 0.2], click=[0, 2])
    with pytest.raises(DataError):
        run(tmp_path, CONFIG, bad)
    write_table(tmp_path / "t.parquet", user=[1, 2], age=[0.1, 0.2], click=[0, 1])
    assert run(tmp_path, CONFIG, bad)["splits"]["train"]["rows"] == 2


def test_two_at_a_time_in_one_folder_are_refused(tmp_path: Path, monkeypatch):
    inputs, original = _inputs(tmp_path), prepare.to_table

    def meddling(*args):
        with pytest.raises(ConfigError, match="another process is at work"):
            run(tmp_path, CONFIG, inputs, **SETTINGS)
        with pytest.raises(ConfigError, match="another process is at work"):
            run(tmp_path, CONFIG, inputs, overwrite=True, **SETTINGS)
        return original(*args)

    monkeypatch.setattr(prepare, "to_table", meddling)
    assert run(tmp_path, CONFIG, inputs, **SETTINGS)["rows_read"] == 800


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path):
    (tmp_path / "out/train").mkdir(parents=True)
    with pytest.raises(ConfigError, match="something else"):
        run(tmp_path, CONFIG, _inputs(tmp_path))
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a file"):
        run(tmp_path, CONFIG, _inputs(tmp_path), out="file")
