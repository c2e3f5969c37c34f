"""Link prediction: where does the true node of an edge rank among all candidates of its table?

Letters: `E` evaluated edges, `Q` edges of a block, `n` rows of a table, `N` candidates, `D` embedding dim, `W` ranks.

Filtered protocol: Bordes et al. 2013 (TransE). Memory beside one table and about 100 bytes an edge: the score matrices
of the blocks being ranked (`RankingOptions.block_bytes`) and a few of `Q x 4096`.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from tml.common import device
from tml.common.errors import DataError, NonFiniteError
from tml.ml_logging import Progress
from tml.projects.twhin.data.edges import EdgeArrays, EdgeSchema, take
from tml.projects.twhin.evaluation.blocks import BlockWorkers, score_into
from tml.projects.twhin.evaluation.known_edges import KnownEdges
from tml.projects.twhin.evaluation.ranking import Field, Filters, Pool, ScoreBlock, rank_block
from tml.projects.twhin.evaluation.sources import EmbeddingSource, Scorer
from tml.projects.twhin.evaluation.summary import SIDES, summarize
from tml.projects.twhin.models.operators import Operator
from tml.projects.twhin.models.scores import Side

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# Edges whose embeddings are fetched together: a bound of temporaries.
_CHUNK_EDGES = 16_384


@dataclass(frozen=True)
class RankingOptions:
    """How to evaluate.

    Attributes:
        hits_at: the k of hits@k and recall@k.
        num_candidates: rank against that many uniformly sampled candidates of a table that has more; None for all.
        max_edges: evaluate a random subset of so many edges; None for all.
        seed: of the samples and of the corruptions for AUC.
        precision: of products of queries and candidates; bf16 also rounds scores to its 8 bits.
        block_queries: at most so many edges are scored together.
        block_bytes: bound on the score matrices of all threads together (a single edge may exceed it).
        progress: show rate and time left.
    """

    hits_at: tuple[int, ...] = (1, 3, 10, 50)
    num_candidates: int | None = None
    max_edges: int | None = None
    seed: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    block_queries: int = 512
    block_bytes: int = 512 << 20
    progress: bool = True


@dataclass(frozen=True)
class _Task:
    """Edges of one side whose relations share an operator and tables.

    `edges` are indices into the evaluated edges, those of one query next to each other: a query is scored once a block.
    """

    side: Side
    operator: Operator
    query_table: str
    candidate_table: str
    edges: Ints


@dataclass
class _Run:
    """State of one evaluation: the results `[2, 5, E]`, zero for the edges of other ranks, and the last pool."""

    edges: EdgeArrays
    scorer: Scorer
    tables: EmbeddingSource
    filters: Filters
    results: Floats
    uniform: Floats
    progress: Progress | None = None
    pools: dict[str, Pool] = field(default_factory=dict)


class LinkPredictionEvaluator:
    """Filtered and raw ranking metrics of both sides, exact AUC and recall; see docs/evaluation.md for every key.

    Args:
        known_edges: the edges of all splits; true answers that the filtered protocol leaves out. The evaluated edges
            are always among them.
        options: how to evaluate.
    """

    def __init__(self, known_edges: EdgeArrays, options: RankingOptions | None = None) -> None:
        self.options = options or RankingOptions()
        self.known = KnownEdges(known_edges)

    @torch.no_grad()
    def evaluate(self, edges: EdgeArrays, scorer: Scorer, tables: EmbeddingSource) -> dict[str, float]:
        """Evaluate edges. With several ranks all call it with the same edges, each ranks a share, all get the result.

        Args:
            edges: `E` edges.
            scorer: ranks candidates.
            tables: the embeddings.

        Returns:
            Metric by name.

        Raises:
            DataError: no edges, or an edge outside its tables or the relations.
            NonFiniteError: a score is NaN or infinite.
        """
        edges = choose_edges(edges, self.options)
        EdgeSchema(scorer.relations, _num_rows(scorer, tables)).check(edges, "evaluated edge {}".format)
        run = _Run(
            edges, scorer, tables, Filters(self.known, KnownEdges(edges)),
            results=np.zeros((len(SIDES), len(Field), len(edges))),
            uniform=np.random.default_rng(self.options.seed).random((len(SIDES), len(edges))),
        )  # fmt: skip
        with ExitStack() as stack:
            if self.options.progress:
                share = 2 * -(-len(edges) // device.world_size())
                run.progress = stack.enter_context(Progress(share, "evaluating", "ranks"))
            for task in _tasks(edges, scorer):
                self._run_task(run, task)
        _add_ranks(run.results)
        _check_finite(run.results, edges, scorer)
        metrics = summarize(run.results, edges, scorer.relations, self.options.hits_at)
        return {self.prefix + name: value for name, value in metrics.items()}

    @property
    def prefix(self) -> str:
        """`sampled@N.` before every key when candidates are sampled, else empty."""
        return "" if self.options.num_candidates is None else f"sampled@{self.options.num_candidates}."

    def _run_task(self, run: _Run, task: _Task) -> None:
        pool = self._pool(run, task.candidate_table)
        rank, world_size = device.rank(), device.world_size()
        share_size = -(-len(task.edges) // world_size)
        share = task.edges[rank * share_size : (rank + 1) * share_size]
        options = self.options
        with BlockWorkers(
            len(share), len(pool.rows), pool.rows.device, options.block_queries, options.block_bytes
        ) as workers:
            # Looking rows up is collective: every rank goes round as often as the one with the largest share.
            for start in range(0, share_size, _CHUNK_EDGES):
                self._run_chunk(run, task, pool, workers, share[start : start + _CHUNK_EDGES])

    def _run_chunk(self, run: _Run, task: _Task, pool: Pool, workers: BlockWorkers, chunk: Ints) -> None:
        edges = take(run.edges, chunk)
        queries, targets = (edges.lhs, edges.rhs) if task.side == "rhs" else (edges.rhs, edges.lhs)
        query_rows = run.tables.rows(task.query_table, torch.from_numpy(queries))
        target_rows = None
        if pool.ids is not None:
            target_rows = run.tables.rows(task.candidate_table, torch.from_numpy(targets))
        score = partial(run.scorer.rhs_scores if task.side == "rhs" else run.scorer.lhs_scores, task.operator)
        side = SIDES.index(task.side)

        def rank(block: slice) -> int:
            part, index = take(edges, block), chunk[block]
            candidates = [pool.rows] if target_rows is None else [pool.rows, target_rows[block]]
            first, row = _distinct(part.rel, queries[block])
            matrix = workers.matrix(len(first), sum(map(len, candidates)))
            relations = torch.from_numpy(part.rel[first]).to(matrix.device)
            with torch.no_grad(), device.autocast(matrix.device, self.options.precision == "bf16"):
                sums = score_into(matrix, score, relations, query_rows[block][first], candidates)
            scores = ScoreBlock(matrix, row, pool, sums.isfinite().cpu().numpy())
            run.results[side][:, index] = rank_block(scores, part, task.side, run.filters, run.uniform[side, index])
            return len(part)

        for num_ranked in workers.map(rank, len(chunk)):
            if run.progress is not None:
                run.progress.update(num_ranked)

    def _pool(self, run: _Run, table: str) -> Pool:
        if table not in run.pools:
            # Only one table at a time: tasks come sorted by their candidates' table.
            run.pools.clear()
            run.pools[table] = self._new_pool(run.tables, table)
        return run.pools[table]

    def _new_pool(self, tables: EmbeddingSource, table: str) -> Pool:
        num_rows, wanted = tables.num_rows(table), self.options.num_candidates
        if wanted is None or wanted >= num_rows:
            return Pool(tables.full(table))
        seed = [self.options.seed, *table.encode()]
        ids = np.sort(np.random.default_rng(seed).choice(num_rows, wanted, replace=False, shuffle=False))
        return Pool(tables.rows(table, torch.from_numpy(ids)), ids)


def choose_edges(edges: EdgeArrays, options: RankingOptions) -> EdgeArrays:
    """The edges to evaluate: all, or `max_edges` of them by seed; of the chosen ones, all.

    Raises:
        DataError: there are none.
    """
    if len(edges) == 0:
        raise DataError(
            "nothing to evaluate: the split has no edges",
            fix="choose another split, or convert with a larger share",
        )
    if options.max_edges is None or options.max_edges >= len(edges):
        return edges
    generator = np.random.default_rng(options.seed)
    return take(edges, np.sort(generator.choice(len(edges), options.max_edges, replace=False, shuffle=False)))


def _num_rows(scorer: Scorer, tables: EmbeddingSource) -> dict[str, int]:
    names = {table for relation in scorer.relations for table in (relation.lhs, relation.rhs)}
    return {name: tables.num_rows(name) for name in sorted(names)}


def _tasks(edges: EdgeArrays, scorer: Scorer) -> list[_Task]:
    relations_of: dict[tuple[str, str, str, Side], list[int]] = {}
    for relation in np.unique(edges.rel).tolist():
        spec = scorer.relations[relation]
        for side, query, candidate in (("lhs", spec.rhs, spec.lhs), ("rhs", spec.lhs, spec.rhs)):
            relations_of.setdefault((candidate, query, spec.operator, side), []).append(relation)  # type: ignore[arg-type]
    tasks = []
    for (candidate, query, _, side), relations in sorted(relations_of.items()):
        index = np.flatnonzero(np.isin(edges.rel, relations))
        nodes = edges.lhs if side == "rhs" else edges.rhs
        index = index[np.lexsort((nodes[index], edges.rel[index]))]
        tasks.append(_Task(side, scorer.operator(relations[0]), query, candidate, index))
    return tasks


def _distinct(rel: Ints, queries: Ints) -> tuple[Ints, Ints]:
    """Of sorted queries the index of the first of each, and the number of each one's query."""
    fresh = np.ones(len(rel), dtype=bool)
    fresh[1:] = (rel[1:] != rel[:-1]) | (queries[1:] != queries[:-1])
    return np.flatnonzero(fresh), np.cumsum(fresh) - 1


def _add_ranks(results: Floats) -> None:
    """Put the ranks' shares together, in place: each edge is zero on all ranks but one, so the sum is exact."""
    if device.world_size() > 1:
        dist.all_reduce(torch.from_numpy(results), group=device.cpu_group())


def _check_finite(results: Floats, edges: EdgeArrays, scorer: Scorer) -> None:
    # All ranks see all results, so that all of them fail together and none waits for another.
    bad = np.argwhere(np.isnan(results[:, Field.RAW]))
    if len(bad) == 0:
        return
    side, edge = bad[0]
    raise NonFiniteError(
        "a candidate's score is NaN or infinite",
        where=f"evaluated edge {edge}, side {SIDES[side]}, relation {scorer.relations[edges.rel[edge]].name!r}",
        value=f"lhs {edges.lhs[edge]}, rhs {edges.rhs[edge]} ({len(bad)} of {2 * len(edges)} ranks affected)",
        limit="finite scores",
        fix="go back to an earlier checkpoint and lower the learning rate",
    )
