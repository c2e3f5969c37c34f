"""From raw columns to ids and numbers: every kind of feature, every form of input, and what cannot be encoded."""

from __future__ import annotations

from datetime import date
from typing import Any

import mmh3
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tml.common.errors import DataError
from tml.core.config.loading import parse_config
from tml.projects.light_ranker.features.config import FeatureConfig
from tml.projects.light_ranker.features.encoder import EncodedRows, Encoder
from tml.projects.light_ranker.features.kinds import HashedConfig
from tml.projects.light_ranker.features.lookup import HashedLookup
from tml.projects.light_ranker.features.raw_columns import Ids, as_ids
from tml.projects.light_ranker.features.vocabulary import Vocabulary

NAN = np.nan


def encoder(*features: dict[str, Any], bad_values: dict[str, str] | None = None, **vocabularies: list) -> Encoder:
    full = [{"side": "candidate", **feature} for feature in features]
    values = {"features": full, "labels": [{"name": "click", "kind": "binary"}], "bad_values": bad_values or {}}
    known = {name: Vocabulary(pa.array(ids), name) for name, ids in vocabularies.items()}
    return Encoder(parse_config(FeatureConfig, values), known, {})


def encode(feature: dict[str, Any], raw: Any, known: list | None = None, **bad_values: str) -> EncodedRows:
    vocabularies = {} if known is None else {"f": known}
    return encoder({"name": "f", **feature}, bad_values=bad_values, **vocabularies).encode({"f": raw})


CITY = {"kind": "categorical", "type": "string"}
NUMBER_ID = {"kind": "categorical", "type": "int"}


@pytest.mark.parametrize(
    "raw",
    [
        ["a", None, "b", "zz"],
        np.array(["a", None, "b", "zz"], object),
        pa.array(["a", None, "b", "zz"]),
        pa.array(["a", None, "b", "zz"], pa.large_string()),
        pa.array(["a", None, "b", "zz"]).dictionary_encode(),
        pa.chunked_array([["a", None], ["b", "zz"]]),
    ],
)
def test_text_ids_in_any_form(raw):
    assert encode(CITY, raw, ["b", "a"]).ids[:, 0].tolist() == [3, 0, 2, 1]


@pytest.mark.parametrize(
    "raw",
    [
        [7, None, 5, 9],
        [7.0, NAN, 5.0, 9.0],
        np.array([7.0, NAN, 5.0, 9.0], np.float32),
        ["7", None, "5", "nine"],
        pa.array([7, None, 5, 9], pa.uint64()),
        pa.array([7, None, 5, 9], pa.int8()),
    ],
)
def test_integer_ids_in_any_form(raw):
    assert encode(NUMBER_ID, raw, [5, 7]).ids[:, 0].tolist() == [3, 0, 2, 1]


def test_only_the_canonical_text_of_a_number_is_its_id():
    found = encode(NUMBER_ID, ["7", "07", "+7", "7.0", "-7", "9223372036854775806"], [7, -7, 9223372036854775806])
    assert found.ids[:, 0].tolist() == [2, 1, 1, 1, 3, 4]


def test_far_apart_integers_are_found_without_a_table_of_all_between():
    values = [2**62, -(2**62), 0]
    assert encode(NUMBER_ID, [0, 2**62, 5, -(2**62)], values).ids[:, 0].tolist() == [4, 2, 1, 3]


def test_dates_and_booleans_can_be_ids():
    assert encode(CITY, [date(2026, 4, 8), None], ["2026-04-08"]).ids[:, 0].tolist() == [2, 0]
    assert encode(NUMBER_ID, [True, False], [0, 1]).ids[:, 0].tolist() == [3, 2]


