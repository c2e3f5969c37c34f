"""Normalisers: statistics against numpy and scikit-learn, moving averages by hand, missing values, exports."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import MaxAbsScaler, StandardScaler

from tests.common.onnx_session import exported
from tml.common.errors import ConfigError, DataError
from tml.common.modules.normalizers import Normalizer, NormalizerStatistics, Transform, ZscoreNormalization

NAN = math.nan
NAMES = ["raw", "z", "log", "max"]
TRANSFORMS: list[Transform] = ["none", "z_score", "log_z_score", "max_norm"]


def _sample(rows: int = 500, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(seed)
    values = random.normal(size=(rows, 4)) * [1, 5, 1000, 3] + [0, 100, -300, 0]
    values[random.uniform(size=values.shape) < 0.1] = NAN
    return torch.from_numpy(values).to(torch.float32), torch.from_numpy(random.uniform(0, 3, size=rows))


def _fit(values: torch.Tensor, weights: torch.Tensor | None = None) -> Normalizer:
    statistics = NormalizerStatistics(NAMES, TRANSFORMS)
    statistics.update(values, weights)
    return Normalizer.from_statistics(statistics)


def test_statistics_equal_numpys_weighted_ones() -> None:
    values, weights = _sample()
    statistics = NormalizerStatistics(NAMES, TRANSFORMS)
    for part in range(0, 500, 77):
        statistics.update(values[part : part + 77], weights[part : part + 77])
    x = values.numpy().astype(np.float64)
    x[:, 2] = np.sign(x[:, 2]) * np.log1p(np.abs(x[:, 2]))
    for column in range(4):
        present = ~np.isnan(x[:, column])
        one, mass = x[present, column], weights.numpy()[present]
        mean = np.average(one, weights=mass)
        std = np.sqrt(np.average((one - mean) ** 2, weights=mass))
        expected = [mass.sum(), mean, std, np.abs(one).max()]
        sums = statistics.sums[:, column].tolist()
        np.testing.assert_allclose([sums[0], sums[1], statistics.std[column], sums[3]], expected, rtol=1e-10)


def test_transforms_equal_scikit_learns_scalers() -> None:
    values, _ = _sample()
    values = torch.nan_to_num(values, nan=1.5)
    ours, missing = _fit(values)(values)
    assert not missing.any()
    x = values.numpy().astype(np.float64)
    log = np.sign(x[:, 2:3]) * np.log1p(np.abs(x[:, 2:3]))
    np.testing.assert_array_equal(ours[:, 0].numpy(), x[:, 0].astype(np.float32))
    np.testing.assert_allclose(ours[:, 1:2].numpy(), StandardScaler().fit_transform(x[:, 1:2]), atol=1e-4)
    np.testing.assert_allclose(ours[:, 2:3].numpy(), StandardScaler().fit_transform(log), atol=1e-4)
    np.testing.assert_allclose(ours[:, 3:4].numpy(), MaxAbsScaler().fit_transform(x[:, 3:4]), atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 500), max_size=4), st.integers(0, 1000))
def test_statistics_do_not_depend_on_how_a_sample_is_cut(cuts: list[int], seed: int) -> None:
    values, weights = _sample(seed=seed)
    whole = NormalizerStatistics(NAMES, TRANSFORMS)
    whole.update(values, weights)
    merged = NormalizerStatistics(NAMES, TRANSFORMS)
    for first, stop in zip([0, *sorted(cuts)], [*sorted(cuts), 500], strict=True):
        part = NormalizerStatistics(NAMES, TRANSFORMS)
        part.update(values[first:stop], weights[first:stop])
        merged.merge(part.sums)
    torch.testing.assert_close(merged.sums, whole.sums, rtol=1e-10, atol=1e-10)


def test_a_large_mean_costs_no_digits() -> None:
    random = torch.Generator().manual_seed(0)
    noise = torch.randn(20_000, 1, generator=random, dtype=torch.float64)
    statistics = NormalizerStatistics(["time"], ["z_score"])
    for part in (noise + 1e9).split(333):
        statistics.update(part)
    torch.testing.assert_close(statistics.std, noise.std(0, correction=0), rtol=1e-6, atol=0)


def test_rows_of_weight_zero_have_no_say() -> None:
    values, _ = _sample()
    padded = torch.cat([values, torch.full((9, 4), 1e20)])
    weights = torch.cat([torch.ones(500), torch.zeros(9)])
    torch.testing.assert_close(_fit(padded, weights)(values), _fit(values)(values), equal_nan=True)


def test_missing_values_become_zero_and_are_marked() -> None:
    values, _ = _sample()
    ours, missing = _fit(values)(torch.tensor([[NAN, NAN, 5.0, NAN], [1.0, 2.0, NAN, 4.0]]))
    assert missing.tolist() == [[1, 1, 0, 1], [0, 0, 1, 0]]
    assert ours[0, [0, 1, 3]].tolist() == [0, 0, 0]
    assert ours[1, 2] == 0
    assert torch.isfinite(ours).all()


def test_constant_and_absent_features_let_nothing_through() -> None:
    statistics = NormalizerStatistics(["constant", "absent", "zero"], ["z_score", "log_z_score", "max_norm"])
    statistics.update(torch.tensor([[0.1, NAN, 0.0]] * 1000))
    ours, _ = Normalizer.from_statistics(statistics)(torch.tensor([[0.1, 3.0, 0.5], [1e6, -7.0, 9.0]]))
    assert ours.tolist() == [[0, 0, 0.5], [0, 0, 1]]


def test_max_norm_stays_within_one() -> None:
    statistics = NormalizerStatistics(["max"], ["max_norm"])
    statistics.update(torch.tensor([[2.0], [-4.0]]))
    ours, _ = Normalizer.from_statistics(statistics)(torch.tensor([[-2.0], [100.0], [-100.0]]))
    assert ours.flatten().tolist() == [-0.5, 1, -1]


def test_state_goes_through_plain_json() -> None:
    values, weights = _sample()
    normalizer = _fit(values, weights)
    again = Normalizer.from_dict(json.loads(json.dumps(normalizer.to_dict(), allow_nan=False)))
    assert again.names == tuple(NAMES)
    for ours, theirs in zip(normalizer(values), again(values), strict=True):
        assert torch.equal(ours, theirs)
    assert Normalizer.from_dict({"features": []})(torch.zeros(2, 0))[0].shape == (2, 0)


def test_damaged_state_is_refused() -> None:
    good = _fit(*_sample()).to_dict()["features"][0]
    for damage in ({"mean": "x"}, {"std": -1.0}, {"max_abs": NAN}, {"mean": None}):
        with pytest.raises(DataError):
            Normalizer.from_dict({"features": [good | damage]})
    with pytest.raises(DataError):
        Normalizer.from_dict({})
    with pytest.raises(ConfigError, match="unknown transform"):
        Normalizer.from_dict({"features": [good | {"transform": "cube"}]})


@pytest.mark.parametrize(
    ("values", "weights", "message"),
    [
        ([[1.0, math.inf]], [1.0], "feature 'b', row 0"),
        ([[1.0, 2.0]], [-1.0], "weight cannot be used"),
        ([[1.0, 2.0]], [NAN], "weight cannot be used"),
        ([[1.0]], [1.0], "does not fit"),
        ([[1.0, 2.0]], [1.0, 1.0], "does not fit"),
    ],
)
def test_bad_batches_are_refused(values: list[list[float]], weights: list[float], message: str) -> None:
    statistics = NormalizerStatistics(["a", "b"], ["none", "z_score"])
    with pytest.raises(DataError, match=message):
        statistics.update(torch.tensor(values), torch.tensor(weights))
    with pytest.raises(ConfigError, match="one transform"):
        NormalizerStatistics(["a", "b"], ["none"])


def test_exported_normalizer_equals_the_eager_one(tmp_path: Path) -> None:
    values, weights = _sample()
    module = _fit(values, weights)
    run = exported(module, (values[:5],), tmp_path)
    for ours, onnx in zip(module(values), run(values), strict=True):
        torch.testing.assert_close(ours, onnx, rtol=1e-5, atol=1e-6)


def test_moving_averages_by_hand() -> None:
    layer = ZscoreNormalization(1, decay=0.5)
    # Mean 2, debiased (0.5 * 2) / 0.5 = 2; variance about it 1.
    assert layer(torch.tensor([[1.0], [3.0]])).flatten().tolist() == [-1, 1]
    # Averages .5 * 1 + .5 * 6 = 3.5 over .75; variance .5 * .5 + .5 * ((4 - m)^2 + (8 - m)^2) / 2 over .75.
    mean = 3.5 / 0.75
    variance = (0.25 + 0.25 * ((4 - mean) ** 2 + (8 - mean) ** 2)) / 0.75
    expected = [(one - mean) / math.sqrt(variance) for one in (4, 8)]
    assert layer(torch.tensor([[4.0], [8.0]])).flatten().tolist() == pytest.approx(expected, rel=1e-6)
    before = layer.mean.clone()
    layer.eval()
    assert layer(torch.tensor([[8.0]])).item() == pytest.approx(expected[1], rel=1e-6)
    assert torch.equal(layer.mean, before)


def test_moving_averages_find_mean_and_variance() -> None:
    layer, random = ZscoreNormalization(2, decay=0.99), torch.Generator().manual_seed(0)
    for _ in range(800):
        layer(torch.randn(64, 2, generator=random) * 3 + torch.tensor([10.0, -500.0]))
    layer.eval()
    scores = layer(torch.randn(20_000, 2, generator=random) * 3 + torch.tensor([10.0, -500.0]))
    torch.testing.assert_close(scores.mean(0), torch.zeros(2), rtol=0, atol=0.05)
    torch.testing.assert_close(scores.std(0), torch.ones(2), rtol=0, atol=0.05)


def test_moving_averages_leave_missing_values_out() -> None:
    layer, dense = ZscoreNormalization(2), ZscoreNormalization(1)
    out = layer(torch.tensor([[1.0, NAN], [NAN, NAN], [3.0, NAN]]))
    assert out[[0, 2], 0].tolist() == dense(torch.tensor([[1.0], [3.0]])).flatten().tolist()
    assert out[1, 0] == 0
    assert not out[:, 1].any()
    assert layer.num_batches.tolist() == [1, 0]
    layer(torch.tensor([[NAN, 7.0]]))
    assert layer.mean[0] == dense.mean[0], "an absent feature keeps its averages"
    masked = ZscoreNormalization(1)(torch.tensor([[1.0], [9.0], [3.0]]), torch.tensor([[True], [False], [True]]))
    assert masked.flatten().tolist() == out[:, 0].tolist()


def test_values_without_variance_give_zero_or_one() -> None:
    ones = torch.ones(3, 1)
    assert ZscoreNormalization(1)(ones).flatten().tolist() == [0, 0, 0]
    assert ZscoreNormalization(1, handle_single=True)(ones).flatten().tolist() == [1, 1, 1]
    with pytest.raises(ConfigError, match="decay"):
        ZscoreNormalization(1, decay=1.0)


def test_moving_averages_without_debias_start_at_zero() -> None:
    layer = ZscoreNormalization(1, decay=0.9, zero_debias=False)
    layer(torch.tensor([[10.0]]))
    assert layer.mean.item() == pytest.approx(1.0)
    assert layer.variance.item() == pytest.approx(0.1 * 81)
