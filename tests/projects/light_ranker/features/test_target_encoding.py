"""Target encoding through `prepare`: formulas worked by hand, scikit-learn's numbers, and no way from a row's label to
the row itself."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.model_selection import PredefinedSplit
from sklearn.preprocessing import TargetEncoder as PeerEncoder

from tests.projects.light_ranker.features.prepare_helpers import rows, run, write_table
from tml.common.errors import DataError
from tml.projects.light_ranker.features.encoder import Encoder
from tml.projects.light_ranker.features.rows import fold_draws

RATE = {"name": "rate", "kind": "target_encoding", "side": "candidate", "keys": ["shop"], "label": "click"}
NUMBER = {"name": "x", "kind": "continuous", "side": "candidate"}
COLUMNS = ("v.rate.0", "v.rate.1")


def encoded(folder: Path, split: str = "train", columns: tuple[str, str] = COLUMNS) -> np.ndarray:
    """float32 [B, 2]."""
    found = rows(folder, split)
    return np.array([found[column] for column in columns], np.float32).T


def folds(path: str, size: int, num_folds: int, seed: int = 0) -> np.ndarray:
    """int64 [B]: the fold of each row of a file."""
    return (fold_draws(path, np.arange(size), seed) * num_folds).astype(np.int64)


def logit(rate: float) -> float:
    return math.log(rate / (1 - rate))


def reference(
    keys: list[Any], labels: np.ndarray, own: np.ndarray, num_folds: int, smoothing: float, binary: bool = True
) -> np.ndarray:
    """Row by row, from the rows of other folds alone."""
    found = np.zeros((len(keys), 2))
    for row, key in enumerate(keys):
        others = [r for r in range(len(keys)) if own[r] != own[row]]
        same = [labels[r] for r in others if keys[r] == key]
        prior = float(np.mean([labels[r] for r in others])) if others else 0.0
        found[row, 1] = math.log1p(len(same))
        if not same or (binary and prior in (0.0, 1.0)):
            continue
        mean = (sum(same) + smoothing * prior) / (len(same) + smoothing)
        found[row, 0] = logit(mean) - logit(prior) if binary else mean - prior
    return found


def test_rows_that_are_not_of_the_training_get_the_smoothed_rates_of_all_training_rows(tmp_path: Path):
    train = write_table(tmp_path / "t.parquet", shop=["a"] * 6 + ["b"] * 4, click=[1, 1, 1, 0, 0, 0, 0, 0, 1, 0])
    valid = write_table(tmp_path / "v.parquet", shop=["a", "b", "new", None], click=[0, 1, 0, 1])
    found = run(tmp_path, {"features": [{**RATE, "smoothing": 2.0}]}, train, valid)
    # 4 of 10 rows are clicked; 3 of 6 at a, 1 of 4 at b.
    a, b = (3 + 2 * 0.4) / (6 + 2), (1 + 2 * 0.4) / (4 + 2)
    expected = [[logit(a) - logit(0.4), math.log(7)], [logit(b) - logit(0.4), math.log(5)], [0, 0], [0, 0]]
    np.testing.assert_allclose(encoded(tmp_path, "valid"), expected, atol=1e-6)
    assert found["target_tables"] == {"rate": {"size": 2, "left_out": 0, "mean": 0.4}}
    assert found["splits"]["valid"]["features"] == {"rate": {"unseen": 2}}


def test_a_quantity_is_the_smoothed_mean_of_its_logarithm(tmp_path: Path):
    labels = [{"name": "click", "kind": "binary"}, {"name": "watch", "kind": "nonnegative", "scale": 0.001}]
    seconds = np.array([0.0, 1.0, 3.0, 7.0])
    train = write_table(tmp_path / "t.parquet", shop=[1, 1, 2, 2], click=[0, 1, 0, 1], watch=1000 * seconds)
    valid = write_table(tmp_path / "v.parquet", shop=[1, 2, 3], click=[0, 1, 0], watch=[0.0, 1.0, 2.0])
    run(tmp_path, {"features": [{**RATE, "label": "watch", "smoothing": 1.0}], "labels": labels}, train, valid)
    # log2 of 1 + seconds: 0, 1, 2 and 3, of mean 1.5.
    first, second = ((total + 1.5) / 3 * math.log(2) for total in (1, 5))
    prior = 1.5 * math.log(2)
    expected = [[first - prior, math.log(3)], [second - prior, math.log(3)], [0, 0]]
    np.testing.assert_allclose(encoded(tmp_path, "valid"), expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["binary", "nonnegative"])
def test_training_rows_get_what_the_rows_of_other_folds_give(tmp_path: Path, kind: str):
    rng = np.random.default_rng(1)
    keys, click = rng.integers(0, 12, 300).tolist(), rng.integers(0, 2, 300)
    watch = rng.exponential(20, 300)
    labels = [{"name": "click", "kind": "binary"}, {"name": "watch", "kind": "nonnegative"}]
    train = write_table(tmp_path / "t.parquet", shop=keys, click=click, watch=watch)
    feature = {**RATE, "label": "click" if kind == "binary" else "watch", "folds": 3, "smoothing": 2.5}
    run(tmp_path, {"features": [feature], "labels": labels}, train, seed=4)
    values = click if kind == "binary" else np.log1p(watch)
    expected = reference(keys, values, folds(train, 300, 3, 4), 3, 2.5, kind == "binary")
    np.testing.assert_allclose(encoded(tmp_path), expected, atol=2e-6)


def test_scikit_learns_encoder_gives_the_same_rates_of_the_same_folds(tmp_path: Path):
    rng = np.random.default_rng(2)
    keys, click = rng.integers(0, 9, 400), rng.integers(0, 2, 400)
    train = write_table(tmp_path / "t.parquet", shop=keys, click=click)
    valid = write_table(tmp_path / "v.parquet", shop=np.arange(11), click=np.arange(11) % 2)
    run(tmp_path, {"features": [{**RATE, "smoothing": 3.0}]}, train, valid)
    split = PredefinedSplit(folds(train, 400, 5))
    for fit_rows, encoded_rows in [*split.split(), (np.arange(400), None)]:
        peer = PeerEncoder(smooth=3.0, target_type="binary").fit(keys[fit_rows, None], click[fit_rows])
        asked, found = (
            (np.arange(11), encoded(tmp_path, "valid"))
            if encoded_rows is None
            else (keys[encoded_rows], encoded(tmp_path)[encoded_rows])
        )
        rate, prior = peer.transform(asked[:, None])[:, 0], click[fit_rows].mean()
        np.testing.assert_allclose(found[:, 0], np.log(rate / (1 - rate)) - logit(prior), atol=2e-6)


def test_a_changed_label_changes_other_folds_only(tmp_path: Path):
    rng = np.random.default_rng(3)
    keys, click = rng.integers(0, 5, 200), rng.integers(0, 2, 200)
    results = []
    for number, labels in enumerate((click, np.where(np.arange(200) == 17, 1 - click, click))):
        folder = tmp_path / str(number)
        # Both are read from the same path, which the folds depend on.
        train = write_table(tmp_path / "t.parquet", shop=keys, click=labels)
        folder.mkdir()
        run(folder, {"features": [RATE]}, train)
        results.append(encoded(folder))
    own = folds(train, 200, 5)
    changed = (results[0] != results[1]).any(axis=1)
    assert not changed[own == own[17]].any()
    # The mean of all keys is of other folds too, so all of their rows know.
    assert changed[own != own[17]].all()


def test_labels_by_chance_leave_nothing_in_their_own_rows(tmp_path: Path):
    rng = np.random.default_rng(4)
    keys, click = np.repeat(np.arange(3000), 2), rng.integers(0, 2, 6000)
    train = write_table(tmp_path / "t.parquet", shop=keys, lone=np.arange(6000), click=click)
    run(tmp_path, {"features": [RATE, {**RATE, "name": "alone", "keys": ["lone"]}]}, train)
    rate, found = encoded(tmp_path)[:, 0], rows(tmp_path)
    # Of each pair one row shows the other's label, or nothing where both are in one fold.
    assert abs(np.corrcoef(rate, click)[0, 1]) < 4 / math.sqrt(6000)
    partner = click.reshape(-1, 2)[:, ::-1].ravel()
    assert np.corrcoef(rate, partner)[0, 1] > 0.8
    assert set(found["v.alone.0"]) == set(found["v.alone.1"]) == {0.0}


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.sampled_from([None, "a", "b"]), st.sampled_from([None, 0, -1]), st.booleans()), min_size=2),
    st.integers(2, 4),
    st.floats(0.1, 50),
)
def test_any_rows_of_several_files_agree_with_the_formula(tmp_path_factory, given_rows, num_folds, smoothing):
    folder = tmp_path_factory.mktemp("any")
    given_rows = [*given_rows, ("a", 0, True), ("a", 0, False)]
    parts = (given_rows[::2], given_rows[1::2])
    paths = []
    for number, part in enumerate(parts):
        shop, day, click = zip(*part, strict=True)
        arrays = {"shop": pa.array(shop, pa.string()), "day": pa.array(day, pa.int32()), "click": pa.array(click)}
        paths.append(write_table(folder / f"{number}.parquet", **arrays))
    feature = {**RATE, "keys": ["shop", "day"], "folds": num_folds, "smoothing": smoothing}
    run(folder, {"features": [feature]}, paths)
    own = np.concatenate([folds(path, len(part), num_folds) for path, part in zip(paths, parts, strict=True)])
    together = [*parts[0], *parts[1]]
    labels = np.array([click for *_, click in together], np.float64)
    expected = reference([key for *key, _ in together], labels, own, num_folds, smoothing)
    np.testing.assert_allclose(encoded(folder), expected, atol=5e-6)


def test_keys_are_told_apart_by_order_and_missing_values(tmp_path: Path):
    pairs = [("a", "b"), ("b", "a"), ("a", None), (None, "a"), ("", "a"), ("ab", ""), ("", "ab"), (None, None)]
    shop, city = ([pair[place] for pair in pairs] for place in (0, 1))
    click = [0, 1] * 4
    train = write_table(tmp_path / "t.parquet", shop=shop * 2, city=city * 2, click=click * 2)
    found = run(tmp_path, {"features": [{**RATE, "keys": ["shop", "city"]}]}, train)
    assert found["target_tables"]["rate"]["size"] == len(pairs)


def test_rare_keys_count_as_never_seen(tmp_path: Path):
    train = write_table(tmp_path / "t.parquet", shop=[1, 1, 1, 2, 2, 3], click=[1, 0, 1, 1, 0, 1])
    valid = write_table(tmp_path / "v.parquet", shop=[1, 2, 3], click=[0, 0, 1])
    found = run(tmp_path, {"features": [{**RATE, "min_count": 3}]}, train, valid)
    # They stay in the mean of all rows.
    assert found["target_tables"]["rate"] == {"size": 1, "left_out": 2, "mean": round(4 / 6, 6)}
    smoothed = (2 + 4 * 4 / 6) / (3 + 4)
    expected = [[logit(smoothed) - logit(4 / 6), math.log(4)], [0, 0], [0, 0]]
    np.testing.assert_allclose(encoded(tmp_path, "valid"), expected, atol=1e-6)


def test_rows_whose_label_is_bad_are_not_counted(tmp_path: Path):
    columns = {"shop": [1, 1, 1, 2], "click": [1, None, 0, 1], "x": [0.0, 1.0, 2.0, 3.0]}
    train = write_table(tmp_path / "t.parquet", **columns)
    valid = write_table(tmp_path / "v.parquet", shop=[1, 2], click=[0, 1], x=[0.0, 1.0])
    with pytest.raises(DataError, match=r"label is missing[\s\S]*row 1"):
        run(tmp_path, {"features": [RATE, NUMBER]}, train, valid)
    found = run(tmp_path, {"features": [RATE, NUMBER], "bad_values": {"labels": "skip"}}, train, valid)
    assert found["left_out"] == {"a label is missing or out of range": 1}
    np.testing.assert_allclose(encoded(tmp_path, "valid")[:, 1], np.log([3, 2]), atol=1e-6)


def test_labels_that_are_all_the_same_say_nothing(tmp_path: Path):
    labels = [{"name": "click", "kind": "binary"}, {"name": "like", "kind": "binary"}]
    train = write_table(tmp_path / "t.parquet", shop=[1, 1, 2, 2], click=[0, 1, 0, 1], like=[0, 0, 0, 0])
    run(tmp_path, {"features": [{**RATE, "label": "like"}], "labels": labels}, train)
    assert encoded(tmp_path)[:, 0].tolist() == [0.0] * 4


def test_a_split_by_chance_within_a_file_counts_training_rows_alone(tmp_path: Path):
    rng = np.random.default_rng(5)
    keys, click = rng.integers(0, 3, 500), rng.integers(0, 2, 500)
    train = write_table(tmp_path / "t.parquet", shop=keys, x=np.arange(500.0), click=click)
    settings = {"split_fractions": (0.6, 0.2, 0.2), "split_time": "x", "seed": 1}
    run(tmp_path, {"features": [RATE, NUMBER]}, train, **settings)
    counts = np.array([np.count_nonzero(keys[:300] == key) for key in range(3)])
    np.testing.assert_allclose(encoded(tmp_path, "test")[:, 1], np.log1p(counts[keys[400:]]), atol=1e-6)
    own, found = folds(train, 500, 5, 1)[:300], encoded(tmp_path)
    expected = reference(keys[:300].tolist(), click[:300], own, 5, 4.0)
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_the_encoder_of_the_folder_encodes_requests_as_validation_rows(tmp_path: Path):
    train = write_table(tmp_path / "t.csv", shop=["a", "b", "a", "7"], day=[1, 2, 1, 2], click=[0, 1, 1, 0])
    valid = write_table(tmp_path / "v.csv", shop=["a", "b", "c", ""], day=[1, 2, 1, 2], click=[0, 1, 1, 0])
    feature = {**RATE, "keys": ["day", "shop"], "types": ["int", "auto"]}
    run(tmp_path, {"features": [feature]}, train, valid)
    encoder = Encoder.load(tmp_path / "out")
    assert encoder.columns() == ["day", "shop"]
    assert encoder.config.features[0].types == ["int", "string"]
    found = encoder.encode({"day": [1, 2, 1, 2], "shop": ["a", "b", "c", None]})
    np.testing.assert_array_equal(found.vectors, encoded(tmp_path, "valid"))
