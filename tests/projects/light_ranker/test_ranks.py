"""Two ranks through every phase, and tables that were trained elsewhere on two ranks."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.distributed import run_ranks
from tests.projects.light_ranker.tiny_run import TinyData, run, tiny_settings, write_data
from tests.runs import assert_close_tensors, final_tensors, losses, merged, metrics_of
from tml.common.tracking.record import ExperimentRecord, sha256_of
from tml.projects.light_ranker.serving.scorer import Scorer

SHORT = {"num_epochs": None, "num_train_steps": 6}


@pytest.fixture
def data(tmp_path) -> TinyData:
    return write_data(tmp_path / "data")


def test_two_ranks_go_through_all_phases_and_export_the_model_of_the_checkpoint(data, tmp_path):
    settings = tiny_settings(data, tmp_path / "run", training=SHORT)
    assert run_ranks(run, 2, settings) == [0, 0]
    record = ExperimentRecord(tmp_path / "run").read()
    assert record["status"] == "SUCCEEDED"
    assert record["evaluations"][-1]["metrics"] == metrics_of(tmp_path / "run")
    export = tmp_path / "run" / "export"
    assert record["artifacts"]["export"]["sha256"] == sha256_of(export)
    assert json.loads((export / "signature.json").read_text())["facts"]["step"] == 6
    scores = Scorer(export).score({"country": "nl"}, [{"tweet_id": 101}, {"tweet_id": 7}, {}])
    # One process exports the same from the shards of both.
    files = {name: sha256_of(export / name) for name in ("model.onnx", "table.bin")}
    shutil.rmtree(export)
    assert run(settings, "export") == 0
    assert {name: sha256_of(export / name) for name in files} == files
    again = Scorer(export).score({"country": "nl"}, [{"tweet_id": 101}, {"tweet_id": 7}, {}])
    np.testing.assert_array_equal(again.probabilities, scores.probabilities)


@pytest.mark.parametrize("trainable", [False, True])
def test_pretrained_tables_on_two_ranks_equal_those_on_one(data, tmp_path, trainable):
    vectors = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    (tmp_path / "model" / "embeddings").mkdir(parents=True)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 3)
    pq.write_table(pa.table({"embedding": lists}), tmp_path / "model" / "embeddings" / "tweet.parquet")
    ids = [
        replace(feature, embedding=f"{tmp_path}/model#tweet", trainable=trainable)
        if feature.name == "tweet"
        else feature
        for feature in data.spec.ids
    ]
    replace(data.spec, ids=tuple(ids)).save(Path(data.root) / "encoding.json")
    rate = {"model": {"mlp": {"pretrained_optimizer": {"sgd": {"learning_rate": 0.5}}}}, "isotonic": None}
    one = merged(tiny_settings(data, tmp_path / "one", training=SHORT), rate)
    two = merged(one, {"training": {"save_dir": str(tmp_path / "two")}})
    for task in ("calibrate", "train"):
        assert run(one, task) == 0
        assert run_ranks(run, 2, two, task) == [0, 0]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-3)
    found, expected = final_tensors(tmp_path / "two"), final_tensors(tmp_path / "one")
    assert_close_tensors(found, expected, rtol=1e-3, atol=1e-4)
    assert ("pretrained.tweet.weight" in found) == trainable
    if trainable:
        moved = (found["pretrained.tweet.weight"][2:] - vectors).abs().amax(1)
        assert (moved > 0).all()
    assert metrics_of(tmp_path / "two")["roc_auc"] == pytest.approx(metrics_of(tmp_path / "one")["roc_auc"], abs=2e-3)
