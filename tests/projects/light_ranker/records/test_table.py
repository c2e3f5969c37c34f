"""Records become tables and tables records; stopped conversions go on; bad rows are errors or counted."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer import Typer
from typer.testing import CliRunner

from tests.projects.light_ranker.records.record_strategies import I64, NUMBERS, TEXTS
from tml.common.errors import ConfigError, DataError
from tml.core.config import parse_config
from tml.projects.light_ranker.records import parts, table
from tml.projects.light_ranker.records.block_reader import BlockReader
from tml.projects.light_ranker.records.block_writer import BlockWriter
from tml.projects.light_ranker.records.cli import records_to_table_command, table_to_records_command
from tml.projects.light_ranker.records.codec import decode_record, encode_record
from tml.projects.light_ranker.records.data_record import DataRecord
from tml.projects.light_ranker.records.feature_ids import feature_id
from tml.projects.light_ranker.records.from_arrow import records_of
from tml.projects.light_ranker.records.table import (
    ToRecordsOptions,
    ToTableOptions,
    records_to_table,
    table_to_records,
)
from tml.projects.light_ranker.records.table_config import RecordTableConfig
from tml.projects.light_ranker.records.tensors import tensor_of
from tml.projects.light_ranker.records.to_arrow import table_of

SETTINGS = {
    "features": [
        {"name": "seen", "type": "binary"},
        {"name": "age", "type": "continuous"},
        {"name": "hour", "type": "discrete", "id": 77},
        {"name": "lang", "type": "string", "column": "language"},
        {"name": "topics", "type": "sparse_binary"},
        {"name": "scores", "type": "sparse_continuous"},
        {"name": "image", "type": "blob"},
        {"name": "vector", "type": "tensor"},
    ],
    "labels": [{"name": "click"}, {"name": "watch", "type": "continuous"}],
    "weight": {"name": "weight"},
}
CONFIG = parse_config(RecordTableConfig, SETTINGS)
LABELS_ONLY = parse_config(RecordTableConfig, {"features": [], "labels": [{"name": "click"}]})


def _record(**given) -> DataRecord:
    return DataRecord.from_names(given.pop("binary", ()), **given)


FULL = _record(
    binary=["seen", "click", "unknown"], continuous={"age": 2.5, "watch": 9.0, "weight": 0.5, "other": 1.0},
    string={"lang": "日本"}, sparse_binary={"topics": ["b", "a"]}, sparse_continuous={"scores": {"x": 1.5, "": -1.0}},
    blobs={"image": b"\xff\0"}, tensors={"vector": tensor_of(np.array([[1, 2], [3, 4]], np.float32))},
)  # fmt: skip
FULL.discrete[77] = -5


def test_a_record_is_a_row():
    odd = _record(continuous={"age": math.nan, "click": 0.25, "watch": math.nan}, sparse_binary={"topics": []})
    rows, counts = table_of([encode_record(each) for each in (FULL, DataRecord(), odd)], CONFIG)
    empty = {"seen": False, "click": 0.0, "watch": 0.0, "weight": 0.0} | dict.fromkeys(
        ("age", "hour", "language", "topics", "scores", "image", "vector")
    )
    assert rows.to_pylist() == [
        {
            "seen": True, "age": 2.5, "hour": -5, "language": "日本", "topics": ["b", "a"],
            "scores": [("x", 1.5), ("", -1.0)], "image": b"\xff\0", "vector": [1.0, 2.0, 3.0, 4.0],
            "click": 1.0, "watch": 9.0, "weight": 0.5,
        },
        empty,
        empty | {"click": 0.25},
    ]  # fmt: skip
    assert (counts.rows, counts.missing_labels, counts.missing_weights, counts.skipped_records) == (3, 3, 2, 0)


ROWS = st.fixed_dictionaries(
    {
        "seen": st.booleans(),
        "age": st.none() | NUMBERS,
        "hour": st.none() | I64,
        "language": st.none() | TEXTS,
        "topics": st.none() | st.lists(TEXTS, min_size=1, max_size=3, unique=True),
        "scores": st.none() | st.dictionaries(TEXTS, NUMBERS, min_size=1, max_size=3).map(lambda each: [*each.items()]),
        "image": st.none() | st.binary(max_size=4),
        "vector": st.none() | st.lists(st.floats(width=32, allow_nan=False), max_size=3),
        "click": st.sampled_from([0.0, 1.0]),
        "watch": st.floats(0, 1e6),
        "weight": st.floats(0, 1e6),
    }
)


@given(st.lists(ROWS, min_size=1, max_size=6))
@settings(max_examples=50, deadline=None)
def test_a_table_survives_the_way_to_records_and_back(rows):
    schema = table_of([], CONFIG)[0].schema
    given_table = pa.Table.from_pylist(rows, schema=schema)
    again, counts = table_of(records_of(given_table, CONFIG), CONFIG)
    assert again.equals(given_table)
    assert counts.rows == len(rows)


def test_records_survive_the_way_to_a_table_and_back():
    kept = decode_record(records_of(table_of([encode_record(FULL)], CONFIG)[0], CONFIG)[0])
    expected = decode_record(encode_record(FULL))
    expected.binary.discard(feature_id("unknown"))
    del expected.continuous[feature_id("other")]
    expected.tensors[feature_id("vector")] = tensor_of(np.array([1, 2, 3, 4], np.float32))  # flattened
    assert kept == expected


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (b"\xff", "field is unknown|cut off"),
        (_record(string={"lang": "\udcff"}), "text is no UTF-8[^$]*'lang'"),
        (_record(sparse_binary={"topics": ["a", "\udcff"]}), "text is no UTF-8[^$]*'topics'"),
        (_record(continuous={"watch": math.inf}), "label is infinite[^$]*'watch'"),
        (_record(continuous={"weight": -1.0}), r"weight is negative[^$]*'weight'[^$]*-1\.0"),
        (_record(continuous={"weight": math.nan}), "weight is negative or not finite"),
        (_record(tensors={"vector": tensor_of(np.array(["a"]))}), "another kind than its column[^$]*object"),
        (_record(tensors={"vector": tensor_of(np.array([2**24 + 1]))}), "does not fit float32[^$]*16777217"),
        (_record(tensors={"vector": tensor_of(np.array([1e300]))}), "does not fit float32"),
    ],
)
def test_a_bad_record_is_an_error_or_a_counted_skip(record, message):
    data = [b"\0", record if isinstance(record, bytes) else encode_record(record), encode_record(FULL)]
    with pytest.raises(DataError, match=rf"{message}") as caught:
        table_of(data, CONFIG, "clicks.gz", 100)
    assert "clicks.gz, record 101" in str(caught.value)
    found, counts = table_of(data, CONFIG, on_error="skip")
    assert found.column("seen").to_pylist() == [False, True]
    assert (counts.rows, counts.skipped_records) == (2, 1)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("click", [1.0, 0.5], r"neither 0 nor 1[^$]*row 11, column 'click'[^$]*0\.5"),
        ("watch", [1.0, math.inf], "label is infinite[^$]*row 11"),
        ("weight", [1.0, -0.5], "weight is negative[^$]*row 11"),
        ("weight", [1.0, math.nan], "weight is negative or not finite"),
        ("seen", [1, 2], "flag is neither 0 nor 1[^$]*row 11"),
        ("vector", [[1.0], [1.0, None]], "missing element[^$]*row 11"),
    ],
)
def test_a_bad_row_is_an_error_or_a_counted_skip(column, values, message):
    rows = table_of([encode_record(FULL)] * 2, CONFIG)[0]
    place = rows.schema.get_field_index(column)
    rows = rows.set_column(place, column, pa.array(values))
    with pytest.raises(DataError, match=message):
        records_of(rows, CONFIG, "table", 10)
    assert len(records_of(rows, CONFIG, on_error="skip")) == 1


def test_columns_that_are_missing_or_of_another_type_are_refused():
    rows = table_of([encode_record(FULL)], CONFIG)[0]
    with pytest.raises(DataError, match=r"column is missing; did you mean 'language_'\?[^$]*part-3"):
        records_of(rows.rename_columns({"language": "language_"}), CONFIG, "part-3")
    for column, value in (("age", "x"), ("hour", 1.5), ("seen", 0.5), ("topics", 3)):
        place = rows.schema.get_field_index(column)
        with pytest.raises(DataError, match=f"cannot become the feature[^$]*'{column}'"):
            records_of(rows.set_column(place, column, pa.array([value])), CONFIG)


def test_kindred_types_are_taken():
    rows = table_of([encode_record(FULL)], CONFIG)[0]
    for column, array in {
        "seen": pa.array([1]), "age": pa.array([3], pa.int8()), "hour": pa.array([4], pa.uint8()),
        "language": pa.array(["en"]).dictionary_encode(), "click": pa.array([True]),
        "weight": pa.array([1], pa.int32()),
    }.items():  # fmt: skip
        rows = rows.set_column(rows.schema.get_field_index(column), column, array)
    record = decode_record(records_of(rows, CONFIG)[0])
    assert record.binary == {feature_id("seen"), feature_id("click")}
    assert (record.continuous[feature_id("age")], record.discrete[77]) == (3.0, 4)
    assert record.string[feature_id("lang")] == "en"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": [], "labels": [], "weight": None}, "neither features nor labels"),
        ({"labels": [{"name": "age"}]}, "'age' and 'age' share the key"),
        ({"labels": [{"name": "x", "column": "age"}]}, "'age' and 'x' share the column 'age'"),
        ({"labels": [{"name": "x", "id": 77}]}, "'hour' and 'x' share the key 77"),
        ({"features": [{"name": "a", "type": "flag"}]}, "type"),
        ({"featurs": []}, "did you mean 'features'"),
    ],
)
def test_a_config_at_odds_with_itself_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        parse_config(RecordTableConfig, {**SETTINGS, **change})


def _write_clicks(folder, num_files=3, num_records=250) -> list[str]:
    folder.mkdir(exist_ok=True)
    files = []
    for number in range(num_files):
        files.append(str(folder / f"part-{number}.gz"))
        with BlockWriter(files[-1]) as writer:
            for i in range(num_records):
                record = DataRecord.from_names(["click"] if i % 3 == 0 else [], continuous={"age": number + i / 1000})
                writer.write(encode_record(record))
    return files


AGE_CONFIG = parse_config(
    RecordTableConfig, {"features": [{"name": "age", "type": "continuous"}], "labels": [{"name": "click"}]}
)


def test_files_become_tables_and_come_back_byte_for_byte(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "_BATCH_RECORDS", 64)
    files = _write_clicks(tmp_path / "logs")
    counts = records_to_table(files, tmp_path / "table", AGE_CONFIG, ToTableOptions(row_group_size=100))
    assert counts == {"rows": 750, "missing_labels": 498, "blocks": 9, "records": 750, "files": 3}
    made = sorted((tmp_path / "table").glob("*.parquet"))
    groups = pq.ParquetFile(made[0]).metadata
    assert [groups.row_group(i).num_rows for i in range(groups.num_row_groups)] == [100, 100, 50]
    assert pq.read_table(made[1])["age"].to_pylist() == [1 + i / 1000 for i in range(250)]
    counts = table_to_records(list(map(str, made)), tmp_path / "back", AGE_CONFIG)
    assert counts == {"records": 750, "files": 3}
    for number, file in enumerate(files):
        assert (tmp_path / "back" / f"part-{number:05d}.gz").read_bytes() == Path(file).read_bytes()


def test_a_stopped_conversion_goes_on_with_the_file_it_was_at(tmp_path, monkeypatch):
    files = _write_clicks(tmp_path / "logs")
    calls = []

    def dies_at_the_third(records, *rest):
        calls.append(rest[1])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return table_of(records, *rest)

    monkeypatch.setattr(table, "table_of", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        records_to_table(files, tmp_path / "out", AGE_CONFIG)
    done = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.parquet")}
    assert sorted(done) == ["part-00000.parquet", "part-00001.parquet"]
    counts = records_to_table(files, tmp_path / "out", AGE_CONFIG)
    assert (counts["rows"], calls) == (750, [files[0], files[1], files[2], files[2]])
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in done} == done
    assert records_to_table(files, tmp_path / "out", AGE_CONFIG) == counts
    assert len(calls) == 4


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    files = _write_clicks(tmp_path / "logs")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="holds something else"):
            records_to_table(files, tmp_path / "full", AGE_CONFIG, overwrite=overwrite)
    records_to_table(files, tmp_path / "out", AGE_CONFIG)
    with pytest.raises(ConfigError, match=r"another conversion[^$]*other options"):
        records_to_table(files, tmp_path / "out", AGE_CONFIG, ToTableOptions(keep_rate=0.5))
    counts = records_to_table(files[:1], tmp_path / "out", AGE_CONFIG, overwrite=True)
    assert counts["rows"] == 250
    assert len(list((tmp_path / "out").glob("*.parquet"))) == 1
    (tmp_path / "out" / parts.STATE_FILE).write_text("{")
    with pytest.raises(DataError, match="state of a conversion"):
        records_to_table(files, tmp_path / "out", AGE_CONFIG)
    with pytest.raises(ConfigError, match="not local"):
        records_to_table(files, "memory://out", AGE_CONFIG)


def test_damaged_files_are_errors_or_counted(tmp_path):
    files = _write_clicks(tmp_path / "logs")
    with BlockWriter(str(tmp_path / "logs" / "part-1.gz")) as writer:
        for record in (b"\xff", encode_record(_record(continuous={"age": 1.0})), b""):
            writer.write(record)
    with pytest.raises(DataError, match=r"part-1\.gz, record 0"):
        records_to_table(files, tmp_path / "out", AGE_CONFIG)
    counts = records_to_table(files, tmp_path / "skipped", AGE_CONFIG, ToTableOptions("skip"))
    assert (counts["rows"], counts["skipped_records"]) == (501, 2)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"no parquet[^$]*bad"):
        table_to_records([str(tmp_path / "bad.parquet")], tmp_path / "b", AGE_CONFIG)
    (tmp_path / "empty").touch()
    with pytest.raises(DataError, match="nothing is left to write"):
        records_to_table([str(tmp_path / "empty")], tmp_path / "e", AGE_CONFIG)


def test_a_share_of_records_and_files_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the draws depend on the names
    files = _write_clicks(Path("logs"), num_files=8)
    options = ToTableOptions(keep_rate=0.3, file_keep_rate=0.5, seed=1)
    counts = records_to_table(files, tmp_path / "out", AGE_CONFIG, options)
    assert 1 <= counts["files"] < 8
    assert abs(counts["rows"] - 75 * counts["files"]) < 5 * (250 * 8 * 0.3 * 0.7) ** 0.5


def test_the_commands_convert_and_say_what_they_counted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _write_clicks(tmp_path / "logs")
    settings = {"features": [{"name": "age", "type": "continuous"}], "labels": [{"name": "click"}]}
    (tmp_path / "records.yaml").write_text(json.dumps(settings))
    app = Typer()
    app.command("to-table")(records_to_table_command)
    app.command("to-records")(table_to_records_command)
    options = ["--features", "records.yaml", "--out"]
    done = CliRunner().invoke(app, ["to-table", "logs/*.gz", *options, "table"], catch_exceptions=False)
    assert "750 rows" in done.output
    more = ["--compression", "none", "--records-per-block", "50"]
    done = CliRunner().invoke(app, ["to-records", "table", *options, "back", *more], catch_exceptions=False)
    assert "750 records" in done.output
    assert [len(block) for block in BlockReader("back/part-00002")] == [50] * 5
    with pytest.raises(ConfigError, match="pairs"):
        CliRunner().invoke(app, ["to-table", "logs", *options, "x", "--start", "2026-01-01"], catch_exceptions=False)


def test_a_table_of_remote_files(tmp_path):
    with BlockWriter("memory://logs/part.gz") as writer:
        writer.write(encode_record(FULL))
    records_to_table(["memory://logs/part.gz"], tmp_path / "out", LABELS_ONLY)
    assert pq.read_table(tmp_path / "out" / "part-00000.parquet").to_pydict() == {"click": [1.0]}
    made, options = str(tmp_path / "out" / "part-00000.parquet"), ToRecordsOptions(compression="none")
    assert table_to_records([made], tmp_path / "back", LABELS_ONLY, options) == {"records": 1, "files": 1}
    ((record,),) = BlockReader(str(tmp_path / "back" / "part-00000"))
    assert decode_record(record) == DataRecord.from_names(["click"])
