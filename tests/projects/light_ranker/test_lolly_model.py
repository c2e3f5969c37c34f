"""`lolly_lr` and text models: started from a text it scores exactly like the text, and it becomes a text again."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from tml.common.errors import ConfigError
from tml.projects.light_ranker import cli
from tml.projects.light_ranker.config import LightRankerConfig
from tml.projects.light_ranker.features.encoder import Encoder
from tml.projects.light_ranker.in_memory import batch_in_memory
from tml.projects.light_ranker.lolly.debug import DebugLine, format_debug_line
from tml.projects.light_ranker.lolly.export import lolly_of_ranker
from tml.projects.light_ranker.lolly.model import Bucket, LollyModel
from tml.projects.light_ranker.lolly.text import read_lolly, write_lolly
from tml.projects.light_ranker.models.lolly_lr import LollyRanker
from tml.projects.light_ranker.phases import build_run, calibrate, load_trained
from tml.projects.light_ranker.records.feature_ids import feature_id
from tml.projects.light_ranker.trainer import DataRecordTrainer
from tml.projects.light_ranker.training_data import DataSource

FEATURES = """\
features:
  - {name: age, kind: continuous, side: candidate}
  - {name: score, kind: continuous, side: user}
  - {name: has_link, kind: continuous, side: candidate, transform: none}
labels:
  - {name: click, kind: binary}
"""
INF = math.inf
TEXT = LollyModel(
    "unified_engagement",
    0.0,
    {"has_link": 0.3, "not_in_the_data": 9.0},
    {
        "age": (Bucket(-INF, 0.7, -0.123456789), Bucket(0.7, 10.1, 0.2), Bucket(10.1, INF, 1 / 3)),
        "score": (Bucket(-1.5, 0.1, -1.0), Bucket(0.1, 2.0, 2.5)),
        "not_there": (Bucket(-INF, INF, 1.0),),
    },
)


def table(num_rows: int, seed: int) -> pa.Table:
    """Values on the bounds too, within the buckets' range."""
    draws = np.random.default_rng(seed)
    bounds = np.array([0.7, 10.1, 0.1, -1.5])
    age = np.where(draws.random(num_rows) < 0.3, draws.choice(bounds, num_rows), draws.exponential(6, num_rows))
    score = np.where(
        draws.random(num_rows) < 0.3, draws.choice(bounds[[0, 2, 3]], num_rows), draws.uniform(-1.5, 1.99, num_rows)
    )
    columns = {"age": age, "score": score, "has_link": np.where(draws.random(num_rows) < 0.5, 1.0, np.nan)}
    missing = {name: np.where(draws.random(num_rows) < 0.2, np.nan, values) for name, values in columns.items()}
    click = draws.random(num_rows) < 1 / (1 + np.exp(0.3 * age - 1))
    return pa.table({**missing, "click": click.astype(np.int64)})


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("lolly")
    pq.write_table(table(2000, 0), folder / "train.parquet")
    pq.write_table(table(500, 1), folder / "eval.parquet")
    (folder / "features.yaml").write_text(FEATURES)
    write_lolly(TEXT, folder / "model.tsv")
    return folder


def trainer(folder: Path, run: str, **settings) -> DataRecordTrainer:
    return DataRecordTrainer(
        {
            "model": "lolly_lr", "model_dir": str(folder / run), "feature_config": str(folder / "features.yaml"),
            "num_epochs": 2, "batch_size": 256, "learning_rate": 0.5,
            "settings": {"model.lolly_lr.input_size_bits": 18} | settings,
        }
    )  # fmt: skip


def sources(folder: Path) -> tuple[DataSource, DataSource]:
    return DataSource(str(folder / "train.parquet")), DataSource(str(folder / "eval.parquet"))


def logits(model: LollyRanker, config: LightRankerConfig, rows: pa.Table) -> np.ndarray:
    encoded = Encoder.load(config.features_dir).encode(
        {name: rows.column(name) for name in ("age", "score", "has_link")}
    )
    batch = batch_in_memory(model.spec, model.slots, encoded)
    with torch.no_grad():
        return model.eval()(batch)[1]["logits"].numpy()


def text_scores(model: LollyModel, rows: pa.Table) -> np.ndarray:
    """The text's own scorer, row by row, over float32 values."""
    return np.array(
        [
            model.score({name: np.float32(value) for name, value in row.items()})
            for row in rows.select(["age", "score", "has_link"]).to_pylist()
        ]
    )


