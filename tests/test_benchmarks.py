"""The benchmarks' arithmetic, and that what they compare is equal; nothing here is timed."""

from __future__ import annotations

import json
import logging
import sys
from argparse import ArgumentTypeError
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from tml.benchmarks.harness import (
    RESULTS,
    Spread,
    argument_parser,
    machine,
    markdown_table,
    parse_count,
    ratios,
    some_of,
    write_record,
)
from tml.benchmarks.processes import run_measured
from tml.benchmarks.runs import data_folder, trained
from tml.benchmarks.twhin_vs_pbg.pbg_worker import BucketTimes, prepare, read_edges
from tml.benchmarks.twhin_vs_pbg.quality import pbg_scorer, turned
from tml.benchmarks.twhin_vs_pbg.settings import Graph, Settings, pbg_config, twhin_config
from tml.core.config import parse_config
from tml.projects.twhin.config import TwhinConfig
from tml.projects.twhin.data.edges import EdgeArrays
from tml.projects.twhin.models.operators import OPERATORS

RELATIONS = [("follow", "user", "user"), ("fav", "user", "tweet")]


def test_spread_is_median_and_ends():
    assert Spread.of([3.0, 1.0, 10.0]) == Spread(3.0, 1.0, 10.0, 3)
    assert Spread.of([1.0, 4.0]).median == 2.5
    assert Spread.of([1500.0, 1000.0, 2500.0]).shown() == "1,500 (1,000 to 2,500)"


def test_ratios_pair_the_rounds():
    # Round by round 2, 3 and 1; the ratio of the medians would be 20 / 10.
    assert ratios([20.0, 90.0, 5.0], [10.0, 30.0, 5.0]) == Spread(2.0, 1.0, 3.0, 3)
    with pytest.raises(ValueError, match="shorter"):
        ratios([1.0, 2.0], [1.0])


@pytest.mark.parametrize(("text", "count"), [("2m", 2_000_000), ("200k", 200_000), ("1.5m", 1_500_000), ("17", 17)])
def test_counts_may_be_short(text, count):
    assert parse_count(text) == count


@pytest.mark.parametrize("text", ["0", "-3", "1.5", "k", "many"])
def test_a_count_that_is_none_is_refused(text):
    with pytest.raises(ArgumentTypeError, match="not a positive whole number"):
        parse_count(text)


def test_some_names_of_those_that_are_known():
    assert some_of(("dim", "two words", "batch"))("two words,dim") == ["two words", "dim"]
    with pytest.raises(ArgumentTypeError, match="unknown name 'speed'; known: dim, batch"):
        some_of(("dim", "batch"))("dim,speed")


def test_benchmarks_share_their_options():
    parser = argument_parser("What it measures.", "toy", rounds="runs of each", default_rounds=5, overrides=True)
    found = parser.parse_args(["--set", "a.b=1", "--set", "c=2", "--record", "toy_20m"])
    assert (found.results, found.record, found.rounds, found.set) == (RESULTS, "toy_20m", 5, ["a.b=1", "c=2"])
    assert parser.parse_args([]).record == "toy"
    with pytest.raises(SystemExit):
        parser.parse_args(["--rounds", "0"])
    plain = argument_parser("What it measures.", "toy").parse_args([])
    assert set(vars(plain)) == {"results", "record"}


def test_training_seconds_by_hand():
    # 25 edges an epoch in batches of 10: steps of 10, 10, 5. The first line covers two steps at 10 edges/s; the
    # second stands 3 s later in the file though its own rate says 2.5 s: what is between the lines counts. After the
    # evaluation the clock is the rate's: 10 edges at 20/s.
    lines = [
        {"step": 2, "time": 100.0, "train/examples_per_s": 10.0},
        {"step": 3, "time": 103.0, "train/examples_per_s": 2.0},
        {"step": 3, "time": 160.0, "eval/filtered.mrr": 0.1},
        {"step": 4, "time": 161.0, "train/examples_per_s": 20.0},
    ]
    assert trained(lines, epoch_rows=25, batch_size=10) == (35, 2.0 + 3.0 + 0.5)


