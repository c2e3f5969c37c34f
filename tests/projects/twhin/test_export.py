"""A model folder is whole or not there, streams its tables, and keeps ids, order, values and checksums."""

from __future__ import annotations

import errno
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from tests.projects.twhin.export_helpers import DIM, NUM_ROWS, RELATIONS, read_card, write_vocab
from tml.common.errors import DataError, NonFiniteError
from tml.common.filesystem import atomic_folder
from tml.projects.twhin.data.vocab import Vocabulary
from tml.projects.twhin.export import export_model
from tml.projects.twhin.export import model as export_module
from tml.projects.twhin.export import tables as tables_module
from tml.projects.twhin.model_folder import read_model_info, read_scorer, score_formula, verify
from tml.projects.twhin.models.relations import RelationScorer


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name not in ("vocab", "model", "run"))


def test_embeddings_keep_ids_order_and_values(tmp_path, tables, scorer, vocab_dir) -> None:
    folder = export_model(tmp_path / "model", tables=tables, scorer=scorer, vocab_dir=vocab_dir, model_card={})
    for name, weight in tables.items():
        found = pq.read_table(folder / "embeddings" / f"{name}.parquet")
        assert found.schema.field("embedding").type.list_size == DIM
        assert found.schema.field("embedding").type.value_type == pa.float32()
        assert found.column("id").to_pylist() == pq.read_table(vocab_dir / f"{name}.parquet").column("id").to_pylist()
        assert found.column("embedding").to_pylist() == weight.tolist()
    assert pq.read_schema(folder / "embeddings" / "user.parquet").field("id").type == pa.string()
    assert pq.read_schema(folder / "embeddings" / "tweet.parquet").field("id").type == pa.int64()
    assert leftovers(tmp_path) == []


def test_relations_come_back_with_their_inverses(tmp_path, tables, scorer, vocab_dir) -> None:
    folder = export_model(tmp_path / "model", tables=tables, scorer=scorer, vocab_dir=vocab_dir, model_card={})
    rows = pq.read_table(folder / "relations.parquet").to_pylist()
    assert [(row["name"], row["lhs"], row["rhs"], row["operator"]) for row in rows] == [
        ("follow", "user", "user", "translation"),
        ("fav", "user", "tweet", "diagonal"),
    ]
    assert rows[1]["params"] == scorer.weight[1].tolist()
    assert rows[1]["inverse_params"] == scorer.weight[3].tolist()
    back = read_scorer(folder, read_model_info(folder))
    assert (back.relations, back.comparator, back.reciprocal) == (scorer.relations, "dot", True)
    assert torch.equal(back.weight, scorer.weight)


def test_relations_without_inverses(tmp_path, tables, vocab_dir) -> None:
    scorer = RelationScorer(RELATIONS, DIM, "l2")
    folder = export_model(tmp_path / "model", tables=tables, scorer=scorer, vocab_dir=vocab_dir, model_card={})
    assert pq.read_table(folder / "relations.parquet").column("inverse_params").to_pylist() == [None, None]
    assert torch.equal(read_scorer(folder, read_model_info(folder)).weight, scorer.weight)


def test_fp16_tables_are_exported_as_float32(tmp_path, tables, scorer, vocab_dir) -> None:
    halves = {name: weight.half() for name, weight in tables.items()}
    folder = export_model(tmp_path / "model", tables=halves, scorer=scorer, vocab_dir=vocab_dir, model_card={})
    found = pq.read_table(folder / "embeddings" / "user.parquet").column("embedding")
    assert found.type.value_type == pa.float32()
    assert found.to_pylist() == halves["user"].float().tolist()


def test_without_a_vocabulary_the_index_is_the_id(tmp_path, tables, scorer) -> None:
    folder = export_model(tmp_path / "model", tables=tables, scorer=scorer, vocab_dir=None, model_card={})
    assert pq.read_table(folder / "embeddings" / "user.parquet").column("id").to_pylist() == list(range(7))