def test_missing_values_and_defaults_of_ids():
    given = {**CITY, "missing_values": ["unknown", "n/a"]}
    assert encode(given, ["a", "n/a", "unknown", None], ["a", "b"]).ids[:, 0].tolist() == [2, 0, 0, 0]
    filled = encode({**given, "default": "b"}, ["a", "n/a", "unknown", None], ["a", "b"])
    assert filled.ids[:, 0].tolist() == [2, 3, 3, 3]
    numbers = encode({**NUMBER_ID, "missing_values": [-1], "default": 7}, [-1, None, 7], [7])
    assert numbers.ids[:, 0].tolist() == [2, 2, 2]


def test_hashed_text_is_murmur3_of_its_bytes():
    texts = ["a", "", "Zürich", "a" * 100]
    found = encode({**CITY, "hashed": {"num_buckets": 1000}}, [*texts, None]).ids[:, 0]
    expected = [2 + mmh3.hash64(text.encode(), seed=0, signed=False)[0] % 1000 for text in texts]
    assert found.tolist() == [*expected, 0]


def _fmix64(key: int) -> int:
    """MurmurHash3's finaliser in whole numbers, as its author gives it."""
    key = (key ^ (key >> 33)) * 0xFF51AFD7ED558CCD % 2**64
    key = (key ^ (key >> 33)) * 0xC4CEB9FE1A85EC53 % 2**64
    return key ^ (key >> 33)


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20), st.integers(1, 2**40 - 1))
@settings(max_examples=30, deadline=None)
def test_hashed_integers_are_murmur3_finalised(keys: list[int], num_buckets: int):
    rows = HashedLookup(HashedConfig(num_buckets=num_buckets)).rows(Ids(np.array(keys, np.int64)))
    assert rows.tolist() == [2 + _fmix64(key % 2**64) % num_buckets for key in keys]


def test_the_type_decides_the_hash_and_not_the_form_of_the_input():
    feature = {**NUMBER_ID, "hashed": {"num_buckets": 10_000}}
    assert encode(feature, ["12", "34"]).ids.tolist() == encode(feature, [12, 34]).ids.tolist()
    feature = {**CITY, "hashed": {"num_buckets": 10_000}}
    assert encode(feature, ["12", "34"]).ids.tolist() == encode(feature, [12, 34]).ids.tolist()


def test_identity_ids_are_rows_and_out_of_range_is_an_error_or_unknown():
    feature = {**NUMBER_ID, "identity": {"num_ids": 10}}
    assert encode(feature, [0, 9, None]).ids[:, 0].tolist() == [2, 11, 0]
    with pytest.raises(DataError, match=r"row 1, feature 'f'[\s\S]*value: 10[\s\S]*0 <= id < 10"):
        encode(feature, [0, 10, None])
    assert encode(feature, [-1, 10, 3], ids="unknown").ids[:, 0].tolist() == [1, 1, 5]
    with pytest.raises(DataError, match="no integer"):
        encode(feature, ["3", "x"])


def test_fractions_are_no_ids():
    with pytest.raises(DataError, match=r"fraction[\s\S]*value 1[\s\S]*2\.5[\s\S]*continuous"):
        encode(NUMBER_ID, [2.0, 2.5], [2])


LIST = {"kind": "ids", "type": "string", "max_length": 3}


@pytest.mark.parametrize(
    "raw",
    [
        [["a", "b"], [], None, ["zz", None, "b"], ["a", "a", "b", "b"]],
        pa.array([["a", "b"], [], None, ["zz", None, "b"], ["a", "a", "b", "b"]]),
        pa.array([["a", "b"], [], None, ["zz", None, "b"], ["a", "a", "b", "b"]], pa.large_list(pa.string())),
    ],
)
def test_lists_are_padded_and_cut_off_and_their_missing_items_left_out(raw):
    found = encode(LIST, raw, ["a", "b"])
    assert found.ids.tolist() == [[2, 3, -1], [0, -1, -1], [0, -1, -1], [1, 3, -1], [2, 2, 3]]
    assert found.truncated["f"].tolist() == [False, False, False, False, True]


