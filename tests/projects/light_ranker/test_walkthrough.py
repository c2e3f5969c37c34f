"""The README's five commands, from a table of one's own to a served model, on made-up clicks."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from tml.projects.light_ranker import cli

EXPORT = "runs/mine/export"
# The ids of a text file are strings, unless features.yaml says `type: int`.
REQUEST = {
    "user": {"user_id": "u5", "country": "country2", "interests": ["topic1", "topic5"]},
    "candidates": [{"item_id": 1000003, "topics": ["topic1"], "quality": 0.4}, {"item_id": 1000010}, {}],
    "top_k": 2,
}


def _run(*arguments: str, **options: Any) -> str:
    done = CliRunner().invoke(cli.app, list(arguments), catch_exceptions=False, **options)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which the first three commands have been run: `inspect`, `prepare`, `train`."""
    folder = tmp_path_factory.mktemp("home")
    with contextlib.chdir(folder):
        _run("sample-clicks", "--rows", "12000", "--format", "csv", "--out", "made")
        parts = [Path("made", split, "part-0.csv").read_text() for split in ("train", "valid", "test")]
        Path("clicks.csv").write_text(parts[0] + "".join(part.partition("\n")[2] for part in parts[1:]))
        _run("inspect", "clicks.csv", "--group", "request_id", "--out", "features.yaml")
        split = ("--split-fractions", ".8,.1,.1", "--split-time", "time")
        _run("prepare", "--features", "features.yaml", "--train", "clicks.csv", *split, "--out", "data/mine")
        _run("train", "--config", "data/mine/config.yaml", "training.num_epochs=3", "train_data.global_batch_size=200")
        yield folder


def test_the_proposed_features_tell_sides_lists_and_labels_apart(home: Path) -> None:
    text = (home / "features.yaml").read_text()
    assert "{name: interests, kind: ids, side: user, max_length: 4, separator: '|'}" in text
    assert "{name: item_age_hours, kind: continuous, side: candidate}" in text
    assert "{name: click, kind: binary}" in text
    assert "# - {name: time" in text


def test_training_leaves_metrics_a_calibration_and_an_export(home: Path) -> None:
    metrics = json.loads((home / "runs/mine/test_metrics.json").read_text())["metrics"]
    assert metrics["num_samples"] == 1_200
    assert metrics["roc_auc"] > 0.6
    assert metrics["rce"] > 0
    signature = json.loads((home / EXPORT / "signature.json").read_text())
    assert [feature["name"] for feature in signature["features"]][:2] == ["user_id", "country"]
    assert signature["calibration"]["isotonic_points"]["click"] > 0


def test_a_second_start_trains_nothing_and_measures_the_same(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    config, overrides = "data/mine/config.yaml", ("training.num_epochs=3", "train_data.global_batch_size=200")
    before = [(home / "runs/mine" / name).read_bytes() for name in ("metrics.jsonl", "isotonic.json")]
    expected = json.loads((home / "runs/mine/test_metrics.json").read_text())["metrics"]
    _run("evaluate", "--config", config, *overrides)
    assert json.loads((home / "runs/mine/test_metrics.json").read_text())["metrics"] == pytest.approx(expected)
    assert [(home / "runs/mine" / name).read_bytes() for name in ("metrics.jsonl", "isotonic.json")] == before


def test_scores_of_a_table_rank_as_the_reported_auc_says(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    rows = pacsv.read_csv("made/test/part-0.csv")
    for name in ("interests", "topics"):
        lists = [text.split("|") if text else [] for text in rows[name].to_pylist()]
        rows = rows.set_column(rows.column_names.index(name), name, pa.array(lists, pa.list_(pa.string())))
    rows = rows.set_column(rows.column_names.index("item_id"), "item_id", rows["item_id"].cast(pa.string()))
    pq.write_table(rows, "test.parquet")
    _run("score", EXPORT, "--input", "test.parquet", "--out", "scored.parquet", "--keep", "click")
    scored = pq.read_table("scored.parquet")
    metrics = json.loads(Path("runs/mine/test_metrics.json").read_text())["metrics"]
    auc = roc_auc_score(np.asarray(scored["click"]), np.asarray(scored["probability"]))
    assert auc == pytest.approx(metrics["roc_auc"], abs=1e-3)


def test_a_served_model_answers_as_the_command_line_does(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    asked = json.loads(_run("score", EXPORT, input=json.dumps(REQUEST)))
    assert len(asked["probabilities"]) == 3
    assert len(asked["top_k"]) == 2
    with _served(home / EXPORT) as address:
        answer = httpx.post(f"{address}/score", json=REQUEST, trust_env=False, timeout=30)
        assert answer.json() == asked
        assert httpx.get(f"{address}/health", trust_env=False).json()["status"] == "ok"
        wrong = httpx.post(f"{address}/score", json=REQUEST | {"user": {"usr_id": "u5"}}, trust_env=False)
        assert wrong.status_code == 422
        assert "did you mean 'user_id'?" in wrong.json()["error"]["fix"]


@contextlib.contextmanager
def _served(export: Path) -> Iterator[str]:
    """The address of `tml light-ranker serve` in a process of its own."""
    command = [sys.executable, "-m", "tml.projects.cli", "light-ranker", "serve", str(export), "--port", "0"]
    server = subprocess.Popen(command, cwd=export, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        lines = iter(server.stderr.readline, "")
        found = next(match for line in lines if (match := re.search(r"running on (http://127\.0\.0\.1:\d+)", line)))
        yield found[1]
    finally:
        server.terminate()
        server.communicate(timeout=30)