def test_export_of_a_table_larger_than_memory_is_streamed(tmp_path, scorer, vocab_dir, monkeypatch) -> None:
    """Fault 41: no more than two blocks are alive at a time, none is larger than the bound, and rows keep their
    order."""
    monkeypatch.setattr(tables_module, "_BLOCK_BYTES", 2 * DIM * 4)
    alive: list[weakref.ref[Tensor]] = []
    most_alive, largest = 0, 0
    checked = tables_module._checked

    def spy(block: Tensor, *rest: Any) -> np.ndarray:
        nonlocal largest
        largest = max(largest, len(block))
        return checked(block, *rest)

    monkeypatch.setattr(tables_module, "_checked", spy)

    def stream(rows: int) -> Iterator[Tensor]:
        nonlocal most_alive
        for start in range(0, rows, 3):
            block = torch.arange(start, min(start + 3, rows)).float().unsqueeze(1).expand(-1, DIM).clone()
            alive.append(weakref.ref(block))
            most_alive = max(most_alive, sum(ref() is not None for ref in alive))
            yield block
            del block

    tables = {name: stream(rows) for name, rows in NUM_ROWS.items()}
    folder = export_model(tmp_path / "model", tables=tables, scorer=scorer, vocab_dir=vocab_dir, model_card={})
    assert (most_alive <= 2, largest) == (True, 2)
    for name, rows in NUM_ROWS.items():
        found = pq.read_table(folder / "embeddings" / f"{name}.parquet").column("embedding").to_pylist()
        assert found == [[float(row)] * DIM for row in range(rows)]
        assert pq.read_metadata(folder / "embeddings" / f"{name}.parquet").num_row_groups >= rows // 2
    verify(folder, read_model_info(folder))


def test_memory_map_files_hold_the_same_rows(tmp_path, tables, scorer, vocab_dir, monkeypatch) -> None:
    monkeypatch.setattr(tables_module, "_BLOCK_BYTES", 3 * DIM * 4)
    folder = export_model(
        tmp_path / "model", tables=tables, scorer=scorer, vocab_dir=vocab_dir, model_card={}, memory_map=True
    )
    assert np.load(folder / "embeddings" / "tweet.npy").tolist() == tables["tweet"].tolist()
    assert "npy" in read_model_info(folder).tables["tweet"].files


@pytest.mark.parametrize(("extra_rows", "message"), [(2, "more ids"), (-1, "more than the 6 ids")])
def test_a_vocabulary_of_another_length_is_refused(tmp_path, tables, scorer, extra_rows: int, message: str) -> None:
    vocab_dir = write_vocab(tmp_path / "vocab", extra_rows=extra_rows)
    with pytest.raises(DataError, match=message) as error:
        export_model(tmp_path / "model", tables=tables, scorer=scorer, vocab_dir=vocab_dir, model_card={})
    assert "user" in str(error.value)
    assert leftovers(tmp_path) == []
    assert not (tmp_path / "model").exists()


def test_a_vocabulary_in_another_order_is_refused(tmp_path, tables, scorer, vocab_dir) -> None:
    """Fault 38: the digest stored at training time tells vocabularies of equal length apart."""
    hashes = {name: Vocabulary.from_parquet(vocab_dir / f"{name}.parquet").hash for name in NUM_ROWS}
    export_model(tmp_path / "model", tables=tables, scorer=scorer, vocab_dir=vocab_dir, model_card={}, id_hashes=hashes)
    info = read_model_info(tmp_path / "model")
    assert {name: table.id_hash for name, table in info.tables.items()} == hashes
    users = pq.read_table(vocab_dir / "user.parquet")
    swapped = users.set_column(0, "id", users.column("id").take(pa.array([1, 0, *range(2, 7)])))
    pq.write_table(swapped, vocab_dir / "user.parquet")
    with pytest.raises(DataError, match="not the vocabulary the model was trained with"):
        export_model(
            tmp_path / "other", tables=tables, scorer=scorer, vocab_dir=vocab_dir, model_card={}, id_hashes=hashes
        )


def test_a_vocabulary_with_gaps_or_no_file_is_refused(tmp_path, tables, scorer) -> None:
    vocab_dir = write_vocab(tmp_path / "vocab", first_index=5)
    with pytest.raises(DataError, match="not contiguous"):
        export_model(tmp_path / "model", tables=tables, scorer=scorer, vocab_dir=vocab_dir, model_card={})
    with pytest.raises(DataError, match="vocabulary missing"):
        export_model(tmp_path / "model", tables=tables, scorer=scorer, vocab_dir=tmp_path / "no", model_card={})


def test_a_non_finite_embedding_is_named_and_nothing_is_left(tmp_path, tables, scorer, vocab_dir) -> None:
    tables["tweet"][4, 1] = torch.nan
    with pytest.raises(NonFiniteError, match="'tweet', row 4"):
        export_model(tmp_path / "model", tables=tables, scorer=scorer, vocab_dir=vocab_dir, model_card={})
    assert not (tmp_path / "model").exists()
    assert leftovers(tmp_path) == []


