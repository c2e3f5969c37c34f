"""Edges, files and vocabularies that are wrong, and odd ones that are right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.projects.twhin.tiny import NUM_TWEETS, NUM_USERS, run, tiny_settings, write_edges
from tests.runs import final_tensors, losses
from tml.projects.twhin.data.vocab import Vocabulary


@pytest.mark.parametrize("loss", ["softmax", "logistic", "ranking"])
def test_26_a_batch_of_one_edge_and_masked_negatives_have_a_finite_loss(loss, graph, tmp_path):
    """With one edge and no uniform negatives nothing is left to compare with."""
    settings = tiny_settings(
        graph,
        tmp_path / "run",
        model={"loss": loss, "comparator": "cosine"},
        train_data={"global_batch_size": 1, "global_negatives": 0, "limit": 6},
    )
    assert run(settings) == 0
    assert np.isfinite(list(losses(tmp_path / "run").values())).all()
    assert all(tensor.isfinite().all() for tensor in final_tensors(tmp_path / "run").values())


def test_26_a_relation_without_any_edge_is_left_as_it_was(graph, tmp_path):
    settings = tiny_settings(graph, tmp_path / "run", train_data={"limit": 1600})
    settings["model"]["relations"].append({"name": "never", "lhs": "user", "rhs": "tweet"})
    assert run(settings) == 0
    weight = final_tensors(tmp_path / "run")["relations.weight"]
    assert weight.isfinite().all()
    assert not weight[4].any()
    assert weight[0].any()


def _columns(**changed: Any) -> dict[str, Any]:
    columns = {name: np.arange(50, dtype=np.int64) for name in ("lhs", "rhs")} | {"rel": np.zeros(50, np.int64)}
    return {name: array for name, array in (columns | changed).items() if array is not None}


def _at(row: int, value: int) -> np.ndarray:
    column = np.zeros(50, dtype=np.int64)
    column[row] = value
    return column


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (_columns(rhs=None), ["column is missing", "column 'rhs'", "lhs"]),
        (_columns(rhs=["a"] * 50), ["wrong type", "column 'rhs'", "string", "int64"]),
        (_columns(lhs=np.arange(50.0)), ["wrong type", "column 'lhs'", "double", "int64"]),
        (_columns(lhs=pa.array([None, *range(49)], pa.int64())), ["column 'lhs'", "1 nulls"]),
        (_columns(rhs=_at(17, NUM_USERS)), ["row 17", "column rhs", str(NUM_USERS), f"< {NUM_USERS}", "'user'"]),
        (_columns(lhs=_at(31, -1)), ["row 31", "column lhs", "-1", "'user'"]),
        (_columns(rel=_at(49, 4)), ["row 49", "column rel", "value: 4", "< 4", "follow"]),
        (_columns(rel=np.ones(50, np.int64), rhs=_at(3, NUM_TWEETS)), ["row 3", str(NUM_TWEETS), "'tweet'"]),
    ],
)
@pytest.mark.parametrize("task", ["train", "check"])
def test_28_29_30_31_faults_in_the_data_are_one_message(task, columns, expected, graph, small, fault, tmp_path):
    folder = tmp_path / "edges"
    folder.mkdir()
    pq.write_table(pq.read_table(graph.valid), folder / "part-0.parquet")
    pq.write_table(pa.table(columns), folder / "part-1.parquet")
    small["train_data"] |= {"data_root": str(folder), "limit": None}
    message = fault(small, "--task", task)
    for part in ["part-1.parquet", *expected]:
        assert part in message
    assert not list((tmp_path / "run").glob("step-*"))


def test_28_and_31_files_that_are_not_there_or_not_whole(graph, small, fault, tmp_path):
    small["train_data"]["data_root"] = str(graph.root / "trian")
    message = fault(small)
    assert str(graph.root / "trian") in message
    assert "train" in message.replace("trian", "")
    (tmp_path / "empty").mkdir()
    small["train_data"]["data_root"] = str(tmp_path / "empty")
    assert str(tmp_path / "empty") in fault(small)
    torn = tmp_path / "torn" / "part-0.parquet"
    torn.parent.mkdir()
    torn.write_bytes(next(Path(graph.train).glob("*.parquet")).read_bytes()[:-100])
    small["train_data"]["data_root"] = str(torn.parent)
    assert str(torn) in fault(small)
    write_edges(torn, np.empty((0, 3)))
    assert "no rows" in fault(small)


def test_28_fewer_edges_than_a_batch_train(graph, tmp_path):
    settings = tiny_settings(graph, tmp_path / "run", train_data={"limit": 7})
    assert run(settings) == 0
    assert list(losses(tmp_path / "run")) == [1]


def test_35_duplicate_edges_and_self_loops_train(tmp_path, graph):
    """Every edge is a self loop and there five times: all in-batch candidates of a copy are masked, as they are it."""
    edges = np.repeat(np.stack([np.arange(40), np.zeros(40), np.arange(40)], axis=1), 5, axis=0)
    write_edges(tmp_path / "edges" / "part-0.parquet", edges)
    settings = tiny_settings(graph, tmp_path / "run", train_data={"data_root": str(tmp_path / "edges")})
    settings["training"]["num_epochs"] = 30
    settings["train_data"] |= {"global_batch_size": 50, "global_negatives": 0}
    assert run(settings) == 0
    logged = list(losses(tmp_path / "run").values())
    assert np.isfinite(logged).all()
    assert np.mean(logged[-4:]) < 0.3 * logged[0]


def test_38_a_vocabulary_that_does_not_fit_or_changed_is_refused(small, fault, tmp_path):
    folder = tmp_path / "vocab"
    folder.mkdir()
    _write_vocabulary(folder / "user.parquet", [f"u{n}" for n in range(NUM_USERS)])
    small["vocab_dir"] = str(folder)
    assert "tweet.parquet" in fault(small)
    _write_vocabulary(folder / "tweet.parquet", [f"t{n}" for n in range(NUM_TWEETS + 1)])
    message = fault(small)
    assert f"{NUM_TWEETS} rows" in message
    assert f"{NUM_TWEETS + 1} ids" in message
    _write_vocabulary(folder / "tweet.parquet", [f"t{n}" for n in range(NUM_TWEETS)])
    assert run(small) == 0
    _write_vocabulary(folder / "tweet.parquet", [f"t{n}" for n in reversed(range(NUM_TWEETS))])
    message = fault(small, "training.num_epochs=2")
    assert "vocab" in message
    assert "tweet" in message
    _write_vocabulary(folder / "tweet.parquet", ["same"] * NUM_TWEETS)
    assert "same" in fault(small)


def _write_vocabulary(path: Path, ids: list[str]) -> None:
    pq.write_table(pa.table({"id": ids, "index": np.arange(len(ids))}), path)
    if len(set(ids)) == len(ids):
        assert len(Vocabulary.from_parquet(str(path))) == len(ids)


def test_39_an_empty_validation_split_is_refused_before_training(small, fault, tmp_path):
    write_edges(tmp_path / "valid" / "part-0.parquet", np.empty((0, 3)))
    small["validation_data"] = {"data_root": str(tmp_path / "valid")}
    assert "no rows" in fault(small)
    assert not list((tmp_path / "run").glob("step-*"))
    del small["validation_data"]
    message = fault(small, "--task", "evaluate")
    assert "nothing to evaluate" in message
    assert "validation_data" in message
