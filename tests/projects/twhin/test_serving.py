"""An exported model answers by id as the model itself would: brute force for every comparator, operator and side."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from tests.projects.twhin.tiny import pair_scores_of_lhs
from tml.common.errors import ConfigError, DataError, UnknownIdError
from tml.projects.twhin import serving_table
from tml.projects.twhin.export import export_model
from tml.projects.twhin.models.relations import RelationScorer, RelationSpec
from tml.projects.twhin.serving import TwhinModelView, load_model

DIM = 6
NUM_ROWS = {"user": 9, "tweet": 23}
OPERATORS = ("identity", "translation", "diagonal", "complex_diagonal")
RELATIONS = [RelationSpec(f"follow_{op}", "user", "user", op) for op in OPERATORS] + [
    RelationSpec(f"fav_{op}", "user", "tweet", op) for op in OPERATORS
]


def user_id(row: int) -> str:
    return f"u{(row * 5 + 3) % 9}"


def tweet_id(row: int) -> int:
    return 10**17 + row * 7


def export(folder: Path, comparator: str = "dot", reciprocal: bool = False, **options: bool) -> dict[str, Tensor]:
    torch.manual_seed(0)
    scorer = RelationScorer(RELATIONS, DIM, comparator, reciprocal)  # type: ignore[arg-type]
    torch.nn.init.normal_(scorer.weight)
    tables = {name: torch.randn(rows, DIM) for name, rows in NUM_ROWS.items()}
    vocab = folder.parent / "vocab"
    vocab.mkdir(exist_ok=True)
    for name, make in (("user", user_id), ("tweet", tweet_id)):
        index = np.arange(NUM_ROWS[name])
        table = pa.table({"id": [make(row) for row in range(NUM_ROWS[name])], "index": index, "count": index})
        pq.write_table(table, vocab / f"{name}.parquet")
    export_model(folder, tables=tables, scorer=scorer, vocab_dir=vocab, model_card={"step": 5}, **options)  # type: ignore[arg-type]
    shutil.rmtree(vocab)
    return tables


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[TwhinModelView, dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("serving") / "model"
    tables = export(folder)
    return load_model(folder), tables


def test_embeddings_by_id(exported) -> None:
    model, tables = exported
    assert model.get_user_embedding("u3").tolist() == tables["user"][0].tolist()
    assert model.get_tweet_embedding(tweet_id(4)).tolist() == tables["tweet"][4].tolist()
    several = model.get_embedding("user", [user_id(7), user_id(2), user_id(7)])
    assert several.tolist() == tables["user"][[7, 2, 7]].tolist()
    assert several.dtype == np.float32
    assert (
        model.get_embedding("tweet", np.array([tweet_id(1), tweet_id(0)])).tolist() == tables["tweet"][[1, 0]].tolist()
    )
    assert model.get_embedding("user", []).shape == (0, DIM)


def test_the_text_of_an_integer_id_stands_for_it(exported) -> None:
    model, tables = exported
    assert model.get_tweet_embedding(str(tweet_id(4))).tolist() == tables["tweet"][4].tolist()


def test_embeddings_handed_out_are_copies(exported) -> None:
    model, tables = exported
    model.get_user_embedding("u3")[:] = 0
    assert model.get_user_embedding("u3").tolist() == tables["user"][0].tolist()


def test_an_unknown_id_is_an_error_that_names_the_nearest(exported) -> None:
    model, _ = exported
    with pytest.raises(UnknownIdError, match="'u3'") as error:
        model.get_user_embedding("U3")
    assert "table 'user'" in str(error.value)
    with pytest.raises(UnknownIdError, match=str(tweet_id(22))):
        model.get_tweet_embedding(tweet_id(22) + 1)
    with pytest.raises(UnknownIdError):
        model.neighbors("user", "nobody", "fav_identity")


def test_unknown_tables_and_relations_name_what_there_is(exported) -> None:
    model, _ = exported
    with pytest.raises(ConfigError, match="user, tweet"):
        model.get_embedding("users", ["u3"])
    with pytest.raises(ConfigError, match="follow_identity"):
        model.predict_relation("u3", "u4", "follows")
    with pytest.raises(ConfigError, match="a relation is needed"):
        model.predict_relation("u3", "u4")


def test_a_model_without_a_table_of_users_says_so(tmp_path) -> None:
    scorer = RelationScorer([RelationSpec("r", "entity", "entity")], 2)
    export_model(tmp_path / "m", tables={"entity": torch.ones(3, 2)}, scorer=scorer, vocab_dir=None, model_card={})
    model = load_model(tmp_path / "m")
    with pytest.raises(ConfigError, match="entity"):
        model.get_user_embedding("u1")
    assert model.predict_relation(0, 1) == 2.0  # the only relation need not be named


def test_predicted_relation_worked_by_hand(tmp_path) -> None:
    scorer = RelationScorer([RelationSpec("fav", "user", "tweet", "translation")], 2)
    with torch.no_grad():
        scorer.weight.copy_(torch.tensor([[1.0, -1.0]]))
    tables = {"user": torch.tensor([[1.0, 2.0]]), "tweet": torch.tensor([[3.0, 0.5]])}
    export_model(tmp_path / "m", tables=tables, scorer=scorer, vocab_dir=None, model_card={})
    model = load_model(tmp_path / "m")
    # (1 + 1, 2 - 1) . (3, 0.5) = 6.5
    assert model.predict_relation(0, 0, "fav") == 6.5
    assert model.predict_relation(0, 0, "fav", probability=True) == pytest.approx(1 / (1 + math.exp(-6.5)))


def test_predict_relation_takes_ids_or_embeddings(exported) -> None:
    model, _ = exported
    user, tweet = model.get_user_embedding("u3"), model.get_tweet_embedding(tweet_id(2))
    expected = model.predict_relation("u3", tweet_id(2), "fav_translation")
    assert model.predict_relation(user, tweet, "fav_translation") == expected
    assert model.predict_relation("u3", torch.from_numpy(tweet), "fav_translation") == expected
    assert model.predict_relation(user.tolist(), tweet_id(2), "fav_translation") == pytest.approx(expected)
    with pytest.raises(DataError, match="wrong shape"):
        model.predict_relation(user[:3], tweet, "fav_translation")


def test_scores_of_many_edges(exported) -> None:
    model, _ = exported
    tweets = [tweet_id(row) for row in range(5)]
    scores = model.score_edges(["u3"], tweets, "fav_diagonal")
    assert scores.tolist() == [model.predict_relation("u3", tweet, "fav_diagonal") for tweet in tweets]
    with pytest.raises(DataError, match="same number"):
        model.score_edges(["u3", "u4"], tweets, "fav_diagonal")


@pytest.mark.parametrize("reciprocal", [False, True])
@pytest.mark.parametrize("comparator", ["dot", "cosine", "l2"])
def test_neighbors_equal_brute_force(tmp_path, monkeypatch, comparator: str, reciprocal: bool) -> None:
    """Every operator, both sides, with blocks of candidates smaller than k and tables larger than a block."""
    monkeypatch.setattr(serving_table, "_ROWS_AT_A_TIME", 4)
    tables = export(tmp_path / "model", comparator, reciprocal)
    model = load_model(tmp_path / "model")
    for index, spec in enumerate(RELATIONS):
        for side, table, other in (("lhs", spec.lhs, spec.rhs), ("rhs", spec.rhs, spec.lhs)):
            query = model.table(table).vocabulary.ids([5])[0]
            found = model.neighbors(table, query, spec.name, k=6, side=side)
            expected = brute_force(model, tables, index, side, 5)
            assert [node for node, _ in found] == [node for node, _ in expected][:6], (spec, side)
            assert [score for _, score in found] == pytest.approx([s for _, s in expected][:6], rel=1e-4, abs=1e-5)
            assert len(model.neighbors(table, query, spec.name, k=99, side=side)) == NUM_ROWS[other] - (table == other)


def brute_force(
    model: TwhinModelView, tables: dict[str, Tensor], relation: int, side: str, row: int
) -> list[tuple[object, float]]:
    spec, operator = RELATIONS[relation], model.scorer.operator(relation)
    candidates, table = (spec.rhs, spec.lhs) if side == "lhs" else (spec.lhs, spec.rhs)
    scored = []
    for node in range(NUM_ROWS[candidates]):
        if node == row and candidates == table:
            continue
        asked, answer = tables[table][[row]], tables[candidates][[node]]
        rel = torch.tensor([relation])
        if side == "lhs":
            score = model.scorer.pair_scores(operator, rel, asked, answer)
        else:
            score = pair_scores_of_lhs(model.scorer, rel, answer, asked)
        scored.append((user_id(node) if candidates == "user" else tweet_id(node), score.item()))
    return sorted(scored, key=lambda pair: -pair[1])


def test_the_side_of_the_query_follows_from_its_table(exported) -> None:
    model, _ = exported
    assert isinstance(model.neighbors("user", "u3", "fav_diagonal", k=1)[0][0], int)
    assert isinstance(model.neighbors("tweet", tweet_id(0), "fav_diagonal", k=1)[0][0], str)
    forward = model.neighbors("user", "u3", "follow_diagonal", k=3)
    assert forward == model.neighbors("user", "u3", "follow_diagonal", k=3, side="lhs")
    with pytest.raises(ConfigError, match="not at this end"):
        model.neighbors("tweet", tweet_id(0), "follow_diagonal")
    with pytest.raises(ConfigError, match="not at this end"):
        model.neighbors("user", "u3", "fav_diagonal", side="rhs")


def test_without_a_relation_embeddings_of_one_table_are_compared(exported) -> None:
    model, tables = exported
    found = model.neighbors("tweet", tweet_id(4), k=3)
    scores = tables["tweet"] @ tables["tweet"][4]
    scores[4] = -torch.inf
    assert [node for node, _ in found] == [tweet_id(row) for row in scores.topk(3).indices.tolist()]
    assert [score for _, score in found] == pytest.approx(scores.topk(3).values.tolist(), rel=1e-5)


def test_excluded_ids_and_the_query_itself_are_left_out(exported) -> None:
    model, _ = exported
    everyone = model.neighbors("user", "u3", "follow_translation", k=99)
    assert "u3" not in dict(everyone)
    rest = model.neighbors("user", "u3", "follow_translation", k=99, exclude=[everyone[0][0], "never seen"])
    assert rest == everyone[1:]
    # An embedding is nobody's own, so its owner is found.
    assert "u3" in dict(model.neighbors("user", model.get_user_embedding("u3"), "follow_translation", k=99))


def test_a_batch_equals_one_by_one(exported, monkeypatch) -> None:
    model, _ = exported
    monkeypatch.setattr("tml.projects.twhin.serving._QUERIES_AT_A_TIME", 2)
    users = [user_id(row) for row in range(5)]
    batch = model.neighbors_batch("user", users, "fav_translation", k=4)
    for user, found in zip(users, batch, strict=True):
        alone = model.neighbors("user", user, "fav_translation", k=4)
        assert [node for node, _ in found] == [node for node, _ in alone]
        assert [score for _, score in found] == pytest.approx([score for _, score in alone], rel=1e-5)
    by_vector = model.neighbors_batch("user", model.get_embedding("user", users), "fav_translation", k=4)
    assert [[node for node, _ in found] for found in by_vector] == [[node for node, _ in found] for found in batch]
    assert model.neighbors_batch("user", [], "fav_translation") == []
    with pytest.raises(ConfigError, match="k >= 1"):
        model.neighbors("user", "u3", "fav_translation", k=0)


def test_equal_scores_come_in_the_order_of_rows(tmp_path, monkeypatch) -> None:
    scorer = RelationScorer([RelationSpec("r", "entity", "entity")], 2)
    export_model(tmp_path / "m", tables={"entity": torch.ones(30, 2)}, scorer=scorer, vocab_dir=None, model_card={})
    model, others = load_model(tmp_path / "m"), [node for node in range(30) if node != 7]
    monkeypatch.setattr(serving_table, "_ROWS_AT_A_TIME", 8)
    for k in (3, 12, 29):
        assert [node for node, _ in model.neighbors("entity", 7, "r", k=k)] == others[:k]


def test_a_mapped_table_answers_alike_and_is_not_read(tmp_path, exported) -> None:
    export(tmp_path / "model", memory_map=True)
    model, plain = load_model(tmp_path / "model"), exported[0]
    assert isinstance(model.table("tweet").array, np.memmap)
    assert model.neighbors("user", "u3", "fav_identity") == plain.neighbors("user", "u3", "fav_identity")


def test_the_folder_alone_is_enough_and_serving_needs_no_training_libraries(tmp_path) -> None:
    export(tmp_path / "model")
    moved = tmp_path / "elsewhere" / "model"
    moved.parent.mkdir()
    (tmp_path / "model").rename(moved)
    code = (
        "import sys; from tml.projects.twhin.serving import load_model; m = load_model(sys.argv[1]);"
        "print(m.neighbors('user', 'u3', 'fav_diagonal', k=1)[0][0]);"
        "print([name for name in ('fbgemm_gpu', 'torchrec', 'polars') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(moved)], capture_output=True, text=True, cwd=tmp_path, timeout=120
    )
    expected = load_model(moved).neighbors("user", "u3", "fav_diagonal", k=1)[0][0]
    assert done.stdout.split("\n")[:2] == [str(expected), "[]"], done.stderr


def test_damaged_folders_are_explained(tmp_path) -> None:
    with pytest.raises(DataError, match="not a model folder"):
        load_model(tmp_path)
    export(tmp_path / "model")
    path = tmp_path / "model" / "embeddings" / "user.parquet"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(DataError, match=r"cut off(.|\n)*user\.parquet"):
        load_model(tmp_path / "model")
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    load_model(tmp_path / "model")
    with pytest.raises(DataError, match="changed since its export"):
        load_model(tmp_path / "model", verify=True)
    path.unlink()
    with pytest.raises(DataError, match="missing"):
        load_model(tmp_path / "model")


@pytest.mark.parametrize("change", [{"version": 99}, {"format": "other"}, {"tables": None}])
def test_a_model_of_another_format_is_refused(tmp_path, change: dict[str, object]) -> None:
    export(tmp_path / "model")
    path = tmp_path / "model" / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError):
        load_model(tmp_path / "model")


def test_the_card_can_be_read(exported) -> None:
    assert exported[0].card["step"] == 5
    assert exported[0].table_names == ["user", "tweet"]
    assert exported[0].relation_names[0] == "follow_identity"


@pytest.mark.parametrize("comparator", ["dot", "cosine", "l2"])
def test_the_index_finds_nearly_all_exact_neighbors(tmp_path, comparator: str) -> None:
    pytest.importorskip("usearch")
    torch.manual_seed(0)
    num_users, num_tweets, dim = 30, 3000, 16
    scorer = RelationScorer([RelationSpec("fav", "user", "tweet", "translation")], dim, comparator)  # type: ignore[arg-type]
    torch.nn.init.normal_(scorer.weight, std=0.5)
    centers = torch.randn(20, dim)
    tables = {
        "user": centers[torch.arange(num_users) % 20] + 0.5 * torch.randn(num_users, dim),
        "tweet": centers[torch.arange(num_tweets) % 20] + 0.5 * torch.randn(num_tweets, dim),
    }
    export_model(tmp_path / "m", tables=tables, scorer=scorer, vocab_dir=None, model_card={})
    model = load_model(tmp_path / "m")
    index = model.build_index("tweet")
    found = total = 0
    for user in range(num_users):
        exact = model.neighbors("user", user, "fav", k=10)
        near = index.neighbors("user", user, "fav", k=10)
        assert all(score == pytest.approx(dict(exact)[node], rel=1e-4) for node, score in near if node in dict(exact))
        found += len(dict(exact).keys() & dict(near).keys())
        total += 10
    assert found / total >= 0.95
    similar = index.neighbors("tweet", 5, k=10)
    assert len(similar) == 10
    assert 5 not in dict(similar)
    with pytest.raises(ConfigError, match="another table"):
        index.neighbors("user", 0, None)


def test_without_usearch_the_index_says_what_to_do(exported, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "usearch.index", None)
    with pytest.raises(ConfigError, match="usearch is not installed"):
        exported[0].build_index("tweet")
