"""The compiled head equals the one of torch's operations, which test_one_step.py holds against plain loops.

Letters: `S` chunks, `C` edges in a chunk, `N` candidates of a side, `W` nodes of a side, `D` embedding dim.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tml.common.native.compiler import compiled
from tml.projects.twhin.data.chunks import ChunkShape
from tml.projects.twhin.models import chunk_kernel
from tml.projects.twhin.models.chunk_kernel import ChunkKernel, HeadCase
from tml.projects.twhin.models.chunk_runs import ChunkRun
from tml.projects.twhin.models.model import HeadSettings, TwhinHead
from tml.projects.twhin.models.relations import RelationScorer, RelationSpec

NUM_RELATIONS = 3
OPERATORS = ("identity", "translation", "diagonal", "complex_diagonal")
LOSSES = ("softmax", "logistic", "ranking")

pytestmark = pytest.mark.skipif(
    compiled(Path(chunk_kernel.__file__).with_name("chunk_kernel.cpp")) is None, reason="no C++ compiler here"
)


def has_bfloat16() -> bool:
    return ChunkKernel.is_built() and ChunkKernel("softmax", 0.0, False).has_bfloat16


def make_head(
    operator: str, loss: str, reciprocal: bool, shape: ChunkShape, dim: int, regularizer: str | None = None
) -> TwhinHead:
    relations = [RelationSpec(f"relation {number}", "a", "b", operator) for number in range(NUM_RELATIONS)]
    scorer = RelationScorer(relations, dim, "dot", reciprocal)
    with torch.no_grad():
        scorer.weight.copy_(torch.randn(scorer.weight.shape, generator=torch.Generator().manual_seed(1)))
    return TwhinHead(scorer, HeadSettings(shape, loss, 0.3, regularizer, regularization_weight=0.7))


def make_run(operator: str, shape: ChunkShape, num_chunks: int, dim: int) -> ChunkRun:
    """Random rows, weights with padding, and random masks, of one edge over all its candidates."""
    generator = torch.Generator().manual_seed(0)
    nodes = (num_chunks, shape.num_nodes_of_side, dim)
    rows = tuple(torch.randn(nodes, generator=generator) / 2 for _ in range(2))
    weight = torch.rand(num_chunks, shape.size, generator=generator)
    weight[:, 0] = 0
    masked = []
    for _ in range(2):
        mask = torch.rand(num_chunks, shape.size, shape.num_candidates, generator=generator) < 0.1
        first = shape.size - shape.num_in_batch
        for edge in range(first, shape.size):
            mask[:, edge, edge - first] = True
        mask[0, 1] = True
        masked.append(mask.flatten().nonzero().squeeze(1))
    rel = torch.randint(0, NUM_RELATIONS, (num_chunks, shape.size), generator=generator)
    rel[1::2] = rel[1::2, :1]  # every other chunk has one relation
    return ChunkRun(
        operator,
        shape,
        (rows[0], rows[1]),
        (torch.full(nodes, 7.0), torch.full(nodes, 7.0)),
        rel,
        weight,
        (masked[0], masked[1]),
    )


def results(head: TwhinHead, run: ChunkRun) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in (*head.run_loss(run), *run.by_rows)]


def by_operations(head: TwhinHead, run: ChunkRun, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    with monkeypatch.context() as patch:
        patch.setattr(ChunkKernel, "is_built", staticmethod(lambda: False))
        return results(head, run)


def assert_near(found: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * other.abs().max().item())


@pytest.mark.parametrize("in_batch", [0, 5, 10])
@pytest.mark.parametrize("reciprocal", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("operator", OPERATORS)
def test_loss_scores_and_derivatives_equal_those_of_torchs_operations(
    operator: str, loss: str, reciprocal: bool, in_batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = ChunkShape(10, in_batch, 7)
    head = make_head(operator, loss, reciprocal, shape, 32)
    run = make_run(operator, shape, 5, 32)
    found = results(head, run)
    assert head._kernel is not None
    assert_near(found, by_operations(head, run, monkeypatch))


@pytest.mark.parametrize("regularizer", ["l2", "n3"])
@pytest.mark.parametrize("reciprocal", [False, True])
@pytest.mark.parametrize("operator", OPERATORS)
def test_penalties_equal_those_of_torchs_operations(
    operator: str, reciprocal: bool, regularizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = ChunkShape(10, 10, 7)
    head = make_head(operator, "softmax", reciprocal, shape, 32, regularizer)
    run = make_run(operator, shape, 4, 32)
    found = results(head, run)
    assert head._kernel is not None
    assert_near(found, by_operations(head, run, monkeypatch))


@pytest.mark.parametrize(("size", "num_global", "dim"), [(2, 1, 16), (13, 0, 48), (3, 90, 128), (50, 50, 400)])
def test_any_size_of_chunk_will_do(size: int, num_global: int, dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = ChunkShape(size, size, num_global)
    head = make_head("translation", "softmax", False, shape, dim)
    run = make_run("translation", shape, 3, dim)
    assert_near(results(head, run), by_operations(head, run, monkeypatch))


@pytest.mark.parametrize("loss", LOSSES)
def test_large_scores_neither_overflow_nor_lose_their_derivatives(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = ChunkShape(10, 10, 7)
    head = make_head("diagonal", loss, False, shape, 32)
    run = make_run("diagonal", shape, 4, 32)
    run = replace(run, rows=(run.rows[0] * 30, run.rows[1] * 30))
    found = results(head, run)
    assert all(tensor.isfinite().all() for tensor in found)
    assert_near(found, by_operations(head, run, monkeypatch))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_broken_row_shows_in_the_loss(loss: str, value: float) -> None:
    shape = ChunkShape(10, 10, 7)
    head = make_head("translation", loss, False, shape, 32)
    run = make_run("translation", shape, 2, 32)
    run.rows[1][1, 12, 3] = value  # of a negative; what it is multiplied with is below zero everywhere
    assert not results(head, run)[0].isfinite()


@pytest.fixture
def keep_precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("keep_precision")
@pytest.mark.skipif(not has_bfloat16(), reason="this processor multiplies no bfloat16 numbers")
@pytest.mark.parametrize(
    ("size", "in_batch", "num_global", "dim"),
    [(10, 10, 7, 64), (50, 50, 50, 128), (7, 3, 12, 16), (33, 33, 0, 48), (60, 0, 100, 80)],
)
def test_bfloat16_products_differ_by_their_rounding(size: int, in_batch: int, num_global: int, dim: int) -> None:
    shape = ChunkShape(size, in_batch, num_global)
    head = make_head("translation", "softmax", False, shape, dim)
    run = make_run("translation", shape, 5, dim)
    exact = results(head, run)
    torch.set_float32_matmul_precision("medium")
    found = results(head, run)
    for one, other in zip(found, exact, strict=True):
        # A bfloat16 number is off by up to 2^-9 of itself; a score is a sum of `dim` products of about one half.
        assert (one - other).norm() < 0.02 * other.norm()
    assert any(not torch.equal(one, other) for one, other in zip(found, exact, strict=True))


@pytest.mark.usefixtures("keep_threads")
def test_one_two_and_three_threads_give_the_same_bits() -> None:
    shape = ChunkShape(10, 10, 7)
    head = make_head("complex_diagonal", "softmax", True, shape, 64)
    run = make_run("complex_diagonal", shape, 61, 64)
    found = []
    for num_threads in (1, 2, 3):
        torch.set_num_threads(num_threads)
        found.append(results(head, run))
    assert all(torch.equal(one, other) for others in found[1:] for one, other in zip(found[0], others, strict=True))


@pytest.mark.usefixtures("keep_precision", "nothing_said")
def test_a_processor_without_bfloat16_says_so_once_and_stays_exact(caplog: pytest.LogCaptureFixture) -> None:
    head = make_head("translation", "softmax", False, ChunkShape(10, 10, 7), 32)
    run = make_run("translation", ChunkShape(10, 10, 7), 2, 32)
    exact = results(head, run)
    assert head._kernel is not None
    head._kernel.has_bfloat16 = False
    torch.set_float32_matmul_precision("medium")
    for _ in range(2):
        found = results(head, run)
    assert all(torch.equal(one, other) for one, other in zip(found, exact, strict=True))
    assert [record.message for record in caplog.records if "enable_tensorfloat32 has no effect" in record.message]
    assert len(caplog.records) == 1


CASE = HeadCase("cpu", torch.float32, False, "dot", ChunkShape(10, 10, 7), 32, 1, 2)
LARGE = replace(CASE, shape=ChunkShape(1000, 0, 1000), dim=400)


@pytest.mark.parametrize(
    ("case", "suits"),
    [
        (CASE, True),
        (replace(CASE, dim=20), False),
        (replace(CASE, comparator="l2"), False),
        (replace(CASE, autocast=True), False),
        (replace(CASE, dtype=torch.float16), False),
        (replace(CASE, device_type="cuda"), False),
        (LARGE, False),
        (replace(LARGE, num_chunks=2), True),
    ],
)
def test_what_the_kernel_cannot_do_well_is_left_to_torch(case: HeadCase, suits: bool) -> None:
    assert case.suits_kernel is suits


@pytest.mark.usefixtures("keep_threads")
def test_the_head_asks_for_the_case_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(ChunkKernel, "is_built", staticmethod(lambda: seen.append("asked")))
    torch.set_num_threads(2)
    head = make_head("identity", "softmax", False, ChunkShape(10, 10, 7), 20)
    head.run_loss(make_run("identity", ChunkShape(10, 10, 7), 2, 20))
    assert not seen  # rows of 20 floats suit it not, whether it is built or not
    head = make_head("identity", "softmax", False, ChunkShape(10, 10, 7), 32)
    head.run_loss(make_run("identity", ChunkShape(10, 10, 7), 2, 32))
    assert seen == ["asked"]
