from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from tml.common.errors import ConfigError, DataError, NonFiniteError
from tml.projects.light_ranker.importance import (
    Importance,
    ImportanceOptions,
    larger_is_better,
    permutation_importances,
    write_importances,
)

WEIGHTS = {"user.age": 3.0, "user.activity": 1.0, "tweet.length": 0.0, "tweet.media": 0.3, "author": 0.0}
FEATURES = {name: (f"x.{name}",) for name in WEIGHTS}
SERIAL = ImportanceOptions("serial")
ALWAYS = ImportanceOptions("tree", sensitivity=-math.inf)


@pytest.fixture(scope="module")
def columns() -> dict[str, np.ndarray]:
    draws = np.random.default_rng(1)
    columns = {f"x.{name}": draws.normal(size=4000) for name in WEIGHTS}
    columns["y.click"] = (draws.random(4000) < probabilities(columns)).astype(np.float32)
    return columns


def probabilities(columns) -> np.ndarray:
    logits = sum(weight * columns[f"x.{name}"] for name, weight in WEIGHTS.items())
    return 1 / (1 + np.exp(-logits))


def auc(columns) -> float:
    return roc_auc_score(columns["y.click"], probabilities(columns))


def loss(columns) -> float:
    return log_loss(columns["y.click"], probabilities(columns))


def by_name(found: list[Importance]) -> dict[str, Importance]:
    return {one.name: one for one in found}


def test_a_feature_the_model_ignores_has_no_importance_and_the_strongest_has_most(columns):
    found = permutation_importances(columns, FEATURES, auc, SERIAL)
    assert found[0].name == "user.age"
    assert by_name(found)["tweet.length"].drop == 0.0
    assert by_name(found)["author"].drop == 0.0
    drops = [one.drop for one in found]
    assert drops == sorted(drops, reverse=True)
    named = by_name(found)
    assert named["user.age"].drop > named["user.activity"].drop > named["tweet.media"].drop > 0


def test_the_baseline_is_the_performance_of_unchanged_rows(columns):
    found = by_name(permutation_importances(columns, FEATURES, auc, SERIAL))
    assert found["None"] == Importance("None", 0.0, 0.0, auc(columns))
    age = found["user.age"]
    assert age.performance == pytest.approx(auc(columns) - age.drop)
    assert age.percent == pytest.approx(100 * age.drop / auc(columns))


@pytest.mark.parametrize("on_period", [False, True])
def test_tree_equals_serial_when_every_group_is_expanded(columns, on_period):
    serial = by_name(permutation_importances(columns, FEATURES, auc, SERIAL))
    tree = by_name(permutation_importances(columns, FEATURES, auc, replace(ALWAYS, split_on_period=on_period)))
    assert {name: tree[name] for name in serial} == serial
    assert set(tree) - set(serial) == {"tweet.*", "user.*" if on_period else "user.a*"}


def test_the_tree_does_not_look_into_groups_that_do_not_matter(columns):
    found = by_name(permutation_importances(columns, FEATURES, auc, ImportanceOptions("tree", sensitivity=0.03)))
    assert {"user.age", "user.activity", "tweet.*", "author"} <= set(found)
    assert "tweet.media" not in found


@pytest.mark.parametrize("algorithm", ["serial", "tree"])
def test_a_loss_that_rises_is_a_drop_of_performance(columns, algorithm):
    options = ImportanceOptions(algorithm, larger_is_better=larger_is_better("loss"))
    found = permutation_importances(columns, FEATURES, loss, options)
    named = by_name(found)
    assert named["user.age"].drop > 0.1
    assert named["user.age"].performance > named["None"].performance
    assert found[-1].drop >= -0.001


def test_directions_of_metrics():
    assert [larger_is_better(m) for m in ("loss", "click/loss_weighted", "watch_time.mse", "ece")] == [False] * 4
    assert [larger_is_better(m) for m in ("roc_auc", "rce", "ndcg", "accuracy")] == [True] * 4


