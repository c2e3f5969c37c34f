"""`tml sample-graph`: a made-up graph of users and tweets with planted communities, at any size.

What is planted, so that learning can be seen:

* every user and tweet has a community; a share `inside` of the edges stay within the community of their left end;
* activity and popularity follow a power law, drawn separately;
* every tweet has a kind, and fav, reply and retweet each prefer one of them, so that the relation matters;
* no edge occurs twice in a relation, and nobody follows themselves.

The files are a function of the parameters alone.
"""

from __future__ import annotations

import gzip
import io
import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from tml.common.errors import ConfigError
from tml.common.workspace import Workspace

FORMATS = ("tsv", "tsv.gz", "parquet")
NUM_KINDS = 3
_PREFERENCE = 8.0  # times as likely as tweets of another kind
_HEAD = 10.0  # flattens the head of the power law, so that no single node takes most of the edges
_FULLEST = 0.1  # of a relation's possible edges; beyond, drawing edges that are all different takes too long
_ROWS_AT_ONCE = 1 << 20
_SHORT = {"user": "u", "tweet": "t"}


@dataclass(frozen=True)
class PlantedRelation:
    """A relation of the sample graph: its tables, share of the edges, and the kind of tweet that it prefers."""

    name: str
    rhs: str
    share: float
    kind: int | None = None
    lhs: str = "user"


RELATIONS = (
    PlantedRelation("follow", "user", 0.4),
    PlantedRelation("fav", "tweet", 0.35, kind=0),
    PlantedRelation("reply", "tweet", 0.1, kind=1),
    PlantedRelation("retweet", "tweet", 0.15, kind=2),
)


