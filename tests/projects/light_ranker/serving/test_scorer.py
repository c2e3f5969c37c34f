import shutil
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pytest

from tests.projects.light_ranker.export.tiny_ranker import CANDIDATES, ISOTONIC, USER
from tml.common.errors import ConfigError, DataError, NonFiniteError
from tml.projects.light_ranker.export.check import trainer_scores
from tml.projects.light_ranker.export.graph import isotonic_of
from tml.projects.light_ranker.export.rows import CheckRows
from tml.projects.light_ranker.serving.scorer import Scorer, check_finite
from tml.projects.light_ranker.serving.scores import best

COLUMNS = {name: [row.get(name) for row in CANDIDATES] for name in CANDIDATES[0]}


def trainers_answer(served, rows: list[dict]):
    """Scores by the training path: all columns encoded together, the model itself, the fitted calibration."""
    columns = {name: [row.get(name) for row in rows] for name in served.encoder.columns()}
    found = served.encoder.encode(columns)
    encoded = CheckRows(
        served.encoder.spec,
        found.ids,
        found.continuous,
        found.vectors,
        np.empty((len(rows), 0), np.float32),
        np.ones(len(rows), np.float32),
    )
    return trainer_scores(served.model, isotonic_of(ISOTONIC), encoded)


def test_raw_features_score_as_in_training(served):
    found = served.scorer.score(USER, CANDIDATES)
    expected = trainers_answer(served, [USER | row for row in CANDIDATES])
    assert found.probabilities.dtype == np.float32
    assert len(set(found.probabilities.tolist())) == 3
    np.testing.assert_allclose(found.probabilities, expected["probability"], atol=5e-6)
    np.testing.assert_allclose(np.log1p(found.watch_time), expected["watch_time"], atol=5e-5)
    assert found.top_k is None


@pytest.mark.parametrize("candidates", [COLUMNS, pa.table(COLUMNS), pa.table(COLUMNS).to_batches()[0]])
def test_candidates_may_come_as_rows_columns_or_tables(served, candidates):
    np.testing.assert_array_equal(
        served.scorer.score(USER, candidates).probabilities, served.scorer.score(USER, CANDIDATES).probabilities
    )


def test_numpy_columns_and_dictionary_encoded_text_are_taken_too(served):
    found = served.scorer.score(
        USER,
        {"hour": np.array([1.0, 2.0]), "image": np.ones((2, 3)), "author": pa.array(["ann", "x"]).dictionary_encode()},
    )
    rows = [{"hour": 1.0, "image": [1, 1, 1], "author": "ann"}, {"hour": 2.0, "image": [1, 1, 1], "author": "x"}]
    np.testing.assert_array_equal(found.probabilities, served.scorer.score(USER, rows).probabilities)


def test_absent_features_and_unknown_ids_take_their_defaults(served):
    score = served.scorer.score
    explicit = dict.fromkeys(USER)
    np.testing.assert_array_equal(score({}, [{}, {}]).probabilities, score(explicit, [{}, {}]).probabilities)
    by_default, said = score(USER, [{"hour": None}, {"hour": 12.0}]).probabilities
    assert by_default == said
    unknown, other, missing = score(USER, [{"tweet_id": 999}, {"tweet_id": -1}, {"tweet_id": None}]).probabilities
    assert unknown == other != missing


def test_the_best_candidates_come_first_also_where_calibration_makes_them_equal(served):
    candidates = [{"hour": hour, "image": [hour, 0, 1]} for hour in np.linspace(-50, 50, 200)]
    found = served.scorer.score(USER, candidates, top_k=40)
    raw = trainers_answer(served, [USER | row for row in candidates])["logit"]
    assert len(set(found.probabilities.tolist())) < 150 < len(set(raw.tolist()))
    np.testing.assert_allclose(raw[found.top_k], np.sort(raw)[::-1][:40], atol=1e-5)
    assert (np.diff(found.probabilities[found.top_k]) <= 0).all()


def test_equally_good_candidates_keep_their_order(served):
    assert served.scorer.score(USER, CANDIDATES[:1] * 5, top_k=3).top_k.tolist() == [0, 1, 2]
    assert served.scorer.score(USER, CANDIDATES, top_k=99).top_k.shape == (3,)
    scores = np.random.default_rng(0).integers(0, 20, 500).astype(np.float32)
    for k in (1, 7, 499, 500):
        assert best(scores, k).tolist() == np.argsort(-scores, kind="stable")[:k].tolist()


def test_no_candidates_are_no_scores(served):
    for nothing in ([], {}, pa.table({"hour": pa.array([], pa.float64())})):
        found = served.scorer.score(USER, nothing, top_k=3)
        assert (len(found.probabilities), len(found.watch_time), len(found.top_k)) == (0, 0, 0)


def test_a_tables_rows_each_have_a_user_of_their_own(served):
    rows = [USER | CANDIDATES[0], {"country": "fr"} | CANDIDATES[1]]
    names = {name for row in rows for name in row}
    table = pa.table({name: [row.get(name) for row in rows] for name in names} | {"label": [0, 1]})
    expected = trainers_answer(served, rows)["probability"]
    np.testing.assert_allclose(served.scorer.score_rows(table).probabilities, expected, atol=5e-6)


