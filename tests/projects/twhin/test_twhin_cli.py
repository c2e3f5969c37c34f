"""The commands around a finished run: what they print, and what they say when they cannot."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from typer.testing import CliRunner

from tml.common.checkpointing import CheckpointManager
from tml.common.errors import CheckpointError, ConfigError, DataError, UnknownIdError
from tml.projects.twhin import cli
from tml.projects.twhin.config import TwhinConfig
from tml.projects.twhin.serving import load_model
from tml.projects.twhin.tables import table_layout

DIM = 2
USERS = ["ann", "bob", "cleo"]
TWEETS = [700, 800, 900, 1000]
VECTORS = {
    "user": torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]),
    "tweet": torch.tensor([[4.0, 1.0], [3.0, 2.0], [2.0, 3.0], [1.0, 5.0]]),
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder with vocabularies, edges, config.yaml and a run of one checkpoint."""
    vocab = tmp_path / "vocab"
    vocab.mkdir()
    for name, ids in (("user", USERS), ("tweet", TWEETS)):
        index = np.arange(len(ids))
        pq.write_table(pa.table({"id": ids, "index": index, "count": index}), vocab / f"{name}.parquet")
    for split, edges in (("train", [(0, 0, 3), (1, 0, 3), (2, 0, 2)]), ("test", [(0, 0, 2), (1, 0, 3)])):
        (tmp_path / "edges" / split).mkdir(parents=True)
        lhs, rel, rhs = (np.array(column, dtype=np.int64) for column in zip(*edges, strict=True))
        pq.write_table(pa.table({"lhs": lhs, "rel": rel, "rhs": rhs}), tmp_path / "edges" / split / "part-0.parquet")
    adagrad = {"adagrad": {"learning_rate": 0.1}}
    sizes = {"user": len(USERS), "tweet": len(TWEETS)}
    tables = [{"name": n, "num_embeddings": s, "embedding_dim": DIM, "optimizer": adagrad} for n, s in sizes.items()]
    config = {
        "training": {"save_dir": str(tmp_path / "run")},
        "model": {
            "embeddings": {"tables": tables},
            "relations": [{"name": "fav", "lhs": "user", "rhs": "tweet"}],
            "translation_optimizer": adagrad,
        },
        "train_data": {"data_root": str(tmp_path / "edges" / "train"), "global_batch_size": 2},
        "test_data": {"data_root": str(tmp_path / "edges" / "test")},
        "vocab_dir": str(vocab),
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    parsed = TwhinConfig.model_validate(config)
    (group,) = table_layout(parsed.model, "cpu").groups
    rows = torch.cat([VECTORS[table.name] for table in group.tables])
    with CheckpointManager(tmp_path / "run", max_to_keep=None) as manager:
        tensors = {f"tables.{group.name}.weight": rows, "relations.weight": torch.tensor([[0.0, 1.0]])}
        manager.save(4, tensors, {"config": parsed.model_dump(mode="json"), "metrics": {}, "fingerprints": {}})
    return tmp_path


@pytest.fixture
def model(run: Path) -> Path:
    call("export", str(run / "run"), "--out", str(run / "model"))
    return run / "model"


def call(*arguments: str) -> str:
    """Standard output of a command that should work."""
    result = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("by_config", [False, True])
def test_export_makes_a_model_that_answers(run: Path, by_config: bool) -> None:
    source = ["--config", str(run / "config.yaml")] if by_config else [str(run / "run")]
    out = call("export", *source, "--out", str(run / "model"), "--step", "4")
    assert str(run / "model" / "MODEL_CARD.md") in out
    assert load_model(run / "model").get_user_embedding("cleo").tolist() == [1.0, 1.0]


def test_export_explains_its_refusals(run: Path) -> None:
    out = ["--out", str(run / "model")]
    with pytest.raises(ConfigError, match="either SAVE_DIR or --config"):
        call("export", *out)
    with pytest.raises(ConfigError, match="best or latest"):
        call("export", str(run / "run"), *out, "--step", "newest")
    with pytest.raises(CheckpointError, match=r"steps present: \[4\]"):
        call("export", str(run / "run"), *out, "--step", "5")
    call("export", str(run / "run"), *out)
    with pytest.raises(DataError, match="--overwrite"):
        call("export", str(run / "run"), *out)
    call("export", str(run / "run"), *out, "--overwrite", "--memory-map")
    assert (run / "model" / "embeddings" / "user.npy").exists()


def test_neighbors_are_plain_lines_off_a_terminal(model: Path) -> None:
    # ann is [1, 0], moved by [0, 1] to [1, 1]: tweets score 5, 5, 5 and 6.
    out = call("neighbors", str(model), "--table", "user", "--id", "ann", "--relation", "fav", "-k", "2")
    assert out == "1000\t6\n700\t5\n"


def test_neighbors_of_several_ids_name_the_query(model: Path) -> None:
    ids = ["--id", "ann", "--id", "bob", "--id", "ann"]
    out = call("neighbors", str(model), "--table", "user", *ids, "--relation", "fav", "-k", "1")
    assert out == "ann\t1000\t6\nbob\t1000\t10\nann\t1000\t6\n"


def test_neighbors_as_json_exclude_and_integer_ids(model: Path) -> None:
    arguments = ["neighbors", str(model), "--table", "user", "--id", "ann", "--relation", "fav", "--json"]
    answer = json.loads(call(*arguments, "-k", "1", "--exclude", "1000"))
    assert answer == {"query": "ann", "table": "tweet", "neighbors": [{"id": 700, "score": 5.0}]}
    backwards = json.loads(
        call("neighbors", str(model), "--table", "tweet", "--id", "700", "--relation", "fav", "-k", "1", "--json")
    )
    # cleo moved to [1, 2] scores 6 with [4, 1]; ann 5, bob 2.
    assert backwards == {"query": "700", "table": "user", "neighbors": [{"id": "cleo", "score": 6.0}]}


def test_neighbors_on_a_terminal_are_a_table(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    printed: list[str] = []
    monkeypatch.setattr(cli, "_print_table", lambda query, answers, table: printed.append((query, answers, table)))  # type: ignore[arg-type]
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    found = [("a[b]", [("x", 1.0)])]
    cli._print_neighbors(found, "tweet", as_json=False)  # type: ignore[arg-type]
    assert printed == [("a[b]", [("x", 1.0)], "tweet")]


def test_ids_that_look_like_markup_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    cli._print_table("[bold]q", [("[red]x[/red]", 1.5)], "tweet")
    out = capsys.readouterr().out
    assert "[bold]q" in out
    assert "[red]x[/red]" in out
    assert "1.5000" in out


def test_neighbors_of_an_unknown_id_or_side(model: Path) -> None:
    with pytest.raises(UnknownIdError, match="'ann'"):
        call("neighbors", str(model), "--table", "user", "--id", "anne", "--relation", "fav")
    with pytest.raises(ConfigError, match="lhs or rhs"):
        call("neighbors", str(model), "--table", "user", "--id", "ann", "--relation", "fav", "--side", "left")


def test_similar_compares_embeddings_of_one_table(model: Path) -> None:
    assert call("similar", str(model), "--table", "tweet", "--id", "700", "-k", "1") == "800\t14\n"


def test_predict_prints_a_score_or_a_probability(model: Path) -> None:
    edge = [str(model), "--lhs", "ann", "--rhs", "1000"]
    assert call("predict", *edge, "--relation", "fav") == "6\n"
    assert float(call("predict", *edge, "--probability")) == pytest.approx(0.997527, abs=1e-6)


def test_popularity_is_evaluated_from_a_config(run: Path) -> None:
    found = json.loads(call("evaluate-popularity", "--config", str(run / "config.yaml")))
    # Training degrees of tweets are 0, 0, 1, 2. Without training edges, 900 comes first for ann and 1000 for bob.
    assert found["popularity"]["filtered.rhs.mrr"] == 1.0
    # Of users each faved once: the two test edges tie with everybody.
    assert found["popularity"]["raw.lhs.mr"] == 2.0
    assert found["random"]["raw.mr"] == (2.5 + 2.0) / 2
    with pytest.raises(ConfigError, match="no such split"):
        call("evaluate-popularity", "--config", str(run / "config.yaml"), "--split", "validation")