def test_a_group_takes_all_its_columns_from_one_donor(columns):
    seen: list[dict[str, np.ndarray]] = []
    rows = {"x.a": np.arange(50.0), "id.b.0": np.arange(50), "id.b.1": np.arange(50), "y": np.arange(50)}
    features = {"a": ("x.a",), "b": ("id.b.0", "id.b.1")}
    options = replace(SERIAL, extra_groups={"both": ["a|b"]})
    permutation_importances(rows, features, lambda c: seen.append(dict(c)) or 1.0, options)
    unchanged, a, b, both = seen
    assert np.array_equal(unchanged["x.a"], np.arange(50))
    assert np.array_equal(b["id.b.0"], b["id.b.1"])
    assert np.array_equal(b["x.a"], np.arange(50))
    assert np.array_equal(both["x.a"], both["id.b.0"])
    donors = a["x.a"]
    assert (donors != np.arange(50)).all()
    assert len(set(donors)) < 50
    assert np.array_equal(a["y"], np.arange(50))


def test_missing_values_travel_with_the_donor():
    rows = {"x": np.array([np.nan, 1.0])}
    seen: list[np.ndarray] = []
    permutation_importances(rows, {"x": ("x",)}, lambda c: seen.append(c["x"]) or 1.0, SERIAL)
    np.testing.assert_array_equal(seen[1], [1.0, np.nan])


def test_extra_groups_are_permuted_as_one(columns):
    options = replace(ALWAYS, extra_groups={"useless": ["author", "tweet.len.*"], "all": [".*"]})
    found = permutation_importances(columns, FEATURES, auc, options)
    assert by_name(found)["useless"].drop == 0.0
    assert by_name(found)["useless"].features == ("tweet.length", "author")
    assert found[0].name == "all"
    assert found[0].performance == pytest.approx(0.5, abs=0.03)


def test_a_name_that_begins_other_names_is_a_feature_of_its_own():
    names = ("user", "user.age", "user.age.squared")
    rows = {name: np.arange(4.0) for name in names}
    for on_period in (False, True):
        options = replace(ALWAYS, split_on_period=on_period)
        found = permutation_importances(rows, {name: (name,) for name in names}, lambda _: 1.0, options)
        assert set(names) <= {one.name for one in found}


@pytest.mark.parametrize(
    ("rows", "features", "options", "error"),
    [
        ({"x": np.ones(1)}, {"x": ("x",)}, SERIAL, (DataError, "too few rows")),
        ({"x": np.ones(2)}, {"x": ("y",)}, SERIAL, (DataError, "column of a feature is missing")),
        ({"x": np.ones(2), "y": np.ones(3)}, {"x": ("x",)}, SERIAL, (DataError, "differ in length")),
        ({"x": np.ones(2)}, {}, SERIAL, (DataError, "no features")),
        ({"x": np.ones(2)}, {"x": ("x",)}, replace(SERIAL, extra_groups={"g": ["z"]}), (ConfigError, "matches no")),
        ({"x": np.ones(2)}, {"x": ("x",)}, replace(SERIAL, extra_groups={"x": ["x"]}), (ConfigError, "name of a")),
        ({"x": np.ones(2)}, {"x": ("x",)}, replace(SERIAL, extra_groups={"g": ["["]}), (ConfigError, "expression")),
    ],
)
def test_what_cannot_be_permuted_is_said(rows, features, options, error):
    with pytest.raises(error[0], match=error[1]):
        permutation_importances(rows, features, lambda _: 1.0, options)


def test_an_undefined_performance_is_an_error_that_names_the_group():
    rows = {"x": np.arange(2.0)}
    with pytest.raises(NonFiniteError, match="permuted features 'x'"):
        permutation_importances(rows, {"x": ("x",)}, lambda c: 1.0 if c["x"][0] == 0 else math.nan, SERIAL)
    with pytest.raises(NonFiniteError, match="nothing to compare"):
        permutation_importances(rows, {"x": ("x",)}, lambda _: 0.0, ALWAYS)


def test_the_table_has_the_originals_columns_and_the_json_the_same_numbers(columns, tmp_path):
    found = permutation_importances(columns, FEATURES, auc, SERIAL)
    write_importances(found, tmp_path / "importances.tsv")
    lines = [line.split("\t") for line in (tmp_path / "importances.tsv").read_text().splitlines()]
    assert lines[0] == ["Name", "Performance Drop", "Percent", "Performance"]
    assert [(name, float(drop)) for name, drop, _, _ in lines[1:]] == [(one.name, one.drop) for one in found]
    loaded = json.loads((tmp_path / "importances.json").read_text())
    assert [one["performance"] for one in loaded] == [one.performance for one in found]
