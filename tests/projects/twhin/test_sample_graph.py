"""The sample graph is what its parameters say: sizes, no repeats, planted signal, the same bytes by seed."""

from __future__ import annotations

import csv
import gzip
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.projects.twhin.convert_helpers import SPLITS, decoded, run, tree
from tml.common.errors import ConfigError
from tml.projects.twhin.data.sample_graph import GraphParameters, sample_graph

SMALL = GraphParameters(num_edges=20_000, num_users=1500, num_tweets=600, num_communities=6, seed=5)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[str]]]:
    out = tmp_path_factory.mktemp("graph") / "out"
    sample_graph(SMALL, out)
    with open(out / "edges.tsv", encoding="utf-8", newline="") as stream:
        return out, list(csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))


def test_sizes_types_and_shares(made: tuple[Path, list[list[str]]]) -> None:
    _, rows = made
    assert len(rows) == 20_000
    assert Counter(rel for _, rel, _ in rows) == {"follow": 8000, "fav": 7000, "reply": 2000, "retweet": 3000}
    for lhs, rel, rhs in rows:
        assert lhs.startswith("user:u")
        assert 0 <= int(lhs[6:]) < 1500
        assert rhs.startswith("user:u" if rel == "follow" else "tweet:t")
        assert 0 <= int(rhs.partition(":")[2][1:]) < (1500 if rel == "follow" else 600)


def test_edges_are_unique_per_relation_without_self_loops(made: tuple[Path, list[list[str]]]) -> None:
    _, rows = made
    assert len({tuple(row) for row in rows}) == len(rows)
    assert not any(lhs == rhs for lhs, _, rhs in rows)


def test_rows_are_shuffled(made: tuple[Path, list[list[str]]]) -> None:
    is_follow = np.array([rel == "follow" for _, rel, _ in made[1]])
    assert np.abs(is_follow.reshape(10, -1).mean(1) - 0.4).max() < 0.05


def _hidden(out: Path) -> dict[str, tuple[int, int | None]]:
    rows = pq.read_table(out / "communities.parquet").to_pylist()
    return {f"{row['table']}:{row['id']}": (row["community"], row["kind"]) for row in rows}


def test_communities_and_kinds_are_planted(made: tuple[Path, list[list[str]]]) -> None:
    out, rows = made
    hidden = _hidden(out)
    assert len(hidden) == 2100
    same = np.mean([hidden[lhs][0] == hidden[rhs][0] for lhs, _, rhs in rows])
    # A share of 0.8 stays inside, and of the rest one in six by chance; popular pairs fill up, so a little less.
    assert 0.75 < same < 0.87
    for kind, relation in enumerate(("fav", "reply", "retweet")):
        kinds = Counter(hidden[rhs][1] for _, rel, rhs in rows if rel == relation)
        assert kinds[kind] / kinds.total() > 0.6  # by chance a third


def test_degrees_follow_a_power_law(made: tuple[Path, list[list[str]]]) -> None:
    degrees = np.array(sorted(Counter(lhs for lhs, _, _ in made[1]).values(), reverse=True))
    expected = (np.arange(1500) + 10.0) ** -0.7
    expected *= 20_000 / expected.sum()
    assert degrees[:15].mean() == pytest.approx(expected[:15].mean(), rel=0.3)
    assert np.median(degrees) == pytest.approx(np.median(expected), rel=0.3)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(
    made: tuple[Path, list[list[str]]], tmp_path: Path
) -> None:
    sample_graph(SMALL, tmp_path / "again")
    assert tree(tmp_path / "again") == tree(made[0])
    sample_graph(GraphParameters(20_000, 1500, 600, 6, seed=6), tmp_path / "other")
    assert (tmp_path / "other/edges.tsv").read_bytes() != (made[0] / "edges.tsv").read_bytes()


def test_all_formats_hold_the_same_edges(made: tuple[Path, list[list[str]]], tmp_path: Path) -> None:
    sample_graph(SMALL, tmp_path / "gz", "tsv.gz")
    assert gzip.decompress((tmp_path / "gz/edges.tsv.gz").read_bytes()) == (made[0] / "edges.tsv").read_bytes()
    sample_graph(SMALL, tmp_path / "pq", "parquet")
    assert [list(row.values()) for row in pq.read_table(tmp_path / "pq/edges.parquet").to_pylist()] == made[1]


def test_converts_without_further_words(made: tuple[Path, list[list[str]]], tmp_path: Path) -> None:
    out, rows = made
    meta = run(tmp_path / "out", str(out / "edges.tsv"), typed_ids=":", split_fractions=(0.9, 0.05, 0.05))
    assert [(r["name"], r["lhs"], r["rhs"]) for r in meta["relations"]] == [
        ("fav", "user", "tweet"), ("follow", "user", "user"), ("reply", "user", "tweet"), ("retweet", "user", "tweet")
    ]  # fmt: skip
    total = sum((decoded(tmp_path / "out", split) for split in SPLITS), Counter())
    assert total == Counter((*lhs.split(":"), rel, *rhs.split(":")) for lhs, rel, rhs in rows)


def test_nothing_is_done_twice_and_another_graph_is_refused(tmp_path: Path) -> None:
    parameters = GraphParameters(num_edges=200)
    first = sample_graph(parameters, tmp_path / "out")
    before = (tmp_path / "out/edges.tsv").stat().st_mtime_ns
    assert sample_graph(parameters, tmp_path / "out") == first
    assert (tmp_path / "out/edges.tsv").stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match="holds another") as caught:
        sample_graph(GraphParameters(num_edges=300), tmp_path / "out")
    assert "parameters.num_edges: 200 -> 300" in str(caught.value)
    sample_graph(GraphParameters(num_edges=300), tmp_path / "out", "parquet", overwrite=True)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "communities.parquet", "edges.parquet", "meta.json"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("parameters", "where"),
    [
        (GraphParameters(num_edges=9), "--edges"),
        (GraphParameters(num_edges=1000, num_users=10, num_tweets=10), "--edges"),
        (GraphParameters(num_edges=1000, inside=1.5), "--inside"),
        (GraphParameters(num_edges=1000, num_users=-5), "--users, --tweets, --communities"),
        (GraphParameters(num_edges=1000, seed=-1), "--seed"),
    ],
)
def test_parameters_out_of_range(tmp_path: Path, parameters: GraphParameters, where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        sample_graph(parameters, tmp_path / "out")
    assert caught.value.where == where
    assert not (tmp_path / "out").exists()


def test_more_communities_than_nodes_leave_some_empty(tmp_path: Path) -> None:
    meta = sample_graph(GraphParameters(num_edges=500, num_communities=1000), tmp_path / "out")
    assert meta["edges"] == 500


def test_the_whole_way_by_command_line(tmp_path: Path) -> None:
    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        whole = [sys.executable, "-m", "tml.projects.twhin.data.cli", *arguments]
        return subprocess.run(
            whole, capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )

    assert command("sample-graph", "--out", "raw", "--edges", "500").returncode == 0
    done = command("convert", "raw/edges.tsv", "--out", "graph", "--typed-ids", ":")
    assert done.returncode == 0, done.stderr
    assert "4 relations; edges: 450 train, 25 valid, 25 test" in done.stdout
    refused = command("convert", "raw/edges.tsv", "--out", "graph", "--typed-ids", ":", "--seed", "1")
    assert refused.returncode == 1
    assert "options.seed: 0 -> 1" in refused.stderr
    assert "Traceback" not in refused.stderr
    preset = command("convert", "raw/edges.tsv", "--out", "p", "--preset", "twitter-fave")
    assert preset.returncode == 1
    assert "user_index" in preset.stderr