def test_a_run_that_logged_nothing_has_no_rate():
    with pytest.raises(SystemExit, match="no step"):
        trained([{"step": 0, "time": 1.0, "eval/filtered.mrr": 0.1}], 25, 10)


def test_the_data_folder_is_known_before_the_config_is_valid(tmp_path):
    # The relations of a knowledge graph are a file that the benchmark has yet to make.
    path = tmp_path / "config.yaml"
    path.write_text("model: {relations: {file: data/kg/vocab/relations.parquet}}\ntrain_data: {data_root: d/edges/x}")
    assert data_folder(path, ["train_data.data_root=data/kg/edges/train"]) == Path("data/kg")
    with pytest.raises(SystemExit, match="edges/train"):
        data_folder(path)


def test_pbg_times_are_read_from_its_log():
    times, log = (
        BucketTimes(),
        "[Trainer-0] bucket 1 / 1 : Processed 1000 edges in {} s ( 0.2 M/sec ); io: {} s ( 1.00 MB/sec )",
    )
    for training, reading in ((5.25, 0.5), (4.0, 0.25)):
        times.emit(_log_record(log.format(training, reading)))
    times.emit(_log_record("Finished epoch 1 / 2, edge path 1 / 1"))
    assert (times.num_edges, times.seconds) == (2000, 10.0)


def test_both_systems_are_asked_for_the_same_work(tmp_path):
    settings = Settings(dim=16, in_batch=7, uniform=9, num_epochs=4, learning_rate=0.05, init_scale=0.01, workers=3)
    graph = Graph(tmp_path, {"user": 11, "tweet": 5}, RELATIONS)
    ours = parse_config(TwhinConfig, twhin_config(settings, graph))
    theirs = pbg_config(settings, graph, tmp_path / "data", tmp_path / "model")
    tables = ours.model.embeddings.tables
    assert {table.name for table in tables} == set(theirs["entities"])
    assert {table.embedding_dim for table in tables} == {theirs["dimension"]} == {16}
    assert {table.init_scale for table in tables} == {theirs["init_scale"]} == {0.01}
    rates = {table.optimizer.rowwise_adagrad.learning_rate.constant for table in tables}
    assert rates == {ours.model.translation_optimizer.adagrad.learning_rate.constant} == {theirs["lr"]} == {0.05}
    assert ours.train_data.in_batch_negatives == ours.train_data.edges_per_chunk == theirs["num_batch_negs"] == 7
    assert ours.train_data.global_negatives == theirs["num_uniform_negs"] == 9
    assert ours.training.num_epochs == theirs["num_epochs"] == 4
    assert ours.runtime.num_threads == theirs["workers"] == 3
    assert (ours.model.loss, ours.model.comparator) == (theirs["loss_fn"], theirs["comparator"])
    assert [relation.model_dump(exclude={"weight"}) for relation in ours.model.relations] == theirs["relations"]
    # Neither evaluates while it trains.
    assert ours.training.num_eval_steps == theirs["eval_fraction"] == 0


