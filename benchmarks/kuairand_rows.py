"""KuaiRand's impressions as rows of a ranker, split by time, with nothing in a row that was not known before it.

`play_time_ms`, `long_view` and the other engagements happen after the impression: they are labels here, or edges of
TwHIN, or sums over the days before the row's day, which a nightly job could have counted.

    train    8 to 16 April; the rows of the first five days are also TwHIN's edges
    valid    17 April
    test     18 to 21 April
"""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SPLITS = {"train": (20220408, 20220416), "valid": (20220417, 20220417), "test": (20220418, 20220421)}
LAST_EDGE_DAY = 20220412
RELATIONS = {
    "click": "is_click",
    "long_view": "long_view",
    "follow": "is_follow",
    "comment": "is_comment",
    "forward": "is_forward",
}
NUMBERS = (
    "hour", "duration", "user_seen", "user_click_rate", "user_watch", "video_seen", "video_click_rate", "video_watch",
    "follow_user_num", "fans_user_num", "friend_user_num", "register_days",
)  # fmt: skip
SCORES = tuple(f"twhin_{relation}" for relation in ("click", "long_view"))

_ROWS = """
select i.user_id, i.video_id, i.date, i.hourmin // 100 as hour, nullif(i.duration_ms, 0) / 1000 as duration,
    coalesce(u.num, 0) as user_seen, u.clicks / u.num as user_click_rate, u.watch / u.num as user_watch,
    coalesce(v.num, 0) as video_seen, v.clicks / v.num as video_click_rate, v.watch / v.num as video_watch,
    f.follow_user_num, f.fans_user_num, f.friend_user_num, f.register_days,
    i.is_click as click, i.play_time_ms / 1000 as watch_time
from impressions i
left join ({users}) u using (user_id, date)
left join ({videos}) v using (video_id, date)
left join user_features f using (user_id)
order by i.time_ms, i.user_id, i.video_id
"""
# Sums over the days before; watch is of log(1 + seconds).
_EARLIER = """
select {key}, date, sum(num) over days as num, sum(clicks) over days as clicks, sum(watch) over days as watch
from (select {key}, date, count(*)::double as num, sum(is_click)::double as clicks,
             sum(ln(1 + play_time_ms / 1000)) as watch
      from impressions group by all)
window days as (partition by {key} order by date rows between unbounded preceding and 1 preceding)
"""


def read_impressions(folder: Path) -> pa.Table:
    """All rows with their features and labels, in the order of time."""
    with _database(folder) as database:
        sums = {"users": _EARLIER.format(key="user_id"), "videos": _EARLIER.format(key="video_id")}
        return database.sql(_ROWS.format(**sums)).to_arrow_table()


def write_edges(folder: Path, out: Path) -> Path:
    """TwHIN's edges, `lhs` user, `rel`, `rhs` video: the engagements of the first days."""
    parts = [
        f"select user_id as lhs, '{relation}' as rel, video_id as rhs from impressions "
        f"where {column} = 1 and date <= {LAST_EDGE_DAY}"
        for relation, column in RELATIONS.items()
    ]
    with _database(folder) as database:
        pq.write_table(database.sql(" union all ".join(parts)).to_arrow_table(), out)
    return out


def with_embeddings(rows: pa.Table, export: Path) -> pa.Table:
    """The rows with the ids to look up in TwHIN's tables, and with TwHIN's own scores of user and video.

    In rows of the days of TwHIN's edges all of it is missing: an embedding that has seen a row's own click would give
    the answer away. Ids without an embedding have no score.

    Args:
        rows: of `read_impressions`.
        export: folder of `tml twhin export`.
    """
    late = rows["date"].to_numpy() > LAST_EDGE_DAY
    columns = {}
    found = {}
    for name in ("user", "video"):
        ids = rows[f"{name}_id"].to_numpy()
        columns[f"twhin_{name}"] = pa.array(ids, mask=~late)
        found[name] = _vectors(export / "embeddings" / f"{name}.parquet", ids)
    relations = pq.read_table(export / "relations.parquet").to_pylist()
    translations = {row["name"]: np.array(row["params"], np.float32) for row in relations}
    for score in SCORES:
        moved = found["user"] + translations[score.removeprefix("twhin_")]
        values = np.einsum("bd,bd->b", moved, found["video"])
        columns[score] = pa.array(values, mask=~late | np.isnan(values))
    return pa.table({name: rows[name] for name in rows.column_names} | columns)


def write_splits(rows: pa.Table, out: Path) -> Path:
    """The rows as `{train,valid,test}.parquet`."""
    out.mkdir(parents=True, exist_ok=True)
    days = rows["date"].to_numpy()
    for split, (first, last) in SPLITS.items():
        pq.write_table(rows.filter((days >= first) & (days <= last)), out / f"{split}.parquet")
    return out


def _vectors(path: Path, ids: np.ndarray) -> np.ndarray:
    """float32 [B, D], NaN for ids without an embedding."""
    table = pq.read_table(path)
    known = table["id"].to_numpy().astype(np.int64)
    vectors = np.stack(table["embedding"].to_numpy(zero_copy_only=False)).astype(np.float32)
    order = np.argsort(known)
    places = np.minimum(np.searchsorted(known[order], ids), len(known) - 1)
    rows = vectors[order[places]]
    rows[known[order[places]] != ids] = np.nan
    return rows


def _database(folder: Path) -> duckdb.DuckDBPyConnection:
    database = duckdb.connect()
    for view, file in (("impressions", "interactions"), ("user_features", "user_features_pure")):
        path = str(folder / f"{file}.parquet").replace("'", "''")
        database.sql(f"create view {view} as select * from '{path}'")
    return database
