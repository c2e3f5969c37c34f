"""Vocabularies answer in both directions, name the nearest known ids, and refuse files that are not sound."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tml.common import id_index
from tml.common.errors import DataError, UnknownIdError
from tml.projects.twhin.data.vocab import UNKNOWN, RelationVocabulary, Vocabulary, VocabularyHash


def _file(tmp_path: Path, ids: list, index: list[int] | None = None) -> Path:
    path = tmp_path / "user.parquet"
    index = list(range(len(ids))) if index is None else index
    pq.write_table(pa.table({"id": ids, "index": pa.array(index, pa.int64()), "count": [1] * len(ids)}), path)
    return path


@pytest.mark.parametrize("ids", [["u1", "ü", "", "a b"], [7, -3, 2**62, 0]])
def test_ids_and_indexes_both_ways(tmp_path: Path, ids: list) -> None:
    vocabulary = Vocabulary.from_parquet(_file(tmp_path, ids))
    assert len(vocabulary) == 4
    assert vocabulary.name == "user"
    assert vocabulary.index([ids[2], ids[0], ids[2]]).tolist() == [2, 0, 2]
    assert vocabulary.ids([3, 1]).tolist() == [ids[3], ids[1]]
    assert vocabulary.index([]).dtype == np.int64
    assert ids[1] in vocabulary
    assert "nobody" not in vocabulary


@settings(deadline=None)
@given(
    known=st.lists(st.text(max_size=6), unique=True, max_size=40),
    asked=st.lists(st.text(max_size=6), max_size=40),
)
def test_string_lookup_is_that_of_a_dict(known: list[str], asked: list[str]) -> None:
    known, asked = ([s for s in strings if not any("\ud800" <= c <= "\udfff" for c in s)] for strings in (known, asked))
    vocabulary = Vocabulary(pa.array(known, pa.string()))
    table = {value: i for i, value in enumerate(known)}
    expected = [table.get(value, UNKNOWN) for value in asked + known]
    assert vocabulary.index(asked + known, unknown="skip").tolist() == expected


@given(known=st.lists(st.integers(-(2**63), 2**63 - 1), unique=True, max_size=40), asked=st.lists(st.integers()))
def test_integer_lookup_is_that_of_a_dict(known: list[int], asked: list[int]) -> None:
    vocabulary = Vocabulary(pa.array(known, pa.int64()))
    table = {value: i for i, value in enumerate(known)}
    expected = [table.get(value, UNKNOWN) for value in asked + known]
    assert vocabulary.index(asked + known, unknown="skip").tolist() == expected


def test_strings_with_one_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(id_index, "_string_hashes", lambda ids: np.zeros(len(ids), np.uint64))
    vocabulary = Vocabulary(["a", "b", "c"])
    assert vocabulary.index(["c", "x", "a", "b"], unknown="skip").tolist() == [2, -1, 0, 1]
    with pytest.raises(DataError, match="occurs twice"):
        Vocabulary(["a", "b", "c", "b"])


def test_string_hashes_by_the_definition_and_over_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(id_index, "_SLICE", 3)
    strings = ["", "a", "aa", "ab", "ba", "a\x00", "\x00a", "user:17"]
    keys = id_index._keys(pa.array(strings, pa.large_string()))
    assert len(set(keys.tolist())) == len(strings)
    again = id_index._keys(pa.array(["x", *strings], pa.large_string()).slice(1))
    assert (keys == again).all()  # the same wherever a string lies


def test_text_and_integers_mean_the_same_id_only_in_canonical_form() -> None:
    integers, strings = Vocabulary([7, 17]), Vocabulary(["7", "17"])
    assert integers.index(["17", 7]).tolist() == [1, 0]
    assert strings.index([17, "7", np.int64(7)]).tolist() == [1, 0, 0]
    assert integers.index(["017", "7.0", 7.0, None, "x", True], unknown="skip").tolist() == [UNKNOWN] * 6
    assert integers.index(np.array([17, 7])).tolist() == [1, 0]
    assert strings.index(pa.chunked_array([["17"], ["7"]])).tolist() == [1, 0]


def test_unknown_id_names_the_nearest_known_ones() -> None:
    vocabulary = Vocabulary(["alice", "bob", "Carol", "user_17", "user_18"], name="user")
    for asked, near in [("alcie", "alice"), ("carol", "Carol"), ("user17", "user_17"), ("ALICE", "alice")]:
        with pytest.raises(UnknownIdError) as caught:
            vocabulary.index(["bob", asked])
        assert f"did you mean {near!r}?" in str(caught.value)
        assert "table 'user'" in str(caught.value)
        assert caught.value.value == asked
    with pytest.raises(UnknownIdError) as caught:
        Vocabulary([10, 20, 30, 1000]).index([24])
    assert "nearest: 20, 30, 10" in str(caught.value)


def test_several_unknown_ids_are_counted() -> None:
    with pytest.raises(UnknownIdError, match="3 unknown ids") as caught:
        Vocabulary(["a"]).index(["x", "a", "y", "z"])
    assert caught.value.value == ["x", "y", "z"]


def test_nearest_in_a_table_of_many_ids() -> None:
    vocabulary = Vocabulary([f"user_{i}" for i in range(50_000)])
    assert vocabulary.nearest("user_1234x")[0] == "user_1234"
    assert vocabulary.nearest("usr_4321")[0] == "user_4321"
    assert vocabulary.nearest("") == []


def test_an_empty_vocabulary_knows_nothing() -> None:
    vocabulary = Vocabulary(pa.array([], pa.string()))
    assert len(vocabulary) == 0
    assert vocabulary.index(["a"], unknown="skip").tolist() == [UNKNOWN]
    with pytest.raises(UnknownIdError):
        vocabulary.index(["a"])


def test_index_outside_the_table() -> None:
    for wrong in (-1, 2):
        with pytest.raises(DataError, match="index outside the table") as caught:
            Vocabulary(["a", "b"]).ids([0, wrong])
        assert caught.value.limit == "0 <= index < 2"


def test_one_id_twice(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="id occurs twice") as caught:
        Vocabulary.from_parquet(_file(tmp_path, ["a", "b", "c", "b"]))
    assert "rows 1 and 3" in str(caught.value)
    with pytest.raises(DataError, match="id occurs twice"):
        Vocabulary.from_parquet(_file(tmp_path, [5, 5]))


@pytest.mark.parametrize("index", [[0, 1, 1], [0, 2, 1], [1, 2, 3], [0, 1, 3]])
def test_two_names_for_one_index_and_a_changed_order(tmp_path: Path, index: list[int]) -> None:
    with pytest.raises(DataError, match="index of a vocabulary is not contiguous") as caught:
        Vocabulary.from_parquet(_file(tmp_path, ["a", "b", "c"], index))
    row = next(i for i in range(3) if index[i] != i)
    assert f"row {row}" in str(caught.value)


def test_null_id_missing_column_and_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="null id") as caught:
        Vocabulary.from_parquet(_file(tmp_path, ["a", None]))
    assert "row 1" in str(caught.value)
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "short.parquet")
    with pytest.raises(DataError, match="column missing") as caught:
        Vocabulary.from_parquet(tmp_path / "short.parquet")
    assert caught.value.value == ["index"]
    with pytest.raises(DataError, match="cannot be read"):
        Vocabulary.from_parquet(tmp_path / "none.parquet")
    with pytest.raises(DataError, match="neither strings nor integers"):
        Vocabulary([1.5])


def test_hash_depends_on_ids_and_order_and_not_on_the_files_layout() -> None:
    ids = [f"u{i}" for i in range(10)]
    chunks = pa.chunked_array([ids[:3], ids[3:]])
    assert Vocabulary(ids).hash == Vocabulary(chunks).hash == Vocabulary(pa.array(["x", *ids]).slice(1)).hash
    others = [ids[::-1], ids[:-1], ["u", "0u", "1", *ids[2:]], ["u0u1", "", *ids[2:]]]
    assert len({Vocabulary(other).hash for other in [ids, *others]}) == 5
    assert Vocabulary([1, 2]).hash != Vocabulary(["1", "2"]).hash


def test_hash_may_be_taken_piece_by_piece() -> None:
    digest = VocabularyHash()
    for piece in (["a", "bc"], [], ["d"]):
        digest.update(pa.array(piece, pa.string()))
    assert digest.hexdigest() == Vocabulary(["a", "bc", "d"]).hash


def test_relations_by_name(tmp_path: Path) -> None:
    table = pa.table({"id": ["follow", "fav"], "index": [0, 1], "lhs": ["user", "user"], "rhs": ["user", "tweet"]})
    pq.write_table(table, tmp_path / "relations.parquet")
    vocabulary = RelationVocabulary.from_parquet(tmp_path / "relations.parquet")
    assert (vocabulary.names, vocabulary.rhs, len(vocabulary)) == (["follow", "fav"], ["user", "tweet"], 2)
    assert vocabulary.index(["fav"]).tolist() == [1]
    with pytest.raises(UnknownIdError, match="did you mean 'follow'"):
        vocabulary.index(["folow"])
    with pytest.raises(DataError, match="occurs twice"):
        RelationVocabulary(["r", "r"], ["a", "a"], ["b", "b"])
