"""The program: its tasks, its command line and its exit codes."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from tests.projects.twhin.tiny import (
    NUM_TWEETS,
    NUM_USERS,
    TinyGraph,
    config_of,
    run,
    tables,
    tiny_settings,
    write_edges,
    write_graph,
)
from tests.runs import Settings, assert_equal_tensors, final_tensors, losses, merged, write_config
from tml.common.tracking.record import ExperimentRecord
from tml.core.config import load_config
from tml.machines.exit_codes import FOLDER_VARIABLE, recorded_exit_code
from tml.projects.twhin.check import check_run
from tml.projects.twhin.config import TwhinConfig
from tml.projects.twhin.models.build import edge_schema
from tml.projects.twhin.models.live_tables import embedding_source
from tml.projects.twhin.run import build_run, main


@pytest.fixture(scope="module")
def graph(tmp_path_factory) -> TinyGraph:
    return write_graph(tmp_path_factory.mktemp("graph"))


@pytest.fixture
def short(graph, tmp_path) -> Settings:
    """Three steps."""
    return tiny_settings(graph, tmp_path / "run", training={"num_epochs": None, "num_train_steps": 3})


def test_print_config_shows_every_setting_and_trains_nothing(short, tmp_path, capsys):
    path = write_config(tmp_path / "config.yaml", short)
    main(["--config", path, "--print_config", "model.margin=0.2"])
    shown = capsys.readouterr().out
    (tmp_path / "shown.yaml").write_text(shown)
    assert load_config(TwhinConfig, tmp_path / "shown.yaml") == load_config(TwhinConfig, path, ["model.margin=0.2"])
    assert yaml.safe_load(shown)["training"]["check_finite_every_n"] == 1
    assert not (tmp_path / "run").exists()


def test_overrides_may_stand_before_and_after_the_flags(short, tmp_path):
    path = write_config(tmp_path / "config.yaml", short)
    main(["training.num_train_steps=1", "--config", path, f"training.save_dir={tmp_path / 'other'}"])
    assert list(losses(tmp_path / "other")) == [1]


def test_an_exit_code_with_a_meaning_is_left_for_the_launcher(short, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    short["train_data"]["data_root"] = str(tmp_path / "nowhere")
    with pytest.raises(SystemExit) as end:
        main(["--config", write_config(tmp_path / "config.yaml", short)])
    assert end.value.code == 2
    assert recorded_exit_code(tmp_path) == 2


def test_check_counts_edges_and_memory_and_leaves_nothing_behind(graph, short, tmp_path):
    short["validation_data"] = {"data_root": graph.valid}
    user, tweet = tables(short)
    tweet |= {"optimizer": {"adagrad": {"learning_rate": 0.1}}}
    config = config_of(merged(short, {"model": {"embeddings": {"tables": [user, tweet]}}}))
    found = check_run(config, edge_schema(config.model), "cpu", num_ranks=2)
    assert found["edges.train"] == graph.num_train
    assert found["edges.validation"] == 150
    # Float32 rows of 16 values; an accumulator of one value a row, or of 16.
    assert found["table_bytes_per_rank"] == (NUM_USERS * (64 + 4) + NUM_TWEETS * (64 + 64)) / 2
    assert run(short, "check") == 0
    assert not (tmp_path / "run").exists()


def test_check_finds_the_one_bad_edge_of_any_split(graph, short, tmp_path, capfd):
    write_edges(tmp_path / "valid" / "part.parquet", [*np.zeros((9, 3)), (0, 1, NUM_TWEETS)])
    short["validation_data"] = {"data_root": str(tmp_path / "valid")}
    with pytest.raises(SystemExit):
        main(["--config", write_config(tmp_path / "config.yaml", short), "--task", "check"])
    err = capfd.readouterr().err
    assert f"{tmp_path / 'valid' / 'part.parquet'}, row 9, column rhs" in err


def test_a_seed_repeats_a_run_to_the_bit_and_another_does_not(short, tmp_path):
    found = {}
    for name, seed in (("a", 3), ("b", 3), ("c", 2**31 - 1)):
        settings = merged(short, {"runtime": {"seed": seed}, "training": {"save_dir": str(tmp_path / name)}})
        assert run(settings) == 0
        found[name] = final_tensors(tmp_path / name)
    assert_equal_tensors(found["a"], found["b"])
    assert losses(tmp_path / "a") == losses(tmp_path / "b") != losses(tmp_path / "c")
    assert not torch.equal(found["a"]["tables.user+tweet.weight"], found["c"]["tables.user+tweet.weight"])


def test_prefetching_and_saving_do_not_change_a_run(short, tmp_path):
    settings = merged(
        short,
        {
            "runtime": {"num_prefetch_batches": 0, "pipeline": "plain"},
            "training": {"save_dir": str(tmp_path / "other"), "checkpoint_every_n": 1, "checkpoint_async": True},
        },
    )
    assert run(short) == 0
    assert run(settings) == 0
    assert_equal_tensors(final_tensors(tmp_path / "other"), final_tensors(tmp_path / "run"))


def test_tables_start_from_their_own_draws_however_they_are_grouped(short):
    user, tweet = tables(short)
    together = embedding_source(build_run(config_of(short), torch.device("cpu")).model, torch.device("cpu"))
    tweet["optimizer"] = {"sgd": {"learning_rate": 0.1}}
    apart_config = config_of(merged(short, {"model": {"embeddings": {"tables": [user, tweet]}}}))
    apart = embedding_source(build_run(apart_config, torch.device("cpu")).model, torch.device("cpu"))
    for name in ("user", "tweet"):
        assert torch.equal(together.full(name), apart.full(name))
    assert not torch.equal(apart.full("user"), apart.full("tweet")[:NUM_USERS])
    assert apart.full("user").std().item() == pytest.approx(1e-3, rel=0.05)


def test_metrics_of_the_test_edges_are_written_whole(graph, short, tmp_path, caplog):
    short["test_data"] = {"data_root": graph.test}
    short["runtime"]["log"]["level"] = "info"
    logging.getLogger("tml").propagate = True
    with caplog.at_level(logging.INFO):
        assert run(short) == 0
    report = json.loads((tmp_path / "run" / "test_metrics.json").read_text())
    assert report["split"] == "test"
    assert report["step"] == 3
    assert report["metrics"]["num_edges"] == 150
    assert f"filtered.mrr {report['metrics']['filtered.mrr']:.4f}" in caplog.text
    (tested,) = (
        found for found in ExperimentRecord(tmp_path / "run").read()["evaluations"] if found["split"] == "test"
    )
    assert (tested["step"], tested["metrics"]) == (3, report["metrics"])


def test_a_run_that_is_stopped_before_its_first_step_measures_no_test_edges(graph, short, tmp_path):
    short["test_data"] = {"data_root": graph.valid}
    stopped = merged(short, {"training": {"stop_at_time": "2001-01-01"}})
    assert run(stopped) == 0
    assert not (tmp_path / "run" / "test_metrics.json").exists()
    assert run(short) == 0
    assert (tmp_path / "run" / "test_metrics.json").exists()


def test_log_lines_can_be_had_as_json(short, tmp_path):
    short["runtime"]["log"] = {"level": "info", "json_lines": True}
    assert run(short) == 0
    lines = [json.loads(line) for line in Path(tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert any("step 3 of 3" in json.dumps(line) for line in lines)
