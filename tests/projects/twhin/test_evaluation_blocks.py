"""Blocks, threads and precision: the same ranks from any of them, equal embeddings at equal ranks, memory bounded."""

from __future__ import annotations

import threading
from itertools import product

import pytest
import torch
from torch import Tensor

from tests.projects.twhin.evaluation_helpers import (
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
from tml.projects.twhin.evaluation import DictSource, IdSource, LinkPredictionEvaluator
from tml.projects.twhin.evaluation.blocks import BlockWorkers, score_into
from tml.projects.twhin.models.relations import RelationScorer

CPU = torch.device("cpu")


pytestmark = pytest.mark.usefixtures("keep_threads")


@pytest.mark.parametrize(
    ("block_queries", "block_bytes", "candidates", "chunk"), list(product((1, 7), (64, 1 << 20), (4, 99), (5, 999)))
)
def test_blocks_of_any_size_give_the_same_result(
    block_queries: int, block_bytes: int, candidates: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    relations = make_relations("translation", "diagonal")
    scorer, tables = random_model(relations)
    known, test = random_edges(relations, 100, 5), random_edges(relations, 50, 6)
    expected = LinkPredictionEvaluator(known, quiet()).evaluate(test, scorer, tables)
    monkeypatch.setattr("tml.projects.twhin.evaluation.blocks._CANDIDATES_ON_CPU", candidates)
    monkeypatch.setattr("tml.projects.twhin.evaluation.ranking._SCORES_AT_A_TIME", candidates)
    monkeypatch.setattr("tml.projects.twhin.evaluation.evaluator._CHUNK_EDGES", chunk)
    options = quiet(block_queries=block_queries, block_bytes=block_bytes)
    assert LinkPredictionEvaluator(known, options).evaluate(test, scorer, tables) == expected


@pytest.mark.parametrize("num_candidates", [None, 11])
def test_several_threads_rank_as_one_does(num_candidates: int | None) -> None:
    relations = make_relations("translation", "complex_diagonal")
    scorer, tables = random_model(relations)
    known, test = random_edges(relations, 100, 5), random_edges(relations, 150, 6)
    evaluator = LinkPredictionEvaluator(known, quiet(num_candidates=num_candidates))
    results = []
    for num_threads in (1, 3):
        torch.set_num_threads(num_threads)
        results.append(evaluator.evaluate(test, scorer, tables))
        assert torch.get_num_threads() == num_threads
    assert results[0] == results[1]


def test_blocks_are_ranked_on_as_many_threads_as_operations_have() -> None:
    both, names = threading.Barrier(2, timeout=60), set()

    class Meeting(FixedScores):
        def rhs_scores(self, operator: object, rel: Tensor, lhs: Tensor, candidates: Tensor) -> Tensor:
            both.wait()  # two blocks at a time, or never
            names.add((threading.current_thread().name, torch.get_num_threads()))
            return super().rhs_scores(operator, rel, lhs, candidates)

        lhs_scores = rhs_scores

    torch.set_num_threads(2)
    edges = edge_arrays([(node, 0, node) for node in range(4)])
    LinkPredictionEvaluator(edges, quiet()).evaluate(edges, Meeting(FOLLOW, [0.0] * 4), IdSource({"user": 4}))
    assert len({name for name, _ in names}) >= 2
    assert {num_threads for _, num_threads in names} == {1}


def test_an_error_on_a_thread_ends_the_evaluation() -> None:
    class Broken(FixedScores):
        def rhs_scores(self, operator: object, rel: Tensor, lhs: Tensor, candidates: Tensor) -> Tensor:
            raise RuntimeError("broken scorer")

        lhs_scores = rhs_scores

    torch.set_num_threads(2)
    edges = edge_arrays([(node, 0, node) for node in range(50)])
    with pytest.raises(RuntimeError, match="broken scorer"):
        LinkPredictionEvaluator(edges, quiet(block_queries=1)).evaluate(
            edges, Broken(FOLLOW, [0.0] * 50), IdSource({"user": 50})
        )
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(("num_threads", "queries_that_fit"), [(1, 8), (1, 200), (2, 40), (2, 200), (4, 300)])
def test_score_matrices_are_bounded_and_used_again(num_threads: int, queries_that_fit: int) -> None:
    sizes: dict[int, int] = {}
    torch.set_num_threads(num_threads)
    with BlockWorkers(1000, 100, CPU, 64, queries_that_fit * 4 * 100) as workers:

        def work(block: slice) -> int:
            storage = workers.matrix(block.stop - block.start, 100).untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
            return block.stop - block.start

        num_blocks = len(list(workers.map(work, 1000)))
    assert num_blocks >= 1000 / queries_that_fit
    assert len(sizes) <= workers.num_workers < num_blocks  # so some matrix has been used again
    assert sum(sizes.values()) <= queries_that_fit * 4 * 100


@pytest.mark.parametrize(
    ("queries_that_fit", "workers", "block"), [(5, 1, 5), (63, 1, 63), (64, 2, 32), (130, 4, 32), (10**6, 4, 512)]
)
def test_threads_share_blocks_when_few_queries_fit(queries_that_fit: int, workers: int, block: int) -> None:
    torch.set_num_threads(4)
    found = BlockWorkers(10**6, 1000, CPU, 512, queries_that_fit * 4000)
    assert (found.num_workers, found.block_size) == (workers, block)


def test_few_edges_are_dealt_to_all_threads() -> None:
    torch.set_num_threads(4)
    assert BlockWorkers(10, 1000, CPU, 512, 1 << 30).block_size == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_queries", [1, 2, 5, 33])
@pytest.mark.parametrize("dim", [7, 50, 128])
def test_equal_embeddings_get_equal_scores_wherever_they_are(dim: int, num_queries: int, dtype: torch.dtype) -> None:
    torch.manual_seed(dim)
    one, queries = torch.randn(dim), torch.randn(num_queries, dim)
    for num_candidates in (1, 3, 9, 65, 4097, 4101):
        candidates = [one.expand(num_candidates, dim).contiguous(), one.expand(5, dim).contiguous()]
        matrix = torch.empty(num_queries, num_candidates + 5)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            sums = score_into(matrix, lambda _, q, c: q @ c.T, torch.zeros(num_queries), queries, candidates)
        assert (matrix == matrix[:, :1]).all()
        torch.testing.assert_close(matrix[:, 0], queries @ one, rtol=2e-2, atol=0.2)
        torch.testing.assert_close(sums, matrix.sum(1), rtol=2e-2, atol=0.2)


def test_twins_rank_alike_and_in_the_middle_of_their_group() -> None:
    # 17 tweets, all alike, and scores that no float holds exactly: the rank is (1 + 17) / 2 for each of them.
    torch.manual_seed(0)
    relations = make_relations("complex_diagonal")[1:]
    scorer = RelationScorer(relations, 50)
    torch.nn.init.normal_(scorer.weight)
    tables = DictSource({"user": torch.randn(NUM_ROWS["user"], 50), "tweet": torch.randn(1, 50).expand(17, 50)})
    edges = edge_arrays([(user, 0, tweet) for user in range(13) for tweet in range(17)])
    for num_candidates in (None, 16):
        evaluator = LinkPredictionEvaluator(edges, quiet(num_candidates=num_candidates))
        found = evaluator.evaluate(edges, scorer, tables)
        assert found[evaluator.prefix + "raw.rhs.hits@3"] == 0.0
        assert 8.5 <= found[evaluator.prefix + "raw.rhs.mr"] <= 9.0


@pytest.mark.parametrize("comparator", ["dot", "l2"])
@pytest.mark.parametrize("operator", OPERATOR_NAMES)
def test_bf16_equals_fp32_where_its_eight_bits_hold_every_number(operator: str, comparator: str) -> None:
    relations = make_relations(operator)
    scorer, tables = random_model(relations, comparator)
    known, test = random_edges(relations, 60, 1), random_edges(relations, 25, 2)
    exact, rounded = (
        LinkPredictionEvaluator(known, quiet(precision=precision)).evaluate(test, scorer, tables)
        for precision in ("fp32", "bf16")
    )
    assert rounded == exact


def test_bf16_rounds_scores_and_moves_metrics_little() -> None:
    torch.manual_seed(2)
    relations = make_relations("diagonal")
    scorer = RelationScorer(relations, 64)
    torch.nn.init.normal_(scorer.weight)
    tables = DictSource({name: torch.randn(1000, 64) for name in NUM_ROWS})
    edges = random_edges(relations, 200, 3)
    exact, rounded = (
        LinkPredictionEvaluator(edges, quiet(precision=precision)).evaluate(edges, scorer, tables)
        for precision in ("fp32", "bf16")
    )
    assert rounded != exact
    assert rounded["filtered.mr"] == pytest.approx(exact["filtered.mr"], rel=0.02)
    assert rounded["filtered.mrr"] == pytest.approx(exact["filtered.mrr"], rel=0.1)
