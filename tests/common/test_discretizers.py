"""Discretizers: fitting against numpy, scikit-learn and slow references; ids against slow Python; exports."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import KBinsDiscretizer
from sklearn.tree import DecisionTreeClassifier

from tests.common.onnx_session import exported
from tests.common.test_hashing import slow_hash
from tml.common.errors import ConfigError, DataError
from tml.common.modules.bin_boundaries import mdl_boundaries, mdlp_boundaries, percentile_boundaries
from tml.common.modules.discretizer_fitting import DiscretizerPlan, FittedDiscretizer, fit_features
from tml.common.modules.discretizers import (
    MDL,
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


# Fitting: percentiles


def test_percentiles_equal_numpys_inverted_cdf() -> None:
    values, weights = _random().normal(size=997), _random(1).uniform(0.1, 5.0, size=997)
    order = np.argsort(values)
    inner = np.quantile(values[order][:-1], np.arange(1, 20) / 20, weights=weights[order][1:], method="inverted_cdf")
    expected = [values.min(), *inner, values.max()]
    assert percentile_boundaries(values, weights, 20).tolist() == expected


def test_percentiles_equal_a_slow_walk_over_the_rule() -> None:
    values, weights = _random().exponential(size=53), _random(1).uniform(0.1, 5.0, size=53)
    order = np.argsort(values)
    v, w = values[order], weights[order]
    total = w.sum() - w[0]
    fractions = [(w[: i + 1].sum() - w[0]) / total for i in range(53)]
    expected = [v[0]]
    for j in range(1, 7):
        expected.append(next(v[i] for i in range(52) if fractions[i] <= j / 7 <= fractions[i + 1]))
    assert percentile_boundaries(values, weights, 7).tolist() == [*expected, v[-1]]


def test_exact_hits_go_to_the_stretch_that_ends_there() -> None:
    # Fractions 0, 1/5, ... 1 meet every j / 5 exactly; the stretches (0, 1/5], (1/5, 2/5] ... start at 0, 1, 2, 3.
    assert percentile_boundaries(np.arange(6.0), None, 5).tolist() == [0, 0, 1, 2, 3, 5]


def test_percentiles_are_within_a_sample_of_scikit_learns_on_unit_weights() -> None:
    values = np.sort(_random().normal(size=1000))
    ours = percentile_boundaries(values, None, 10)
    theirs = KBinsDiscretizer(10, encode="ordinal", strategy="quantile", quantile_method="linear", subsample=None).fit(
        values[:, None]
    )
    places = np.searchsorted(values, ours)
    theirs_places = np.searchsorted(values, theirs.bin_edges_[0])
    assert np.abs(places - theirs_places).max() <= 1


def test_missing_weights_mean_ones_even_for_whole_numbers() -> None:
    # Bug 5 of the original: integer weights, then a true division in place.
    values = np.arange(100)
    assert percentile_boundaries(values).tolist() == percentile_boundaries(values, np.ones(100)).tolist()
    assert percentile_boundaries(values, np.ones(100, dtype=np.int64), 4).tolist() == [0, 24, 49, 74, 99]


def test_few_values_become_the_boundaries_between_infinities() -> None:
    assert percentile_boundaries([3.0, 1.0, 2.0], None, 5).tolist() == [-INF, 1, 2, 3, INF, INF]
    assert percentile_boundaries([], None, 2).tolist() == [-INF, INF, INF]
    assert percentile_boundaries([NAN, NAN], None, 2).tolist() == [-INF, INF, INF]


def test_missing_values_and_padding_rows_have_no_say() -> None:
    values, weights = [5.0, NAN, 1.0, 2.0, 1e9, 3.0, 4.0], [1, 9, 1, 1, 0, 1, 1]
    assert (
        percentile_boundaries(values, weights, 2).tolist() == percentile_boundaries([1, 2, 3, 4, 5], None, 2).tolist()
    )


def test_weights_move_boundaries_as_repeated_values_do_at_most_one_share() -> None:
    heavy = percentile_boundaries(np.arange(100.0), np.where(np.arange(100) < 10, 50.0, 1.0), 4)
    assert heavy[1] < 10
    assert heavy[2] < 10


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-1e6, 1e6, width=32), max_size=60),
    st.integers(1, 12),
    st.integers(0, 2**32 - 1),
)
def test_boundaries_ascend_and_are_values_of_the_sample(values: list[float], num_bins: int, seed: int) -> None:
    boundaries = percentile_boundaries(values, _random(seed).uniform(0, 2, len(values)), num_bins)
    assert len(boundaries) == num_bins + 1
    assert (boundaries[1:] >= boundaries[:-1]).all()
    assert set(boundaries[np.isfinite(boundaries)]) <= set(values)


@pytest.mark.parametrize(
    ("values", "weights", "message"),
    [
        ([1.0, INF], None, "value is infinite"),
        ([1.0, 2.0], [1.0, -1.0], "weight cannot be used"),
        ([1.0, 2.0], [1.0, NAN], "weight cannot be used"),
        ([1.0, 2.0], [1.0], "differ in length"),
    ],
)
def test_bad_samples_are_refused(values: list[float], weights: list[float] | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        percentile_boundaries(values, weights, 2)


def test_mdl_is_the_percentile_rule_under_the_originals_name() -> None:
    assert mdl_boundaries is percentile_boundaries
    assert MDL is PercentileDiscretizer


def test_every_feature_of_a_sparse_sample_is_fitted_by_itself() -> None:
    ids = np.array([7, -3, 7, 7, -3, 9])
    values = np.array([1.0, 10.0, 3.0, 2.0, 20.0, NAN])
    features, boundaries = fit_features(ids, values, None, 2)
    assert features.tolist() == [-3, 7]
    assert boundaries.tolist() == [[-INF, 10, 20], [1, 1, 3]]


# Fitting: MDLP


def _entropy(labels: list[int]) -> float:
    shares = [labels.count(one) / len(labels) for one in set(labels)]
    return -sum(share * math.log2(share) for share in shares)


def slow_mdlp(values: list[float], labels: list[int]) -> list[float]:
    """Fayyad and Irani's recursion, written from the paper."""
    pairs = sorted(zip(values, labels, strict=True))
    best: tuple[float, int] | None = None
    for i in range(1, len(pairs)):
        if pairs[i - 1][0] == pairs[i][0]:
            continue
        left, right = [y for _, y in pairs[:i]], [y for _, y in pairs[i:]]
        after = (len(left) * _entropy(left) + len(right) * _entropy(right)) / len(pairs)
        if best is None or after < best[0] - 1e-12:
            best = (after, i)
    if best is None:
        return []
    after, i = best
    whole, left, right = [y for _, y in pairs], [y for _, y in pairs[:i]], [y for _, y in pairs[i:]]
    k, k1, k2 = len(set(whole)), len(set(left)), len(set(right))
    delta = math.log2(3**k - 2) - (k * _entropy(whole) - k1 * _entropy(left) - k2 * _entropy(right))
    n = len(pairs)
    if _entropy(whole) - after <= (math.log2(n - 1) + delta) / n:
        return []
    cut = (pairs[i - 1][0] + pairs[i][0]) / 2
    low, high = pairs[:i], pairs[i:]
    return [
        *slow_mdlp([v for v, _ in low], [y for _, y in low]),
        cut,
        *slow_mdlp([v for v, _ in high], [y for _, y in high]),
    ]


