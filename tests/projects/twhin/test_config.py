"""The config: what it refuses, and relations out of a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tml.common.errors import ConfigError
from tml.core.config import format_config, parse_config
from tml.projects.twhin import config as config_module
from tml.projects.twhin.config import MAX_RELATIONS, MAX_ROWS, TwhinConfig

CONFIGS = Path(__file__).parents[3] / "projects" / "twhin" / "configs"


def _config(**model: Any) -> dict[str, Any]:
    table = {"num_embeddings": 5, "embedding_dim": 4, "optimizer": {"sgd": {"learning_rate": 0.1}}}
    return {
        "model": {
            "embeddings": {"tables": [{"name": "user", **table}, {"name": "tweet", **table}]},
            "relations": [{"name": "fav", "lhs": "user", "rhs": "tweet"}],
            "translation_optimizer": {"sgd": {"learning_rate": 0.1}},
            **model,
        },
        "train_data": {"data_root": "edges", "global_batch_size": 4},
    }


def _refused(text: str, data: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(TwhinConfig, data)
    assert text in str(caught.value)


def test_a_small_config_is_accepted_and_comes_back_from_its_text() -> None:
    config = parse_config(TwhinConfig, _config())
    assert config.model.relations[0].operator == "translation"
    assert "global_batch_size: 4" in format_config(config)


def test_an_unknown_table_is_refused_by_relation_side_and_name() -> None:
    relations = [{"name": "fav", "lhs": "user", "rhs": "twet"}]
    _refused("relation 'fav' (relations.0) has an unknown rhs table 'twet'; the tables are user, tweet",
             _config(relations=relations))  # fmt: skip


def test_b09_a_typo_in_a_relation_is_refused() -> None:
    _refused("did you mean", _config(relations=[{"name": "fav", "lhs": "user", "rhs": "tweet", "oprator": "identity"}]))


def test_two_relations_of_one_name_and_a_table_without_relation_are_refused() -> None:
    relation = {"name": "fav", "lhs": "user", "rhs": "tweet"}
    _refused("two relations have the name 'fav'", _config(relations=[relation, relation]))
    _refused("no relation has an end in table 'tweet'", _config(relations=[relation | {"rhs": "user"}]))


def test_more_rows_or_relations_than_a_batch_can_tell_apart_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert np.iinfo(np.int64).max >= (MAX_RELATIONS - 1) * MAX_ROWS + MAX_ROWS - 1
    data = _config()
    data["model"]["embeddings"]["tables"][0]["num_embeddings"] = MAX_ROWS + 1
    _refused("less than or equal to 1099511627776", data)
    monkeypatch.setattr(config_module, "MAX_RELATIONS", 2)
    relations = [{"name": f"r{number}", "lhs": "user", "rhs": "tweet"} for number in range(3)]
    assert len(parse_config(TwhinConfig, _config(relations=relations[:2])).model.relations) == 2
    _refused("3 relations are too many: at most 2 can", _config(relations=relations))


def test_unequal_dims_and_odd_complex_dims_are_refused() -> None:
    data = _config()
    data["model"]["embeddings"]["tables"][0]["embedding_dim"] = 3
    _refused("embedding_dim must be the same for all tables", data)
    data["model"]["embeddings"]["tables"][1]["embedding_dim"] = 3
    data["model"]["relations"][0]["operator"] = "complex_diagonal"
    _refused("embedding_dim must be even", data)


def test_batch_size_is_said_once_and_negatives_must_exist() -> None:
    data = _config()
    data["train_data"]["per_replica_batch_size"] = 4
    _refused("per_replica_batch_size", data)
    data = _config()
    data["train_data"] |= {"in_batch_negatives": 0, "global_negatives": 0}
    _refused("there is nothing to learn from", data)
    data["train_data"] |= {"in_batch_negatives": 8, "chunk_size": 4}
    _refused("chunk_size (4) must be at least in_batch_negatives (8)", data)


def test_relations_are_read_from_a_file_in_the_order_of_their_index(tmp_path: Path) -> None:
    file = tmp_path / "relations.parquet"
    columns = {"id": ["b", "a"], "index": [1, 0], "lhs": ["user", "user"], "rhs": ["tweet", "user"]}
    pq.write_table(pa.table(columns), file)
    config = parse_config(TwhinConfig, _config(relations={"file": str(file), "operator": "diagonal"}))
    assert [(r.name, r.rhs, r.operator) for r in config.model.relations] == [
        ("a", "user", "diagonal"),
        ("b", "tweet", "diagonal"),
    ]
    _refused("relations cannot be read from nowhere.parquet", _config(relations={"file": "nowhere.parquet"}))


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configs_are_valid(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = path.read_text()
    if "relations: {file:" in text:
        folder = tmp_path / "data" / path.stem.split("_")[0] / "vocab"
        folder.mkdir(parents=True)
        columns = {"id": ["r"], "index": [0], "lhs": ["entity"], "rhs": ["entity"]}
        pq.write_table(pa.table(columns), folder / "relations.parquet")
    from tml.core.config import load_config

    assert load_config(TwhinConfig, str(path)).training.save_dir.startswith("runs/")