@pytest.fixture(scope="module")
def started(folder: Path) -> tuple[LollyRanker, LightRankerConfig]:
    """The model before its first step."""
    config = trainer(folder, "start", **{"model.lolly_lr.initial_model": str(folder / "model.tsv")}).config(
        *sources(folder)
    )
    calibrate(config)
    return build_run(config, torch.device("cpu"), local=True).model, config


def test_a_model_started_from_a_text_scores_exactly_like_the_text(started):
    model, config = started
    rows = table(3000, 5)
    expected = text_scores(TEXT.in_float32(), rows)
    found = logits(model, config, rows)
    # Term by term equal in float32; what is left is the rounding of a sum of four terms.
    assert np.abs(found - expected).max() <= 4 * np.finfo(np.float32).eps * np.abs(expected).max()
    # And like the text itself, in float64, where rounding moves no value over a bound.
    np.testing.assert_allclose(found, TEXT.score_columns(columns_of(rows), 3000), atol=2e-6)


def columns_of(rows: pa.Table) -> dict[str, np.ndarray]:
    return {name: rows.column(name).to_numpy() for name in ("age", "score", "has_link")}


def test_with_weights_that_floats_hold_it_scores_bit_by_bit_like_the_text(folder):
    exact = LollyModel(
        "m", -0.25, {"has_link": 0.5},
        {"age": (Bucket(-INF, 0.7, 1.75), Bucket(0.7, INF, -3.0)), "score": (Bucket(-INF, INF, 0.125),)},
    )  # fmt: skip
    write_lolly(exact, folder / "exact.tsv")
    config = trainer(folder, "exact", **{"model.lolly_lr.initial_model": str(folder / "exact.tsv")}).config(
        *sources(folder)
    )
    calibrate(config)
    model = build_run(config, torch.device("cpu"), local=True).model
    rows = table(1000, 6)
    np.testing.assert_array_equal(logits(model, config, rows), exact.score_columns(columns_of(rows), 1000))


