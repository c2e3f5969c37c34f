"""Chunks: every edge once, one signature a chunk, negatives of the right table, masks equal to brute force."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from tml.common.batch import Cursor
from tml.common.modules.table_layout import FusedOptimizerSpec, TableLayout, TableSpec
from tml.projects.twhin.data import masks as masks_module
from tml.projects.twhin.data.chunks import ChunkAssembler, ChunkedEdges, ChunkShape
from tml.projects.twhin.data.edges import EdgeArrays, EdgeSchema
from tml.projects.twhin.data.masks import ChunkNodes, masked_places
from tml.projects.twhin.models.relations import RelationSpec

RELATIONS = [
    RelationSpec("follow", "user", "user"),
    RelationSpec("fav", "user", "tweet"),
    RelationSpec("reply", "user", "tweet"),
    RelationSpec("similar", "tweet", "tweet", "diagonal"),
]
SIZES = {"user": 9, "tweet": 5}
SCHEMA = EdgeSchema(RELATIONS, SIZES)


@pytest.fixture(autouse=True, params=["compiled", "numpy"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test of this file runs with the compiled search for masked places and with numpy's."""
    if request.param == "numpy":
        monkeypatch.setattr(masks_module, "compiled", lambda source: None)
    elif masks_module.compiled(masks_module._SOURCE) is None:
        pytest.skip("no C++ compiler here")


def layout(optimizers: tuple[str, str] = ("rowwise_adagrad", "rowwise_adagrad")) -> TableLayout:
    kinds = dict(zip(SIZES, optimizers, strict=True))
    return TableLayout(
        [TableSpec(name, size, 4, FusedOptimizerSpec(kinds[name], 0.1)) for name, size in SIZES.items()]  # type: ignore[arg-type]
    )


def edges(number: int, seed: int = 0) -> EdgeArrays:
    rng = np.random.default_rng(seed)
    rel = rng.integers(0, len(RELATIONS), number)
    ends = [
        np.array([rng.integers(0, SIZES[getattr(RELATIONS[r], side)]) for r in rel], dtype=np.int64)
        for side in ("lhs", "rhs")
    ]
    return EdgeArrays(ends[0], rel.astype(np.int64), ends[1])


def assemble(
    batch: EdgeArrays, size: int, num_global: int, pad: bool = False, block: int = 0, num_in_batch: int | None = None
) -> ChunkedEdges:
    shape = ChunkShape(size, size if num_in_batch is None else num_in_batch, num_global)
    assembler = ChunkAssembler(SCHEMA, layout(), shape, seed=3, pad=pad)
    return assembler.assemble([(block, batch)], max(len(batch), 1), len(batch), Cursor(0, len(batch)))


def parts(chunk: ChunkedEdges, size: int) -> tuple[torch.Tensor, ...]:
    half = chunk.node_ids.shape[1] // 2
    ids = chunk.node_ids
    return ids[:, :size], ids[:, size:half], ids[:, half : half + size], ids[:, half + size :]


@pytest.mark.parametrize(("number", "size"), [(1, 4), (7, 3), (40, 8), (40, 1), (3, 50)])
def test_every_edge_is_in_exactly_one_slot_and_a_chunk_has_one_signature(number: int, size: int) -> None:
    batch = edges(number)
    chunk = assemble(batch, size, 2)
    lhs, _, rhs, _ = parts(chunk, size)
    filled = chunk.weight > 0
    found = Counter(zip(lhs[filled].tolist(), chunk.rel[filled].tolist(), rhs[filled].tolist(), strict=True))
    assert found == Counter(zip(batch.lhs.tolist(), batch.rel.tolist(), batch.rhs.tolist(), strict=True))
    for rel, mask, operator in zip(chunk.rel, filled, chunk.operators, strict=True):
        assert len({(RELATIONS[r].lhs, RELATIONS[r].rhs) for r in rel[mask].tolist()}) <= 1
        assert {RELATIONS[r].operator for r in rel[mask].tolist()} <= {operator}


def test_edges_are_spread_evenly_so_that_no_chunk_is_a_lonely_tail() -> None:
    batch = EdgeArrays(np.zeros(9, np.int64), np.full(9, 1, np.int64), np.zeros(9, np.int64))
    assert sorted((assemble(batch, 4, 0).weight > 0).sum(1).tolist()) == [3, 3, 3]


def test_physical_ids_are_table_offsets_plus_ids() -> None:
    batch = EdgeArrays(np.array([8]), np.array([1]), np.array([4]))
    chunk = assemble(batch, 1, 3)
    ids = chunk.node_ids[0].tolist()
    assert ids[0] == 8
    assert ids[4] == 4
    assert chunk.nodes.values().tolist() == ids[:4] + [SIZES["user"] + i for i in ids[4:]]


def test_uniform_negatives_come_from_the_right_table_and_cover_it() -> None:
    batch = EdgeArrays(np.zeros(300, np.int64), np.ones(300, np.int64), np.zeros(300, np.int64))
    _, lhs_negatives, _, rhs_negatives = parts(assemble(batch, 3, 10), 3)
    lhs_counts = np.bincount(lhs_negatives.flatten().numpy(), minlength=9)
    rhs_counts = np.bincount(rhs_negatives.flatten().numpy(), minlength=5)
    assert len(lhs_counts) == 9
    assert len(rhs_counts) == 5
    # 1,000 draws each: 111 and 200 expected, five standard deviations allowed.
    assert abs(lhs_counts - 1000 / 9).max() < 50
    assert abs(rhs_counts - 200).max() < 64


def test_draws_depend_on_seed_and_block_alone() -> None:
    same = [assemble(edges(30), 4, 5, block=7).node_ids for _ in range(2)]
    assert torch.equal(*same)
    assert not torch.equal(same[0], assemble(edges(30), 4, 5, block=8).node_ids)


