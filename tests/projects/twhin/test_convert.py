"""Every form of input gives the same edges as a conversion by hand."""

from __future__ import annotations

import csv
import gzip
import io
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.projects.twhin.convert_helpers import USER_TWEET, decoded, relations, run, vocabulary, write
from tml.common.errors import ConfigError
from tml.projects.twhin.data.convert import lines
from tml.projects.twhin.data.convert.options import PRESETS, ConvertOptions, RelationType, with_preset

ROWS = [("a", "follow", "b"), ("b", "follow", "c"), ("a", "fav", "t1"), ("c", "fav", "t1"), ("a", "fav", "b")]
EXPECTED = Counter(
    ("user", lhs, rel, "user" if rel == "follow" else "tweet", rhs)
    for lhs, rel, rhs in ROWS  # the tweet "b" is another node than the user "b"
)


def _lines(rows, delimiter="\t") -> str:
    return "".join(delimiter.join(row) + "\n" for row in rows)


def test_tsv_with_one_relation_column(tmp_path: Path) -> None:
    meta = run(tmp_path / "out", write(tmp_path / "e.tsv", _lines(ROWS)), relations=USER_TWEET)
    assert decoded(tmp_path / "out") == EXPECTED
    assert meta["edges"] == {"train": 5, "valid": 0, "test": 0}
    assert [(r["id"], r["lhs"], r["rhs"], r["count"]) for r in relations(tmp_path / "out")] == [
        ("follow", "user", "user", 2),
        ("fav", "user", "tweet", 3),
    ]


def test_declared_relations_keep_their_order(tmp_path: Path) -> None:
    run(tmp_path / "out", write(tmp_path / "e.tsv", _lines(ROWS)), relations=USER_TWEET[::-1])
    assert [r["id"] for r in relations(tmp_path / "out")] == ["fav", "follow"]
    assert decoded(tmp_path / "out") == EXPECTED


def test_columns_by_name_in_any_order_with_others_ignored(tmp_path: Path) -> None:
    text = "when,whom,what,who\n" + "".join(f"9,{rhs},{rel},{lhs}\n" for lhs, rel, rhs in ROWS)
    run(tmp_path / "out", write(tmp_path / "e.csv", text), relations=USER_TWEET, columns=("who", "what", "whom"))
    assert decoded(tmp_path / "out") == EXPECTED


def test_columns_by_position_in_gzip_without_header(tmp_path: Path) -> None:
    text = "".join(f"{rhs}|{rel}|{lhs}|7\n" for lhs, rel, rhs in ROWS)
    path = write(tmp_path / "e.txt.gz", gzip.compress(text.encode()))
    run(tmp_path / "out", path, relations=USER_TWEET, columns=("2", "1", "0"), delimiter="|")
    assert decoded(tmp_path / "out") == EXPECTED


@pytest.mark.parametrize("header", ["lhs\trel\trhs", "source\ttype\ttarget", "Head\tRelation\tTail"])
def test_header_is_seen_where_names_are_well_known(tmp_path: Path, header: str) -> None:
    path = write(tmp_path / "e.tsv", header + "\n" + _lines(ROWS))
    run(tmp_path / "out", path, single_table="node")
    assert sum(decoded(tmp_path / "out").values()) == len(ROWS)


def test_header_may_be_denied_and_claimed(tmp_path: Path) -> None:
    path = write(tmp_path / "e.tsv", "head\trelation\ttail\n" + _lines(ROWS))
    assert run(tmp_path / "denied", path, single_table="node", header=False)["rows_read"] == len(ROWS) + 1
    path = write(tmp_path / "f.tsv", _lines(ROWS))
    assert run(tmp_path / "claimed", path, single_table="node", header=True, columns=("0", "1", "2"))["rows_read"] == 4


def test_one_file_a_relation(tmp_path: Path) -> None:
    follow = write(tmp_path / "follow.tsv", "a\tb\nb\tc\n")
    table = pa.table({"lhs": ["a", "c", "a"], "weight": [1.0, 2.0, 3.0], "rhs": ["t1", "t1", "b"]})
    pq.write_table(table, tmp_path / "fav.parquet")
    inputs = (("follow", follow), ("fav", str(tmp_path / "fav.parquet")))
    run(tmp_path / "out", relation_inputs=inputs, relations=USER_TWEET)
    assert decoded(tmp_path / "out") == EXPECTED


def test_one_file_a_relation_in_a_single_table_and_with_held_out_files(tmp_path: Path) -> None:
    likes, knows = write(tmp_path / "l.tsv", "a\tb\nb\tc\n"), write(tmp_path / "k.tsv", "a\tc\n")
    test = write(tmp_path / "t.tsv", "c\ta\n")
    given_files = (("likes", likes), ("knows", knows))
    run(tmp_path / "out", relation_inputs=given_files, test=(f"likes={test}",), single_table="node")
    assert decoded(tmp_path / "out", "test") == Counter([("node", "c", "likes", "node", "a")])
    assert [r["id"] for r in relations(tmp_path / "out")] == ["knows", "likes"]