def test_a_trained_model_scores_like_the_text_it_is_exported_to(folder, tmp_path):
    model = trainer(folder, "trained").train(*sources(folder))
    out = tmp_path / "trained.tsv"
    done = CliRunner().invoke(
        cli.app, ["lolly-export", model.config.training.save_dir, "--out", str(out), "--name", "mine"],
        catch_exceptions=False,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    text = read_lolly(out)
    assert text.name == "mine"
    assert set(text.discretized) == {"age", "score", "has_link"}
    trained = load_trained(model.config.training.save_dir)
    rows = table(3000, 8)
    found = logits(trained.model, trained.config, rows)
    assert np.ptp(found) > 0.5
    np.testing.assert_allclose(found, text_scores(text, rows), atol=2e-6)


def test_export_then_import_is_the_identity(folder, tmp_path):
    settings = {"model.lolly_lr.initial_model": str(folder / "model.tsv"), "training.num_train_steps": 3}
    model = trainer(folder, "again", **settings).train(*sources(folder))
    text = lolly_of_ranker(load_trained(model.config.training.save_dir), "m")
    write_lolly(text, tmp_path / "out.tsv")
    config = trainer(folder, "imported", **{"model.lolly_lr.initial_model": str(tmp_path / "out.tsv")}).config(
        *sources(folder)
    )
    calibrate(config)
    imported = build_run(config, torch.device("cpu"), local=True).model
    trained = load_trained(model.config.training.save_dir).model
    assert torch.equal(imported.bias, trained.bias)
    rows = table(2000, 9)
    assert np.array_equal(logits(imported, config, rows), logits(trained, model.config, rows))
    assert read_lolly(tmp_path / "out.tsv") == text


def test_a_run_that_began_needs_its_text_no_more_and_refuses_another(folder, tmp_path):
    text = tmp_path / "start.tsv"
    write_lolly(TEXT, text)
    settings = {"model.lolly_lr.initial_model": str(text), "training.num_train_steps": 3}
    model = trainer(folder, "without", **settings).train(*sources(folder))
    save_dir, rows = model.config.training.save_dir, table(200, 4)
    expected = logits(load_trained(save_dir).model, model.config, rows)
    text.unlink()
    trained = load_trained(save_dir)
    assert np.array_equal(logits(trained.model, trained.config, rows), expected)
    assert lolly_of_ranker(trained, "m").binary["not_in_the_data"] == 9.0
    longer = settings | {"training.num_train_steps": 4}
    trainer(folder, "without", **longer).train(*sources(folder))
    write_lolly(LollyModel("m", 0.0, {"has_link": 1.0}, {}), text)
    with pytest.raises(ConfigError, match="text model has changed"):
        trainer(folder, "without", **longer).train(*sources(folder))
    anew = trainer(folder, "without", **longer, **{"training.overwrite_save_dir": True}).train(*sources(folder))
    assert set(lolly_of_ranker(load_trained(anew.config.training.save_dir), "m").binary) == {"has_link"}


def test_features_that_the_data_lacks_keep_their_weights(folder, tmp_path):
    settings = {"model.lolly_lr.initial_model": str(folder / "model.tsv"), "training.num_train_steps": 1}
    model = trainer(folder, "kept", **settings).train(*sources(folder))
    text = lolly_of_ranker(load_trained(model.config.training.save_dir), "m")
    assert text.binary["not_in_the_data"] == 9.0
    assert text.discretized["not_there"] == (Bucket(-INF, INF, 1.0),)


def test_ids_and_other_models_have_no_text(folder, tmp_path):
    ids = FEATURES[: FEATURES.index("  - {name: age")] + "  - {name: has_link, kind: categorical, side: candidate}\n"
    ids += FEATURES[FEATURES.index("labels:") :]
    (tmp_path / "ids.yaml").write_text(ids)
    for name, values, what in (
        ("lolly", {"feature_config": str(tmp_path / "ids.yaml"), "model": "lolly_lr"}, "values of an id"),
        ("mlp", {"model": "mlp", "settings": {}}, "only lolly_lr"),
    ):
        params = {"num_epochs": 1, "feature_config": str(folder / "features.yaml"), "hidden_sizes": [4], **values}
        model = DataRecordTrainer({**params, "model_dir": str(tmp_path / name)}).train(*sources(folder))
        with pytest.raises(ConfigError, match=what):
            lolly_of_ranker(load_trained(model.config.training.save_dir), "m")


def test_tables_are_scored_from_the_command_line(folder, tmp_path):
    rows = pa.table({"age": [0.7, None, 20.0], "has_link": [True, False, None]})
    pq.write_table(rows, tmp_path / "rows.parquet")
    (tmp_path / "rows.csv").write_text("age,has_link\n0.7,1\n,\n20.0,\n")
    for name in ("rows.parquet", "rows.csv"):
        done = CliRunner().invoke(cli.app, ["lolly-score", str(folder / "model.tsv"), str(tmp_path / name)])
        assert done.exit_code == 0, done.output
        assert [float(line) for line in done.output.splitlines()] == pytest.approx([0.5, 0.0, 1 / 3])
    done = CliRunner().invoke(
        cli.app, ["lolly-score", str(folder / "model.tsv"), str(tmp_path / "rows.csv"), "--probability"]
    )
    assert float(done.output.splitlines()[1]) == 0.5


def test_debug_lines_are_scored_from_the_command_line(folder, tmp_path):
    line = DebugLine(0.25, 0.5, {feature_id("age"): -3.0, feature_id("has_link"): 1.0})
    (tmp_path / "log.txt").write_text(f"something else\n{format_debug_line(line)}\n")
    done = CliRunner().invoke(cli.app, ["lolly-score", str(folder / "model.tsv"), str(tmp_path / "log.txt"), "--debug"])
    assert done.exit_code == 0, done.output
    assert [float(field) for field in done.output.split("\t")] == pytest.approx([0.3 - 0.123456789, 0.25, 0.5])


@pytest.mark.parametrize(
    ("content", "what"),
    [("other\n1\n", "no feature of the lolly model"), ("age\none\n", "no number"), ("age,score\n1,5\n", "no bucket")],
)
def test_a_table_that_cannot_be_scored_is_named(folder, tmp_path, content, what):
    (tmp_path / "rows.csv").write_text(content)
    done = CliRunner().invoke(cli.app, ["lolly-score", str(folder / "model.tsv"), str(tmp_path / "rows.csv")])
    assert done.exit_code == 1
    assert what in str(done.exception)