@pytest.mark.parametrize(
    ("user", "candidates", "where", "value"),
    [
        (USER, [{"hour": 1.0}, {"hour": float("nan")}], "row 1, feature 'hour'", float("nan")),
        (USER, [{"hour": 1.0}, {"hour": float("inf")}], "row 1, feature 'hour'", float("inf")),
        (USER, {"hour": np.array([1.0, -np.inf])}, "row 1, feature 'hour'", -float("inf")),
        (USER, [{"hour": 1e39}], "row 0, feature 'hour'", 1e39),
        (USER, [{"hour": "noon"}], "row 0, feature 'hour'", "noon"),
        (USER, [{"tweet_id": 7}, {"tweet_id": 7.5}], "row 1, feature 'tweet_id'", 7.5),
        (USER, [{"tweet_id": "7"}], "row 0, feature 'tweet_id'", "7"),
        (USER, [{"tweet_id": 2**64}], "row 0, feature 'tweet_id'", 2**64),
        (USER, [{"author": 5}], "row 0, feature 'author'", 5),
        (USER, [{"author": "\ud800"}], "row 0, feature 'author'", "\ud800"),
        (USER, [{"topics": "cats"}], "row 0, feature 'topics'", "cats"),
        (USER, [{"topics": ["cats", 3]}], "row 0, feature 'topics'", ["cats", 3]),
        (USER, [{"image": [1, 2, 3]}, {"image": [1, 2]}], "row 1, feature 'image'", [1, 2]),
        (USER, [{"image": [1, 2, float("nan")]}], "row 0, feature 'image'", [1, 2, float("nan")]),
        (USER, [{"image": [1, 2, 3]}, {"image": [1, None, 3]}], "row 1, feature 'image'", [1, None, 3]),
        (USER, pa.table({"image": [[1.0, 2.0, None]]}), "row 0, feature 'image'", [1.0, 2.0, None]),
        (USER, [{"topics": ["cats", None]}, {"topics": ["cats", 3]}], "row 1, feature 'topics'", ["cats", 3]),
        ({"taste": [None, 1.0]}, [{}], "row 0, feature 'taste'", [None, 1.0]),
        ({"age": "old"}, [{}], "row 0, feature 'age'", "old"),
    ],
)
def test_a_bad_value_is_named_with_row_and_feature(served, user, candidates, where, value):
    with pytest.raises(DataError, match="wrong type or range") as caught:
        served.scorer.score(user, candidates)
    assert where in caught.value.where
    np.testing.assert_equal(caught.value.value, value)
    assert "null for the default" in caught.value.limit


@pytest.mark.parametrize(
    ("user", "candidates", "message"),
    [
        (USER, [{"hours": 1.0}], "did you mean 'hour'"),
        ({"hour": 1.0}, CANDIDATES, "on the side it belongs to"),
        (USER, [{"hour": 1.0}, 3], "must come by name"),
        ("anna", CANDIDATES, "must come by name"),
        (USER, {"hour": [1.0], "author": ["a", "b"]}, "differ in length"),
        (USER, {"author": "ann"}, "is no list"),
        (USER, "abc", "no rows"),
        (USER, 3, "no rows"),
    ],
)
def test_a_request_of_a_wrong_shape_is_refused(served, user, candidates, message):
    with pytest.raises(DataError, match=message):
        served.scorer.score(user, candidates)


def test_a_nan_score_is_an_error_and_not_an_answer():
    with pytest.raises(NonFiniteError, match="probability, row 1"):
        check_finite("probability", np.array([0.5, np.nan], np.float32))
    with pytest.raises(NonFiniteError, match="row 0"):
        check_finite("watch_time", np.array([np.inf, -np.inf], np.float32))


def test_a_changed_folder_does_not_open(served, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(served.folder, copy)
    table = bytearray((copy / "table.bin").read_bytes())
    table[5] ^= 1
    (copy / "table.bin").write_bytes(table)
    with pytest.raises(DataError, match="changed since its export"):
        Scorer(copy)
    assert Scorer(copy, verify=False).signature.version == served.scorer.signature.version
    (copy / "table.bin").write_bytes(table[:-1])
    with pytest.raises(DataError, match="cut off"):
        Scorer(copy, verify=False)


def test_a_folder_may_be_moved_and_asks_for_nothing_outside(served, tmp_path):
    shutil.copytree(served.folder, tmp_path / "elsewhere")
    moved = Scorer(tmp_path / "elsewhere", 1).score(USER, CANDIDATES)
    np.testing.assert_array_equal(moved.probabilities, served.scorer.score(USER, CANDIDATES).probabilities)


def test_eight_bits_that_were_not_exported_are_refused(served):
    with pytest.raises(ConfigError, match="--int8"):
        Scorer(served.folder, int8=True)


def test_the_signature_lists_every_feature_by_its_column(served):
    columns = {feature.column for feature in served.scorer.signature.features}
    assert columns == set(USER) | set(CANDIDATES[0])
    assert all(asdict(feature)["dtype"] for feature in served.scorer.signature.features)
