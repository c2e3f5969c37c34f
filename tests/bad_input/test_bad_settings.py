"""Settings that are wrong: one message, without a traceback."""

from __future__ import annotations

import json
import logging

import pytest

from tests.projects.twhin.tiny import run
from tests.runs import run_program, write_config
from tml.projects.twhin.run import main

TYPO, TWICE, UNSET = "num_epocs: 3", "num_epochs: 1, num_epochs: 2", "save_dir: $TML_TEST_NOT_SET"


def test_a_users_fault_is_shown_without_a_traceback(small, tmp_path, capfd):
    small["train_data"]["data_root"] = str(tmp_path / "nowhere")
    assert run_program(main, write_config(tmp_path / "config.yaml", small)) == 2
    assert "Traceback" not in capfd.readouterr().err


def test_18_half_of_a_launchers_variables_is_one_message(small, fault, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert "WORLD_SIZE is not set" in fault(small)


@pytest.mark.parametrize(
    ("training", "overrides", "expected"),
    [
        (TYPO, [], ["training.num_epocs", "did you mean 'num_epochs'", "line 1"]),
        (TWICE, [], ["num_epochs", "line 1"]),
        (UNSET, [], ["TML_TEST_NOT_SET", "training.save_dir", "line 1"]),
        ("num_epochs: many", [], ["training.num_epochs", "many", "line 1"]),
        ("num_epochs: yes", [], ["training.num_epochs"]),
        ("num_epochs: 1", ["model.comparator=dott"], ["model.comparator", "dott"]),
        ("num_epochs: 1", ["model.los=softmax"], ["model.los", "did you mean 'loss'"]),
        ("num_epochs: 1", ["model.margin=1e9"], ["model.margin", "1000"]),
        ("num_epochs: 1", ["model.translation_optimizer.adagrad.learning_rate=1e9"], ["learning_rate", "1000"]),
        ("num_epochs: 1", ["model.translation_optimizer.adagrad.learning_rate=-1"], ["learning_rate"]),
        ("num_epochs: 1", ["train_data.global_batch_size=0"], ["train_data.global_batch_size"]),
        ("num_epochs: 1", ["model.embeddings.tables.0.optimizer.adam.learning_rate=0.1"], ["exactly one of"]),
        ("num_epochs: 1", ["model.relations.0.rhs=twet"], ["'follow'", "'twet'", "user, tweet"]),
        ("num_epochs: null", [], ["never end"]),
    ],
)
def test_27_and_42_faults_in_a_config_are_one_message(training, overrides, expected, small, fault, tmp_path):
    del small["training"]
    text = json.dumps(small)
    message = fault("{training: {" + training + "}, " + text[1:], *overrides)
    for part in expected:
        assert part in message
    assert not (tmp_path / "run").exists()


def test_42_a_config_that_is_not_there_names_the_nearest(small, tmp_path, capfd):
    write_config(tmp_path / "local.yaml", small)
    assert run_program(main, str(tmp_path / "locl.yaml")) == 2
    err = capfd.readouterr().err
    assert "locl.yaml" in err
    assert "local.yaml" in err.replace("locl.yaml", "")
    assert "Traceback" not in err


def test_43_a_setting_without_effect_is_a_warning(small, caplog):
    small["training"]["evaluate_every_n"] = 2
    logging.getLogger("tml").propagate = True
    with caplog.at_level(logging.WARNING):
        assert run(small) == 0
    assert "training.evaluate_every_n" in caplog.text
