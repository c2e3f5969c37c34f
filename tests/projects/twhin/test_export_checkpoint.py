"""A training run is exported by step: several physical tables and the shards of several ranks become named tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from tests.distributed import run_ranks
from tests.projects.twhin.export_helpers import DIM, NUM_ROWS, RELATIONS, read_card, write_vocab
from tests.projects.twhin.tiny import run, tiny_settings, write_graph
from tests.runs import Settings, merged
from tml.common.checkpointing import Checkpoint, CheckpointManager
from tml.common.errors import CheckpointError, DataError
from tml.projects.twhin.config import TwhinConfig
from tml.projects.twhin.data.vocab import Vocabulary
from tml.projects.twhin.export import export_from_checkpoint
from tml.projects.twhin.export import tables as tables_module
from tml.projects.twhin.model_folder import read_model_info, read_scorer
from tml.projects.twhin.models.relations import RelationScorer
from tml.projects.twhin.serving import load_model
from tml.projects.twhin.tables import table_layout, vocab_fingerprint

CONFIG = {
    "training": {"save_dir": "run"},
    "model": {
        "embeddings": {
            "tables": [
                {
                    "name": name,
                    "num_embeddings": rows,
                    "embedding_dim": DIM,
                    "optimizer": {optimizer: {"learning_rate": 0.1}},
                }
                for (name, rows), optimizer in zip(NUM_ROWS.items(), ("adagrad", "adagrad"), strict=True)
            ]
        },
        "relations": [{"name": r.name, "lhs": r.lhs, "rhs": r.rhs, "operator": r.operator} for r in RELATIONS],
        "reciprocal_relations": True,
        "translation_optimizer": {"adagrad": {"learning_rate": 0.1}},
    },
    "train_data": {"data_root": "edges", "global_batch_size": 4},
}


def save_run(folder: Path, tables: dict[str, Tensor], scorer: RelationScorer, **changes: Any) -> Path:
    """Two checkpoints, the first marked as the best; the second's tables are all zeros."""
    config = TwhinConfig.model_validate(CONFIG).model_dump(mode="json")
    layout = table_layout(TwhinConfig.model_validate(CONFIG).model, "cpu")
    vocab = {
        vocab_fingerprint(name): Vocabulary.from_parquet(folder.parent / "vocab" / f"{name}.parquet").hash
        for name in NUM_ROWS
    }
    config["vocab_dir"] = str(folder.parent / "vocab")
    extra = {"config": config, "metrics": {"filtered.mrr": 0.5}, "fingerprints": vocab | {"data": "abc"}} | changes
    with CheckpointManager(folder, max_to_keep=None) as manager:
        for step, factor in ((3, 1), (6, 0)):
            tensors = {"relations.weight": scorer.weight.detach()}
            for group in layout.groups:
                rows = torch.cat([tables[table.name] for table in group.tables]) * factor
                tensors[f"tables.{group.name}.weight"] = rows
            manager.save(step, tensors, extra)
        manager.mark_best(3, "filtered.mrr", 0.5)
    return folder


def exported_rows(folder: Path, name: str) -> list[list[float]]:
    return pq.read_table(folder / "embeddings" / f"{name}.parquet").column("embedding").to_pylist()


@pytest.mark.parametrize(("step", "is_best"), [(None, True), ("best", True), (3, True), ("latest", False), (6, False)])
def test_a_checkpoint_is_exported_by_step(tmp_path, tables, scorer, vocab_dir, step: Any, is_best: bool) -> None:
    run = save_run(tmp_path / "run", tables, scorer)
    folder = export_from_checkpoint(run, tmp_path / "model", step=step)
    for name, weight in tables.items():
        assert exported_rows(folder, name) == (weight if is_best else torch.zeros_like(weight)).tolist()
    card = read_card(tmp_path)
    assert card["step"] == (3 if is_best else 6)
    assert card.get("best") == ({"metric": "filtered.mrr", "value": 0.5} if is_best else None)
    assert card["metrics"] == {"validation": {"filtered.mrr": 0.5}}
    assert card["data"]["fingerprints"]["data"] == "abc"
    assert torch.equal(read_scorer(folder, read_model_info(folder)).weight, scorer.weight)


