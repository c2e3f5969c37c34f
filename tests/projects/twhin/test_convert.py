"""Every form of input gives the same edges as a conversion by hand."""

from __future__ import annotations

import csv
import gzip
import io
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.projects.twhin.convert_helpers import (
    USER_TWEET,
    decoded,
    raw_edges,
    relations,
    run,
    tree,
    vocabulary,
    write,
)
from tml.common.errors import ConfigError, DataError
from tml.core.config.loading import load_config
from tml.projects.twhin.config import TwhinConfig
from tml.projects.twhin.data.convert import lines
from tml.projects.twhin.data.convert.options import PRESETS, ConvertOptions, RelationType, with_preset
from tml.projects.twhin.data.vocab import RelationVocabulary, Vocabulary

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


def test_vocabulary_is_in_order_of_count_then_id_whatever_the_order_of_the_rows(tmp_path: Path) -> None:
    rows = [("b", "r", "z"), ("a", "r", "z"), ("c", "r", "b"), ("z", "r", "c")]
    run(tmp_path / "one", write(tmp_path / "1.tsv", _lines(rows)), single_table="n")
    run(tmp_path / "two", write(tmp_path / "2.tsv", _lines(rows[::-1])), single_table="n")
    counts = pq.read_table(tmp_path / "one/vocab/n.parquet").column("count").to_pylist()
    assert (vocabulary(tmp_path / "one", "n"), counts) == (["z", "b", "c", "a"], [3, 2, 2, 1])
    assert tree(tmp_path / "one/vocab") == tree(tmp_path / "two/vocab")


def test_random_order_of_the_vocabulary_goes_by_seed(tmp_path: Path) -> None:
    path = write(tmp_path / "e.tsv", "".join(f"n{i}\tr\tn{i}\n" * (i + 1) for i in range(30)))
    orders = []
    for seed in (1, 1, 2):
        out = tmp_path / f"out{len(orders)}"
        run(out, path, single_table="n", vocab_order="random", seed=seed)
        orders.append(vocabulary(out, "n"))
    by_count = [f"n{i}" for i in reversed(range(30))]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[2]) == sorted(by_count) != by_count != orders[0]


def _numbered(tmp_path: Path, num_rows: int) -> str:
    return write(tmp_path / "e.tsv", "".join(f"{i}\tr\t{i}\n" for i in range(num_rows)))


def test_split_by_fraction_has_exact_sizes_and_every_row_once(tmp_path: Path) -> None:
    path = _numbered(tmp_path, 1001)
    meta = run(tmp_path / "out", path, single_table="n", split_fractions=(0.8, 0.15, 0.05))
    assert meta["edges"] == {"train": 801, "valid": 150, "test": 50}
    total = sum((decoded(tmp_path / "out", split) for split in ("train", "valid", "test")), Counter())
    assert total == Counter(("n", str(i), "r", "n", str(i)) for i in range(1001))