def test_tables_that_do_not_fit_the_relations_are_refused(tmp_path, tables, scorer, vocab_dir) -> None:
    with pytest.raises(DataError, match="missing"):
        export_model(tmp_path / "m", tables={"user": tables["user"]}, scorer=scorer, vocab_dir=vocab_dir, model_card={})
    tables["user"] = torch.zeros(7, DIM + 1)
    with pytest.raises(DataError, match="wrong shape"):
        export_model(tmp_path / "m", tables=tables, scorer=scorer, vocab_dir=vocab_dir, model_card={})


def test_a_folder_with_something_in_it_is_refused(tmp_path, tables, scorer, vocab_dir) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "thesis.txt").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(DataError, match="not empty"):
            export_model(
                tmp_path / "model",
                tables=tables,
                scorer=scorer,
                vocab_dir=vocab_dir,
                model_card={},
                overwrite=overwrite,
            )
    assert (tmp_path / "model" / "thesis.txt").read_text() == "precious"


def test_overwrite_replaces_a_model_and_needs_to_be_asked_for(tmp_path, tables, scorer, vocab_dir) -> None:
    arguments: dict[str, Any] = {"tables": tables, "scorer": scorer, "vocab_dir": vocab_dir}
    export_model(tmp_path / "model", model_card={"step": 1}, **arguments)
    with pytest.raises(DataError, match="--overwrite"):
        export_model(tmp_path / "model", model_card={"step": 2}, **arguments)
    assert read_card(tmp_path)["step"] == 1
    export_model(tmp_path / "model", model_card={"step": 2}, overwrite=True, **arguments)
    assert read_card(tmp_path)["step"] == 2
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("fails_at", ["_write_rest", "rename"])
def test_a_failed_overwrite_keeps_the_old_model(
    tmp_path, tables, scorer, vocab_dir, monkeypatch, fails_at: str
) -> None:
    arguments: dict[str, Any] = {"tables": tables, "scorer": scorer, "vocab_dir": vocab_dir}
    export_model(tmp_path / "model", model_card={"step": 1}, **arguments)
    rename = Path.rename

    def disk_full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def rename_unless_new(path: Path, target: Path) -> Path:
        # Putting the old model aside works, giving the new one its name does not.
        return disk_full() if path.name.endswith(".tmp") else rename(path, target)  # type: ignore[return-value]

    if fails_at == "rename":
        monkeypatch.setattr(atomic_folder, "_exchange", lambda *_: False)  # as on systems that cannot swap names
        monkeypatch.setattr(Path, "rename", rename_unless_new)
    else:
        monkeypatch.setattr(export_module, fails_at, disk_full)
    with pytest.raises(DataError, match="No space left"):
        export_model(tmp_path / "model", model_card={"step": 2}, overwrite=True, **arguments)
    assert read_card(tmp_path)["step"] == 1
    verify(tmp_path / "model", read_model_info(tmp_path / "model"))
    assert leftovers(tmp_path) == []


def test_remote_targets_are_refused(tables, scorer, vocab_dir) -> None:
    with pytest.raises(DataError, match="local"):
        export_model("gs://bucket/model", tables=tables, scorer=scorer, vocab_dir=vocab_dir, model_card={})


def test_the_card_says_where_the_model_comes_from(tmp_path, tables, scorer, vocab_dir) -> None:
    metrics = {"test": {"filtered.mrr": 0.25, "raw.mrr": 0.2, "relation.fav.mrr": 0.1}}
    given = {"step": 12, "metrics": metrics, "config": {"seed": 7}}
    export_model(tmp_path / "model", tables=tables, scorer=scorer, vocab_dir=vocab_dir, model_card=given)
    card = read_card(tmp_path)
    assert (card["step"], card["metrics"], card["config"]) == (12, metrics, {"seed": 7})
    assert card["versions"]["torch"] == torch.__version__
    assert (
        card["tables"]["user"]["sha256"] == read_model_info(tmp_path / "model").tables["user"].files["parquet"].sha256
    )
    text = (tmp_path / "model" / "MODEL_CARD.md").read_text()
    for expected in ("step 12", "| test.filtered.mrr | 0.25 |", "| fav | user | tweet | diagonal |", '"seed": 7'):
        assert expected in text
    assert "relation.fav.mrr" not in text


def test_the_formula_names_the_operators_in_use_and_the_comparator() -> None:
    lines = score_formula("cosine", RELATIONS, reciprocal=True)
    assert any(line.startswith("translation") for line in lines)
    assert any(line.startswith("diagonal") for line in lines)
    assert not any(line.startswith(("identity", "complex")) for line in lines)
    assert "a . b / (|a| |b|)" in lines[-2]
    assert "inverse" in lines[-1]