def test_slices_of_list_arrays_keep_their_rows():
    raw = pa.array([["x"], ["a", "b"], [], ["b"]]).slice(1, 3)
    assert encode(LIST, raw, ["a", "b"]).ids[:, 0].tolist() == [2, 0, 3]


def test_text_is_split_at_the_separator():
    found = encode({**LIST, "separator": "|"}, ["a|b", "", None, "|b|", "zz"], ["a", "b"])
    assert found.ids.tolist() == [[2, 3, -1], [0, -1, -1], [0, -1, -1], [3, -1, -1], [1, -1, -1]]
    numbers = encode({**LIST, "type": "int", "separator": ","}, ["5,7", "7,x"], [7, 5])
    assert numbers.ids.tolist() == [[3, 2, -1], [2, 1, -1]]


def test_two_dimensional_arrays_are_lists():
    assert encode({**LIST, "type": "int"}, np.array([[5, 7], [7, 9]]), [7, 5]).ids.tolist() == [[3, 2, -1], [2, 1, -1]]


def test_identity_lists_name_the_row_of_an_id_out_of_range():
    feature = {"kind": "ids", "type": "int", "max_length": 2, "identity": {"num_ids": 4}}
    with pytest.raises(DataError, match=r"row 2, feature 'f'[\s\S]*value: 4"):
        encode(feature, [[1], [], [0, 4]])


NUMBER = {"kind": "continuous"}


@pytest.mark.parametrize(
    "raw",
    [
        [1.5, None, 2, NAN],
        np.array([1.5, NAN, 2, NAN], np.float16),
        ["1.5", None, " 2e0 ", "nan"],
        pa.array([1.5, None, 2, None], pa.float32()),
        pa.array(["1.50", None, "2.00", None]).cast(pa.decimal128(5, 2)),
    ],
)
def test_numbers_in_any_form(raw):
    found = encode(NUMBER, raw).continuous[:, 0]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.array([1.5, NAN, 2, NAN], np.float32))


def test_missing_values_and_defaults_of_numbers():
    found = encode({**NUMBER, "missing_values": [-1, "999"], "default": 0.5}, [-1, 999, None, 3])
    assert found.continuous[:, 0].tolist() == [0.5, 0.5, 0.5, 3]


@pytest.mark.parametrize("bad", [np.inf, -np.inf, 1e300])
def test_infinite_numbers_are_an_error_or_missing(bad):
    with pytest.raises(DataError, match=r"row 1, feature 'f'"):
        encode(NUMBER, [1.0, bad])
    assert np.isnan(encode(NUMBER, [1.0, bad], numbers="missing").continuous[1, 0])


def test_text_that_is_no_number_is_told():
    with pytest.raises(DataError, match=r"row 1[\s\S]*'12a'"):
        encode(NUMBER, ["1", "12a"])
    assert np.isnan(encode(NUMBER, ["1", "12a"], numbers="missing").continuous[1, 0])


def test_where_rows_cannot_be_left_out_skip_is_an_error():
    with pytest.raises(DataError, match="infinite"):
        encode(NUMBER, [np.inf], numbers="skip")


VECTOR = {"kind": "vector", "dim": 2, "default": 9.0}


def test_vectors_are_filled_with_their_default():
    raw = [[1.0, 2.0], None, [-1.0, 4.0]]
    for form in (raw, pa.array(raw, pa.list_(pa.float32(), 2)), pa.array(raw, pa.list_(pa.float64()))):
        found = encode(VECTOR | {"missing_values": [-1]}, form)
        assert found.vectors.tolist() == [[1, 2], [9, 9], [9, 4]]


def test_vectors_of_another_length_are_told():
    with pytest.raises(DataError, match=r"row 1, feature 'f'[\s\S]*value: 3[\s\S]*dim: 2"):
        encode(VECTOR, [[1.0, 2.0], [1.0, 2.0, 3.0]])


