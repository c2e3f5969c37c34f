"""Preparing a table: vocabularies, encoded rows, weights, filters, splits and shares."""

from __future__ import annotations

import json
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.projects.light_ranker.features.prepare_helpers import CLICK, rows, run, vocabulary, write_table
from tml.common.reader import ParquetReader
from tml.core.config.loading import load_config
from tml.projects.light_ranker.config import LightRankerConfig
from tml.projects.light_ranker.data.files import DateRange
from tml.projects.light_ranker.features import rows as rows_module
from tml.projects.light_ranker.features import tables
from tml.projects.light_ranker.features.encoder import Encoder
from tml.projects.light_ranker.features.spec import FeatureSpec
from tml.projects.light_ranker.features.starter import batch_size_for

USER = {"name": "user", "kind": "categorical", "side": "user"}
TOPICS = {"name": "topics", "kind": "ids", "side": "candidate", "max_length": 2}
AGE = {"name": "age", "kind": "continuous", "side": "user"}
BASIC = {"features": [USER, TOPICS, AGE]}


def basic(path: Path, **changes) -> str:
    columns = {
        "user": ["b", "a", "b", None, "c"],
        "topics": [["x", "y", "x"], [], None, ["z"], ["x"]],
        "age": [1.0, None, 3.0, 4.0, 5.0],
        "click": [1, 0, 0, 1, 0],
    }
    return write_table(path, **{**columns, **changes})


def test_vocabularies_are_by_count_then_value_and_of_train_alone(tmp_path: Path):
    valid = basic(tmp_path / "valid.parquet", user=["new", "a", "a", "a", "a"])
    run(tmp_path, BASIC, basic(tmp_path / "t.parquet"), valid)
    assert vocabulary(tmp_path, "user") == {"value": ["b", "a", "c"], "index": [2, 3, 4], "count": [2, 1, 1]}
    assert vocabulary(tmp_path, "topics")["value"] == ["x", "y", "z"]
    assert rows(tmp_path, "valid")["id.user"] == [1, 3, 3, 3, 3]


def test_rows_are_encoded_with_padding_and_missing_values(tmp_path: Path):
    meta = run(tmp_path, BASIC, basic(tmp_path / "t.parquet"))
    found = rows(tmp_path)
    assert found["id.user"] == [2, 3, 2, 0, 4]
    assert (found["id.topics.0"], found["id.topics.1"]) == ([2, 0, 0, 4, 2], [3, -1, -1, -1, -1])
    np.testing.assert_array_equal(found["x.age"], [1, np.nan, 3, 4, 5])
    assert (found["y.click"], found["w"]) == ([1, 0, 0, 1, 0], [1] * 5)
    features = meta["splits"]["train"]["features"]
    assert features["user"] == {"missing": 1, "unknown": 0, "unknown_share": 0}
    assert features["topics"] == {"missing": 2, "unknown": 0, "unknown_share": 0, "truncated_lists": 1}
    assert features["age"] == {"missing": 1}
    assert meta["splits"]["train"]["mean_label"] == {"click": 0.4}


def test_the_columns_are_those_of_the_spec_and_the_reader_takes_them(tmp_path: Path):
    run(tmp_path, {**BASIC, "group": "user"}, basic(tmp_path / "t.parquet", user=[1, 2, 1, 2, 3]))
    spec = FeatureSpec.load(tmp_path / "out")
    file = next((tmp_path / "out/train").glob("*.parquet"))
    schema = pq.read_schema(file)
    assert schema.names == list(spec.columns())
    assert schema.field("id.user").type == pa.int32()
    reader = ParquetReader(
        [str(file)], spec.columns(), global_batch_size=5, rank=0, world_size=1, seed=0, shuffle=False
    )
    batch = next(iter(reader))
    assert batch.columns["id.user"].dtype == np.int32
    assert batch.columns["group"].tolist() == [1, 2, 1, 2, 3]


