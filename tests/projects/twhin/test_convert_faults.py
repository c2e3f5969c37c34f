"""Bad input: each kind of bad row is named with its place and content, or skipped and counted on request."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.projects.twhin.convert_helpers import USER_TWEET, decoded, run, write
from tml.common.errors import ConfigError, DataError
from tml.projects.twhin.data.convert import lines

GOOD = b"a\tfollow\tb\nb\tfollow\tc\n"

BAD_LINES = {
    "blank line": (b"", {}),
    "not valid UTF-8": (b"a\tfollow\t\xff\xfe", {}),
    "too few columns": (b"a\tfollow", {}),
    "too many columns": (b"a\tfol\tlow\tb", {}),
    "carriage return inside a line": (b"a\rx\tfollow\tb", {}),
    "empty id": (b"a\tfollow\t", {}),
    "unknown relation": (b"a\tfolow\tb", {}),
    "id is not an integer": (b"1\tfollow\t1.5", {"id_type": "int"}),
}


def _with_line_3(tmp_path: Path, bad: bytes, good: bytes = GOOD, name: str = "e.tsv") -> str:
    return write(tmp_path / name, good + bad + b"\n" + good)


@pytest.mark.parametrize("fault", BAD_LINES)
def test_bad_line_fails_with_file_line_number_and_content(tmp_path: Path, fault: str) -> None:
    bad, options = BAD_LINES[fault]
    good = GOOD if "id_type" not in options else b"1\tfollow\t2\n2\tfollow\t3\n"
    path = _with_line_3(tmp_path, bad, good)
    with pytest.raises(DataError, match=fault) as caught:
        run(tmp_path / "out", path, relations=USER_TWEET[:1], **options)
    assert f"{path}, line 3" in str(caught.value)
    assert caught.value.value == bad.decode("utf-8", "backslashreplace")
    assert not (tmp_path / "out/meta.json").exists()
    assert not (tmp_path / "out/edges").exists()


@pytest.mark.parametrize("fault", BAD_LINES)
def test_bad_line_is_skipped_and_counted_on_request(tmp_path: Path, fault: str) -> None:
    bad, options = BAD_LINES[fault]
    good = GOOD if "id_type" not in options else b"1\tfollow\t2\n2\tfollow\t3\n"
    path = _with_line_3(tmp_path, bad, good)
    meta = run(tmp_path / "out", path, relations=USER_TWEET[:1], on_error="skip", **options)
    assert meta["rows_rejected"] == {fault: 1}
    assert meta["edges"]["train"] == 4
    (example,) = [json.loads(line) for line in (tmp_path / "out/rejected.jsonl").read_text().splitlines()]
    assert example == {"file": path, "line": 3, "fault": fault, "content": bad.decode("utf-8", "backslashreplace")}


def test_bad_lines_of_all_kinds_at_once_over_many_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "BLOCK_BYTES", 64)
    kinds = {fault: bad for fault, (bad, options) in BAD_LINES.items() if not options}
    text, expected_lines = b"", {}
    for repeat in range(20):
        for fault, bad in kinds.items():
            text += GOOD + bad + (b"\r\n" if repeat % 2 else b"\n")
            expected_lines.setdefault(fault, []).append(text.count(b"\n"))
    path = write(tmp_path / "e.tsv", text)
    meta = run(tmp_path / "out", path, relations=USER_TWEET[:1], on_error="skip")
    assert meta["rows_rejected"] == dict.fromkeys(kinds, 20)
    assert meta["edges"]["train"] == 2 * 20 * len(kinds)
    found: dict[str, list[int]] = {}
    for line in (tmp_path / "out/rejected.jsonl").read_text().splitlines():
        example = json.loads(line)
        found.setdefault(example["fault"], []).append(example["line"])
    assert {fault: sorted(numbers) for fault, numbers in found.items()} == expected_lines


@pytest.mark.parametrize(
    "bad",
    ['a,"follow,b', 'a,fol"low,b', 'a,"fol"low,b', 'a,"follow""x,b', 'a,follow,"b" ', '"a"x"",follow,b'],
)
def test_misplaced_quote_fails_by_line_and_never_swallows_the_rest(tmp_path: Path, bad: str) -> None:
    good = b'a,follow,b\n"b",follow,"c""c, d"\n'
    path = _with_line_3(tmp_path, bad.encode(), good, "e.csv")
    with pytest.raises(DataError, match="misplaced quote") as caught:
        run(tmp_path / "out", path, relations=USER_TWEET[:1])
    assert "line 3" in str(caught.value)
    meta = run(tmp_path / "out", path, relations=USER_TWEET[:1], on_error="skip")
    assert (meta["rows_rejected"], meta["edges"]["train"]) == ({"misplaced quote": 1}, 4)
    assert decoded(tmp_path / "out")["user", "b", "follow", "user", 'c"c, d'] == 2


def test_quotes_are_plain_characters_in_tsv(tmp_path: Path) -> None:
    run(tmp_path / "out", write(tmp_path / "e.tsv", 'a"\tr\t"b\n'), single_table="n")
    assert decoded(tmp_path / "out") == Counter([("n", 'a"', "r", "n", '"b')])


@pytest.mark.parametrize("bad", ["17\tr\ttweet:1", ":17\tr\ttweet:1", "us/er:17\tr\ttweet:1", "relations:1\tr\tuser:1"])
def test_id_without_a_table_prefix(tmp_path: Path, bad: str) -> None:
    path = write(tmp_path / "e.tsv", "user:1\tr\ttweet:1\n" + bad + "\n")
    with pytest.raises(DataError, match="id without a table prefix") as caught:
        run(tmp_path / "out", path, typed_ids=":")
    assert "line 2" in str(caught.value)
    meta = run(tmp_path / "out", path, typed_ids=":", on_error="skip")
    assert meta["rows_rejected"] == {"id without a table prefix": 1}
    assert decoded(tmp_path / "out") == Counter([("user", "1", "r", "tweet", "1")])


def test_empty_id_after_the_prefix_and_empty_relation(tmp_path: Path) -> None:
    path = write(tmp_path / "e.tsv", "user:1\tr\ttweet:1\nuser:\tr\ttweet:1\nuser:1\t\ttweet:1\n")
    meta = run(tmp_path / "out", path, typed_ids=":", on_error="skip")
    assert meta["rows_rejected"] == {"empty id": 1, "empty relation": 1}


def test_time_that_cannot_be_read(tmp_path: Path) -> None:
    path = write(tmp_path / "e.csv", "lhs,rel,rhs,t\na,r,b,1\na,r,b,soon\na,r,b,\n")
    meta = run(tmp_path / "out", path, single_table="n", time_column="t", test_from="5", on_error="skip")
    assert meta["rows_rejected"] == {"time cannot be read": 2}


def test_null_in_parquet_is_refused_by_row_or_counted(tmp_path: Path) -> None:
    table = pa.table({"lhs": ["a", None, "c", "d"], "rel": ["r", "r", None, "r"], "rhs": ["x", "y", "z", ""]})
    pq.write_table(table, tmp_path / "e.parquet")
    with pytest.raises(DataError, match="null") as caught:
        run(tmp_path / "out", str(tmp_path / "e.parquet"), single_table="n")
    assert "row 1" in str(caught.value)
    meta = run(tmp_path / "out", str(tmp_path / "e.parquet"), single_table="n", on_error="skip")
    assert meta["rows_rejected"] == {"null": 2, "empty id": 1}
    examples = [json.loads(line) for line in (tmp_path / "out/rejected.jsonl").read_text().splitlines()]
    assert [example["row"] for example in examples] == [1, 2, 3]


def test_parquet_column_of_a_wrong_kind(tmp_path: Path) -> None:
    pq.write_table(pa.table({"lhs": [1.5], "rel": ["r"], "rhs": [2.5]}), tmp_path / "e.parquet")
    with pytest.raises(DataError, match="column cannot hold ids") as caught:
        run(tmp_path / "out", str(tmp_path / "e.parquet"), single_table="n")
    assert caught.value.value == "double"


def test_parquet_with_bytes_that_are_no_utf8(tmp_path: Path) -> None:
    broken = pa.Array.from_buffers(pa.string(), 1, [None, *pa.array([b"\xff"]).buffers()[1:]])
    pq.write_table(pa.table({"lhs": broken, "rel": ["r"], "rhs": ["b"]}), tmp_path / "e.parquet")
    with pytest.raises(DataError, match="cannot be read"):
        run(tmp_path / "out", str(tmp_path / "e.parquet"), single_table="n")


@pytest.mark.parametrize("name", ["e.parquet", "e.tsv.gz"])
def test_truncated_file_is_named(tmp_path: Path, name: str) -> None:
    import gzip

    if name.endswith("gz"):
        whole = gzip.compress(b"".join(b"%d\tr\t%d\n" % (i, i * 7919) for i in range(5000)))
    else:
        pq.write_table(pa.table({"lhs": ["a"], "rel": ["r"], "rhs": ["b"]}), tmp_path / "whole.parquet")
        whole = (tmp_path / "whole.parquet").read_bytes()
    path = write(tmp_path / name, whole[:-20])
    with pytest.raises(DataError, match="cannot be read") as caught:
        run(tmp_path / "out", path, single_table="n")
    assert path in str(caught.value)


def test_column_not_found_names_the_nearest(tmp_path: Path) -> None:
    path = write(tmp_path / "e.csv", "user,relation,tweet\na,r,b\n")
    with pytest.raises(DataError, match="column not found") as caught:
        run(tmp_path / "out", path, single_table="n", columns=("user", "relatoin", "tweet"))
    assert "did you mean 'relation'?" in str(caught.value)
    with pytest.raises(DataError, match="column not found") as caught:
        run(tmp_path / "out", path, single_table="n", columns=("0", "1", "7"))
    assert "3 columns" in str(caught.value)


def test_missing_file_names_the_nearest_and_a_folder_without_edges_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "edges.tsv", GOOD)
    with pytest.raises(DataError, match="input file not found") as caught:
        run(tmp_path / "out", str(tmp_path / "edge.tsv"), single_table="n")
    assert path in str(caught.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no input file in the folder"):
        run(tmp_path / "out", str(tmp_path / "empty"), single_table="n")
    with pytest.raises(DataError, match="given twice"):
        run(tmp_path / "out", path, path, single_table="n")


def test_no_rows_at_all_and_declared_relations_without_rows(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no edges found"):
        run(tmp_path / "out", write(tmp_path / "empty.tsv", ""), single_table="n")
    with pytest.raises(DataError, match="a declared relation has no edges") as caught:
        run(tmp_path / "out2", write(tmp_path / "e.tsv", GOOD), relations=USER_TWEET)
    assert caught.value.value == ["fav"]


def test_an_empty_file_among_others_does_no_harm(tmp_path: Path) -> None:
    paths = [write(tmp_path / "a.tsv", ""), write(tmp_path / "b.tsv", GOOD), write(tmp_path / "c.tsv", "")]
    assert run(tmp_path / "out", *paths, single_table="n")["edges"]["train"] == 2


def test_a_relation_between_different_tables_in_different_rows_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "e.tsv", "user:1\tlikes\ttweet:1\nuser:1\tlikes\tuser:2\n")
    with pytest.raises(ConfigError, match="joins different tables") as caught:
        run(tmp_path / "out", path, typed_ids=":")
    assert "likes=user:tweet (1 rows)" in str(caught.value)


def test_no_train_edges_left(tmp_path: Path) -> None:
    path = write(tmp_path / "e.csv", "lhs,rel,rhs,t\na,r,b,9\n")
    with pytest.raises(DataError, match="no train edges are left"):
        run(tmp_path / "out", path, single_table="n", time_column="t", test_from="5")


def test_a_line_longer_than_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "BLOCK_BYTES", 100)
    with pytest.raises(DataError, match="line too long") as caught:
        run(tmp_path / "out", write(tmp_path / "e.tsv", GOOD + b"x" * 1000), single_table="n")
    assert "line 3" in str(caught.value)


def test_mending_the_input_after_a_failure_needs_no_overwrite(tmp_path: Path) -> None:
    path = _with_line_3(tmp_path, b"a\tfollow")
    with pytest.raises(DataError):
        run(tmp_path / "out", path, single_table="n")
    write(tmp_path / "e.tsv", GOOD * 3)
    assert run(tmp_path / "out", path, single_table="n")["edges"]["train"] == 6