def test_tables_of_one_physical_table_are_cut_at_their_offsets(
    tmp_path, tables, scorer, vocab_dir, monkeypatch
) -> None:
    run = save_run(tmp_path / "run", tables, scorer)
    monkeypatch.setattr(tables_module, "_BLOCK_BYTES", 4 * DIM * 4)
    folder = export_from_checkpoint(run, tmp_path / "model")
    assert pq.read_metadata(folder / "embeddings" / "tweet.parquet").num_row_groups > 2
    for name, weight in tables.items():
        assert exported_rows(folder, name) == weight.tolist()


def test_test_metrics_of_the_same_step_are_in_the_card(tmp_path, tables, scorer, vocab_dir) -> None:
    run = save_run(tmp_path / "run", tables, scorer)
    (run / "test_metrics.json").write_text(json.dumps({"split": "test", "step": 6, "metrics": {"auc": 0.9}}))
    export_from_checkpoint(run, tmp_path / "model", step="best")
    assert "test" not in read_card(tmp_path)["metrics"]
    export_from_checkpoint(run, tmp_path / "model", step="latest", overwrite=True)
    assert read_card(tmp_path)["metrics"]["test"] == {"auc": 0.9}


def test_the_vocabulary_of_another_run_is_refused(tmp_path, tables, scorer, vocab_dir) -> None:
    run = save_run(tmp_path / "run", tables, scorer)
    users = pq.read_table(vocab_dir / "user.parquet")
    renamed = users.set_column(0, "id", pa.array([f"v{row}" for row in range(7)]))
    other = write_vocab(tmp_path / "vocab2")
    pq.write_table(renamed, other / "user.parquet")
    with pytest.raises(DataError, match="not the vocabulary"):
        export_from_checkpoint(run, tmp_path / "model", vocab_dir=other)


def test_bad_steps_folders_and_checkpoints_are_explained(tmp_path, tables, scorer, vocab_dir) -> None:
    run = save_run(tmp_path / "run", tables, scorer)
    with pytest.raises(CheckpointError, match=r"\[3, 6\]"):
        export_from_checkpoint(run, tmp_path / "model", step=4)
    with pytest.raises(CheckpointError, match="no such folder"):
        export_from_checkpoint(tmp_path / "nowhere", tmp_path / "model")
    (run / "best.json").unlink()
    with pytest.raises(CheckpointError, match="--step latest"):
        export_from_checkpoint(run, tmp_path / "model", step="best")
    assert not (tmp_path / "nowhere").exists()
    assert not (tmp_path / "model").exists()


def test_a_checkpoint_of_something_else_is_refused(tmp_path, tables, scorer, vocab_dir) -> None:
    run = save_run(tmp_path / "run", tables, scorer, config={"model": {"layers": 3}})
    with pytest.raises(CheckpointError, match="does not describe a TwHIN model"):
        export_from_checkpoint(run, tmp_path / "model")
    config = TwhinConfig.model_validate(CONFIG).model_dump(mode="json")
    config["model"]["reciprocal_relations"] = False
    other = save_run(tmp_path / "run2", tables, scorer, config=config)
    with pytest.raises(CheckpointError, match=r"relations\.weight"):
        export_from_checkpoint(other, tmp_path / "model", vocab_dir=vocab_dir)


def test_a_shorter_table_than_the_config_says_is_refused(tmp_path, tables, scorer, vocab_dir) -> None:
    tables["tweet"] = tables["tweet"][:-1]
    run = save_run(tmp_path / "run", tables, scorer)
    with pytest.raises(CheckpointError, match="shorter"):
        export_from_checkpoint(run, tmp_path / "model")


