"""Nearest neighbours by the model's score: tml's search, exact and by its index, against brute force.

    python benchmarks/neighbours_speed.py                           # a million candidates of dim 128, 1,000 queries
    python benchmarks/neighbours_speed.py --candidates 100k --queries 200 --rounds 1

An exported model of made-up clusters is asked for the best right-hand sides of users under a translation.

  tml      `neighbors_batch` of all queries: exact, answers by id, over a table mapped from its file
  index    `build_index(...)`, then one query after another (usearch; what it finds is scored again exactly)
  torch    blocks of 256 queries: moved queries times all rows, `topk`
  numpy    the same with `argpartition`; the baseline

The interval is from ids to answers, model and index in memory. Beside it: the median time of a single query, recall
(the share of the baseline's k best that were found), the seconds that building the index took, and the peak memory of
the process, of which each measurement has one of its own.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tml.benchmarks.harness import RUNS, argument_parser, circumstances, parse_count, write_record
from tml.benchmarks.turns import Race

WORK = RUNS / "neighbours_speed"
_QUERIES_AT_A_TIME = 256
_NUM_SINGLE = 20

Search = Callable[[NDArray[np.int64]], NDArray[np.int64]]


def main() -> None:
    if sys.argv[1:2] == ["worker"]:
        worker(json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")))
        return
    arguments = _parse_arguments()
    problem = {name: getattr(arguments, name) for name in ("candidates", "queries", "dim", "k", "seed")}
    record: dict[str, Any] = {"circumstances": circumstances(), "problem": problem}
    race = Race(Path(__file__).resolve(), WORK, problem, problem["queries"])
    race.ask("prepare")
    runs, answers = race.run(tuple(CONTESTANTS), arguments.rounds, "queries")
    truth = answers["numpy"]["found"]
    more = {
        name: {
            "one query ms": round(answer["single_ms"], 2),
            f"recall@{problem['k']}": recall(answer["found"], truth),
            "building s": answer["building_seconds"],
        }
        for name, answer in answers.items()
    }
    text = (
        f"{problem['queries']:,} queries, {problem['candidates']:,} candidates, dim {problem['dim']}, the best "
        f"{problem['k']} by translation + dot."
    )
    record |= runs.record() | {"more": more}
    write_record(arguments.results, arguments.record, record, f"{text}\n\n{runs.report(more)}")


def worker(job: dict[str, Any]) -> None:
    """Make the model, or search it by one contestant."""
    problem, out = job["problem"], Path(job["out"])
    if job["name"] == "prepare":
        make_model(WORK / "model", **{key: problem[key] for key in ("candidates", "queries", "dim", "seed")})
        out.write_text("{}", encoding="utf-8")
        return
    if job["name"] in ("tml", "index"):
        # Imported before the clock starts.
        import usearch.index  # noqa: F401

        from tml.projects.twhin import serving  # noqa: F401
    start = time.perf_counter()
    search = CONTESTANTS[job["name"]](WORK / "model", problem["k"])
    building = time.perf_counter() - start
    users = np.arange(problem["queries"])
    search(users[:1])
    start = time.perf_counter()
    found = search(users)
    seconds = time.perf_counter() - start
    single = []
    for user in users[:_NUM_SINGLE]:
        start = time.perf_counter()
        search(np.array([user]))
        single.append(time.perf_counter() - start)
    answer = {"seconds": seconds, "single_ms": 1000 * statistics.median(single), "found": found.tolist()}
    answer["building_seconds"] = building if job["name"] == "index" else None
    out.write_text(json.dumps(answer), encoding="utf-8")


def make_model(folder: Path, candidates: int, queries: int, dim: int, seed: int) -> None:
    """Export a model whose users and items lie in clusters; an id is its row."""
    import torch

    from tml.projects.twhin.export import export_model
    from tml.projects.twhin.models.relations import RelationScorer, RelationSpec

    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((256, dim), dtype=np.float32)

    def rows(count: int) -> torch.Tensor:
        spread = rng.standard_normal((count, dim), dtype=np.float32)
        return torch.from_numpy(centres[rng.integers(len(centres), size=count)] + 0.5 * spread)

    scorer = RelationScorer([RelationSpec("fav", "user", "item", "translation")], dim)
    with torch.no_grad():
        scorer.weight.copy_(0.1 * torch.from_numpy(rng.standard_normal((1, dim), dtype=np.float32)))
    tables = {"user": rows(queries), "item": rows(candidates)}
    shutil.rmtree(folder, ignore_errors=True)
    export_model(folder, tables=tables, scorer=scorer, vocab_dir=None, model_card={}, memory_map=True)


def search_with_tml(folder: Path, k: int) -> Search:
    """Exactly, all queries in one call."""
    from tml.projects.twhin.serving import load_model

    model = load_model(folder)
    return lambda users: _ids(model.neighbors_batch("user", users, "fav", k))


def search_with_index(folder: Path, k: int) -> Search:
    """Approximately, query by query."""
    from tml.projects.twhin.serving import load_model

    model = load_model(folder)
    index = model.build_index("item")
    return lambda users: _ids([index.neighbors("user", int(user), "fav", k) for user in users])


def search_with_torch(folder: Path, k: int) -> Search:
    """Brute force in torch."""
    import torch

    users, items = (torch.from_numpy(rows) for rows in _moved_users_and_items(folder))

    def search(queries: NDArray[np.int64]) -> NDArray[np.int64]:
        blocks = torch.from_numpy(queries).split(_QUERIES_AT_A_TIME)
        return torch.cat([(users[block] @ items.T).topk(k).indices for block in blocks]).numpy()

    return search


def search_with_numpy(folder: Path, k: int) -> Search:
    """Brute force in numpy."""
    users, items = _moved_users_and_items(folder)

    def block(queries: NDArray[np.int64]) -> NDArray[np.int64]:
        scores = users[queries] @ items.T
        best = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1, kind="stable")
        return np.take_along_axis(best, order, axis=1)

    def search(queries: NDArray[np.int64]) -> NDArray[np.int64]:
        starts = range(0, len(queries), _QUERIES_AT_A_TIME)
        return np.concatenate([block(queries[start : start + _QUERIES_AT_A_TIME]) for start in starts])

    return search


CONTESTANTS: dict[str, Callable[[Path, int], Search]] = {
    "tml": search_with_tml,
    "index": search_with_index,
    "torch": search_with_torch,
    "numpy": search_with_numpy,
}


def recall(found: Sequence[Sequence[int]], truth: Sequence[Sequence[int]]) -> float:
    """The share of the true answers that were found, over all queries."""
    hits = sum(len(set(mine) & set(best)) for mine, best in zip(found, truth, strict=True))
    return hits / sum(map(len, truth))


def _moved_users_and_items(folder: Path) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    import pyarrow.parquet as pq

    users, items = (np.load(folder / "embeddings" / f"{name}.npy", mmap_mode="c") for name in ("user", "item"))
    theta = np.array(pq.read_table(folder / "relations.parquet")["params"][0].as_py(), dtype=np.float32)
    return users + theta, items


def _ids(answers: Sequence[Sequence[tuple[Any, float]]]) -> NDArray[np.int64]:
    return np.array([[int(name) for name, _ in answer] for answer in answers])


def _parse_arguments() -> argparse.Namespace:
    parser = argument_parser(__doc__, "neighbours_speed", rounds="searches by each contestant, taking turns")
    parser.add_argument("--candidates", type=parse_count, default=1_000_000)
    parser.add_argument("--queries", type=parse_count, default=1_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
