"""Discretizers: ids against slow Python, state, exports."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.common.onnx_session import exported
from tests.common.test_hashing import slow_hash
from tml.common.errors import ConfigError, DataError
from tml.common.modules.discretizer_fitting import DiscretizerPlan, FittedDiscretizer
from tml.common.modules.discretizers import (
    DenseDiscretizer,
    HashedPercentileDiscretizer,
    HashingDiscretizer,
    PercentileDiscretizer,
    SparseDiscretizer,
    discretizer_from_dict,
)
from tml.common.modules.sorted_search import count_below, count_below_in_columns, padded_rows
from tml.common.modules.sparse_ops import SparseRows

NAN, INF = math.nan, math.inf


def _random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# Look-ups


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_look_ups_equal_numpys_searchsorted(length: int, seed: int) -> None:
    random = _random(seed)
    rows = np.sort(random.integers(0, 12, size=(3, length)), axis=1).astype(np.float32)
    values = random.integers(-1, 13, size=(20, 3)).astype(np.float32)
    columns = count_below_in_columns(torch.from_numpy(rows), torch.from_numpy(values))
    row = torch.arange(3).expand(20, 3)
    padded = padded_rows(torch.from_numpy(rows))
    for f in range(3):
        assert columns[:, f].tolist() == np.searchsorted(rows[f], values[:, f]).tolist()
        right = np.searchsorted(rows[f], values[:, f], side="right").tolist()
        assert count_below(padded, row, torch.from_numpy(values), or_equal=True)[:, f].tolist() == right
    assert torch.equal(count_below(padded, row, torch.from_numpy(values)), columns)


# Sparse discretizers

FEATURES = [40, -5, 12]
BOUNDARIES = [[0.0, 1.0, 2.0, 3.0], [-INF, 5.0, INF, INF], [1.0, 1.0, 1.0, 9.0]]


def slow_bin(boundaries: list[float], value: float) -> int:
    """The documented rule: intervals (a, b], 0 at the start, the last number from the last boundary on."""
    if value >= boundaries[-1]:
        return len(boundaries) - 1
    return max(sum(boundary < value for boundary in boundaries) - 1, 0)


def _entries() -> tuple[torch.Tensor, torch.Tensor]:
    pairs = [(f, v) for f in (40, -5, 12, 99, -1) for v in (-1.0, 0.0, 0.5, 1.0, 1.5, 3.0, 5.0, 5.1, 9.0, 50.0)]
    ids, values = zip(*pairs, strict=True)
    return torch.tensor(ids), torch.tensor(values)


def test_hashing_discretizer_equals_slow_python() -> None:
    ids, values = _entries()
    out, out_values, present = HashingDiscretizer(FEATURES, BOUNDARIES)(ids, values)
    table = dict(zip(FEATURES, BOUNDARIES, strict=True))
    for i, (one, value) in enumerate(zip(ids.tolist(), values.tolist(), strict=True)):
        if one in table:
            count = sum(boundary < value for boundary in table[one])
            assert (out[i].item(), out_values[i].item()) == (slow_hash(one, count, 22, 32), 1.0)
        else:
            assert (out[i].item(), out_values[i].item()) == (one % 2**22, pytest.approx(value))
    assert present.all()


@pytest.mark.parametrize("width", [32, 64])
def test_hashing_discretizer_options(width: int) -> None:
    ids, values = torch.full((3,), 40), torch.tensor([1.0, 1.5, INF])
    layer = HashingDiscretizer(FEATURES, BOUNDARIES, 20, search="upper_bound", width=width)  # type: ignore[arg-type]
    assert layer(ids, values)[0].tolist() == [slow_hash(40, count, 20, width) for count in (2, 2, 4)]
    with pytest.raises(ConfigError, match="unknown option"):
        HashingDiscretizer(FEATURES, BOUNDARIES, search="linear")  # type: ignore[arg-type]


def test_percentile_discretizers_equal_slow_python() -> None:
    ids, values = _entries()
    dense_ids, dense_values, _ = PercentileDiscretizer(FEATURES, BOUNDARIES)(ids, values)
    hashed_ids, _, _ = HashedPercentileDiscretizer(FEATURES, BOUNDARIES)(ids, values)
    table, ranks = dict(zip(FEATURES, BOUNDARIES, strict=True)), {-5: 0, 12: 1, 40: 2}
    for i, (one, value) in enumerate(zip(ids.tolist(), values.tolist(), strict=True)):
        if one not in table:
            assert dense_ids[i] > 12
            assert dense_values[i].item() == pytest.approx(value)
            continue
        number = slow_bin(table[one], value)
        assert dense_ids[i].item() == 1 + 4 * ranks[one] + number
        assert dense_values[i] == 1
        assert hashed_ids[i].item() == slow_hash(one, number, 22, 32)


def test_uncalibrated_features_never_meet_a_bin() -> None:
    # Bug 6 of the original: bins have ids 1..n, other features began at n.
    layer = PercentileDiscretizer([1, 2], [[0.0, 1.0, 2.0]] * 2, output_bits=4)
    others = torch.arange(-1000, 1000)
    others = others[(others != 1) & (others != 2)]
    out, _, _ = layer(others, torch.zeros(len(others)))
    assert sorted(set(out.tolist())) == list(range(7, 16))
    bins, _, _ = layer(torch.tensor([1, 1, 1, 2, 2, 2]), torch.tensor([0.0, 1.5, 2.0] * 2))
    assert bins.tolist() == [1, 2, 3, 4, 5, 6]


def test_too_few_output_bits_are_refused() -> None:
    boundaries = [[0.0, 1.0, 2.0, 3.0]] * 4
    PercentileDiscretizer([1, 2, 3, 4], boundaries, output_bits=5)
    with pytest.raises(ConfigError, match="output_bits leave no room"):
        PercentileDiscretizer([1, 2, 3, 4], boundaries, output_bits=4)
    with pytest.raises(ConfigError, match="out of range"):
        HashingDiscretizer([1], [[0.0]], output_bits=33)


@pytest.mark.parametrize("kind", [PercentileDiscretizer, HashedPercentileDiscretizer, HashingDiscretizer])
def test_missing_values_have_no_id(kind: type[SparseDiscretizer]) -> None:
    layer = kind(FEATURES, BOUNDARIES)
    ids, values, present = layer(torch.tensor([40, 40, 99]), torch.tensor([1.0, NAN, NAN]))
    assert present.tolist() == [True, False, False]
    assert ids[1:].tolist() == [0, 0]
    assert values.tolist() == [1, 0, 0]
    batch = SparseRows(torch.tensor([0, 1, 1]), torch.tensor([40, 40, 99]), torch.tensor([1.0, NAN, 7.0]), 2)
    kept = layer.on_rows(batch)
    assert kept.rows.tolist() == [0, 1]
    assert kept.values.tolist() == [1, 7]


@pytest.mark.parametrize("kind", [PercentileDiscretizer, HashedPercentileDiscretizer, HashingDiscretizer])
def test_state_of_sparse_discretizers_goes_through_plain_json(kind: type[SparseDiscretizer]) -> None:
    layer = kind(FEATURES, BOUNDARIES, 18)
    text = json.dumps(layer.to_dict(), allow_nan=False)
    again = discretizer_from_dict(json.loads(text))
    assert type(again) is kind
    for ours, theirs in zip(layer(*_entries()), again(*_entries()), strict=True):
        assert torch.equal(ours, theirs)


def test_damaged_state_is_refused() -> None:
    state = HashingDiscretizer(FEATURES, BOUNDARIES).to_dict()
    for damage in ({"kind": "other"}, {"bin_boundaries": [[1.0]]}, {"feature_ids": "x"}, {"more": 1}):
        with pytest.raises(DataError, match="cannot be read"):
            discretizer_from_dict(state | damage)
    with pytest.raises(DataError, match="ascend"):
        HashingDiscretizer([1], [[2.0, 1.0]])
    with pytest.raises(DataError, match="ascend"):
        HashingDiscretizer([1], [[2.0, NAN]])
    with pytest.raises(DataError, match="distinct features"):
        HashingDiscretizer([1, 1], [[1.0], [2.0]])


def test_an_empty_calibration_is_an_error_unless_allowed() -> None:
    empty = SparseRows(torch.tensor([0]), torch.tensor([1]), torch.tensor([NAN]), 1)
    with pytest.raises(DataError, match="nothing to calibrate"):
        PercentileDiscretizer.fit(empty)
    layer = PercentileDiscretizer.fit(empty, output_bits=8, allow_empty=True)
    ids, values, _ = layer(torch.tensor([-1, 300]), torch.tensor([2.0, 3.0]))
    assert (ids.tolist(), values.tolist()) == ([255, 44], [2, 3])
    assert discretizer_from_dict(layer.to_dict()).num_features == 0


def test_fitted_sparse_discretizer_uses_the_weights_of_records() -> None:
    sample = SparseRows(torch.tensor([0, 0, 1, 2]), torch.tensor([3, 8, 3, 3]), torch.tensor([1.0, 7.0, 2.0, 3.0]), 3)
    layer = HashingDiscretizer.fit(sample, weights=[1.0, 0.0, 1.0], num_bins=1)
    assert layer.to_dict()["bin_boundaries"] == [[1, 3], ["-inf", 7]]


class _SparseKinds(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        kinds = (PercentileDiscretizer, HashedPercentileDiscretizer, HashingDiscretizer)
        self.layers = torch.nn.ModuleList(kind(FEATURES, BOUNDARIES) for kind in kinds)

    def forward(self, ids: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(part for layer in self.layers for part in layer(ids, values))


def test_exported_sparse_discretizers_equal_eager_ones(tmp_path: Path) -> None:
    ids, values = _entries()
    values[3] = NAN
    module = _SparseKinds()
    run = exported(module, (ids[:7], values[:7]), tmp_path)
    for ours, onnx in zip(module(ids, values), run(ids, values), strict=True):
        torch.testing.assert_close(ours, onnx, rtol=0, atol=0)


# The dense discretizer


def _fitted() -> list[FittedDiscretizer]:
    random = _random()
    values = random.normal(size=400)
    return [
        DiscretizerPlan("age", "percentile", num_bins=4).fit(values),
        DiscretizerPlan("likes", "hashing", num_bins=6, feature_id=-77, output_bits=12).fit(values),
        DiscretizerPlan("views", "hashed_percentile", num_bins=5, feature_id=2**60 + 1).fit(values),
        DiscretizerPlan("length", "mdlp", num_bins=8).fit(values, labels=(values > 0.3).astype(int)),
        DiscretizerPlan("never seen", "percentile", num_bins=3).fit(np.full(400, NAN)),
    ]


def _dense_values() -> torch.Tensor:
    values = torch.from_numpy(_random(3).normal(size=(64, 5))).to(torch.float32)
    boundaries = torch.tensor(_fitted()[0].boundaries)
    values[: len(boundaries), 0] = boundaries
    values[5, 1], values[6, :], values[7, 2] = NAN, NAN, -1e30
    return values


def test_dense_ids_equal_slow_python() -> None:
    fitted, values = _fitted(), _dense_values()
    ids, present = DenseDiscretizer(fitted)(values)
    assert torch.equal(present, ~torch.isnan(values))
    for row in range(64):
        for column, one in enumerate(fitted):
            value, plan = values[row, column].item(), one.plan
            boundaries = np.asarray(one.boundaries, dtype=np.float32).tolist()
            if math.isnan(value):
                expected = 0
            elif plan.kind == "hashing":
                expected = slow_hash(plan.feature_id, sum(b < value for b in boundaries), plan.output_bits, 32)
            elif plan.kind == "hashed_percentile":
                expected = slow_hash(plan.feature_id, slow_bin(boundaries, value), plan.output_bits, 32)
            else:
                expected = 1 + slow_bin(boundaries, value)
            assert ids[row, column].item() == expected, (row, plan.name, value)


def test_dense_ids_fit_their_tables() -> None:
    layer = DenseDiscretizer(_fitted())
    ids, _ = layer(torch.cat([_dense_values(), torch.full((1, 5), INF), torch.full((1, 5), -INF)]))
    assert layer.num_rows == (6, 2**12, 2**22, 10, 5)
    assert (ids >= 0).all()
    assert (ids < torch.tensor(layer.num_rows)).all()


def test_dense_bins_hold_equal_shares_of_weight() -> None:
    values, weights = _random().exponential(size=20_000), _random(1).uniform(0.1, 3.0, size=20_000)
    layer = DenseDiscretizer([DiscretizerPlan("age", "percentile", num_bins=10).fit(values, weights)])
    ids, _ = layer(torch.from_numpy(values).unsqueeze(1))
    shares = np.bincount(ids[:, 0].numpy(), weights)[1:11] / weights.sum()
    np.testing.assert_allclose(shares, 0.1, atol=5e-4)


def test_dense_discretizer_of_no_features() -> None:
    ids, present = DenseDiscretizer([])(torch.zeros(3, 0))
    assert ids.shape == present.shape == (3, 0)


def test_state_of_fitted_discretizers_goes_through_plain_json() -> None:
    for one in _fitted():
        assert FittedDiscretizer.from_dict(json.loads(json.dumps(one.to_dict(), allow_nan=False))) == one
    state = _fitted()[0].to_dict()
    for damage in ({"boundaries": ["x"]}, {"boundaries": [1.0]}, {"boundaries": None}, {"more": 1}):
        with pytest.raises(DataError):
            FittedDiscretizer.from_dict(state | damage)
    with pytest.raises(ConfigError, match="unknown kind"):
        FittedDiscretizer.from_dict(state | {"kind": "mdl"})


@pytest.mark.parametrize("plan", [{"num_bins": 0}, {"output_bits": 40}])
def test_impossible_plans_are_refused(plan: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="out of range"):
        DiscretizerPlan("age", "percentile", **plan)  # type: ignore[arg-type]


def test_exported_dense_discretizer_equals_the_eager_one(tmp_path: Path) -> None:
    module, values = DenseDiscretizer(_fitted()), _dense_values()
    run = exported(module, (values[:9],), tmp_path)
    for ours, onnx in zip(module(values), run(values), strict=True):
        assert torch.equal(ours, onnx)
