import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from tests.projects.light_ranker.export.tiny_ranker import CANDIDATES, USER
from tml.common.errors import ConfigError, DataError
from tml.projects.light_ranker.serving import table as table_module
from tml.projects.light_ranker.serving.cli import score_command, serve_command
from tml.projects.light_ranker.serving.table import score_table

ROWS = [USER | CANDIDATES[0] | {"row": 0}, {"country": "fr"} | CANDIDATES[1] | {"row": 1}, {"age": 70.0, "row": 2}]


def table_of(rows) -> pa.Table:
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pa.table({name: [row.get(name) for row in rows] for name in names})


def app() -> typer.Typer:
    made = typer.Typer()
    made.command("score")(score_command)
    made.command("serve")(serve_command)
    return made


def run(*arguments, **options):
    return CliRunner().invoke(app(), [str(argument) for argument in arguments], catch_exceptions=False, **options)


def test_a_table_is_scored_in_pieces_as_in_one(served, tmp_path, monkeypatch):
    pq.write_table(table_of(ROWS * 7), tmp_path / "in.parquet")
    monkeypatch.setattr(table_module, "_ROWS_AT_A_TIME", 4)
    done = run(
        "score", served.folder, "--input", tmp_path / "in.parquet", "--out", tmp_path / "out.parquet", "--keep", "row"
    )
    assert done.exit_code == 0
    assert "21 rows scored" in done.output
    found = pq.read_table(tmp_path / "out.parquet")
    assert found.schema.names == ["row", "probability", "watch_time"]
    assert found["row"].to_pylist() == [0, 1, 2] * 7
    expected = served.scorer.score_rows(table_of(ROWS))
    np.testing.assert_allclose(found["probability"], np.tile(expected.probabilities, 7), rtol=1e-6)
    np.testing.assert_allclose(found["watch_time"], np.tile(expected.watch_time, 7), rtol=1e-5)


def test_a_request_from_standard_input_is_answered_on_standard_output(served):
    done = run("score", served.folder, input=json.dumps({"user": USER, "candidates": CANDIDATES, "top_k": 1}))
    answer = json.loads(done.stdout)
    expected = served.scorer.score(USER, CANDIDATES, 1)
    np.testing.assert_allclose(answer["probabilities"], expected.probabilities, rtol=1e-6)
    assert answer["top_k"] == expected.top_k.tolist()


def test_a_bad_value_of_a_table_is_named_and_leaves_no_file(served, tmp_path):
    rows = [*ROWS, USER | {"hour": float("inf")}]
    pq.write_table(table_of(rows), tmp_path / "in.parquet")
    with pytest.raises(DataError, match=r"in\.parquet, 4 rows from row 0 on: .*") as caught:
        score_table(served.scorer, tmp_path / "in.parquet", tmp_path / "out.parquet")
    assert "hour" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in.parquet"]


@pytest.mark.parametrize(
    ("columns", "keep", "message"),
    [
        ({"other": [1]}, [], "none of the model's features"),
        ({"hour": [1.0]}, ["nowhere"], "cannot be kept"),
        ({"hour": [1.0], "probability": [1.0]}, ["probability"], "cannot be kept"),
    ],
)
def test_tables_that_do_not_fit_are_refused(served, tmp_path, columns, keep, message):
    pq.write_table(pa.table(columns), tmp_path / "in.parquet")
    with pytest.raises(DataError, match=message):
        score_table(served.scorer, tmp_path / "in.parquet", tmp_path / "out.parquet", keep)


def test_options_that_need_each_other_are_refused(served, tmp_path):
    with pytest.raises(ConfigError, match="go together"):
        run("score", served.folder, "--input", tmp_path / "in.parquet")
    with pytest.raises(ConfigError, match="--keep"):
        run("score", served.folder, "--keep", "row")
    (tmp_path / "text.parquet").write_text("no parquet")
    with pytest.raises(DataError, match="cannot be read"):
        run("score", served.folder, "--input", tmp_path / "text.parquet", "--out", tmp_path / "out.parquet")


def test_the_service_listens_on_the_loopback_unless_told_otherwise(served, monkeypatch):
    asked = {}
    monkeypatch.setattr(
        "tml.projects.light_ranker.serving.server.serve",
        lambda scorer, host, port, limits, workers: asked.update(host=host, port=port, limits=limits, workers=workers),
    )
    assert run("serve", served.folder, "--max-candidates", 7, "--timeout", 0.5).exit_code == 0
    assert (asked["host"], asked["port"], asked["workers"]) == ("127.0.0.1", 8080, 1)
    assert (asked["limits"].max_candidates, asked["limits"].score_seconds) == (7, 0.5)


def test_serving_needs_no_torch():
    code = (
        "import sys, tml.projects.light_ranker.serving.server, tml.projects.light_ranker.serving.table;"
        "print([name for name in ('torch', 'torchrec', 'onnx', 'sklearn') if name in sys.modules])"
    )
    root = Path(__file__).resolve().parents[4]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[]"
