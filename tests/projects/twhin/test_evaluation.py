"""Ranks against brute force in plain Python, ties worked by hand, and one result for any cut of the work."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from tests.distributed import RankFailure, run_ranks
from tests.projects.twhin.evaluation_helpers import (
    DIM,
    FOLLOW,
    NUM_ROWS,
    OPERATOR_NAMES,
    FixedScores,
    edge_arrays,
    make_relations,
    quiet,
    random_edges,
    random_model,
)
from tests.projects.twhin.tiny import pair_scores_of_lhs
from tml.common.errors import DataError, NonFiniteError
from tml.projects.twhin.data.edges import EdgeArrays, take
from tml.projects.twhin.evaluation import DictSource, IdSource, LinkPredictionEvaluator
from tml.projects.twhin.evaluation.summary import exact_auc
from tml.projects.twhin.models.relations import RelationScorer


def brute_force(edges: EdgeArrays, known: EdgeArrays, scorer: RelationScorer, tables: DictSource) -> dict[str, float]:
    """Filtered and raw reciprocal ranks of both sides and recall@3 by one loop over edges and candidates, with sets."""
    triples = set(zip(*(a.tolist() for a in (known.lhs, known.rel, known.rhs)), strict=True))
    evaluated = list(zip(*(a.tolist() for a in (edges.lhs, edges.rel, edges.rhs)), strict=True))
    triples |= set(evaluated)
    ranks: dict[str, list[float]] = {}
    hits: dict[tuple[int, int], list[bool]] = {}
    for lhs, rel, rhs in evaluated:
        for side in ("lhs", "rhs"):
            scores = all_scores(scorer, tables, side, (lhs, rel, rhs))
            own = lhs if side == "lhs" else rhs

            def triple(node: int) -> tuple[int, int, int]:
                return (node, rel, rhs) if side == "lhs" else (lhs, rel, node)  # noqa: B023

            others = [node for node in range(len(scores)) if node != own]
            unknown = [node for node in others if triple(node) not in triples]
            ranks.setdefault(f"raw.{side}", []).append(realistic(scores, own, others))
            ranks.setdefault(f"filtered.{side}", []).append(realistic(scores, own, unknown))
            if side == "rhs":
                rivals = [node for node in others if triple(node) not in triples or triple(node) in evaluated]
                hits.setdefault((rel, lhs), []).append(realistic(scores, own, rivals) <= 3)
    result = {f"{name}.mrr": sum(1 / rank for rank in values) / len(values) for name, values in ranks.items()}
    result |= {f"{name}.mr": sum(values) / len(values) for name, values in ranks.items()}
    return result | {"recall@3": sum(sum(found) / len(found) for found in hits.values()) / len(hits)}


def all_scores(scorer: RelationScorer, tables: DictSource, side: str, edge: tuple[int, int, int]) -> list[float]:
    lhs, rel, rhs = edge
    spec, operator = scorer.relations[rel], scorer.operator(rel)
    users, others = tables.full(spec.lhs), tables.full(spec.rhs)
    index = torch.tensor([rel])
    with torch.no_grad():
        if side == "rhs":
            return [scorer.pair_scores(operator, index, users[[lhs]], others[[t]]).item() for t in range(len(others))]
        return [pair_scores_of_lhs(scorer, index, users[[h]], others[[rhs]]).item() for h in range(len(users))]


def realistic(scores: list[float], own: int, others: list[int]) -> float:
    optimistic = 1 + sum(scores[node] > scores[own] + 1e-5 for node in others)
    pessimistic = 1 + sum(scores[node] >= scores[own] - 1e-5 for node in others)
    return (optimistic + pessimistic) / 2


@pytest.mark.parametrize("reciprocal", [False, True])
@pytest.mark.parametrize("comparator", ["dot", "cosine", "l2"])
@pytest.mark.parametrize("operator", OPERATOR_NAMES)
def test_ranks_equal_brute_force(operator: str, comparator: str, reciprocal: bool) -> None:
    relations = make_relations(operator)
    scorer, tables = random_model(relations, "dot" if comparator == "dot" else comparator, reciprocal)
    if comparator != "dot":
        # Roots and quotients round differently in a matrix than in a pair; without ties that moves no rank.
        torch.manual_seed(1)
        tables = DictSource({name: torch.randn(rows, DIM) for name, rows in NUM_ROWS.items()})
    known, test = random_edges(relations, 60, 1), random_edges(relations, 25, 2)
    found = LinkPredictionEvaluator(known, quiet()).evaluate(test, scorer, tables)
    for name, value in brute_force(test, known, scorer, tables).items():
        assert found[name] == pytest.approx(value, abs=1e-12), name


def test_relations_of_different_operators_and_tables_in_one_split() -> None:
    relations = make_relations(*OPERATOR_NAMES)
    scorer, tables = random_model(relations, "dot", reciprocal=True)
    known, test = random_edges(relations, 200, 3), random_edges(relations, 80, 4)
    found = LinkPredictionEvaluator(known, quiet()).evaluate(test, scorer, tables)
    for name, value in brute_force(test, known, scorer, tables).items():
        assert found[name] == pytest.approx(value, abs=1e-12), name
    by_relation = [found[f"relation.{r.name}.mrr"] * found[f"relation.{r.name}.count"] for r in relations]
    assert sum(by_relation) / len(test) == pytest.approx(found["filtered.mrr"], abs=1e-12)
    assert sum(found[f"relation.{r.name}.count"] for r in relations) == found["num_edges"] == len(test)


def test_ties_get_the_mean_of_optimistic_and_pessimistic_rank() -> None:
    # Node 2 has one node above it and two beside it: ranks 2 to 4, so 3. Node 0 is alone on top.
    scorer = FixedScores(FOLLOW, [9.0, 5.0, 5.0, 5.0, 1.0])
    evaluator = LinkPredictionEvaluator(edge_arrays([]), quiet())
    found = evaluator.evaluate(edge_arrays([(0, 0, 2)]), scorer, IdSource({"user": 5}))
    assert (found["raw.rhs.mr"], found["raw.lhs.mr"], found["raw.mr"]) == (3.0, 1.0, 2.0)
    assert (found["raw.rhs.hits@1"], found["raw.rhs.hits@3"]) == (0.0, 1.0)
    assert found["raw.mrr"] == pytest.approx((1 / 3 + 1) / 2)


def test_a_model_that_scores_all_alike_is_as_good_as_chance() -> None:
    num_nodes, edges = 20, edge_arrays([(node, 0, (node + 1) % 20) for node in range(20)])
    evaluator = LinkPredictionEvaluator(edges, quiet())
    found = evaluator.evaluate(edges, FixedScores(FOLLOW, [1.0] * num_nodes), IdSource({"user": num_nodes}))
    assert found["raw.mr"] == (num_nodes + 1) / 2
    assert (found["raw.hits@10"], found["auc"]) == (0.0, 0.5)


def test_filtered_ranks_leave_out_known_answers_and_raw_ranks_do_not() -> None:
    # Right-hand sides 4, 3, 2, 1, 0 are ranked 1 to 5. For lhs 0, nodes 4 (train) and 3 (test) are true as well as 1.
    scorer, tables = FixedScores(FOLLOW, [0.0, 1.0, 2.0, 3.0, 4.0]), IdSource({"user": 5})
    train, test = edge_arrays([(0, 0, 4), (1, 0, 2)]), edge_arrays([(0, 0, 1), (0, 0, 3)])
    found = LinkPredictionEvaluator(train, quiet(hits_at=(1, 2))).evaluate(test, scorer, tables)
    assert found["raw.rhs.mr"] == (4 + 2) / 2
    assert found["filtered.rhs.mr"] == (2 + 1) / 2  # 1 has only node 2 above it, 3 none
    # Retrieval leaves out the training edge only: 3 comes first, then 2, then 1.
    assert (found["recall@1"], found["recall@2"], found["num_queries"]) == (0.5, 0.5, 1.0)


def test_recall_averages_over_queries_not_over_edges() -> None:
    scorer, tables = FixedScores(FOLLOW, [0.0, 1.0, 2.0, 3.0, 4.0]), IdSource({"user": 5})
    test = edge_arrays([(0, 0, 4), (0, 0, 1), (0, 0, 0), (1, 0, 4)])
    found = LinkPredictionEvaluator(edge_arrays([]), quiet(hits_at=(1,))).evaluate(test, scorer, tables)
    assert found["recall@1"] == pytest.approx((1 / 3 + 1) / 2)


@pytest.mark.parametrize("repeats", [1, 3])
def test_repeated_known_edges_count_once(repeats: int) -> None:
    scorer, tables = FixedScores(FOLLOW, [0.0, 1.0, 2.0, 3.0, 4.0]), IdSource({"user": 5})
    known = edge_arrays([(0, 0, 4)] * repeats + [(0, 0, 3)])
    found = LinkPredictionEvaluator(known, quiet()).evaluate(edge_arrays([(0, 0, 1)]), scorer, tables)
    assert found["filtered.rhs.mr"] == 2.0


def _evaluate_on_a_rank(num_edges: int) -> dict[str, float]:
    relations = make_relations("translation", "diagonal")
    scorer, tables = random_model(relations, reciprocal=True)
    known, test = random_edges(relations, 100, 7), take(random_edges(relations, 50, 8), slice(num_edges))
    return LinkPredictionEvaluator(known, quiet()).evaluate(test, scorer, tables)


@pytest.mark.parametrize("num_edges", [1, 31])
def test_two_ranks_equal_one_rank(num_edges: int) -> None:
    assert run_ranks(_evaluate_on_a_rank, 2, num_edges) == [_evaluate_on_a_rank(num_edges)] * 2


def _evaluate_with_a_bad_row_in_the_last_query() -> None:
    scores = FixedScores(FOLLOW, [1.0, 2.0, 3.0])
    scores.rhs_scores = lambda operator, rel, lhs, candidates: torch.where(lhs == 2, torch.nan, 1.0) * torch.ones(3)  # type: ignore[method-assign]
    edges = edge_arrays([(0, 0, 1), (1, 0, 2), (2, 0, 0)])
    LinkPredictionEvaluator(edges, quiet()).evaluate(edges, scores, IdSource({"user": 3}))


def test_nan_on_one_rank_fails_on_all_of_them() -> None:
    with pytest.raises(RankFailure) as failure:
        run_ranks(_evaluate_with_a_bad_row_in_the_last_query, 2, collective_timeout=20.0)
    assert [type(error) for error in failure.value.errors.values()] == [NonFiniteError, NonFiniteError]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_scores_are_an_error_that_names_the_edge(bad: float) -> None:
    scorer = FixedScores(FOLLOW, [1.0, bad, 3.0])
    with pytest.raises(NonFiniteError, match="follow") as error:
        LinkPredictionEvaluator(edge_arrays([]), quiet()).evaluate(
            edge_arrays([(0, 0, 2)]), scorer, IdSource({"user": 3})
        )
    assert "lhs 0, rhs 2" in str(error.value)


def test_metric_on_an_empty_split_is_an_error() -> None:
    with pytest.raises(DataError, match="no edges"):
        LinkPredictionEvaluator(edge_arrays([(0, 0, 0)]), quiet()).evaluate(
            edge_arrays([]), FixedScores(FOLLOW, [1.0]), IdSource({"user": 1})
        )


@pytest.mark.parametrize(
    ("edge", "message"), [((0, 0, 3), "column rhs"), ((-1, 0, 0), "column lhs"), ((0, 1, 0), "unknown relation")]
)
def test_edges_outside_their_tables_are_refused(edge: tuple[int, int, int], message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        LinkPredictionEvaluator(edge_arrays([]), quiet()).evaluate(
            edge_arrays([(0, 0, 1), edge]), FixedScores(FOLLOW, [1.0, 2.0, 3.0]), IdSource({"user": 3})
        )
    assert "evaluated edge 1" in str(error.value)


def test_as_many_candidates_as_rows_is_not_sampling() -> None:
    relations = make_relations("translation")
    scorer, tables = random_model(relations)
    known, test = random_edges(relations, 60, 9), random_edges(relations, 20, 10)
    full = LinkPredictionEvaluator(known, quiet()).evaluate(test, scorer, tables)
    sampled = LinkPredictionEvaluator(known, quiet(num_candidates=17)).evaluate(test, scorer, tables)
    assert sampled == {f"sampled@17.{name}": value for name, value in full.items()}


@pytest.mark.parametrize("protocol", ["raw", "filtered"])
def test_sampled_ranks_scale_to_the_full_ones(protocol: str) -> None:
    num_nodes, num_candidates = 2000, 400
    rng = np.random.default_rng(0)
    edges = EdgeArrays(rng.integers(0, num_nodes, 300), np.zeros(300, dtype=np.int64), rng.integers(0, num_nodes, 300))
    train = EdgeArrays(rng.integers(0, 20, 9000), np.zeros(9000, dtype=np.int64), rng.integers(0, num_nodes, 9000))
    scorer = FixedScores(FOLLOW, rng.permutation(num_nodes).astype(np.float32).tolist())
    source = IdSource({"user": num_nodes})
    full = LinkPredictionEvaluator(train, quiet()).evaluate(edges, scorer, source)
    estimates = []
    for seed in range(20):
        options = quiet(num_candidates=num_candidates, seed=seed)
        sampled = LinkPredictionEvaluator(train, options).evaluate(edges, scorer, source)
        estimates.append(1 + (sampled[f"sampled@400.{protocol}.mr"] - 1) * (num_nodes - 1) / num_candidates)
    spread = np.std(estimates) / math.sqrt(len(estimates))
    assert abs(np.mean(estimates) - full[f"{protocol}.mr"]) < 4 * spread
    assert spread < 0.02 * full[f"{protocol}.mr"]


def test_sampled_candidates_need_no_whole_table() -> None:
    class NoFull(IdSource):
        def full(self, table: str) -> Tensor:
            raise AssertionError("the whole table was asked for")

    scorer = FixedScores(FOLLOW, np.arange(100.0).tolist())
    options = quiet(num_candidates=10)
    found = LinkPredictionEvaluator(edge_arrays([]), options).evaluate(
        edge_arrays([(0, 0, 99)]), scorer, NoFull({"user": 100})
    )
    assert (found["sampled@10.raw.rhs.mr"], found["sampled@10.raw.lhs.mr"]) == (1.0, 11.0)


def test_max_edges_takes_a_subset_by_seed() -> None:
    relations = make_relations("identity")
    scorer, tables = random_model(relations)
    test = random_edges(relations, 50, 11)
    results = []
    for seed in (0, 0, 1):
        evaluator = LinkPredictionEvaluator(test, quiet(max_edges=10, seed=seed))
        results.append(evaluator.evaluate(test, scorer, tables))
    assert results[0]["num_edges"] == 10
    assert results[0] == results[1] != results[2]


def test_auc_equals_sklearn_with_ties() -> None:
    rng = np.random.default_rng(0)
    positive, negative = rng.integers(0, 8, 200) + 0.5, rng.integers(-3, 6, 150) + 0.5
    labels = np.repeat([1, 0], [200, 150])
    expected = roc_auc_score(labels, np.concatenate([positive, negative]))
    assert exact_auc(positive, negative) == pytest.approx(expected, abs=1e-12)


def test_auc_of_a_perfect_order_is_one_and_needs_a_corruption() -> None:
    # Every edge ends in the best node on both sides, and a corruption is never the true node itself.
    scorer, edges = FixedScores(FOLLOW, [9.0, 1.0, 2.0]), edge_arrays([(0, 0, 0)] * 20)
    found = LinkPredictionEvaluator(edges, quiet()).evaluate(edges, scorer, IdSource({"user": 3}))
    assert (found["auc"], found["lhs.auc"], found["rhs.auc"]) == (1.0, 1.0, 1.0)
    single = edge_arrays([(0, 0, 0)])
    alone = LinkPredictionEvaluator(single, quiet()).evaluate(single, FixedScores(FOLLOW, [9.0]), IdSource({"user": 1}))
    assert alone["raw.mrr"] == 1.0
    assert "auc" not in alone