# Two physical tables, user+topic and tweet; no table has a number of rows that two ranks could share evenly.
OF_RUN = {
    "user": (241, "rowwise_adagrad", lambda row: f"u{row * 7}"),
    "tweet": (247, "sgd", lambda row: 10**15 + row * 3),
    "topic": (243, "rowwise_adagrad", lambda row: f"t\u00f6pic {row}"),
}


def _settings_of_run(tmp_path: Path) -> Settings:
    """Five steps; replies go to topics, the other relations as in `tiny`."""
    graph = write_graph(tmp_path / "graph", shifted=False)
    (tmp_path / "vocab").mkdir()
    tables = []
    for name, (rows, optimizer, name_of) in OF_RUN.items():
        ids = pa.table({"id": [name_of(row) for row in range(rows)], "index": np.arange(rows)})
        pq.write_table(ids, tmp_path / "vocab" / f"{name}.parquet")
        rule = {optimizer: {"learning_rate": 0.1}}
        tables.append({"name": name, "num_embeddings": rows, "embedding_dim": 16, "optimizer": rule})
    settings = tiny_settings(graph, tmp_path / "run", training={"num_epochs": None, "num_train_steps": 5})
    relations = [
        relation | ({"rhs": "topic"} if relation["name"] == "reply" else {})
        for relation in settings["model"]["relations"]
    ]
    model = {"embeddings": {"tables": tables}, "relations": relations}
    changes = {"model": model, "train_data": {"assembly_blocks": 2}, "vocab_dir": str(tmp_path / "vocab")}
    return merged(settings, changes)


def _run_and_look_up(settings: Settings) -> dict[str, Tensor]:
    """Train, and look every row of every table up in the model that was trained."""
    from tml.core.train_loop import TrainLoop
    from tml.projects.twhin.models.live_tables import embedding_source

    found: dict[str, Tensor] = {}
    original = TrainLoop.call_hooks

    def call_hooks(loop: TrainLoop, moment: str, *arguments: Any) -> None:
        if moment == "on_train_end":
            assert loop.pipeline is not None
            with loop.pipeline.paused():
                source = embedding_source(loop.model, loop.device)
                found.update({name: source.full(name).clone() for name in OF_RUN})
        original(loop, moment, *arguments)

    with mock.patch.object(TrainLoop, "call_hooks", call_hooks):
        assert run(settings) == 0
    return found


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_run_of_several_physical_tables_and_ranks_answers_by_name(num_ranks: int, tmp_path: Path) -> None:
    settings = _settings_of_run(tmp_path)
    trained = _run_and_look_up(settings) if num_ranks == 1 else run_ranks(_run_and_look_up, 2, settings)[0]
    stored = Checkpoint.open(tmp_path / "run").metadata.state_dict_metadata
    shards = {name: len(tensor.chunks) for name, tensor in stored.items() if name.endswith(".weight")}
    assert shards == {"tables.user+topic.weight": num_ranks, "tables.tweet.weight": num_ranks, "relations.weight": 1}

    export_from_checkpoint(tmp_path / "run", tmp_path / "model")
    model = load_model(tmp_path / "model", verify=True)
    assert sorted(model.table_names) == sorted(OF_RUN)
    for name, (num_rows, _, name_of) in OF_RUN.items():
        rows = np.random.default_rng(0).permutation(num_rows)
        found = model.get_embedding(name, [name_of(row) for row in rows.tolist()])
        assert np.array_equal(found, trained[name][rows].numpy())
        assert len(np.unique(found, axis=0)) == num_rows
    user, tweet = trained["user"][17], trained["tweet"][246]
    assert np.array_equal(model.get_user_embedding("u119"), user.numpy())
    # The operator of retweet is the identity.
    assert model.predict_relation("u119", 10**15 + 738, "retweet") == pytest.approx(float(user @ tweet), rel=1e-5)