def test_train_is_shuffled_over_all_files_by_seed(tmp_path: Path) -> None:
    paths = [
        write(tmp_path / f"{part}.tsv", "".join(f"{part * 500 + i}\tr\tx\n" for i in range(500))) for part in range(4)
    ]
    orders = []
    for seed in (1, 1, 2):
        out = tmp_path / f"out{len(orders)}"
        run(out, *paths, single_table="n", seed=seed, id_type="string")
        names = vocabulary(out, "n")
        orders.append(np.array([int(names[lhs]) for lhs, _, _ in raw_edges(out, "train")]))
    assert (orders[0] == orders[1]).all()
    assert not (orders[0] == orders[2]).all()
    assert sorted(orders[2]) == list(range(2000))
    # A uniform shuffle leaves no trace of the file: each quarter of the output has about a quarter of each file.
    shares = np.array([np.bincount(quarter // 500, minlength=4) for quarter in orders[0].reshape(4, 500)])
    assert (np.abs(shares - 125) < 50).all()
    assert abs(np.corrcoef(orders[0], np.arange(2000))[0, 1]) < 0.1


def test_given_files_split_as_given(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{name}.tsv", f"{name}\tr\tx\n") for name in ("train", "valid", "test")]
    meta = run(tmp_path / "out", files[0], valid=(files[1],), test=(files[2],), single_table="n")
    for split in ("train", "valid", "test"):
        assert decoded(tmp_path / "out", split) == Counter([("n", split, "r", "n", "x")])
    assert meta["tables"]["n"] | {"hash": 0} == {"size": 4, "hash": 0, "not_in_train": 2, "id_type": "string"}


@pytest.mark.parametrize(
    ("times", "valid_from", "test_from"),
    [
        (["5", "9", "10", "100"], "10", "99.5"),  # as numbers, or 9 would come after 10
        (["2022-04-08", "2022-04-09", "2022-04-10", "2022-05-01"], "2022-04-10", "2022-04-30"),
    ],
)
def test_split_by_time(tmp_path: Path, times: list[str], valid_from: str, test_from: str) -> None:
    text = "lhs,rel,rhs,when\n" + "".join(f"n{i},r,x,{time}\n" for i, time in enumerate(times))
    options = {"time_column": "when", "valid_from": valid_from, "test_from": test_from}
    run(tmp_path / "out", write(tmp_path / "e.csv", text), single_table="n", **options)
    found = {s: sorted(edge[1] for edge in decoded(tmp_path / "out", s)) for s in ("train", "valid", "test")}
    assert found == {"train": ["n0", "n1"], "valid": ["n2"], "test": ["n3"]}


def test_split_by_time_in_parquet_dates(tmp_path: Path) -> None:
    times = pa.array(["2022-04-08T10:00:00", "2022-04-10T00:00:00"]).cast(pa.timestamp("us"))
    table = pa.table({"lhs": [1, 2], "rel": ["r", "r"], "rhs": [3, 3], "when": times})
    pq.write_table(table, tmp_path / "e.parquet")
    options = {"time_column": "when", "test_from": "2022-04-09"}
    meta = run(tmp_path / "out", str(tmp_path / "e.parquet"), single_table="n", **options)
    assert meta["edges"] == {"train": 1, "valid": 0, "test": 1}


def test_ids_unseen_in_train_are_dropped_and_counted_never_mapped_to_row_0(tmp_path: Path) -> None:
    train, test = write(tmp_path / "a.tsv", "a\tr\tb\n"), write(tmp_path / "b.tsv", "a\tr\tnew\nb\tr\ta\n")
    meta = run(tmp_path / "out", train, test=(test,), single_table="n", vocab_from="train")
    assert meta["rows_dropped"]["unknown_in_test"] == 1
    assert decoded(tmp_path / "out", "test") == Counter([("n", "b", "r", "n", "a")])
    assert vocabulary(tmp_path / "out", "n") == ["a", "b"]


def test_duplicates_and_self_loops_stay_unless_filtered(tmp_path: Path) -> None:
    train = write(tmp_path / "a.tsv", "a\tfollow\tb\na\tfollow\tb\na\tfollow\ta\na\tfav\ta\n")
    test = write(tmp_path / "b.tsv", "a\tfollow\tb\nb\tfollow\ta\n")
    plain = run(tmp_path / "plain", train, test=(test,), relations=USER_TWEET)
    assert plain["edges"] == {"train": 4, "valid": 0, "test": 2}
    meta = run(tmp_path / "out", train, test=(test,), relations=USER_TWEET, drop_duplicates=True, drop_self_loops=True)
    assert (meta["rows_dropped"]["duplicates"], meta["rows_dropped"]["self_loops"]) == (2, 1)
    # The user "a" and the tweet "a" are two nodes, so that favourite is no loop; and an edge of train leaves test.
    left = Counter([("user", "a", "follow", "user", "b"), ("user", "a", "fav", "tweet", "a")])
    assert decoded(tmp_path / "out") == left
    assert decoded(tmp_path / "out", "test") == Counter([("user", "b", "follow", "user", "a")])


def test_min_degree_peels_until_every_node_has_it(tmp_path: Path) -> None:
    triangle = [("a", "r", "b"), ("b", "r", "c"), ("c", "r", "a")]
    tail = [("c", "r", "d"), ("d", "r", "e"), ("e", "r", "f")]  # f goes first, then e, then d
    path = write(tmp_path / "e.tsv", _lines(triangle + tail))
    meta = run(tmp_path / "out", path, single_table="n", min_degree=2)
    assert decoded(tmp_path / "out") == Counter(("n", lhs, rel, "n", rhs) for lhs, rel, rhs in triangle)
    assert vocabulary(tmp_path / "out", "n") == ["a", "b", "c"]
    assert meta["rows_dropped"]["low_degree"] == 3
    with pytest.raises(DataError, match="no id of a table is left"):
        run(tmp_path / "none", path, single_table="n", min_degree=3)


def test_parts_and_row_groups_have_the_sizes_asked_for(tmp_path: Path) -> None:
    path = _numbered(tmp_path, 1000)
    run(tmp_path / "out", path, single_table="n", row_group_size=150, rows_per_file=400, compression="none")
    files = [pq.ParquetFile(file).metadata for file in sorted((tmp_path / "out/edges/train").iterdir())]
    groups = [[file.row_group(g).num_rows for g in range(file.num_row_groups)] for file in files]
    assert groups == [[150, 150, 100], [150, 150, 100], [150, 50]]
    assert files[0].row_group(0).column(0).compression == "UNCOMPRESSED"
    assert sorted(vocabulary(tmp_path / "out", "n")) == sorted(map(str, range(1000)))


def test_starter_config_names_what_was_converted(tmp_path: Path) -> None:
    path = write(tmp_path / "e.tsv", _lines(ROWS) * 10)
    meta = run(tmp_path / "out", path, relations=USER_TWEET, split_fractions=(0.8, 0.2, 0.0))
    load_config(TwhinConfig, tmp_path / "out/config.yaml")
    config = yaml.safe_load((tmp_path / "out/config.yaml").read_text())
    sizes = {table["name"]: table["num_embeddings"] for table in config["model"]["embeddings"]["tables"]}
    assert sizes == {"user": 3, "tweet": 2}
    named = [(r["name"], r["lhs"], r["rhs"], r["operator"]) for r in config["model"]["relations"]]
    assert named == [("follow", "user", "user", "translation"), ("fav", "user", "tweet", "translation")]
    assert Path(config["train_data"]["data_root"]).is_dir()
    assert Path(config["validation_data"]["data_root"]).is_dir()
    assert "test_data" not in config  # there are no test edges
    assert meta["edges"]["valid"] == 10


def test_meta_holds_the_hashes_of_the_vocabularies(tmp_path: Path) -> None:
    meta = run(tmp_path / "out", write(tmp_path / "e.tsv", _lines(ROWS)), relations=USER_TWEET)
    for table, entry in meta["tables"].items():
        assert Vocabulary.from_parquet(tmp_path / f"out/vocab/{table}.parquet").hash == entry["hash"]
    assert RelationVocabulary.from_parquet(tmp_path / "out/vocab/relations.parquet").hash == meta["relations_hash"]


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


def test_a_small_memory_limit_gives_the_same_bytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    text = "".join(f"node-{a}\tr\tnode-{b}\n" for a, b in rng.integers(0, 20_000, (60_000, 2)))
    path = write(tmp_path / "e.tsv", text)
    for name, limit in (("large", "2GB"), ("small", "100MB")):
        run(tmp_path / name / "out", path, single_table="n", memory_limit=limit, drop_duplicates=True)
    for part in ("vocab", "edges"):
        assert tree(tmp_path / "small/out" / part) == tree(tmp_path / "large/out" / part)


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
