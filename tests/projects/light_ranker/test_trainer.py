"""From data of any form, by the documented doors, to a model that is measured, asked, exported and explained."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from tml.common.errors import CheckpointError, ConfigError, DataError, LaunchError
from tml.common.tracking.record import ExperimentRecord, sha256_of
from tml.projects.light_ranker import cli, train
from tml.projects.light_ranker.records.table import ToRecordsOptions, table_to_records
from tml.projects.light_ranker.records.table_config import RecordTableConfig
from tml.projects.light_ranker.serving.scorer import Scorer
from tml.projects.light_ranker.trainer import DataRecordTrainer, LightRanker, TrainerParams
from tml.projects.light_ranker.training_data import DataSource, RawDataOptions, is_block_file, prepared_data

FEATURES = """\
features:
  - {name: user_id, kind: categorical, side: user}
  - {name: tweet_id, kind: categorical, side: candidate}
  - {name: age, kind: continuous, side: candidate}
labels:
  - {name: click, kind: binary}
  - {name: is_replied, kind: binary}
  - {name: seconds, kind: nonnegative}
"""
SMALL = {"batch_size": 256, "hidden_sizes": [16], "embedding_size": 4, "learning_rate": 0.01}


def clicks(num_rows: int, seed: int) -> pa.Table:
    draws = np.random.default_rng(seed)
    user, tweet, age = draws.integers(0, 20, num_rows), draws.integers(0, 30, num_rows), draws.exponential(10, num_rows)
    taste = np.random.default_rng(7).normal(size=(20 + 30))
    clicked = draws.random(num_rows) < 1 / (1 + np.exp(-2 * (taste[user] + taste[20 + tweet]) + 0.1 * age))
    return pa.table(
        {
            "user_id": user,
            "tweet_id": tweet,
            "age": np.where(draws.random(num_rows) < 0.1, np.nan, age),
            "click": clicked.astype(np.int64),
            "is_replied": (clicked & (draws.random(num_rows) < 0.2)).astype(np.int64),
            "seconds": np.where(clicked, draws.exponential(20, num_rows), 0),
        }
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    pq.write_table(clicks(3000, 0), folder / "train.parquet")
    pq.write_table(clicks(800, 1), folder / "eval.parquet")
    (folder / "features.yaml").write_text(FEATURES)
    return folder


@pytest.fixture(scope="module")
def model(data: Path, tmp_path_factory) -> LightRanker:
    params = {**SMALL, "model_dir": str(tmp_path_factory.mktemp("run")), "num_epochs": 3}
    trainer = DataRecordTrainer({**params, "feature_config": str(data / "features.yaml")})
    return trainer.train(data / "train.parquet", data / "eval.parquet")


def test_a_trained_model_is_measured_on_the_evaluation_rows(model, data):
    metrics = model.evaluate()
    assert metrics["roc_auc"] > 0.75
    table = pq.read_table(data / "eval.parquet")
    scores = model.predict(table)
    clicked = table["click"].to_numpy()
    assert metrics["uncalibrated_roc_auc"] == pytest.approx(roc_auc_score(clicked, scores["click_raw"]), abs=1e-6)
    assert metrics["roc_auc"] == pytest.approx(roc_auc_score(clicked, scores["click"]), abs=1e-6)
    assert metrics["rce"] > metrics["uncalibrated_rce"] > 0
    assert metrics["roc_auc"] == pytest.approx(model.metrics["roc_auc"], abs=1e-9)


def test_the_model_answers_for_raw_rows(model):
    found = model.predict({"user_id": [1, 1, 99], "tweet_id": [3, None, 5], "age": [1.5, math.nan, None]})
    assert set(found) == {"click", "click_raw", "watch_time"}
    for scores in found.values():
        assert scores.shape == (3,)
        assert np.isfinite(scores).all()
    assert ((found["click"] >= 0) & (found["click"] <= 1)).all()
    with pytest.raises(DataError, match="column is missing"):
        model.predict({"user_id": [1], "age": [1.0]})
    for rows in ([{"user_id": 1, "tweet_id": 3, "age": 1.0}], "user_id", None):
        with pytest.raises(DataError, match=r"rows are not given as columns[\s\S]*Table\.from_pylist"):
            model.predict(rows)  # type: ignore[arg-type]


def test_an_evaluation_and_a_checkpoint_follow_every_epoch(model):
    training = model.config.training
    assert (training.evaluate_every_n, training.checkpoint_every_n) == (12, 12)


def test_the_last_model_is_loaded_from_its_folder(model):
    again = LightRanker.load(model.config.training.save_dir)
    row = {"user_id": [1], "tweet_id": [3], "age": [1.5]}
    assert again.predict(row)["click"] == model.predict(row)["click"]
    with pytest.raises(CheckpointError):
        LightRanker.load(Path(model.config.training.save_dir) / "absent")


def test_importances_of_a_run(model, tmp_path):
    save_dir = model.config.training.save_dir
    out = tmp_path / "importances.tsv"
    done = CliRunner().invoke(
        cli.app,
        ["importance", save_dir, "--algorithm", "serial", "--extra-group", "ids=.*_id", "--out", str(out)],
        catch_exceptions=False,
    )
    assert done.exit_code == 0, done.output
    found = {one["name"]: one for one in json.loads(out.with_suffix(".json").read_text())}
    assert set(found) == {"None", "user_id", "tweet_id", "age", "ids"}
    assert found["None"]["performance"] == pytest.approx(model.evaluate()["roc_auc"], abs=1e-6)
    assert found["ids"]["drop"] > found["tweet_id"]["drop"] > 0.02
    artifacts = ExperimentRecord(save_dir).read()["artifacts"]
    assert artifacts["feature_importances"]["sha256"] == sha256_of(out)


def test_a_second_training_of_the_same_folder_goes_on(model, data):
    params = TrainerParams.of({**SMALL, "model_dir": model.config.training.save_dir, "num_epochs": 3})
    prepared = model.config.features_dir
    again = DataRecordTrainer(params).train(prepared, prepared)
    assert again.evaluate()["loss"] == model.evaluate()["loss"]


def test_a_training_that_is_stopped_before_its_first_step_gives_no_model(data, tmp_path):
    settings = {"training.stop_at_time": "2001-01-01"}
    params = {"model_dir": str(tmp_path / "run"), "feature_config": str(data / "features.yaml"), "settings": settings}
    with pytest.raises(LaunchError, match=r"nothing was trained[\s\S]*stop_at_time 2001-01-01"):
        DataRecordTrainer(SMALL | params).train(data / "train.parquet", data / "eval.parquet")
    assert not (tmp_path / "run" / "isotonic.json").exists()


def test_tables_in_memory_and_without_a_feature_config(tmp_path, capfd):
    params = TrainerParams(**{**SMALL, "num_epochs": 1}, model_dir=str(tmp_path))
    table = clicks(600, 2).drop_columns(["is_replied", "seconds"])
    model = DataRecordTrainer(params).train(table, clicks(200, 3))
    assert "this proposal is used" in capfd.readouterr().out
    assert "user_id" in (tmp_path / "data" / "features.yaml").read_text()
    assert len(model.predict(table)["click"]) == 600


def test_the_request_of_raw_data_tells_the_sides(tmp_path, capfd):
    table = clicks(600, 2).drop_columns(["is_replied", "seconds"])
    request = np.arange(600) // 6
    table = table.append_column("request_id", pa.array(request)).append_column("height", pa.array(request % 31 + 0.5))
    prepared_data(DataSource(table), None, tmp_path, RawDataOptions())
    assert "# Sides: constant within request_id" in capfd.readouterr().out
    features = yaml.safe_load((tmp_path / "features.yaml").read_text())["features"]
    assert {one["name"]: one["side"] for one in features} == {
        "user_id": "candidate", "tweet_id": "candidate", "age": "candidate", "height": "user"
    }  # fmt: skip


def test_block_files_of_data_records(tmp_path, data):
    records = {
        "features": [
            {"name": "user_id", "type": "discrete"},
            {"name": "tweet_id", "type": "discrete"},
            {"name": "age", "type": "continuous"},
        ],
        "labels": [{"name": "click"}, {"name": "is_replied"}, {"name": "seconds", "type": "continuous"}],
    }
    config = RecordTableConfig.model_validate(records)
    for split, compression in (("train", "gzip"), ("eval", "none")):
        options = ToRecordsOptions(compression=compression)
        table_to_records([str(data / f"{split}.parquet")], tmp_path / split, config, options)
    (tmp_path / "records.yaml").write_text(json.dumps(records))
    params = {**SMALL, "num_epochs": 1, "model_dir": str(tmp_path / "run")}
    params |= {"feature_config": str(data / "features.yaml"), "record_config": str(tmp_path / "records.yaml")}
    model = DataRecordTrainer(params).train(f"{tmp_path}/train/part*", f"{tmp_path}/eval/part*")
    rows = pq.read_table(model.config.train_data.data_root)
    np.testing.assert_array_equal(rows["y.click"].to_numpy(), pq.read_table(data / "train.parquet")["click"].to_numpy())
    without = DataRecordTrainer({**params, "record_config": None})
    with pytest.raises(ConfigError, match="record_config"):
        without.train(f"{tmp_path}/train/part*", f"{tmp_path}/eval/part*")


def test_block_files_are_told_by_their_content(tmp_path, data):
    assert not is_block_file(str(data / "train.parquet"))
    (tmp_path / "broken.gz").write_bytes(b"\x1f\x8bnot gzip")
    assert not is_block_file(str(tmp_path / "broken.gz"))


def test_the_documented_command_prints_metrics_and_exports_what_scores_like_the_model(data, tmp_path, capfd):
    train.main(
        [
            f"--train_data_path={data}/train.parquet", f"--eval_data_path={data}/eval.parquet",
            f"--model_dir={tmp_path}/run", "--num_epochs=1", "--learning_rate=0.01", "--hidden_sizes=16",
            f"--feature_config={data}/features.yaml", f"--export_dir={tmp_path}/served", "--weight.is_replied=20",
        ]
    )  # fmt: skip
    said = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert said["export"] == f"{tmp_path}/served"
    assert said["metrics"]["rce"] is not None
    scores = Scorer(tmp_path / "served").score({"user_id": 4}, {"tweet_id": [1, 2], "age": [3.0, None]})
    model = LightRanker.load(tmp_path / "run")
    expected = model.predict({"user_id": [4, 4], "tweet_id": [1, 2], "age": [3.0, None]})
    np.testing.assert_allclose(scores.probabilities, expected["click"], atol=1e-5)
    record = ExperimentRecord(tmp_path / "run").read()
    assert record["artifacts"]["export"]["sha256"] == sha256_of(tmp_path / "served")
    assert record["status"] == "SUCCEEDED"


def test_a_fault_of_the_command_line_is_one_message_and_exit_code_2(capfd):
    with pytest.raises(SystemExit) as ending:
        train.main(["--distributed"])
    assert ending.value.code == 2
    assert capfd.readouterr().err.startswith("error: option has no meaning here\n  where: --distributed")


def test_weights_of_engagements_replace_the_records_defaults(data, tmp_path):
    options = RawDataOptions(str(data / "features.yaml"), example_weights={"is_replied": 20.0})
    found = prepared_data(DataSource(str(data / "train.parquet")), None, tmp_path, options)
    rows = pq.read_table(found.train_root)
    np.testing.assert_allclose(rows["w"], 1 + (20 - 9) * rows["y.is_replied"].to_numpy())
    assert found.eval_root is None
    with pytest.raises(ConfigError, match="no label"):
        prepared_data(
            DataSource(str(data / "train.parquet")), None, tmp_path,
            RawDataOptions(str(data / "features.yaml"), example_weights={"is_shared": 2.0}),
        )  # fmt: skip


def test_training_and_evaluating_on_the_same_rows_has_to_be_asked_for(data, tmp_path):
    source = DataSource(str(data / "train.parquet"))
    options = {"feature_config": str(data / "features.yaml")}
    with pytest.raises(ConfigError, match="same rows"):
        prepared_data(source, source, tmp_path, RawDataOptions(**options))
    found = prepared_data(source, source, tmp_path, RawDataOptions(**options, allow_overlap=True))
    assert found.eval_root == found.train_root
    with pytest.raises(ConfigError, match="same rows"):
        prepared_data(DataSource(found.train_root), DataSource(found.train_root), tmp_path, RawDataOptions())


def test_prepared_and_raw_data_do_not_mix(model, data, tmp_path):
    raw, prepared = DataSource(str(data / "train.parquet")), DataSource(model.config.features_dir)
    with pytest.raises(ConfigError, match="mixed"):
        prepared_data(raw, prepared, tmp_path, RawDataOptions())
    with pytest.raises(ConfigError, match="prepared already"):
        prepared_data(prepared, None, tmp_path, RawDataOptions(feature_config="f.yaml"))
    with pytest.raises(ConfigError, match="prepared already"):
        prepared_data(DataSource(str(prepared.path), file_keep_rate=0.5), None, tmp_path, RawDataOptions())


@pytest.mark.parametrize(
    ("params", "what"),
    [
        ({"hidden_size": [3]}, "did you mean 'hidden_sizes'"),
        ({"model": "tree"}, "unknown model"),
        ({"settings": {"training.epochs": 3}}, "unknown key"),
        ({"settings": {"features_dir.x": 3}}, "lies within a value"),
    ],
)
def test_parameters_that_cannot_be_are_refused(params, what, model):
    source = DataSource(model.config.features_dir)
    with pytest.raises(ConfigError, match=what):
        DataRecordTrainer({"model_dir": "runs/none", **params}).config(source, None)
