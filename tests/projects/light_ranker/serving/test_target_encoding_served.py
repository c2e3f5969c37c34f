"""Target encodings in an exported model: raw keys go in, all candidates share the user's, and the scores are those of
the trainer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

from tml.common.errors import DataError
from tml.projects.light_ranker import cli
from tml.projects.light_ranker.serving.http import build_app
from tml.projects.light_ranker.serving.limits import ServiceLimits
from tml.projects.light_ranker.serving.scorer import Scorer
from tml.projects.light_ranker.trainer import DataRecordTrainer, LightRanker

# `town` and `slot` are keys alone; `job` is a column of the user, `shop` one of the candidate.
FEATURES = """\
features:
  - {name: job, kind: categorical, side: user}
  - {name: shop, kind: categorical, side: candidate}
  - {name: age, kind: continuous, side: user}
  - {name: taste, kind: vector, side: candidate, dim: 2}
  - {name: user_rate, kind: target_encoding, side: user, keys: [job, town], label: click}
  - {name: shop_rate, kind: target_encoding, side: candidate, keys: [shop], label: click}
  - {name: both_rate, kind: target_encoding, side: candidate, keys: [shop, job, town, slot], label: click, min_count: 2}
  - {name: watched, kind: target_encoding, side: candidate, keys: [slot], label: seconds}
labels:
  - {name: click, kind: binary}
  - {name: seconds, kind: nonnegative}
"""
PARAMS = {"batch_size": 256, "hidden_sizes": [16], "embedding_size": 4, "learning_rate": 0.01, "num_epochs": 2}
CANDIDATES = [{"shop": 1, "slot": 3, "taste": [0.5, 1.0]}, {"shop": 2}, {"slot": 99, "shop": 77}, {}]
USER = {"job": "nurse", "town": 2, "age": 41}


def calls(num_rows: int, seed: int) -> pa.Table:
    rng = np.random.default_rng(seed)
    job, town, shop, slot = (rng.integers(0, most, num_rows) for most in (3, 4, 6, 5))
    rate = np.random.default_rng(9).random((3, 4, 6))[job, town, shop]
    click = rng.random(num_rows) < rate
    columns = {
        "job": np.array(["nurse", "cook", "pilot"])[job],
        "town": pa.array(town, mask=rng.random(num_rows) < 0.1),
        "shop": shop,
        "slot": slot,
        "age": rng.integers(20, 70, num_rows),
        "taste": rng.normal(size=(num_rows, 2)).astype(np.float32).tolist(),
        "click": click.astype(np.int8),
        "seconds": np.where(click, rng.exponential(20 + 10 * slot), 0.0),
    }
    return pa.table(columns)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> LightRanker:
    folder = tmp_path_factory.mktemp("encoded")
    (folder / "features.yaml").write_text(FEATURES)
    # An isotonic calibration would turn rounding into steps.
    params = {
        **PARAMS,
        "settings": {"isotonic": None},
        "model_dir": str(folder / "run"),
        "feature_config": str(folder / "features.yaml"),
    }
    return DataRecordTrainer(params).train(calls(3000, 0), calls(800, 1))


@pytest.fixture(scope="module")
def scorer(trained: LightRanker) -> Scorer:
    return Scorer(trained.export_for_serving(), num_threads=1)


def rows_of(user: dict, candidates: list[dict]) -> pa.Table:
    """One user's candidates as rows of a table."""
    types = {"job": pa.string(), "taste": pa.list_(pa.float64())}
    names = ("job", "town", "shop", "slot", "age", "taste")
    rows = [user | candidate for candidate in candidates]
    return pa.table({name: pa.array([row.get(name) for row in rows], types.get(name, pa.int64())) for name in names})


def test_an_exported_model_scores_raw_rows_as_its_trainer(trained: LightRanker, scorer: Scorer):
    table = calls(500, 2)
    expected = trained.predict(table)
    found = scorer.score_rows(table)
    np.testing.assert_allclose(found.probabilities, expected["click"], atol=2e-5)
    np.testing.assert_allclose(np.log1p(found.watch_time), np.log1p(expected["watch_time"]), atol=5e-5)