@pytest.mark.parametrize("seed", range(4))
def test_mdlp_equals_the_papers_recursion(seed: int) -> None:
    random = _random(seed)
    values = random.integers(0, 60, size=300).astype(np.float64)
    labels = (random.uniform(size=300) < np.where((values > 15) & (values < 40), 0.9, 0.15)).astype(int)
    labels[values > 50] = 2
    boundaries = mdlp_boundaries(values, labels, None, 20)
    expected = slow_mdlp(values.tolist(), labels.tolist())
    assert len(expected) >= 2
    assert boundaries[np.isfinite(boundaries)].tolist() == expected
    assert boundaries[0] == -INF
    assert len(boundaries) == 21


def test_first_cut_of_mdlp_is_that_of_an_entropy_tree() -> None:
    values = _random().normal(size=500)
    labels = (values + _random(1).normal(scale=0.3, size=500) > 0.4).astype(int)
    tree = DecisionTreeClassifier(criterion="entropy", max_depth=1).fit(values[:, None], labels)
    boundaries = mdlp_boundaries(values, labels, None, 2)
    assert boundaries[1] == pytest.approx(tree.tree_.threshold[0], rel=1e-6)


def test_mdlp_finds_no_bins_where_the_label_is_noise() -> None:
    values, labels = _random().normal(size=2000), _random(1).integers(0, 2, size=2000)
    assert mdlp_boundaries(values, labels, None, 4).tolist() == [-INF, INF, INF, INF, INF]
    assert mdlp_boundaries([], [], None, 1).tolist() == [-INF, INF]


def test_mdlp_keeps_the_cuts_that_save_most_under_a_limit() -> None:
    values = np.arange(400.0)
    labels = np.select([values < 200, values < 350], [0, 1], 2)
    labels[:20] = 1
    assert mdlp_boundaries(values, labels, None, 20)[1:4].tolist() == [19.5, 199.5, 349.5]
    assert mdlp_boundaries(values, labels, None, 2)[1] == 199.5


def test_mdlp_does_not_depend_on_the_scale_of_weights() -> None:
    values = _random().normal(size=400)
    labels, weights = (values > 0.2).astype(int), _random(1).uniform(0.5, 2, size=400)
    ours = mdlp_boundaries(values, labels, weights, 5)
    assert ours.tolist() == mdlp_boundaries(values, labels, 1000 * weights, 5).tolist()
    assert (
        mdlp_boundaries(values, labels, np.ones(400), 5).tolist() == mdlp_boundaries(values, labels, None, 5).tolist()
    )


def test_mdlp_cut_separates_neighbouring_float32_values() -> None:
    low = np.float32(1.0)
    high = np.nextafter(low, np.float32(2.0))
    values = np.array([low] * 50 + [high] * 50)
    cut = mdlp_boundaries(values, [0] * 50 + [1] * 50, None, 2)[1]
    assert low <= np.float32(cut) < high


def test_mdlp_refuses_labels_that_are_not_classes() -> None:
    with pytest.raises(DataError, match="not a class"):
        mdlp_boundaries([1.0, 2.0], [0.5, 1.0])
    with pytest.raises(DataError, match="too many classes"):
        mdlp_boundaries(np.arange(100.0), np.arange(100))
    with pytest.raises(ConfigError, match="mdlp bins are fitted to a label"):
        DiscretizerPlan("age", "mdlp").fit([1.0])


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