def test_a_graph_is_read_from_its_starter_config(tmp_path):
    tables = [{"name": "user", "num_embeddings": 11}, {"name": "tweet", "num_embeddings": 5}]
    relations = [{"name": name, "lhs": lhs, "rhs": rhs, "operator": "translation"} for name, lhs, rhs in RELATIONS]
    config = {"model": {"embeddings": {"tables": tables}, "relations": relations}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert Graph.read(tmp_path) == Graph(tmp_path, {"user": 11, "tweet": 5}, RELATIONS)
    with pytest.raises(SystemExit, match="tml convert"):
        Graph.read(tmp_path / "elsewhere")


def test_pbg_gets_every_edge_in_order(tmp_path):
    edges = _write_graph(tmp_path)
    found = read_edges(tmp_path / "edges" / "train")
    assert {name: values.tolist() for name, values in found.items()} == edges


def test_pbg_data_has_its_format(tmp_path):
    h5py = pytest.importorskip("h5py", reason="h5py is in PyTorch-BigGraph's environment only")
    edges = _write_graph(tmp_path)
    prepare(tmp_path, {"user": 11, "tweet": 5}, tmp_path / "pbg")
    with h5py.File(tmp_path / "pbg" / "train" / "edges_0_0.h5") as file:
        assert file.attrs["format_version"] == 1
        assert {name: file[name][...].tolist() for name in ("lhs", "rel", "rhs")} == edges
    assert (tmp_path / "pbg" / "entity_count_tweet_0.txt").read_text() == "5\n"


def test_turned_edges_score_as_pbg_scores():
    generator = torch.Generator().manual_seed(0)
    graph = Graph(Path("unused"), {"user": 4, "tweet": 3}, RELATIONS)
    user, tweet, translations = (torch.randn(rows, 6, generator=generator) for rows in (4, 3, 2))
    scorer = pbg_scorer(graph, translations)
    edges = turned(EdgeArrays(lhs=np.array([2, 0]), rel=np.array([1, 1]), rhs=np.array([1, 2])))
    rel, operator = torch.from_numpy(edges.rel), OPERATORS["translation"]
    expected = (user[[2, 0]] * (tweet[[1, 2]] + translations[1])).sum(-1)
    scores = scorer.pair_scores(operator, rel, tweet[edges.lhs], user[edges.rhs])
    torch.testing.assert_close(scores, expected)
    # All tweets as right-hand sides of PBG's edges are left-hand sides of the turned ones.
    candidates = scorer.lhs_scores(operator, rel, user[edges.rhs], tweet)
    torch.testing.assert_close(candidates, user[[2, 0]] @ (tweet + translations[1]).T)
    assert (scorer.relations[1].lhs, scorer.relations[1].rhs) == ("tweet", "user")


def test_a_failed_process_shows_the_end_of_its_log(tmp_path):
    command = [sys.executable, "-c", "print('what went wrong'); raise SystemExit(3)"]
    with pytest.raises(SystemExit, match=r"what went wrong[\s\S]*exit code 3"):
        run_measured(command, tmp_path / "log")


def test_memory_counts_the_children(tmp_path):
    child = "import time; held = bytearray(150 << 20); time.sleep(2)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    done = run_measured([sys.executable, "-c", parent], tmp_path / "log")
    assert 150 << 20 <= done.peak_bytes < 400 << 20


def test_a_record_is_written_as_json_and_markdown(tmp_path, capsys):
    where = {
        "machine": machine(),
        "versions": {"torch": "2"},
        "commit": "abc",
        "time": "now",
        "peers": {"Other": {"other": "3"}},
    }
    write_record(tmp_path, "toy", {"circumstances": where, "ratio": Spread.of([2.0])}, "A table.")
    assert json.loads((tmp_path / "toy.json").read_text())["ratio"]["median"] == 2.0
    page = (tmp_path / "toy.md").read_text()
    assert "A table." in page
    assert "torch 2. Other: other 3. Commit abc" in page
    assert page in capsys.readouterr().out


def test_tables_align_numbers_to_the_right():
    rows = [{"model": "a", "MRR": 0.3401, "edges": 1234}, {"model": "longer", "MRR": None, "edges": 5}]
    assert markdown_table(rows).splitlines() == [
        "| model  |   MRR | edges |",
        "| ------ | ----: | ----: |",
        "| a      | .3401 | 1,234 |",
        "| longer |     - |     5 |",
    ]


def _log_record(message: str) -> logging.LogRecord:
    return logging.LogRecord("torchbiggraph", logging.INFO, "", 0, message, None, None)


def _write_graph(folder: Path) -> dict[str, list[int]]:
    """Two files of training edges."""
    edges = {"lhs": [3, 0, 10, 2, 7], "rel": [0, 1, 1, 0, 1], "rhs": [1, 4, 0, 10, 2]}
    (folder / "edges" / "train").mkdir(parents=True)
    for number, part in enumerate((slice(0, 3), slice(3, 5))):
        table = pa.table({name: pa.array(values[part], pa.int64()) for name, values in edges.items()})
        pq.write_table(table, folder / "edges" / "train" / f"{number}.parquet")
    return edges