def test_the_encoder_of_the_folder_encodes_requests_as_training_rows(tmp_path: Path):
    run(tmp_path, BASIC, basic(tmp_path / "t.parquet"))
    encoder = Encoder.load(tmp_path / "out")
    found = encoder.encode(pq.read_table(tmp_path / "t.parquet").to_pydict())
    trained = rows(tmp_path)
    assert found.ids.T.tolist() == [trained[name] for name in ("id.user", "id.topics.0", "id.topics.1")]
    np.testing.assert_array_equal(found.continuous[:, 0], trained["x.age"])
    assert encoder.spec.fingerprint() == json.loads((tmp_path / "out/meta.json").read_text())["fingerprint"]


def test_rare_values_and_those_beyond_the_largest_size_are_unknown(tmp_path: Path):
    table = write_table(tmp_path / "t.parquet", user=list("aaabbbccd"), click=[0, 1, 0, 1, 0, 1, 0, 1, 0])
    meta = run(tmp_path, {"features": [{**USER, "vocabulary": {"min_count": 2, "max_size": 2}}]}, table)
    assert vocabulary(tmp_path, "user")["value"] == ["a", "b"]
    assert meta["vocabularies"]["user"]["left_out"] == 2
    assert rows(tmp_path)["id.user"] == [2, 2, 2, 3, 3, 3, 1, 1, 1]