def test_ids_with_table_prefixes(tmp_path: Path) -> None:
    rows = [(f"user:{lhs}", rel, f"{'user' if rel == 'follow' else 'tweet'}:{rhs}") for lhs, rel, rhs in ROWS]
    run(tmp_path / "out", write(tmp_path / "e.tsv", _lines(rows)), typed_ids=":")
    assert decoded(tmp_path / "out") == EXPECTED


def test_one_file_a_relation_with_table_prefixes(tmp_path: Path) -> None:
    path = write(tmp_path / "fav.tsv", "user:a\ttweet:1\n")
    run(tmp_path / "out", relation_inputs=(("fav", path),), typed_ids=":")
    assert decoded(tmp_path / "out") == Counter([("user", "a", "fav", "tweet", "1")])


def test_a_presets_relation_may_be_replaced(tmp_path: Path) -> None:
    path = write(tmp_path / "e.csv", "user_index,author_index,time_chunk\n0,2,0\n")
    options = with_preset("twitter-follow", {"relations": (RelationType("follow", "user", "user"),)})
    run(tmp_path / "out", path, **options)
    assert decoded(tmp_path / "out") == Counter([("user", 0, "follow", "user", 2)])


def test_only_the_first_separator_of_a_typed_id_counts(tmp_path: Path) -> None:
    run(tmp_path / "out", write(tmp_path / "e.tsv", "user:a::b\tr\turl:http://x\n"), typed_ids=":")
    assert decoded(tmp_path / "out") == Counter([("user", "a::b", "r", "url", "http://x")])


def test_single_table_discovers_relations_in_order_of_name(tmp_path: Path) -> None:
    run(tmp_path / "out", write(tmp_path / "e.tsv", _lines(ROWS)), single_table="entity")
    assert [r["id"] for r in relations(tmp_path / "out")] == ["fav", "follow"]
    assert decoded(tmp_path / "out") == Counter(("entity", lhs, rel, "entity", rhs) for lhs, rel, rhs in ROWS)


@pytest.mark.parametrize(
    "ids",
    [
        pa.array([5, 2**40, 5], pa.int64()),
        pa.array([1, 2, 1], pa.int32()),
        pa.array(["x", "ü", "x"]).dictionary_encode(),
    ],
)
def test_parquet_keeps_the_kind_of_its_ids(tmp_path: Path, ids: pa.Array) -> None:
    pq.write_table(pa.table({"lhs": ids, "rel": ["r", "r", "s"], "rhs": ids}), tmp_path / "e.parquet", row_group_size=2)
    run(tmp_path / "out", str(tmp_path / "e.parquet"), single_table="node")
    values = ids.to_pylist()
    assert decoded(tmp_path / "out") == Counter(
        ("node", v, r, "node", v) for v, r in zip(values, ["r", "r", "s"], strict=True)
    )


def test_tables_may_have_ids_of_different_kinds(tmp_path: Path) -> None:
    pq.write_table(pa.table({"lhs": ["a", "b"], "rhs": ["b", "c"]}), tmp_path / "follow.parquet")
    pq.write_table(pa.table({"lhs": ["a", "c"], "rhs": [17, 2**60]}), tmp_path / "fav.parquet")
    inputs = tuple((name, str(tmp_path / f"{name}.parquet")) for name in ("follow", "fav"))
    run(tmp_path / "out", relation_inputs=inputs, relations=USER_TWEET)
    assert ("user", "c", "fav", "tweet", 2**60) in decoded(tmp_path / "out")


def test_one_table_with_ids_of_two_kinds_is_refused_unless_told(tmp_path: Path) -> None:
    write(tmp_path / "in/a.tsv", "1\tr\t2\n")
    pq.write_table(pa.table({"lhs": [1], "rel": ["r"], "rhs": [3]}), tmp_path / "in/b.parquet")
    with pytest.raises(ConfigError, match="two kinds") as caught:
        run(tmp_path / "out", str(tmp_path / "in"), single_table="node")
    assert "--id-type" in str(caught.value)
    run(tmp_path / "out", str(tmp_path / "in"), single_table="node", id_type="int")
    assert vocabulary(tmp_path / "out", "node") == [1, 2, 3]
    run(tmp_path / "text", str(tmp_path / "in"), single_table="node", id_type="string")
    assert vocabulary(tmp_path / "text", "node") == ["1", "2", "3"]


def test_integers_of_full_length_survive(tmp_path: Path) -> None:
    ids = [str(2**63 - 1), str(-(2**63) + 1), "1589998457638191105", "0"]
    text = "".join(f"{i}\tr\t{i}\n" for i in ids)
    run(tmp_path / "out", write(tmp_path / "e.tsv", text), single_table="node", id_type="int")
    assert set(vocabulary(tmp_path / "out", "node")) == {int(i) for i in ids}