@dataclass(frozen=True)
class GraphParameters:
    """What a sample graph is a function of.

    Args:
        num_edges: over all relations.
        num_users, num_tweets, num_communities: 0 derives them from the number of edges.
        inside: share of edges within a community.
        exponent: of the power law.
        seed: of all draws.
    """

    num_edges: int
    num_users: int = 0
    num_tweets: int = 0
    num_communities: int = 0
    inside: float = 0.8
    exponent: float = 0.7
    seed: int = 0

    def resolved(self) -> GraphParameters:
        """With all sizes filled in.

        Raises:
            ConfigError: a size or share is out of range, or the edges do not fit between the nodes.
        """
        users = self.num_users or max(100, self.num_edges // 20)
        tweets = self.num_tweets or max(50, self.num_edges * 3 // 200)
        communities = self.num_communities or min(256, max(4, users // 400))
        sizes = (self.num_edges, users, tweets, communities)
        _require(self.num_edges >= 10, "--edges", self.num_edges, "at least 10")
        _require(min(sizes) >= 1 and users >= 2, "--users, --tweets, --communities", sizes[1:], "positive sizes")
        _require(0 <= self.inside <= 1, "--inside", self.inside, "between 0 and 1")
        _require(self.seed >= 0, "--seed", self.seed, "0 or more")
        for relation in RELATIONS:
            possible = users * (users if relation.rhs == "user" else tweets)
            fits = self.num_edges * relation.share <= possible * _FULLEST
            _require(
                fits, "--edges", self.num_edges, f"at most {possible * _FULLEST / relation.share:.0f} for so few nodes"
            )
        return GraphParameters(self.num_edges, users, tweets, communities, self.inside, self.exponent, self.seed)


def sample_graph(
    parameters: GraphParameters, out: Path, file_format: str = "tsv", *, overwrite: bool = False
) -> dict[str, Any]:
    """Writes a sample graph: `edges.tsv` (or .tsv.gz, .parquet), `communities.parquet` and `meta.json`, last.

    An edge reads `user:u17 <tab> fav <tab> tweet:t5`. Nothing is done when the same graph is there already.

    Returns:
        the content of `meta.json`.

    Raises:
        ConfigError: parameters are out of range, or `out` holds another graph.
    """
    _require(file_format in FORMATS, "--format", file_format, f"one of {', '.join(FORMATS)}")
    parameters = parameters.resolved()
    plan = {"parameters": asdict(parameters), "format": file_format}
    published = (f"edges.{file_format}", "communities.parquet")
    workspace = Workspace(out, published, cleared=_all_names(), what="sample graph")
    if not workspace.begin(plan, overwrite):
        return workspace.meta()
    workspace.result.mkdir(exist_ok=True)
    planted = _Planted(parameters)
    rel, lhs, rhs = planted.edges()
    _write_edges(workspace.result / f"edges.{file_format}", file_format, rel, lhs, rhs)
    planted.write_communities(workspace.result / "communities.parquet")
    counts = {relation.name: int(count) for relation, count in zip(RELATIONS, np.bincount(rel), strict=True)}
    meta = {"edges": len(rel), "edges_per_relation": counts, "relations": [asdict(r) for r in RELATIONS], "plan": plan}
    workspace.publish(meta)
    return workspace.meta()


def _all_names() -> tuple[str, ...]:
    return (*(f"edges.{name}" for name in FORMATS), "communities.parquet")


class _Planted:
    """The nodes' hidden properties, and edges drawn by them."""

    def __init__(self, parameters: GraphParameters) -> None:
        self.parameters, self.rng = parameters, np.random.default_rng(parameters.seed)
        sizes = {"user": parameters.num_users, "tweet": parameters.num_tweets}
        self.sizes = sizes
        self.community = {t: self.rng.integers(0, parameters.num_communities, n) for t, n in sizes.items()}
        self.kind = self.rng.integers(0, NUM_KINDS, parameters.num_tweets)
        self.activity = self._power_law(parameters.num_users)
        self.popularity = {t: self._power_law(n) for t, n in sizes.items()}

    def edges(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All edges, shuffled: rel int8 [E], lhs and rhs int64 [E]."""
        columns = []
        left = self.parameters.num_edges
        for number, relation in enumerate(RELATIONS):
            last = number == len(RELATIONS) - 1
            count = left if last else min(left, round(self.parameters.num_edges * relation.share))
            left -= count
            lhs, rhs = self._draw_unique(relation, count)
            columns.append((np.full(count, number, np.int8), lhs, rhs))
        rel, lhs, rhs = (np.concatenate(parts) for parts in zip(*columns, strict=True))
        order = self.rng.permutation(len(rel))
        return rel[order], lhs[order], rhs[order]

    def write_communities(self, target: Path) -> None:
        """Writes table, id, community and kind (null for users) of every node."""
        tables = []
        for table, size in self.sizes.items():
            kind = pa.array(self.kind) if table == "tweet" else pa.nulls(size, pa.int64())
            columns = [
                pa.repeat(pa.scalar(table), size),
                _names(table, np.arange(size)),
                pa.array(self.community[table]),
                kind,
            ]
            tables.append(pa.table(columns, names=["table", "id", "community", "kind"]))
        pq.write_table(pa.concat_tables(tables), target)

    def _power_law(self, size: int) -> np.ndarray:
        return self.rng.permutation((np.arange(size) + _HEAD) ** -self.parameters.exponent)

    def _draw_unique(self, relation: PlantedRelation, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Draws until there are `count` different edges: int64 [count] twice."""
        weight = self.popularity[relation.rhs]
        if relation.kind is not None:
            weight = weight * np.where(self.kind == relation.kind, _PREFERENCE, 1.0)
        groups = self.parameters.num_communities
        lhs_draw = _WeightedDraw(self.activity, self.community["user"], groups)
        rhs_draw = _WeightedDraw(weight, self.community[relation.rhs], groups)
        width, keys = self.sizes[relation.rhs], np.empty(0, np.int64)
        while len(keys) < count:
            tries = (count - len(keys)) * 5 // 4 + 64
            lhs = lhs_draw.of_all(self.rng.random(tries))
            stay = self.rng.random(tries) < self.parameters.inside
            place = self.rng.random(tries)
            near = rhs_draw.of_groups(place, self.community["user"][lhs])
            rhs = np.where(stay & (near >= 0), near, rhs_draw.of_all(place))
            fine = lhs != rhs if relation.lhs == relation.rhs else np.ones(tries, bool)
            keys = np.unique(np.concatenate([keys, (lhs * width + rhs)[fine]]))
        keys = self.rng.permutation(keys)[:count]
        return keys // width, keys % width


class _WeightedDraw:
    """Draws nodes by weight, from all or from one group, by binary search in running totals.

    Nodes lie sorted by group, so a group is an interval of the totals.
    """

    def __init__(self, weight: np.ndarray, group: np.ndarray, num_groups: int) -> None:
        self.order = np.argsort(group, kind="stable")
        self.totals = np.concatenate([np.zeros(1), np.cumsum(weight[self.order])])
        self.first = np.searchsorted(group[self.order], np.arange(num_groups + 1))

    def of_all(self, place: np.ndarray) -> np.ndarray:
        """A node for each place in [0, 1)."""
        return self._at(place * self.totals[-1], 0, len(self.order) - 1)

    def of_groups(self, place: np.ndarray, group: np.ndarray) -> np.ndarray:
        """A node of the given group for each place in [0, 1); -1 where the group is empty."""
        first, stop = self.first[group], self.first[group + 1]
        low, high = self.totals[first], self.totals[stop]
        nodes = self._at(low + place * (high - low), np.minimum(first, len(self.order) - 1), np.maximum(stop - 1, 0))
        return np.where(stop > first, nodes, -1)

    def _at(self, total: np.ndarray, low: Any, high: Any) -> np.ndarray:
        found = np.searchsorted(self.totals, total, side="right") - 1
        return self.order[np.clip(found, low, np.maximum(low, high))]


def _names(table: str, nodes: np.ndarray, prefix: str = "") -> pa.Array:
    return pc.binary_join_element_wise(f"{prefix}{_SHORT[table]}", pa.array(nodes).cast(pa.string()), "")


def _batches(rel: np.ndarray, lhs: np.ndarray, rhs: np.ndarray) -> Iterator[pa.Table]:
    names = pa.array([relation.name for relation in RELATIONS])
    for start in range(0, len(rel), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        is_user = pa.array(np.array([relation.rhs == "user" for relation in RELATIONS])[rel[part]])
        right = (_names(table, rhs[part], f"{table}:") for table in ("user", "tweet"))
        columns = [_names("user", lhs[part], "user:"), names.take(pa.array(rel[part])), pc.if_else(is_user, *right)]
        yield pa.table(columns, names=["lhs", "rel", "rhs"])


def _write_edges(target: Path, file_format: str, rel: np.ndarray, lhs: np.ndarray, rhs: np.ndarray) -> None:
    batches = _batches(rel, lhs, rhs)
    if file_format == "parquet":
        first = next(batches)
        with pq.ParquetWriter(target, first.schema, compression="zstd") as writer:
            for batch in itertools.chain([first], batches):
                writer.write_table(batch)
        return
    with open(target, "wb") as raw:
        stream: IO[bytes] = raw
        if file_format == "tsv.gz":
            stream = io.BufferedWriter(gzip.GzipFile(fileobj=raw, mode="wb", filename="", mtime=0))  # type: ignore[assignment]
        with stream:
            options = pacsv.WriteOptions(include_header=False, delimiter="\t", quoting_style="none")
            for batch in batches:
                pacsv.write_csv(batch, stream, options)


def _require(condition: bool, where: str, value: object, limit: str) -> None:
    if not condition:
        raise ConfigError("the sample graph cannot be made", where=where, value=value, limit=limit)
