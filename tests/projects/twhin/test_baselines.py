"""What a model has to beat: popularity and chance; and the known answers that filtered ranks leave out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.projects.twhin.evaluation_helpers import FOLLOW, NUM_ROWS, FixedScores, edge_arrays, quiet, random_edges
from tml.common.errors import ConfigError, DataError
from tml.projects.twhin.data.edges import concatenate
from tml.projects.twhin.evaluation import (
    IdSource,
    KnownEdges,
    LinkPredictionEvaluator,
    PopularityScorer,
    popularity_baseline,
    random_baseline,
)
from tml.projects.twhin.models.relations import RelationSpec


def test_popularity_ranks_by_training_degree_per_relation_and_side() -> None:
    relations = [*FOLLOW, RelationSpec("fav", "user", "tweet")]
    # follow: right-hand degrees of 0, 1, 2 are 0, 1, 2; fav: tweet 0 twice, tweet 1 once. Left-hand: user 0 most often.
    train = edge_arrays([(0, 0, 2), (1, 0, 2), (0, 0, 1), (0, 1, 0), (1, 1, 0), (0, 1, 1)])
    test = edge_arrays([(2, 0, 1), (2, 1, 1)])
    evaluator = LinkPredictionEvaluator(edge_arrays([]), quiet())
    found = popularity_baseline(train, test, relations=relations, num_rows={"user": 3, "tweet": 2}, evaluator=evaluator)
    assert found["raw.rhs.mr"] == 2.0  # node 1 is second of three users, second of two tweets
    assert found["raw.lhs.mr"] == 3.0  # user 2 never acts
    scores = PopularityScorer(train, relations).lhs_scores(
        evaluator,
        torch.tensor([1, 0]),
        torch.zeros(2, 1),
        torch.tensor([[2], [0], [1]]),  # type: ignore[arg-type]
    )
    assert scores.tolist() == [[0, 2, 1], [0, 2, 1]]


def test_random_baseline_is_the_mean_over_random_scores() -> None:
    relations = [RelationSpec("fav", "user", "tweet", "identity")]
    known, test = random_edges(relations, 40, 12), random_edges(relations, 15, 13)
    evaluator = LinkPredictionEvaluator(known, quiet(hits_at=(1, 5)))
    expected = random_baseline(test, relations=relations, num_rows=NUM_ROWS, evaluator=evaluator)
    runs = []
    rng = np.random.default_rng(0)
    for _ in range(150):
        # One random score per node: every edge's rank is uniform, though edges of a run are not independent.
        scores = FixedScores(relations, rng.random(17).astype(np.float32).tolist())
        runs.append(evaluator.evaluate(test, scores, IdSource(NUM_ROWS)))
    for name in ("raw.mrr", "raw.mr", "filtered.mrr", "filtered.mr", "filtered.hits@5", "recall@5"):
        values = [run[name] for run in runs]
        assert abs(np.mean(values) - expected[name]) < 4 * np.std(values) / math.sqrt(len(values)), name


def test_random_baseline_for_a_large_table() -> None:
    evaluator = LinkPredictionEvaluator(edge_arrays([]), quiet())
    found = random_baseline(edge_arrays([(0, 0, 1)]), relations=FOLLOW, num_rows={"user": 1000}, evaluator=evaluator)
    assert found["raw.mrr"] == pytest.approx(sum(1 / rank for rank in range(1, 1001)) / 1000, abs=1e-10)
    sampling = LinkPredictionEvaluator(edge_arrays([]), quiet(num_candidates=10))
    with pytest.raises(ConfigError, match="all candidates"):
        random_baseline(edge_arrays([(0, 0, 1)]), relations=FOLLOW, num_rows={"user": 1000}, evaluator=sampling)


def test_known_answers_of_a_query() -> None:
    known = KnownEdges(edge_arrays([(5, 0, 2), (5, 0, 1), (5, 1, 9), (6, 0, 1)]))
    queries = edge_arrays([(5, 0, 0), (7, 0, 1), (5, 1, 0)])
    rows, nodes = known.answers(queries, "rhs")
    assert (rows.tolist(), nodes.tolist()) == ([0, 0, 2], [1, 2, 9])
    rows, nodes = known.answers(queries, "lhs")
    assert (rows.tolist(), nodes.tolist()) == ([1, 1], [5, 6])
    assert known.count(queries, "rhs").tolist() == [2, 0, 1]


def test_ids_that_do_not_fit_a_query_key_are_refused() -> None:
    with pytest.raises(DataError, match="out of range"):
        KnownEdges(edge_arrays([(1 << 40, 0, 0)]))


def test_splits_are_put_end_to_end() -> None:
    joined = concatenate(edge_arrays([(0, 1, 2)]), edge_arrays([]), edge_arrays([(3, 4, 5)]))
    assert (joined.lhs.tolist(), joined.rel.tolist(), joined.rhs.tolist()) == ([0, 3], [1, 4], [2, 5])
