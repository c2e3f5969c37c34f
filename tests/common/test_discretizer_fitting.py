"""Boundaries of bins: percentiles and MDLP against numpy, scikit-learn and slow references."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import KBinsDiscretizer
from sklearn.tree import DecisionTreeClassifier

from tml.common.errors import ConfigError, DataError
from tml.common.modules.bin_boundaries import mdl_boundaries, mdlp_boundaries, percentile_boundaries
from tml.common.modules.discretizer_fitting import DiscretizerPlan, fit_features
from tml.common.modules.discretizers import MDL, PercentileDiscretizer

NAN, INF = math.nan, math.inf


def _random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


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
