"""Filtered MRR of both systems on the same test edges, by the same evaluator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from tml.benchmarks.twhin_vs_pbg.settings import Graph
from tml.projects.twhin.config import EdgesConfig
from tml.projects.twhin.data.dataset import read_edges
from tml.projects.twhin.data.edges import EdgeArrays, EdgeSchema, concatenate
from tml.projects.twhin.evaluation import DictSource, LinkPredictionEvaluator
from tml.projects.twhin.models.relations import RelationScorer, RelationSpec

SPLITS = ("train", "valid", "test")


def pbg_metrics(graph: Graph, embeddings: Path) -> dict[str, float]:
    """Rank the test edges under PBG's embeddings.

    PBG moves the right-hand side, `lhs . (rhs + t)`; ours moves the left one. So every edge is turned round: its
    score under the reversed relation, `(rhs + t) . lhs`, is PBG's, and the two sides of an edge only change names.

    Args:
        graph: the converted graph.
        embeddings: folder of `<table>.npy` [n, D] and `translations.npy` [R, D].
    """
    tables = {name: torch.from_numpy(np.load(embeddings / f"{name}.npy")) for name in graph.tables}
    scorer = pbg_scorer(graph, torch.from_numpy(np.load(embeddings / "translations.npy")))
    schema = EdgeSchema([RelationSpec(*relation) for relation in graph.relations], graph.tables)
    edges = {split: turned(read_edges(EdgesConfig(data_root=str(graph.edges(split))), schema)) for split in SPLITS}
    evaluator = LinkPredictionEvaluator(concatenate(*edges.values()))
    return evaluator.evaluate(edges["test"], scorer, DictSource(tables))


def pbg_scorer(graph: Graph, translations: torch.Tensor) -> RelationScorer:
    """Scores reversed edges as PBG scores edges; `translations` is [R, D]."""
    relations = [RelationSpec(name, lhs=rhs, rhs=lhs) for name, lhs, rhs in graph.relations]
    scorer = RelationScorer(relations, translations.shape[1])
    with torch.no_grad():
        scorer.weight.copy_(translations)
    return scorer


def turned(edges: EdgeArrays) -> EdgeArrays:
    """Every edge with its sides exchanged."""
    return EdgeArrays(edges.rhs, edges.rel, edges.lhs)