@pytest.mark.parametrize("hole", [None, NAN, np.inf, 1e39])
def test_an_element_of_a_vector_that_is_no_finite_number_is_told(hole):
    raw = [[1.0, 2.0], None, [hole, 4.0]]
    for form in (raw, pa.array(raw, pa.list_(pa.float64(), 2)), pa.array(raw, pa.list_(pa.float64()))):
        with pytest.raises(DataError, match=r"no finite number[\s\S]*row 2, feature 'f'[\s\S]*numbers: missing"):
            encode(VECTOR, form)
        assert encode(VECTOR, form, numbers="missing").vectors.tolist() == [[1, 2], [9, 9], [9, 4]]


def _both_sides() -> Encoder:
    return encoder(
        {"name": "u", **CITY, "side": "user"},
        {"name": "t", **LIST},
        {"name": "x", **NUMBER},
        {"name": "y", **NUMBER, "side": "user", "column": "raw_y"},
        {"name": "v", **VECTOR},
        u=["a"],
        t=["b"],
    )


def test_one_side_is_the_same_as_its_part_of_both():
    made = _both_sides()
    columns = {"u": ["a", "z"], "t": [["b"], []], "x": [1, 2], "raw_y": [3, 4], "v": [[1, 2], [3, 4]], "more": [0]}
    both = made.encode(columns)
    assert both.ids.tolist() == [[2, 2, -1, -1], [1, 0, -1, -1]]
    user, candidate = made.encode(columns, "user"), made.encode(columns, "candidate")
    np.testing.assert_array_equal(np.hstack([user.ids, candidate.ids]), both.ids)
    assert (user.continuous.tolist(), candidate.continuous.tolist()) == ([[3], [4]], [[1], [2]])
    assert both.continuous.tolist() == [[1, 3], [2, 4]]
    assert user.vectors.shape == (2, 0)
    assert made.columns("user") == ["u", "raw_y"]


def test_no_rows_give_no_rows():
    found = _both_sides().encode({"u": [], "t": [], "x": [], "raw_y": [], "v": []})
    assert (found.ids.shape, found.continuous.shape, found.vectors.shape) == ((0, 4), (0, 2), (0, 2))


@pytest.mark.parametrize(
    ("feature", "raw", "says"),
    [
        (CITY, [["a"]], "kind: ids"),
        (LIST, [1], "categorical"),
        (LIST, ["a|b"], "separator"),
        (NUMBER, [[1]], "numbers"),
        (VECTOR, [1.0], "lists"),
        (NUMBER, [1, "x"], "different kinds"),
        (CITY, [b"\xff"], "cannot be ids"),
    ],
)
def test_columns_of_a_wrong_type_are_told(feature, raw, says):
    with pytest.raises(DataError, match=f"feature 'f'[\\s\\S]*{says}|{says}"):
        encode(feature, raw, ["a"] if feature in (CITY, LIST) else None)


def test_missing_and_uneven_columns_are_told():
    made = _both_sides()
    columns = {"u": ["a"], "t": [["b"]], "x": [1], "row_y": [3], "v": [[1, 2]]}
    with pytest.raises(DataError, match=r"feature 'y' \(column 'raw_y'\)[\s\S]*did you mean 'row_y'"):
        made.encode(columns)
    with pytest.raises(DataError, match="differ in length"):
        made.encode({**columns, "raw_y": [1, 2]})


@given(st.lists(st.one_of(st.none(), st.text(max_size=3), st.integers(-(2**63), 2**63 - 1)), max_size=8))
@settings(max_examples=60, deadline=None)
def test_any_column_is_encoded_in_range_or_refused(raw):
    made = encoder({"name": "f", **CITY}, f=["a", "b"])
    try:
        found = made.encode({"f": raw})
    except DataError:
        return
    assert ((found.ids >= 0) & (found.ids < made.spec.ids[0].num_rows)).all()


def test_integers_too_large_are_told():
    with pytest.raises(DataError, match="too large"):
        as_ids(pa.array([2**64 - 1], pa.uint64()), "int", "here")