def test_a_large_vocabulary_equals_a_count_in_memory_in_any_order_of_files(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(tables, "BATCH_ROWS", 1000)
    rng = np.random.default_rng(0)
    users = (rng.pareto(1.0, 20_000) * 50).astype(np.int64)
    parts = [
        write_table(tmp_path / f"{i}.parquet", user=part, click=part % 2) for i, part in enumerate(np.split(users, 4))
    ]
    expected = sorted(Counter(users.tolist()).items(), key=lambda item: (-item[1], item[0]))
    for out, paths in (("one", parts), ("two", parts[::-1])):
        run(tmp_path, {"features": [USER]}, paths, out=out, memory_limit="200MB")
        found = vocabulary(tmp_path, "user", out)
        assert list(zip(found["value"], found["count"], strict=True)) == expected
    assert (tmp_path / "one/vocab/user.parquet").read_bytes() == (tmp_path / "two/vocab/user.parquet").read_bytes()


def test_one_file_per_input_file_in_row_groups_of_one_size(tmp_path: Path, monkeypatch):
    parts = [write_table(tmp_path / f"p{i}.parquet", user=[1] * 250, click=[0, 1] * 125) for i in range(2)]
    run(tmp_path, {"features": [USER]}, parts, row_group_size=100)
    files = sorted((tmp_path / "out/train").glob("*.parquet"))
    assert [file.name for file in files] == ["00000-p0.parquet", "00001-p1.parquet"]
    metadata = pq.read_metadata(files[0])
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [100, 100, 50]


def test_a_regular_expression_stands_for_the_columns_that_are_left(tmp_path: Path):
    table = write_table(
        tmp_path / "t.parquet", C1=["a", "b"], C2=["c", "d"], C10=[["e"], []], CX=[1, 2], click=[0, 1], w=[1, 2]
    )
    features = [
        {"name": "C10", "kind": "ids", "side": "candidate", "max_length": 2},
        {"match": r"C\d+", "kind": "categorical", "side": "candidate"},
        {"match": ".*", "kind": "continuous", "side": "user"},
    ]
    run(tmp_path, {"features": features, "weight": {"column": "w"}}, table)
    spec = FeatureSpec.load(tmp_path / "out")
    assert [feature.name for feature in spec.features] == ["C10", "C1", "C2", "CX"]


def test_columns_are_included_and_excluded_by_regular_expressions(tmp_path: Path):
    table = write_table(tmp_path / "t.parquet", a1=[1, 2], a2=[1, 2], b1=[1, 2], click=[0, 1])
    features = [{"match": "[ab].", "kind": "continuous", "side": "user"}]
    run(tmp_path, {"features": features, "filters": {"include": ["a.*", "b1"], "exclude": [".*2"]}}, table)
    assert [feature.name for feature in FeatureSpec.load(tmp_path / "out").features] == ["a1", "b1"]


def test_rows_are_kept_and_dropped_by_value_and_counted(tmp_path: Path):
    table = basic(tmp_path / "t.parquet", place=["home", "search", "home", None, "home/x"], bot=[0, 0, 1, 0, 0])
    rules = [{"column": "place", "matches": "home.*"}, {"column": "bot", "equals": [True], "drop": True}]
    meta = run(tmp_path, {**BASIC, "filters": {"rows": rules}}, table)
    assert rows(tmp_path)["x.age"] == [1.0, 5.0]
    assert meta["left_out"] == {"left out by filter on bot": 1, "left out by filter on place": 2}
    assert vocabulary(tmp_path, "user")["value"] == ["b", "c"]


def test_weights_follow_the_engagements(tmp_path: Path):
    """w = w_record + sum of (weight - default) * y, by hand."""
    labels = [CLICK, {"name": "itl.engagement.is_replied", "kind": "binary"}, {"name": "shared", "kind": "binary"}]
    columns = {
        "itl.engagement.is_replied": [0, 1, 1, 0, 0],
        "shared": [0, 0, 1, 1, 0],
        "rw": [1.0, 9.0, 10.0, None, 2.0],
    }
    weight = {
        "column": "rw",
        "default": 0.5,
        "engagements": [
            {"label": "itl.engagement.is_replied", "weight": 4.0},
            {"label": "shared", "weight": 3.0, "default": 1.0},
        ],
    }
    run(tmp_path, {**BASIC, "labels": labels, "weight": weight}, basic(tmp_path / "t.parquet", **columns))
    assert rows(tmp_path)["w"] == [1.0, 9 + (4 - 9), 10 + (4 - 9) + 2, 0.5 + 2, 2.0]


def test_labels_are_scaled_mapped_and_filled(tmp_path: Path):
    table = basic(tmp_path / "t.parquet", answer=["yes", "no", "maybe", "yes", None], ms=[1500, 0, 20, 7, None])
    labels = [
        {"name": "click", "kind": "binary", "column": "answer", "positive": ["yes"], "default": 0},
        {"name": "watch", "kind": "nonnegative", "column": "ms", "scale": 0.001, "default": 0},
    ]
    run(tmp_path, {**BASIC, "labels": labels}, table)
    assert rows(tmp_path)["y.click"] == [1, 0, 0, 1, 0]
    np.testing.assert_allclose(rows(tmp_path)["y.watch"], [1.5, 0, 0.02, 0.007, 0], rtol=1e-6)


def test_bad_rows_are_skipped_and_counted_where_asked(tmp_path: Path):
    table = write_table(
        tmp_path / "t.parquet", user=[1, 2, 3, 4, 5, 6], age=[1.0, np.inf, 3.0, 4.0, 5.0, 6.0],
        click=[1, 0, 2, None, 1, 0], rw=[1.0, 1.0, 1.0, 1.0, -1.0, 1.0],
    )  # fmt: skip
    skip = {"labels": "skip", "weights": "skip", "numbers": "skip"}
    meta = run(tmp_path, {"features": [USER, AGE], "weight": {"column": "rw"}, "bad_values": skip}, table)
    assert rows(tmp_path)["x.age"] == [1.0, 6.0]
    assert meta["left_out"] == {
        "a label is missing or out of range": 2,
        "a number is infinite or no number": 1,
        "a weight is missing, negative or not finite": 1,
    }
    assert meta["rows_read"] == 6


def test_groups_of_text_become_numbers_that_tell_them_apart(tmp_path: Path):
    run(tmp_path, {**BASIC, "group": "g"}, basic(tmp_path / "t.parquet", g=["r1", "r1", "r2", "r3", "r2"]))
    groups = rows(tmp_path)["group"]
    assert groups[0] == groups[1] != groups[2] == groups[4] != groups[3]
    assert len(set(groups)) == 3


def test_csv_and_parquet_of_one_table_give_the_same_rows(tmp_path: Path):
    columns = {
        "user": ["b", "a", "b", None],
        "topics": ["x|y", "", None, "y"],
        "age": [1.5, None, 3.0, -4.0],
        "click": [1, 0, 0, 1],
    }
    config = {"features": [USER, {**TOPICS, "separator": "|"}, AGE]}
    for name in ("t.parquet", "t.csv"):
        out = f"of-{name}"
        run(tmp_path, config, write_table(tmp_path / name, **columns), out=out)
    np.testing.assert_equal(rows(tmp_path, out="of-t.csv"), rows(tmp_path, out="of-t.parquet"))


def test_text_dialects_and_bad_lines(tmp_path: Path):
    (tmp_path / "t.tsv").write_text("user\tage\tclick\n'a\tb'\tNA\t1\nc\t2\t0\nshort\n'd'\t3\t1\n")
    text = {"quote": "'", "missing_values": ["NA"]}
    config = {"features": [USER, AGE], "text": text, "bad_values": {"rows": "skip"}}
    meta = run(tmp_path, config, str(tmp_path / "t.tsv"))
    assert vocabulary(tmp_path, "user")["value"] == ["a\tb", "c", "d"]
    np.testing.assert_array_equal(rows(tmp_path)["x.age"], [np.nan, 2, 3])
    assert meta["left_out"] == {"lines with a wrong number of fields": 1}


def test_shares_of_rows_do_not_depend_on_batches_and_leave_evaluation_whole(tmp_path: Path, monkeypatch):
    columns = {"user": list(range(3000)), "click": [0, 1] * 1500}
    train, valid = (write_table(tmp_path / f"{name}.parquet", **columns) for name in ("t", "v"))
    feature = {**USER, "vocabulary": None, "identity": {"num_ids": 3000}}
    for out, batch_rows in (("a", 1 << 17), ("b", 700)):
        monkeypatch.setattr(tables, "BATCH_ROWS", batch_rows)
        run(tmp_path, {"features": [feature]}, train, valid, out=out, keep_rate=0.3, seed=4)
    kept = rows(tmp_path, out="a")["id.user"]
    assert kept == rows(tmp_path, out="b")["id.user"]
    assert abs(len(kept) - 900) < 4 * np.sqrt(3000 * 0.3 * 0.7)
    assert len(rows(tmp_path, "valid", out="a")["w"]) == 3000


def test_a_random_split_keeps_groups_together(tmp_path: Path):
    groups = np.repeat(np.arange(600), 5)
    table = write_table(tmp_path / "t.parquet", user=groups, click=np.arange(3000) % 2)
    run(tmp_path, {"features": [USER], "group": "user"}, table, split_fractions=(0.8, 0.1, 0.1))
    parts = [set(rows(tmp_path, split)["group"]) for split in ("train", "valid", "test")]
    assert sum(map(len, parts)) == 600
    assert set.union(*parts) == set(range(600))
    assert all(abs(len(part) - share * 600) < 40 for part, share in zip(parts, (0.8, 0.1, 0.1), strict=True))


def test_a_random_split_without_groups_takes_rows_by_shares(tmp_path: Path):
    table = write_table(tmp_path / "t.parquet", user=[1] * 3000, click=np.arange(3000) % 2)
    meta = run(tmp_path, {"features": [USER]}, table, split_fractions=(0.5, 0.25, 0.25), seed=3)
    assert [meta["splits"][s]["rows"] for s in ("train", "valid", "test")] == pytest.approx([1500, 750, 750], abs=110)


@pytest.mark.parametrize("kind", ["int", "timestamp", "text"])
def test_a_split_by_time_keeps_equal_times_together(tmp_path: Path, kind: str):
    """Ten rows, times 0 0 1 2 ... 8 in no order: 80 % lie before time 7, 90 % before time 8."""
    order = [3, 9, 0, 5, 1, 8, 2, 7, 4, 6]
    times = [max(0, place - 1) for place in order]
    start = datetime(2026, 4, 8)
    shown = {
        "int": times,
        "timestamp": [start + timedelta(hours=t) for t in times],
        "text": [(start + timedelta(hours=t)).isoformat() for t in times],
    }[kind]
    parts = [
        write_table(tmp_path / f"{i}.parquet", user=order[s], t=shown[s], click=[0, 1, 0, 1, 0])
        for i, s in enumerate((slice(5), slice(5, 10)))
    ]
    feature = {**USER, "identity": {"num_ids": 10}}
    run(tmp_path, {"features": [feature]}, parts, split_fractions=(0.8, 0.1, 0.1), split_time="t")
    found = {split: sorted(row - 2 for row in rows(tmp_path, split)["id.user"]) for split in ("train", "valid", "test")}
    assert found == {"train": list(range(8)), "valid": [8], "test": [9]}


def test_date_folders_are_read_between_their_dates(tmp_path: Path):
    for day, user in (("07", "a"), ("08", "b"), ("09", "c")):
        write_table(tmp_path / f"2026/04/{day}/part.parquet", user=[user] * 2, click=[0, 1])
    dates = {"train": DateRange.parse("2026-04-07", "2026-04-08")}
    run(tmp_path, {"features": [USER]}, f"{tmp_path}/%Y/%m/%d/*.parquet", dates=dates)
    assert vocabulary(tmp_path, "user")["value"] == ["a", "b"]


def test_pretrained_ids_are_rows_of_their_table(tmp_path: Path):
    folder = tmp_path / "model/embeddings"
    write_table(folder / "user.parquet", id=["c", "a"], embedding=[[1.0, 2.0], [3.0, 4.0]])
    feature = {**USER, "pretrained": {"folder": str(tmp_path / "model"), "table": "user", "trainable": True}}
    run(
        tmp_path,
        {"features": [feature]},
        write_table(tmp_path / "t.parquet", user=["a", "b", "c", None], click=[0, 1, 0, 1]),
    )
    assert rows(tmp_path)["id.user"] == [3, 1, 2, 0]
    spec = Encoder.load(tmp_path / "out").spec.ids[0]
    assert (spec.embedding, spec.num_rows, spec.trainable) == (f"{tmp_path}/model#user", 4, True)


def test_integers_in_the_table_meet_text_ids_of_a_pretrained_table(tmp_path: Path):
    write_table(tmp_path / "model/embeddings/user.parquet", id=["12", "7"], embedding=[[1.0], [3.0]])
    feature = {**USER, "pretrained": {"folder": str(tmp_path / "model"), "table": "user"}}
    run(tmp_path, {"features": [feature]}, write_table(tmp_path / "t.parquet", user=[7, 12, 9], click=[0, 1, 0]))
    assert rows(tmp_path)["id.user"] == [3, 2, 1]


def test_the_starter_config_is_a_valid_config(tmp_path: Path):
    train = basic(tmp_path / "t.parquet", ms=[1, 0, 0, 2, 0])
    labels = [{"name": "clicked", "kind": "binary", "column": "click"}, {"name": "ms", "kind": "nonnegative"}]
    run(tmp_path, {**BASIC, "labels": labels}, train, basic(tmp_path / "v.parquet", ms=[1, 0, 0, 2, 0]))
    config = load_config(LightRankerConfig, tmp_path / "out/config.yaml")
    assert (config.loss.click_label, config.loss.watch_time_label) == ("clicked", "ms")
    assert config.features_dir == str(tmp_path / "out")
    assert (config.validation_data is not None, config.test_data) == (True, None)
    assert config.train_data.global_batch_size == 32


@pytest.mark.parametrize(
    ("num_rows", "batch_size"),
    [(1, 32), (1_599, 32), (3_199, 32), (3_200, 64), (150_000, 2_048), (204_800, 4_096), (10**8, 4_096)],
)
def test_the_starter_batch_size_gives_an_epoch_enough_steps(num_rows: int, batch_size: int):
    assert batch_size_for(num_rows) == batch_size
    assert num_rows // batch_size >= 50 or batch_size == 32


def test_rows_are_drawn_evenly_and_apart_for_each_purpose():
    numbers = np.arange(20_000)
    one, two = (rows_module.row_draws("a.parquet", numbers, 0, purpose) for purpose in (1, 2))
    assert abs(one.mean() - 0.5) < 0.01
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.03
    assert np.unique(one).size == 20_000


def test_remote_tables_are_read_like_local_ones(tmp_path: Path):
    memory = fsspec.filesystem("memory")
    for name in ("t.parquet", "t.csv"):
        local = write_table(tmp_path / name, user=["b", "a", "b"], age=[1.5, None, 3.0], click=[1, 0, 0])
        memory.pipe(f"/prepare/{name}", Path(local).read_bytes())
        for place, path in (("near", local), ("far", f"memory://prepare/{name}")):
            run(tmp_path, {"features": [USER, AGE]}, path, out=f"{place}-{name}")
        np.testing.assert_equal(rows(tmp_path, out=f"far-{name}"), rows(tmp_path, out=f"near-{name}"))
