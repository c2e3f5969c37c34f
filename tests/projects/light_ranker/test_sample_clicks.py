"""Sample clicks: the same bytes for the same seed, a truth that explains them, and honest best scores."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from tml.common.errors import ConfigError
from tml.core.config.loading import load_config
from tml.projects.light_ranker.data import sample_clicks as module
from tml.projects.light_ranker.data.sample_clicks import ClickParameters, sample_clicks
from tml.projects.light_ranker.features.config import FeatureConfig


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("clicks") / "out"
    sample_clicks(ClickParameters(20_000, seed=5), out)
    return out


def _test_rows(out: Path) -> tuple[np.ndarray, np.ndarray]:
    clicks = pq.read_table(out / "test/part-0.parquet").column("click").to_numpy()
    return clicks, pq.read_table(out / "truth/test.parquet").column("click_probability").to_numpy()


def test_sizes_and_order_are_as_asked(sample: Path):
    meta = json.loads((sample / "meta.json").read_text())
    rows = {split: pq.read_metadata(sample / split / "part-0.parquet").num_rows for split in meta["splits"]}
    assert rows == {split: found["rows"] for split, found in meta["splits"].items()}
    assert rows == {"train": 16_000, "valid": 2_000, "test": 2_000}
    times = [pq.read_table(sample / f"{split}/part-0.parquet").column("time").to_numpy() for split in rows]
    assert (np.diff(np.concatenate(times)) >= 0).all()


def test_the_best_scores_are_those_of_the_true_probabilities(sample: Path):
    best = json.loads((sample / "meta.json").read_text())["best_on_test"]
    clicks, probabilities = _test_rows(sample)
    loss, rate = log_loss(clicks, probabilities), clicks.mean()
    assert best["auc"] == pytest.approx(roc_auc_score(clicks, probabilities), abs=1e-5)
    assert best["log_loss"] == pytest.approx(loss, abs=1e-6)
    assert best["rce"] == pytest.approx(100 * (1 - loss / log_loss(clicks, np.full(len(clicks), rate))), abs=1e-3)


def test_the_planted_probabilities_are_calibrated_and_worth_learning(sample: Path):
    clicks, probabilities = _test_rows(sample)
    assert abs(clicks.mean() - probabilities.mean()) < 4 * np.sqrt(probabilities.mean() / len(clicks))
    assert roc_auc_score(clicks, probabilities) > 0.75


def test_only_clicks_are_watched(sample: Path):
    table = pq.read_table(sample / "train/part-0.parquet")
    clicked = table.column("click").to_numpy() == 1
    seconds = table.column("watch_time").to_numpy()
    assert (seconds[clicked] > 0).all()
    assert not seconds[~clicked].any()
    assert seconds.max() <= 600


def test_the_user_is_one_within_a_request(sample: Path):
    table = pq.read_table(sample / "train/part-0.parquet", columns=["request_id", "user_id", "age"])
    pairs = table.group_by(["request_id", "user_id", "age"]).aggregate([])
    assert len(pairs) == len(table.column("request_id").unique()) == 1_600


def test_the_same_seed_gives_the_same_rows(sample: Path, tmp_path: Path):
    sample_clicks(ClickParameters(20_000, seed=5), tmp_path / "again")
    sample_clicks(ClickParameters(20_000, seed=6), tmp_path / "other")
    first, again, other = (
        pq.read_table(folder / "train/part-0.parquet") for folder in (sample, tmp_path / "again", tmp_path / "other")
    )
    assert again == first != other


def test_all_rows_are_there_when_the_last_request_is_short(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK_REQUESTS", 7)
    meta = sample_clicks(ClickParameters(1_003), tmp_path / "out")
    assert sum(found["rows"] for found in meta["splits"].values()) == 1_003


def test_csv_joins_lists_and_its_config_names_the_separator(tmp_path: Path):
    sample_clicks(ClickParameters(400), tmp_path / "out", "csv")
    table = pacsv.read_csv(tmp_path / "out/train/part-0.csv")
    assert "style" not in table.column_names
    assert any("|" in text for text in table.column("topics").to_pylist())
    config = load_config(FeatureConfig, tmp_path / "out/features.yaml")
    assert {f.separator for f in config.features if f.kind == "ids"} == {"|"}


def test_another_sample_in_the_folder_is_refused(sample: Path):
    with pytest.raises(ConfigError, match="seed: 5 -> 9"):
        sample_clicks(ClickParameters(20_000, seed=9), sample)


@pytest.mark.parametrize(
    "parameters", [ClickParameters(10), ClickParameters(1000, click_rate=1.0), ClickParameters(1000, seed=-1)]
)
def test_parameters_out_of_range_are_refused(parameters, tmp_path: Path):
    with pytest.raises(ConfigError, match="cannot be made"):
        sample_clicks(parameters, tmp_path / "out")
