"""What a preparation refuses, and that it says where and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.projects.light_ranker.features.prepare_helpers import CLICK, run, write_table
from tml.common.errors import ConfigError, DataError
from tml.projects.light_ranker.features.encoder import Encoder

USER = {"name": "user", "kind": "categorical", "side": "user"}
AGE = {"name": "age", "kind": "continuous", "side": "user"}
BASIC = {"features": [USER, AGE]}


def table(path: Path, **changes: Any) -> str:
    return write_table(path, **{"user": ["b", "a", "b"], "age": [1.0, None, 3.0], "click": [1, 0, 0], **changes})


@pytest.mark.parametrize(
    ("columns", "config", "says"),
    [
        ({"click": [1, 0, 2]}, {}, r"row 2, label 'click'[\s\S]*value: 2[\s\S]*0 or 1[\s\S]*bad_values\.labels"),
        ({"click": [1, None, 0]}, {}, r"row 1, label 'click'[\s\S]*default"),
        ({"click": ["1", "no", "0"]}, {}, r"row 1, label 'click'[\s\S]*'no'[\s\S]*positive"),
        ({"click": [0, 0, 0]}, {}, r"label 'click' is 0 in all 3 training rows"),
        ({"click": [1, 1, 1]}, {}, r"label 'click' is 1 in all 3"),
        ({"age": [1.0, np.inf, 3.0]}, {}, r"row 1, feature 'age'[\s\S]*inf"),
        ({"age": ["1", "2", "x"]}, {}, r"row 2, feature 'age'[\s\S]*'x'"),
        ({"w": [1.0, -2.0, 1.0]}, {"weight": {"column": "w"}}, r"row 1, weight \(column 'w'\)[\s\S]*-2\.0"),
        ({"w": [1.0, None, 1.0]}, {"weight": {"column": "w"}}, r"row 1, weight[\s\S]*default"),
        ({"g": [1, None, 1]}, {"group": "g"}, r"row 1, group \(column 'g'\)"),
        ({"user": [["a"], ["b"], []]}, {}, r"feature 'user'[\s\S]*list[\s\S]*kind: ids"),
        ({}, {"features": [{**AGE, "name": "user"}]}, r"row 0, feature 'user'[\s\S]*'b'"),
        ({}, {"features": [{**USER, "name": "usr"}]}, r"column is missing[\s\S]*'usr'[\s\S]*did you mean 'user'"),
        ({}, {"labels": [{**CLICK, "column": "clicks"}]}, r"'clicks'[\s\S]*did you mean 'click'"),
        (
            {},
            {"features": [{"match": "C.*", "kind": "continuous", "side": "user"}]},
            r"matches no column[\s\S]*'C\.\*'",
        ),
        ({}, {"filters": {"exclude": [".*"]}}, "no feature is left"),
        ({}, {"filters": {"rows": [{"column": "user", "equals": ["zz"]}]}}, "no training rows are left"),
        (
            {"v": [[1.0], [1.0, 2.0], [1.0]]},
            {"features": [{"name": "v", "kind": "vector", "dim": 1, "side": "user"}]},
            r"row 1, feature 'v'[\s\S]*value: 2[\s\S]*dim: 1",
        ),
    ],
)
def test_bad_data_is_told_with_file_row_and_column(tmp_path: Path, columns, config, says):
    with pytest.raises((DataError, ConfigError), match=says) as caught:
        run(tmp_path, {**BASIC, **config}, table(tmp_path / "clicks.parquet", **columns))
    assert not (tmp_path / "out/meta.json").exists()
    if " row " in says:
        assert "clicks.parquet" in str(caught.value)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"features": [{**USER, "column": "click"}]}, "the model would see the answer"),
        ({"features": [USER, USER]}, "two features have the name 'user'"),
        ({"features": [{**USER, "hashed": {"num_buckets": 5}, "vocabulary": {}}]}, "at most one of"),
        ({"features": [{**USER, "max_lenght": 5}]}, "unknown key"),
        ({"features": [{**USER, "kind": "ids", "max_lenght": 5}]}, "did you mean 'max_length'"),
        ({"features": [{**AGE, "keep_value": False}]}, "leaves nothing of the feature"),
        ({"features": [{"match": "(", "kind": "continuous", "side": "user"}]}, "no regular expression"),
        ({"features": []}, "at least 1 item"),
        ({"weight": {"engagements": [{"label": "like", "weight": 1, "default": 0}]}}, "which is no label"),
        ({"weight": {"engagements": [{"label": "click", "weight": 1}]}}, "Earlybird has no default weight"),
        ({"labels": [{**CLICK, "scale": 0.001}]}, "scale is for nonnegative labels"),
    ],
)
def test_a_config_that_contradicts_itself_is_told(tmp_path: Path, config, says):
    with pytest.raises(ConfigError, match=says):
        run(tmp_path, {**BASIC, **config}, table(tmp_path / "t.parquet"))


def test_one_file_in_two_splits_is_refused(tmp_path: Path):
    train = table(tmp_path / "t.parquet")
    with pytest.raises(DataError, match="used twice"):
        run(tmp_path, BASIC, train, train)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"split_fractions": (0.8, 0.1)}, "three shares"),
        ({"split_fractions": (0.8, 0.1, 0.2)}, "add up to 1"),
        ({"split_time": "t"}, "together with --split-fractions"),
        ({"keep_rate": 0.0}, "--keep-rate"),
        ({"compression": "lzo"}, "zstd or none"),
        ({"row_group_size": 0}, "--row-group-size"),
    ],
)
def test_options_out_of_range_are_told(tmp_path: Path, options, says):
    with pytest.raises(ConfigError, match=says):
        run(tmp_path, BASIC, table(tmp_path / "t.parquet"), **options)


def test_a_second_file_that_differs_from_the_first_is_told(tmp_path: Path):
    parts = [table(tmp_path / "a.parquet"), table(tmp_path / "b.parquet", user=[["a"], ["b"], ["c"]])]
    with pytest.raises(DataError, match=r"b\.parquet, feature 'user'"):
        run(tmp_path, BASIC, parts)
    parts[1] = write_table(tmp_path / "c.parquet", user=["a"], click=[1])
    with pytest.raises(DataError, match=r"c\.parquet[\s\S]*'age'"):
        run(tmp_path, BASIC, parts, overwrite=True)


def test_a_file_that_is_no_table_is_told(tmp_path: Path):
    for name, content in (("t.parquet", b"PAR1 nothing"), ("t.csv", b""), ("t.csv.gz", b"\x1f\x8b broken")):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(DataError, match=str(name)):
            run(tmp_path, BASIC, str(path))


def test_lines_with_too_few_fields_are_told(tmp_path: Path):
    path = tmp_path / "t.csv"
    path.write_text("user,age,click\na,1,1\nb,2\nc,3,0\n")
    with pytest.raises(DataError, match=r"t\.csv[\s\S]*Expected 3 columns, got 2[\s\S]*bad_values\.rows"):
        run(tmp_path, BASIC, str(path))


def test_a_time_column_without_times_is_told(tmp_path: Path):
    for times, says in (([1, None, 3], "time is missing"), (["x", "y", "z"], "no times")):
        path = table(tmp_path / "t.parquet", t=times)
        with pytest.raises(DataError, match=says):
            run(tmp_path, BASIC, path, split_fractions=(0.8, 0.1, 0.1), split_time="t", overwrite=True)


def test_a_pretrained_table_that_is_not_there_is_told(tmp_path: Path):
    write_table(tmp_path / "model/embeddings/tweet.parquet", id=["a"], embedding=[[1.0]])
    feature = {**USER, "pretrained": {"folder": str(tmp_path / "model"), "table": "user"}}
    with pytest.raises(DataError, match=r"no such pretrained table[\s\S]*one of tweet"):
        run(tmp_path, {"features": [feature]}, table(tmp_path / "t.parquet"))


def test_an_encoder_folder_that_was_changed_is_refused(tmp_path: Path):
    run(tmp_path, BASIC, table(tmp_path / "t.parquet"))
    out = tmp_path / "out"
    vocabulary = out / "vocab/user.parquet"
    kept = vocabulary.read_bytes()
    values = {"index": pa.array([2, 3]), "count": [1, 1]}
    write_table(vocabulary, value=["a", "b"], **values)
    with pytest.raises(DataError, match="not the vocabulary"):
        Encoder.load(out)
    write_table(vocabulary, value=["b", "b"], **values)
    with pytest.raises(DataError, match="'b' occurs twice"):
        Encoder.load(out)
    write_table(vocabulary, value=["b", "a"], **{**values, "index": [3, 2]})
    with pytest.raises(DataError, match="index is not 2, 3"):
        Encoder.load(out)
    vocabulary.write_bytes(kept[:-20])
    with pytest.raises(DataError, match="damaged"):
        Encoder.load(out)
    vocabulary.write_bytes(kept)
    features = out / "features.yaml"
    features.write_text(features.read_text().replace("side: user", "side: candidate"))
    with pytest.raises(DataError, match="disagree"):
        Encoder.load(out)