def test_padding_for_several_ranks_changes_no_chunk_and_gives_equal_numbers_of_chunks() -> None:
    plain = assemble(edges(30), 4, 5)
    padded = assemble(edges(30), 4, 5, pad=True)
    count = len(plain.rel)
    assert torch.equal(padded.node_ids[:count], plain.node_ids)
    assert torch.equal(padded.weight[:count], plain.weight)
    assert padded.weight[count:].sum() == 0
    assert len({len(assemble(edges(30, seed), 4, 5, pad=True).rel) for seed in range(20)}) == 1


def test_a_rank_without_edges_gets_chunks_of_padding() -> None:
    nothing = np.empty(0, np.int64)
    chunk = assemble(EdgeArrays(nothing, nothing, nothing), 4, 2)
    assert chunk.weight.shape == (1, 4)
    assert chunk.weight.sum() == 0


def dense_masks(chunk: ChunkedEdges) -> tuple[torch.Tensor, torch.Tensor]:
    masks = []
    for masked in (chunk.lhs_masked, chunk.rhs_masked):
        assert (masked[1:] >= masked[:-1]).all()
        masks.append(torch.zeros(chunk.num_scores, dtype=torch.bool).index_fill_(0, masked, True))
    return masks[0].view(*chunk.rel.shape, -1), masks[1].view(*chunk.rel.shape, -1)


@pytest.mark.parametrize("num_in_batch", [0, 2, 6])
def test_masks_equal_brute_force(num_in_batch: int) -> None:
    size, num_global = 6, 4
    chunk = assemble(edges(60, seed=5), size, num_global, num_in_batch=num_in_batch)
    lhs, lhs_negatives, rhs, rhs_negatives = parts(chunk, size)
    masks = dense_masks(chunk)
    for side, own, drawn, other, mask in (
        ("lhs", lhs, lhs_negatives, rhs, masks[0]),
        ("rhs", rhs, rhs_negatives, lhs, masks[1]),
    ):
        num_true = 0
        for s in range(len(own)):
            filled = (chunk.weight[s] > 0).tolist()
            positives = {(int(other[s, c]), int(chunk.rel[s, c]), int(own[s, c])) for c in range(size) if filled[c]}
            in_batch = list(range(size))[size - num_in_batch :]
            candidates = own[s, in_batch].tolist() + drawn[s].tolist()
            valid = [filled[c] for c in in_batch] + [True] * num_global
            for c in range(size):
                if not filled[c]:
                    continue
                for n, candidate in enumerate(candidates):
                    query = (int(other[s, c]), int(chunk.rel[s, c]))
                    expected = not valid[n] or (*query, candidate) in positives
                    assert mask[s, c, n].item() == expected, (side, s, c, n)
                    num_true += expected
        assert num_true > 0


def test_masks_of_the_largest_ids_and_relations_that_a_config_allows_equal_brute_force() -> None:
    rng = np.random.default_rng(0)
    other, own, candidates = (2**40 - 1 - rng.integers(0, 3, (50, size)) for size in (6, 6, 9))
    rel, filled = 2**23 - 1 - rng.integers(0, 2, (50, 6)), rng.random((50, 6)) < 0.9
    found = np.zeros((50, 6, 9), dtype=bool)
    found.ravel()[masked_places(ChunkNodes(other, rel, own, filled), candidates, np.ones((50, 9), bool))] = True
    same_query = (other[:, :, None] == other[:, None]) & (rel[:, :, None] == rel[:, None]) & filled[:, None]
    expected = (same_query[..., None] & (own[:, None, :, None] == candidates[:, None, None, :])).any(2)
    assert np.array_equal(found[filled], expected[filled])
    assert 0.1 < expected.mean() < 0.9


@pytest.mark.parametrize("largest", [2**31 - 1, 2**31, 2**32 + 1])
def test_ids_are_told_apart_where_32_bits_end(largest: int) -> None:
    own, candidates = np.array([[largest]]), np.array([[largest, largest + 2**32, largest - 1, 1]])
    nodes = ChunkNodes(np.zeros_like(own), np.zeros_like(own), own, np.ones_like(own, dtype=bool))
    for some in (candidates, candidates[:, [0, 2, 3]]):
        assert masked_places(nodes, some, np.ones_like(some, dtype=bool)).tolist() == [0]


def test_joined_batches_mask_like_the_single_ones() -> None:
    size = 6
    single = [assemble(edges(40, seed), size, 4, block=seed) for seed in range(3)]
    joined = ChunkedEdges.concat(single)
    assert joined.num_examples == 120
    for side in (0, 1):
        torch.testing.assert_close(dense_masks(joined)[side], torch.cat([dense_masks(b)[side] for b in single]))


def test_relation_weights_reach_the_slots() -> None:
    assembler = ChunkAssembler(SCHEMA, layout(), ChunkShape(2, 2, 1), seed=0, weights={"fav": 2.5})
    batch = EdgeArrays(np.array([0, 1]), np.array([1, 2]), np.array([0, 1]))
    chunk = assembler.assemble([(0, batch)], 2, 2, Cursor(0, 2))
    assert chunk.weight[chunk.rel == 1].tolist() == [2.5]
    assert chunk.weight[chunk.rel == 2].tolist() == [1.0]


def test_padding_adds_no_relation_to_a_chunk() -> None:
    size = 4
    chunk = assemble(edges(60, 0), size, 2)
    rel = chunk.rel.tolist()
    for row, weights in zip(rel, chunk.weight.tolist(), strict=True):
        filled = [r for r, weight in zip(row, weights, strict=True) if weight > 0]
        assert set(row) == set(filled)
