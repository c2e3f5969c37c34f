"""What a conversion writes: vocabularies, splits, filters, files of the sizes asked for, and a config that loads."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.projects.twhin.convert_helpers import USER_TWEET, decoded, raw_edges, run, tree, vocabulary, write
from tml.common.errors import DataError
from tml.core.config.loading import load_config
from tml.projects.twhin.config import TwhinConfig
from tml.projects.twhin.data.vocab import RelationVocabulary, Vocabulary

ROWS = [("a", "follow", "b"), ("b", "follow", "c"), ("a", "fav", "t1"), ("c", "fav", "t1"), ("a", "fav", "b")]


def _lines(rows) -> str:
    return "".join("\t".join(row) + "\n" for row in rows)


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


def test_a_small_memory_limit_gives_the_same_bytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    text = "".join(f"node-{a}\tr\tnode-{b}\n" for a, b in rng.integers(0, 20_000, (60_000, 2)))
    path = write(tmp_path / "e.tsv", text)
    for name, limit in (("large", "2GB"), ("small", "100MB")):
        run(tmp_path / name / "out", path, single_table="n", memory_limit=limit, drop_duplicates=True)
    for part in ("vocab", "edges"):
        assert tree(tmp_path / "small/out" / part) == tree(tmp_path / "large/out" / part)
