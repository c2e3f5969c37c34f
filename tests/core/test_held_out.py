"""What a run keeps of its held-out data's metrics, which split it measures, and which checkpoint."""

from __future__ import annotations

import json
import logging
import math
from types import SimpleNamespace

import pytest

from tests.core.toy_run import ToyModel, run_toy, toy_config
from tml.common.errors import CheckpointError, ConfigError
from tml.common.tracking.record import ExperimentRecord
from tml.core.held_out import (
    failures_recorded,
    follow_checkpoints,
    held_out_section,
    is_reported,
    metrics_path,
    report_metrics,
    restore_model,
)

METRICS = {"mrr": 0.25, "sampled.hits@1": 0.125, "loss": math.inf, "other": 3.0}


def test_metrics_go_to_the_log_a_file_and_the_record(tmp_path, caplog, monkeypatch) -> None:
    # A run in this process has set the logger up for itself.
    monkeypatch.setattr(logging.getLogger("tml"), "propagate", True)
    with caplog.at_level(logging.INFO, logger="tml"):
        report_metrics(toy_config(tmp_path), "test", 7, METRICS, ("hits@1", "mrr"))
    assert "test metrics at step 7: sampled.hits@1 0.1250, mrr 0.2500" in caplog.messages
    finite = METRICS | {"loss": None}
    written = json.loads((tmp_path / "test_metrics.json").read_text())
    assert written == {"split": "test", "step": 7, "identity": None, "metrics": finite}
    (evaluation,) = ExperimentRecord(tmp_path).read()["evaluations"]
    assert (evaluation["step"], evaluation["split"], evaluation["metrics"]) == (7, "test", finite)


def test_the_same_is_known_by_its_identity(tmp_path) -> None:
    assert not is_reported(str(tmp_path), "test", "a")
    report_metrics(toy_config(tmp_path), "test", 7, METRICS, (), identity="a")
    assert is_reported(str(tmp_path), "test", "a")
    assert not is_reported(str(tmp_path), "test", "b")
    assert not is_reported(str(tmp_path), "validation", "a")
    with open(metrics_path(str(tmp_path), "test"), "w") as file:
        file.write('{"split": ')
    assert not is_reported(str(tmp_path), "test", "a")


def test_test_data_come_before_validation_data() -> None:
    sections = SimpleNamespace(test_data="t", validation_data="v")
    assert held_out_section(sections) == ("t", "test")
    sections.test_data = None
    assert held_out_section(sections) == ("v", "validation")
    sections.validation_data = None
    with pytest.raises(ConfigError, match="nothing to evaluate"):
        held_out_section(sections)


def test_a_model_is_restored_from_the_best_step_else_the_latest_or_one_by_name(tmp_path) -> None:
    settings = {"checkpoint_every_n": 2, "checkpoint_max_to_keep": None}
    latest = run_toy(tmp_path / "plain", **settings)
    model = ToyModel(seed=9)
    assert restore_model(model, str(tmp_path / "plain")) == 6
    assert model.weight.tolist() == latest.weight
    assert restore_model(model, str(tmp_path / "plain"), 4) == 4
    assert model.weight.tolist() != latest.weight
    stopping = {"evaluate_every_n": 2, "early_stopping": {"metric": "auc", "patience": 9}}
    values = iter([0.1, 0.9, 0.2])
    best = run_toy(tmp_path / "best", evaluate=lambda stop: {"auc": next(values)}, **stopping, **settings)
    assert best.state.model_step == restore_model(model, str(tmp_path / "best")) == 4
    assert model.weight.tolist() == best.weight
    with pytest.raises(CheckpointError):
        restore_model(model, str(tmp_path / "nowhere"))


def test_following_measures_the_model_of_each_checkpoint(tmp_path) -> None:
    trained = run_toy(tmp_path, checkpoint_every_n=4, checkpoint_max_to_keep=None)
    model = ToyModel(seed=9)
    config = toy_config(tmp_path, eval_poll_every_s=0.01, eval_timeout_in_s=5.0)
    found = follow_checkpoints(model, lambda: {"first": model.weight[0].item()}, config)
    assert list(found) == [4, 6]
    assert found[6] == {"first": trained.weight[0]}
    assert found[4] != found[6]


def test_a_failure_after_training_is_one_of_the_run(tmp_path) -> None:
    record = ExperimentRecord(tmp_path)
    record.begin({})
    record.end("SUCCEEDED")
    with pytest.raises(ConfigError), failures_recorded(str(tmp_path)):
        raise ConfigError("no disk")
    assert record.read()["status"] == "FAILED"
    assert "no disk" in record.read()["message"]