@pytest.mark.parametrize(
    ("preset", "second", "tables"),
    [("twitter-follow", "author_index", ("user", "author")), ("twitter-fave", "tweet_index", ("user", "tweet"))],
)
def test_presets_read_the_public_columns(tmp_path: Path, preset: str, second: str, tables: tuple[str, str]) -> None:
    path = write(tmp_path / "e.csv", f"user_index,{second},time_chunk\n0,2,0\n1,1,1\n2,3,2\n")
    options = with_preset(preset, {"inputs": (path,), "valid_from": "1", "test_from": "2"})
    run(tmp_path / "out", *options.pop("inputs"), **options)
    name = PRESETS[preset]["relations"][0].name
    found = [decoded(tmp_path / "out", split) for split in ("train", "valid", "test")]
    rows = [(0, 2), (1, 1), (2, 3)]
    assert found == [Counter([(tables[0], lhs, name, tables[1], rhs)]) for lhs, rhs in rows]


odd_ids = st.text(st.characters(exclude_characters="\t\n\r", exclude_categories=("Cs",)), min_size=1, max_size=8)
triples = st.lists(st.tuples(odd_ids, st.sampled_from(["r", "s s", '"q"', "ü"]), odd_ids), min_size=1, max_size=30)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=triples)
def test_odd_names_come_through_tsv(tmp_path: Path, rows: list[tuple[str, str, str]]) -> None:
    out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
    run(out, write(tmp_path / f"{out.name}.tsv", _lines(rows)), single_table="n", header=False)
    assert decoded(out) == Counter(("n", lhs, rel, "n", rhs) for lhs, rel, rhs in rows)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=triples, small_blocks=st.booleans())
def test_odd_names_come_through_quoted_csv(
    tmp_path: Path, rows: list[tuple[str, str, str]], small_blocks: bool
) -> None:
    out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerows(rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "BLOCK_BYTES", 64 if small_blocks else lines.BLOCK_BYTES)
        run(out, write(tmp_path / f"{out.name}.csv", text.getvalue()), single_table="n", header=False)
    assert decoded(out) == Counter(("n", lhs, rel, "n", rhs) for lhs, rel, rhs in rows)


def test_small_blocks_and_byte_order_mark_and_missing_last_line_end(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(lines, "BLOCK_BYTES", 50)
    rows = [(f"n{i}", "rel" * (i % 5 + 1), f"m{i % 7}") for i in range(300)]
    path = write(tmp_path / "e.tsv", "\ufeff" + _lines(rows).rstrip("\n"))
    run(tmp_path / "out", path, single_table="n")
    assert decoded(tmp_path / "out") == Counter(("n", lhs, rel, "n", rhs) for lhs, rel, rhs in rows)


def _refused(**settings) -> str:
    with pytest.raises(ConfigError) as caught:
        ConvertOptions(**({"inputs": ("x.tsv",), "single_table": "n"} | settings))
    return str(caught.value)


@pytest.mark.parametrize("name", ["it's [1] * {a,b}", "rel=b/lhs=2020"])
def test_folders_with_odd_names(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name / "edges [x].tsv", _lines(ROWS))
    run(tmp_path / name / "out", path, relations=USER_TWEET)
    assert decoded(tmp_path / name / "out") == EXPECTED
    with pytest.raises(ConfigError, match="question mark"):
        run(tmp_path / name / "why?", path, relations=USER_TWEET)


def test_settings_that_do_not_fit_are_refused() -> None:
    assert "exactly one way" in _refused(typed_ids=":")
    assert "exactly one way" in _refused(single_table=None)
    assert "one way to split" in _refused(split_fractions=(0.5, 0.5, 0.0), valid=("v.tsv",))
    assert "add up to 1" in _refused(split_fractions=(0.9, 0.2, 0.0))
    assert "--test-from" in _refused(time_column="when")
    assert "a relation that --relation declares: fav" in _refused(
        relations=(RelationType("fav", "u", "t"),), single_table=None, relation_inputs=(("faf", "x.tsv"),)
    )
    assert "one of fail, skip" in _refused(on_error="ignore")
    assert "names the relations' own file" in _refused(single_table="relations")
    assert "a size such as 4GB" in _refused(memory_limit="lots")
    assert "each relation named once" in _refused(single_table=None, relations=(USER_TWEET[0], USER_TWEET[0]))


@pytest.mark.parametrize("text", ["fav", "fav=user", "=a:b", "fav=us/er:tweet", "fav=:tweet"])
def test_relations_that_cannot_be_read_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="relation"):
        RelationType.parse(text)


def test_relation_names_may_hold_any_character() -> None:
    assert RelationType.parse("/a=b:c/d=user:tweet") == RelationType("/a=b:c/d", "user", "tweet")
