"""Metrics from the ranks and scores of single edges.

Letters: `E` evaluated edges.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tml.projects.twhin.data.edges import EdgeArrays
from tml.projects.twhin.evaluation.known_edges import query_keys
from tml.projects.twhin.evaluation.ranking import Field
from tml.projects.twhin.models.relations import RelationSpec
from tml.projects.twhin.models.scores import Side

Floats = NDArray[np.float64]

SIDES: tuple[Side, Side] = ("lhs", "rhs")


def summarize(
    results: Floats, edges: EdgeArrays, relations: Sequence[RelationSpec], hits_at: Sequence[int]
) -> dict[str, float]:
    """All metrics of an evaluation.

    Args:
        results: float64 `[2, 5, E]`: sides as in `SIDES`, then `Field`.
        edges: the `E` edges.
        relations: for the names.
        hits_at: the values of k.

    Returns:
        Metric by name; docs/evaluation.md lists them.
    """
    metrics: dict[str, float] = {"num_edges": float(len(edges))}
    for name, field in (("filtered", Field.FILTERED), ("raw", Field.RAW)):
        ranks = results[:, field]
        metrics |= _prefixed(name, rank_metrics(ranks.ravel(), hits_at))
        for side, side_ranks in zip(SIDES, ranks, strict=True):
            metrics |= _prefixed(f"{name}.{side}", rank_metrics(side_ranks, hits_at))
    hits = {k: results[SIDES.index("rhs"), Field.RETRIEVAL] <= k for k in hits_at}
    metrics |= recall(query_keys(edges, "rhs"), hits)
    metrics |= _auc_of_sides(results)
    return metrics | _by_relation(results[:, Field.FILTERED], edges, relations)


def rank_metrics(ranks: Floats, hits_at: Sequence[int]) -> dict[str, float]:
    """`mrr`, `mr` and `hits@k` of some ranks."""
    metrics = {"mrr": float((1.0 / ranks).mean()), "mr": float(ranks.mean())}
    return metrics | {f"hits@{k}": float((ranks <= k).mean()) for k in hits_at}


def recall(queries: NDArray[np.int64], hits: dict[int, NDArray]) -> dict[str, float]:  # type: ignore[type-arg]
    """`recall@k`: the share of a query's right-hand sides found (`hits[k] [E]`), averaged over the distinct queries."""
    distinct, query = np.unique(queries, return_inverse=True)
    size = np.bincount(query)
    found = {k: np.bincount(query, weights=hit.astype(np.float64)) / size for k, hit in hits.items()}
    return {"num_queries": float(len(distinct))} | {f"recall@{k}": float(share.mean()) for k, share in found.items()}


def exact_auc(positive: Floats, negative: Floats) -> float:
    """Area under the ROC curve: the share of (positive, negative) pairs in the right order, ties counting a half."""
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, side="left")
    not_above = np.searchsorted(ordered, positive, side="right")
    return float((below + not_above).mean() / 2 / len(negative))


def _auc_of_sides(results: Floats) -> dict[str, float]:
    metrics = {}
    for side, result in zip(SIDES, results, strict=True):
        valid = ~np.isnan(result[Field.NEGATIVE])
        if valid.any():
            metrics[f"{side}.auc"] = exact_auc(result[Field.POSITIVE, valid], result[Field.NEGATIVE, valid])
    if metrics:
        metrics["auc"] = sum(metrics.values()) / len(metrics)
    return metrics


def _by_relation(ranks: Floats, edges: EdgeArrays, relations: Sequence[RelationSpec]) -> dict[str, float]:
    count = np.bincount(edges.rel, minlength=len(relations))
    total = np.bincount(edges.rel, weights=(1.0 / ranks).mean(0), minlength=len(relations))
    metrics = {}
    for relation in np.flatnonzero(count).tolist():
        name = f"relation.{relations[relation].name}"
        metrics[f"{name}.count"] = float(count[relation])
        metrics[f"{name}.mrr"] = float(total[relation] / count[relation])
    return metrics


def _prefixed(prefix: str, metrics: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}.{name}": value for name, value in metrics.items()}
