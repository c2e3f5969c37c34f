"""Filtered ranking of all candidates: tml's evaluation against plain torch, on data of FB15k-237's size.

    python benchmarks/evaluation_speed.py                       # 20,466 edges, both sides, 14,541 candidates
    python benchmarks/evaluation_speed.py --operator complex_diagonal --dim 256
    python benchmarks/evaluation_speed.py --entities 1m --evaluated 2k      # a large table, sampled queries

Edges are made up with FB15k-237's numbers: 14,541 entities and 237 relations of a power law, 310,116 edges of which
20,466 are ranked. Embeddings are small whole numbers, so that float32 scores are exact whatever the order of their
sums, ties do occur, and both float32 contestants must find the very same ranks: metrics that differ end the benchmark.
`tml bf16` is the same with products in bfloat16, whose scores are rounded; what that costs on real embeddings is in
docs/evaluation.md.

Plain torch is what one writes in an afternoon: a block of queries times all candidates, the known answers of each edge
set to -inf, better and equal scores counted. Its block is as large as tml's, smaller where its scores would take too
much memory. tml also finds raw ranks, AUC, recall and metrics by relation in that time.

The interval is from edges and embeddings in memory to the metrics, the index of known edges included, the imports not;
each measurement has a process of its own, whose peak memory is reported.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tml.benchmarks.harness import RUNS, argument_parser, circumstances, parse_count, write_record
from tml.benchmarks.turns import Race

if TYPE_CHECKING:
    import torch

    from tml.projects.twhin.data.edges import EdgeArrays
    from tml.projects.twhin.models.relations import RelationScorer

WORK = RUNS / "evaluation_speed"
HITS = (1, 3, 10)
# Metrics of both contestants.
SHARED = ("filtered.mrr", "filtered.mr", *(f"filtered.hits@{k}" for k in HITS))
_BLOCK = 512
# Of a block of plain torch, which holds several tensors of their number: a quarter of a GiB each.
_MOST_SCORES = 64 << 20


def main() -> None:
    if sys.argv[1:2] == ["worker"]:
        worker(json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")))
        return
    arguments = _parse_arguments()
    names = ("entities", "relations", "edges", "evaluated", "dim", "operator", "seed")
    problem = {name: getattr(arguments, name) for name in names}
    record: dict[str, Any] = {"circumstances": circumstances(), "problem": problem}
    race = Race(Path(__file__).resolve(), WORK, problem, problem["evaluated"])
    runs, answers = race.run(("tml", "tml bf16", "plain"), arguments.rounds, "edges")
    metrics = {name: answer["metrics"] for name, answer in answers.items()}
    require_equal({name: metrics[name] for name in ("tml", "plain")})
    shown = {"MRR": "filtered.mrr", "Hits@1": "filtered.hits@1", "Hits@10": "filtered.hits@10"}
    columns = {name: {label: found[key] for label, key in shown.items()} for name, found in metrics.items()}
    text = (
        f"{problem['evaluated']:,} edges, both sides, {problem['entities']:,} candidates, {problem['edges']:,} known "
        f"edges, {problem['operator']} + dot, dim {problem['dim']}; the same metrics to the last digit in float32."
    )
    record |= runs.record() | {"metrics": metrics}
    write_record(arguments.results, arguments.record, record, f"{text}\n\n{runs.report(columns)}")


def worker(job: dict[str, Any]) -> None:
    """Rank by one contestant, in this process."""
    from tml.common.allocator import keep_freed_memory
    from tml.projects.twhin import evaluation  # noqa: F401  imported before the clock starts

    keep_freed_memory()
    edges, first, table, scorer = make_problem(**job["problem"])
    start = time.perf_counter()
    if job["name"] == "plain":
        metrics = rank_plainly(edges, first, table, scorer)
    else:
        metrics = rank_with_tml(edges, first, table, scorer, "bf16" if job["name"] == "tml bf16" else "fp32")
    answer = {"seconds": time.perf_counter() - start, "metrics": metrics}
    Path(job["out"]).write_text(json.dumps(answer), encoding="utf-8")


def make_problem(
    entities: int, relations: int, edges: int, evaluated: int, dim: int, operator: str, seed: int
) -> tuple[EdgeArrays, int, torch.Tensor, RelationScorer]:
    """All known edges, how many of them, from the first on, are ranked, embeddings `[entities, dim]` and relations."""
    import torch

    from tml.projects.twhin.data.edges import EdgeArrays
    from tml.projects.twhin.models.relations import RelationScorer, RelationSpec

    rng = np.random.default_rng(seed)
    known = [_power_law(rng, size, edges) for size in (entities, relations, entities)]
    table = torch.from_numpy(rng.integers(-4, 5, (entities, dim)).astype(np.float32))
    scorer = RelationScorer([RelationSpec(f"r{r}", "entity", "entity", operator) for r in range(relations)], dim)
    with torch.no_grad():
        weight = scorer.weight
        weight.copy_(torch.from_numpy(rng.integers(-2, 3, tuple(weight.shape)).astype(np.float32)))
    return EdgeArrays(*known), evaluated, table, scorer


def rank_with_tml(
    edges: EdgeArrays, num_ranked: int, table: torch.Tensor, scorer: RelationScorer, precision: Literal["fp32", "bf16"]
) -> dict[str, float]:
    """As a run does; the metrics that both contestants have."""
    from tml.projects.twhin.data.edges import take
    from tml.projects.twhin.evaluation import DictSource, LinkPredictionEvaluator, RankingOptions

    options = RankingOptions(hits_at=HITS, precision=precision, block_queries=_BLOCK, progress=False)
    evaluator = LinkPredictionEvaluator(edges, options)
    metrics = evaluator.evaluate(take(edges, np.arange(num_ranked)), scorer, DictSource({"entity": table}))
    return {name: metrics[name] for name in SHARED}


def rank_plainly(edges: EdgeArrays, num_ranked: int, table: torch.Tensor, scorer: RelationScorer) -> dict[str, float]:
    """Block by block in plain torch."""
    import torch

    ends = {"lhs": torch.from_numpy(edges.lhs), "rhs": torch.from_numpy(edges.rhs)}
    rel = torch.from_numpy(edges.rel)
    block = max(1, min(_BLOCK, _MOST_SCORES // len(table)))
    ranks = []
    with torch.no_grad():
        for target, given in (("rhs", "lhs"), ("lhs", "rhs")):
            answers: dict[tuple[int, int], list[int]] = {}
            for key, node in zip(
                zip(ends[given].tolist(), rel.tolist(), strict=True), ends[target].tolist(), strict=True
            ):
                answers.setdefault(key, []).append(node)
            score = scorer.rhs_scores if target == "rhs" else scorer.lhs_scores
            for start in range(0, num_ranked, block):
                part = slice(start, min(start + block, num_ranked))
                scores = score(scorer.operator(0), rel[part], table[ends[given][part]], table)
                rows = torch.arange(len(scores))
                own = scores[rows, ends[target][part]].clone()
                keys = zip(ends[given][part].tolist(), rel[part].tolist(), strict=True)
                left_out = [(row, node) for row, key in enumerate(keys) for node in answers[key]]
                row, node = torch.tensor(left_out).unbind(1)
                scores[row, node] = -torch.inf
                column = own.unsqueeze(1)
                ranks.append(1.0 + (scores > column).sum(1).double() + (scores == column).sum(1).double() / 2)
    found = torch.cat(ranks)
    hits = [float((found <= k).double().mean()) for k in HITS]
    return dict(zip(SHARED, [float((1 / found).mean()), float(found.mean()), *hits], strict=True))


def require_equal(metrics: dict[str, dict[str, float]]) -> None:
    """All contestants agree.

    Raises:
        SystemExit: they do not.
    """
    first, *others = metrics.values()
    for other in others:
        if any(abs(first[name] - other[name]) > 1e-12 * max(1.0, abs(first[name])) for name in first):
            raise SystemExit(f"the contestants rank differently: {metrics}")


def _power_law(rng: np.random.Generator, size: int, count: int, exponent: float = 0.7) -> np.ndarray:
    weight = np.arange(1, size + 1, dtype=np.float64) ** -exponent
    return rng.choice(size, count, p=weight / weight.sum()).astype(np.int64)


def _parse_arguments() -> argparse.Namespace:
    parser = argument_parser(__doc__, "evaluation_speed", rounds="evaluations by each contestant, taking turns")
    parser.add_argument("--entities", type=parse_count, default=14_541)
    parser.add_argument("--relations", type=parse_count, default=237)
    parser.add_argument("--edges", type=parse_count, default=310_116, help="that are known, the ranked ones included")
    parser.add_argument("--evaluated", type=parse_count, default=20_466, help="edges that are ranked")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--operator", default="translation", help="of every relation")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
