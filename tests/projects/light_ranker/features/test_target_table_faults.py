"""What a target encoding cannot be, target tables that are not as they were written, and the bytes of a cut-off run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.projects.light_ranker.features.prepare_helpers import CLICK, run, tree, write_table
from tml.common.errors import ConfigError, DataError
from tml.core.config.loading import parse_config
from tml.projects.light_ranker.features import counting, prepare
from tml.projects.light_ranker.features.config import FeatureConfig
from tml.projects.light_ranker.features.encoder import Encoder
from tml.projects.light_ranker.features.target_table import TargetTable

RATE = {"name": "rate", "kind": "target_encoding", "side": "candidate", "keys": ["shop"], "label": "click"}
USER = {"name": "user", "kind": "categorical", "side": "user"}
SHOP = {"name": "shop", "kind": "categorical", "side": "candidate"}
TABLE = "targets/rate.parquet"


@pytest.mark.parametrize(
    ("features", "says"),
    [
        ([{**RATE, "keys": []}], "keys"),
        ([{**RATE, "keys": ["shop", "shop"]}], "two keys are 'shop'"),
        ([{**RATE, "types": ["int", "int"]}], "2 types for 1 keys"),
        ([{**RATE, "folds": 1}], "folds"),
        ([{**RATE, "smoothing": 0}], "smoothing"),
        ([{**RATE, "min_count": 0}], "min_count"),
        ([{**RATE, "column": "shop"}], "column"),
        ([{**RATE, "label": "clik"}], "'clik', which is no label; labels: .'click'"),
        ([{**RATE, "keys": ["shop", "clicked"]}], "'rate' is the column of a label"),
        ([SHOP, {**RATE, "side": "user"}], "its key 'shop' a candidate's column"),
        ([RATE, {**RATE, "keys": ["city"]}], "two features have the name 'rate'"),
    ],
)
def test_a_target_encoding_that_cannot_be_is_refused(features: list[dict[str, Any]], says: str):
    labels = [{**CLICK, "column": "clicked"}]
    with pytest.raises(ConfigError, match=says):
        parse_config(FeatureConfig, {"features": features, "labels": labels})


@pytest.mark.parametrize(
    ("features", "side"),
    [
        ([RATE], "candidate"),
        ([SHOP, RATE], "candidate"),
        ([{**USER, "column": "shop"}, RATE], "user"),
        ([{**USER, "column": "shop"}, SHOP, RATE], "candidate"),
        ([RATE, {**RATE, "name": "other", "side": "user"}], "user"),
    ],
)
def test_a_key_comes_with_the_side_that_has_its_column(features: list[dict[str, Any]], side: str):
    config = parse_config(FeatureConfig, {"features": features, "labels": [CLICK]})
    rate = next(feature for feature in config.target_encodings() if feature.name == "rate")
    assert config.key_side(rate, "shop") == side


@pytest.mark.parametrize(
    ("shop", "says"),
    [
        ([["a"], ["b"]], r"contradicts its column[\s\S]*'rate' \(column 'shop'\)[\s\S]*one integer or text per row"),
        ([0.5, 1.0], "number with a fraction"),
    ],
)
def test_keys_that_are_no_ids_are_refused(tmp_path: Path, shop: list[Any], says: str):
    train = write_table(tmp_path / "t.parquet", shop=shop, click=[0, 1])
    with pytest.raises(DataError, match=says):
        run(tmp_path, {"features": [RATE]}, train)


def test_a_key_that_is_no_column_is_named(tmp_path: Path):
    train = write_table(tmp_path / "t.parquet", shops=[1, 2], click=[0, 1])
    with pytest.raises(DataError, match=r"column is missing[\s\S]*shop[\s\S]*did you mean 'shops'"):
        run(tmp_path, {"features": [RATE]}, train)


def test_filters_leave_a_target_encoding_out_with_any_of_its_keys(tmp_path: Path):
    train = write_table(tmp_path / "t.parquet", shop=[1, 2], city=[1, 2], click=[0, 1])
    pair = {**RATE, "name": "pair", "keys": ["shop", "city"]}
    found = run(tmp_path, {"features": [RATE, pair], "filters": {"exclude": ["city"]}}, train)
    assert list(found["target_tables"]) == ["rate"]


def test_a_key_leaves_its_column_to_regular_expressions(tmp_path: Path):
    train = write_table(tmp_path / "t.parquet", shop=[1, 2], city=[1, 2], click=[0, 1])
    every = {"match": ".*", "kind": "categorical", "side": "candidate"}
    assert set(run(tmp_path, {"features": [RATE, every]}, train)["vocabularies"]) == {"shop", "city"}


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    train = write_table(tmp_path / "t.parquet", shop=rng.integers(0, 9, 100), click=rng.integers(0, 2, 100))
    run(tmp_path, {"features": [RATE]}, train)
    return tmp_path / "out"


def _rewrite(path: Path, table: pa.Table) -> None:
    pq.write_table(table, path)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path, _: path.unlink(), r"rate\.parquet"),
        (lambda path, _: path.write_bytes(path.read_bytes()[:100]), "target table is damaged"),
        (lambda path, table: _rewrite(path, table.drop_columns(["sum.3"])), "damaged"),
        (lambda path, table: _rewrite(path, table.replace_schema_metadata({})), "damaged"),
        (lambda path, table: _rewrite(path, table.take(list(range(8, -1, -1)))), "not in ascending order"),
        (lambda path, table: _rewrite(path, pa.concat_tables([table, table])), "not in ascending order"),
        (
            lambda path, table: _rewrite(path, table.set_column(6, "count.0", pa.array([1000] * 9, pa.int64()))),
            "contradict each other",
        ),
        (
            lambda path, table: _rewrite(path, table.set_column(1, "sum.0", pa.array([0.5] * 9))),
            "damaged[^$]*not whole",
        ),
        (
            lambda path, table: _rewrite(path, table.set_column(1, "sum.0", pa.array([None] * 9, pa.int64()))),
            "damaged[^$]*not whole",
        ),
        (lambda path, table: _rewrite(path, table.slice(0, 8)), "not the target table that the data was encoded with"),
    ],
)
def test_a_missing_damaged_or_foreign_target_table_is_refused(prepared: Path, damage, says: str):
    damage(prepared / TABLE, pq.read_table(prepared / TABLE))
    with pytest.raises(DataError, match=says):
        Encoder.load(prepared)


@pytest.mark.parametrize(("old", "new"), [("keys: [shop]", "keys: [city]"), ("label: click", "label: like")])
def test_settings_that_the_table_was_not_made_for_are_refused(tmp_path: Path, old: str, new: str):
    columns = {name: [0, 1, 1] for name in ("shop", "city", "click", "like")}
    labels = [CLICK, {"name": "like", "kind": "nonnegative"}]
    train = write_table(tmp_path / "t.parquet", **columns)
    run(tmp_path, {"features": [RATE], "labels": labels}, train)
    path = tmp_path / "out/features.yaml"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(DataError, match="or not its feature's settings"):
        Encoder.load(tmp_path / "out")


def test_other_training_rows_give_another_fingerprint(tmp_path: Path):
    found = []
    for click in ([0, 1, 1], [1, 0, 1]):
        train = write_table(tmp_path / "t.parquet", shop=[1, 2, 2], click=click)
        found.append(run(tmp_path, {"features": [RATE]}, train, overwrite=True)["fingerprint"])
    assert found[0] != found[1]


def test_a_table_of_one_fold_serves_as_the_whole_one(prepared: Path):
    whole = TargetTable.load(prepared / TABLE)
    joined, keys = whole.joined(), np.array([*pq.read_table(prepared / TABLE)["key"].to_pylist(), 12345])
    assert (joined.digest, joined.num_folds, whole.num_folds) == (whole.digest, 1, 5)
    for part in ("sums", "counts", "means"):
        np.testing.assert_array_equal(getattr(joined.sums_of(keys), part), getattr(whole.sums_of(keys), part))


@pytest.mark.parametrize("place", ["write_target_table", "count_targets", "to_table"])
def test_cut_off_and_started_again_gives_the_same_bytes(tmp_path: Path, monkeypatch, place: str):
    rng = np.random.default_rng(1)
    paths = [
        write_table(tmp_path / f"{n}.parquet", shop=rng.integers(0, 50, 300), watch=rng.random(300), click=[0, 1] * 150)
        for n in range(3)
    ]
    labels = [CLICK, {"name": "watch", "kind": "nonnegative"}]
    config = {"features": [RATE, {**RATE, "name": "time", "label": "watch"}, SHOP], "labels": labels}
    options = {"split_fractions": (0.8, 0.1, 0.1), "seed": 2}
    run(tmp_path, config, paths, **options)
    whole = tree(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    module, calls = (prepare if place == "to_table" else counting), []
    original = getattr(module, place)

    def dying(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(module, place, dying)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, config, paths, **options)
    run(tmp_path, config, paths, **options)
    assert tree(tmp_path / "out") == whole


def test_the_record_of_a_preparation_names_its_target_tables(prepared: Path):
    assert json.loads((prepared / "meta.json").read_text())["target_tables"]["rate"]["size"] == 9