@pytest.mark.parametrize("user", [USER, {}, {"town": None, "job": "unheard of"}])
def test_a_users_keys_are_those_of_all_candidates(scorer: Scorer, user: dict):
    found = scorer.score(user, CANDIDATES, top_k=2)
    expected = scorer.score_rows(rows_of(user, CANDIDATES))
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-6)
    assert scorer.score(user, []).probabilities.shape == (0,)


def test_each_key_shows_in_the_scores(scorer: Scorer):
    one = [{"shop": 1, "slot": 3}]
    base = scorer.score(USER, one).probabilities
    others = [({**USER, "town": 0}, one), ({**USER, "town": None}, one), (USER, [{"shop": 1, "slot": 0}])]
    for user, candidates in others:
        assert scorer.score(user, candidates).probabilities != base


def test_the_signature_tells_which_columns_a_request_passes(scorer: Scorer):
    keys = {(info.name, info.column): info for info in scorer.signature.features if info.kind == "key"}
    assert {name: info.side for name, info in keys.items()} == {
        ("user_rate", "job"): "user",
        ("user_rate", "town"): "user",
        ("shop_rate", "shop"): "candidate",
        ("both_rate", "shop"): "candidate",
        ("both_rate", "job"): "user",
        ("both_rate", "town"): "user",
        ("both_rate", "slot"): "candidate",
        ("watched", "slot"): "candidate",
    }
    assert [keys["both_rate", name].dtype for name in ("job", "town")] == ["string", "int64"]
    assert keys["watched", "slot"].vocabulary == "targets/watched.parquet"
    assert "targets/watched.parquet" in scorer.signature.files


@pytest.mark.parametrize(
    ("user", "candidate", "says"),
    [
        ({"town": "far away"}, {}, "feature 'town'[^$]*'far away'[^$]*int64, or null for the default"),
        ({"town": 1.5}, {}, "feature 'town'[^$]*1.5"),
        ({"age": 41.5, "job": 3}, {}, "feature 'job'[^$]*string"),
        ({}, {"slot": True}, "feature 'slot'"),
        ({}, {"town": 1}, "no such feature[^$]*'town'"),
        ({"slot": 1}, {}, "no such feature[^$]*'slot'"),
    ],
)
def test_keys_of_a_wrong_type_or_side_are_refused(scorer: Scorer, user: dict, candidate: dict, says: str):
    with pytest.raises(DataError, match=says):
        scorer.score(user, [candidate])


def test_the_service_and_the_command_take_raw_keys(scorer: Scorer, tmp_path: Path):
    limits = ServiceLimits(max_body_bytes=20_000, max_candidates=50, max_requests=2, body_seconds=1, score_seconds=5)
    expected = scorer.score(USER, CANDIDATES).probabilities
    with TestClient(build_app(scorer, limits, 1)) as client:
        answer = client.post("/score", json={"user": USER, "candidates": CANDIDATES})
        refused = client.post("/score", json={"user": {"town": "x"}, "candidates": CANDIDATES})
    np.testing.assert_allclose(answer.json()["probabilities"], expected, rtol=1e-6)
    assert refused.status_code == 422
    pq.write_table(rows_of(USER, CANDIDATES), tmp_path / "rows.parquet")
    files = ["--input", str(tmp_path / "rows.parquet"), "--out", str(tmp_path / "scores.parquet")]
    CliRunner().invoke(cli.app, ["score", str(scorer.folder), *files], catch_exceptions=False)
    np.testing.assert_allclose(pq.read_table(tmp_path / "scores.parquet")["probability"], expected, atol=1e-6)


def test_an_export_without_a_target_table_is_refused(scorer: Scorer, tmp_path: Path):
    shutil.copytree(scorer.folder, tmp_path / "copy")
    (tmp_path / "copy/targets/watched.parquet").unlink()
    with pytest.raises(DataError, match=r"missing or cut off[\s\S]*watched"):
        Scorer(tmp_path / "copy")


def test_importances_name_target_encodings(trained: LightRanker, tmp_path: Path):
    out = tmp_path / "importances.tsv"
    command = ["importance", trained.config.training.save_dir, "--algorithm", "serial", "--out", str(out)]
    done = CliRunner().invoke(cli.app, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    drops = {one["name"]: one["drop"] for one in json.loads(out.with_suffix(".json").read_text())}
    assert drops.keys() >= {"user_rate", "shop_rate", "both_rate", "watched"}
    assert drops["both_rate"] > 0.01
