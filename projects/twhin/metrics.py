"""What a run is measured by: filtered ranking of the edges of a section, against everything known to be true."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from torch import nn

from tml.projects.twhin.config import EdgesConfig, TwhinConfig
from tml.projects.twhin.data.dataset import edge_blocks, read_edges
from tml.projects.twhin.data.edges import EdgeArrays, EdgeSchema, Ints, concatenate, take
from tml.projects.twhin.evaluation import LinkPredictionEvaluator, RankingOptions, choose_edges
from tml.projects.twhin.evaluation.known_edges import query_keys
from tml.projects.twhin.evaluation.summary import SIDES
from tml.projects.twhin.models.live_tables import embedding_source, head_of

# What the log shows of the metrics of held-out edges.
SHOWN = ("filtered.mrr", "filtered.hits@1", "filtered.hits@3", "filtered.hits@10", "filtered.mr", "auc")


class LinkPrediction:
    """Ranks the edges of one section under a live model.

    These are read and checked at once, so that a wrong path or id shows before training; what else is known to be true
    is looked up in all files by the first evaluation, since that takes as long as reading the graph.

    Args:
        config: the whole config: training, validation and test edges are all known to be true.
        section: the edges to rank.
        schema: what an edge may hold.
        max_edges: rank that many of them; all if None.

    Raises:
        DataError: no edges, or an edge out of range.
    """

    def __init__(
        self, config: TwhinConfig, section: EdgesConfig, schema: EdgeSchema, max_edges: int | None = None
    ) -> None:
        self._options = ranking_options(config, max_edges)
        self._sections = [config.train_data, section]
        self._sections += [
            other
            for other in (config.validation_data, config.test_data)
            if other is not None and other not in self._sections
        ]
        self.edges = choose_edges(read_edges(section, schema), self._options)

    def evaluate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Metrics by name; the same on all ranks."""
        return self._evaluator.evaluate(self.edges, head_of(model).scorer, embedding_source(model, device))

    @cached_property
    def _evaluator(self) -> LinkPredictionEvaluator:
        known = [known_edges(section, self.edges) for section in self._sections]
        return LinkPredictionEvaluator(concatenate(*known), self._options)


def ranking_options(config: TwhinConfig, max_edges: int | None) -> RankingOptions:
    """How a config ranks edges: `max_edges` of them, or all if None."""
    return RankingOptions(
        num_candidates=config.evaluation.num_candidates,
        max_edges=max_edges,
        seed=config.runtime.seed,
        precision=config.evaluation.precision,
        block_queries=config.evaluation.block_size,
    )


def known_edges(section: EdgesConfig, asked: EdgeArrays) -> EdgeArrays:
    """The edges of a section that answer a query of `asked`: only these can be left out of a ranking.

    A graph of any size is read in blocks; what is kept grows with the number of queries, not with the graph.
    """
    queries = {side: np.unique(query_keys(asked, side)) for side in SIDES}
    kept = []
    for edges in edge_blocks(section):
        is_answer = np.logical_or(*(_contains(keys, query_keys(edges, side)) for side, keys in queries.items()))
        kept.append(take(edges, np.flatnonzero(is_answer)))
    return concatenate(*kept)


def _contains(ordered: Ints, values: Ints) -> np.ndarray:
    place = np.searchsorted(ordered, values).clip(max=len(ordered) - 1)
    return ordered[place] == values
