"""Isotonic calibration, against scikit-learn, numpy's interpolation and the rule worked through slowly; export."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression, isotonic_regression

from tests.common.onnx_session import exported
from tml.common.errors import DataError
from tml.common.modules.calibrators import Isotonic, fit_isotonic


def _sample(rows: int = 4000, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predictions that are the square of the truth."""
    random = np.random.default_rng(seed)
    truth = random.uniform(0.02, 0.98, size=rows)
    labels = (random.uniform(size=rows) < truth).astype(np.float64)
    return truth**2, labels, random.uniform(0.1, 3.0, size=rows)


@pytest.mark.parametrize("similar_bins", [False, True])
def test_points_follow_the_originals_rule(similar_bins: bool) -> None:
    predictions, labels, weights = _sample(1007)
    order = np.argsort(predictions)
    x, y, w = predictions[order], labels[order], weights[order]
    fitted = isotonic_regression(y, sample_weight=w)
    step = 1007 // 20
    starts = np.linspace(0, 1007 - step, num=20, dtype=int) if similar_bins else np.arange(0, 20 * step, step)
    stops = np.append(starts[1:], 1007)
    xs = [np.average(x[a:b], weights=w[a:b]) for a, b in zip(starts, stops, strict=True)]
    ys = [np.average(fitted[a:b], weights=w[a:b]) for a, b in zip(starts, stops, strict=True)]
    layer = fit_isotonic(predictions, labels, weights, 20, similar_bins)
    np.testing.assert_allclose(layer.xs.numpy(), xs, rtol=1e-6)
    np.testing.assert_allclose(layer.ys.numpy(), ys, rtol=1e-6)
    sizes = np.diff(np.append(starts, 1007))
    assert (sizes.max() - sizes.min() <= 1) == similar_bins


def test_a_bin_for_each_sample_equals_scikit_learns_regression() -> None:
    predictions, labels, weights = _sample(600)
    layer = fit_isotonic(predictions, labels, weights, num_bins=600)
    theirs = IsotonicRegression(out_of_bounds="clip").fit(predictions, labels, sample_weight=weights)
    np.testing.assert_allclose(layer(torch.from_numpy(predictions)).numpy(), theirs.predict(predictions), atol=1e-5)


def test_equal_predictions_are_pooled_as_scikit_learn_does() -> None:
    predictions, labels, weights = _sample(500)
    predictions = np.round(predictions, 1)
    layer = fit_isotonic(predictions, labels, weights, num_bins=500)
    theirs = IsotonicRegression(out_of_bounds="clip").fit(predictions, labels, sample_weight=weights)
    np.testing.assert_allclose(layer(torch.from_numpy(predictions)).numpy(), theirs.predict(predictions), atol=1e-5)
    constant = fit_isotonic(np.full(100, 0.3), np.arange(100) % 4 == 0, num_bins=10)
    assert constant(torch.tensor([0.3])).item() == pytest.approx(0.25)


def test_calibration_mends_a_distorted_probability() -> None:
    predictions, labels, _ = _sample(40_000)
    layer = fit_isotonic(predictions, labels, num_bins=22)
    held_out, _, _ = _sample(5000, seed=1)
    truth = np.sqrt(held_out)
    calibrated = layer(torch.from_numpy(held_out)).numpy()
    assert np.abs(calibrated - truth).mean() < 0.02
    assert np.abs(held_out - truth).mean() > 0.1


def test_rows_of_weight_zero_have_no_say() -> None:
    predictions, labels, weights = _sample(300)
    weights[::3] = 0
    kept = weights > 0
    ours = fit_isotonic(predictions, labels, weights, 10)
    theirs = fit_isotonic(predictions[kept], labels[kept], weights[kept], 10)
    assert ours.to_dict() == theirs.to_dict()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(0, 1, width=32), min_size=1, max_size=40, unique=True),
    st.lists(st.floats(-0.5, 1.5, width=32), min_size=1, max_size=30),
)
def test_layer_equals_numpys_interpolation(points: list[float], values: list[float]) -> None:
    xs = np.sort(np.asarray(points))
    ys = np.sort(np.random.default_rng(0).uniform(size=len(xs)))
    ours = Isotonic(xs, ys)(torch.tensor(values)).numpy()
    np.testing.assert_allclose(ours, np.interp(values, xs, ys), atol=2e-6)


def test_ends_are_clamped_and_points_that_share_an_x_give_the_left_y() -> None:
    layer = Isotonic([0.2, 0.5, 0.5, 0.5, 0.8], [0.1, 0.2, 0.3, 0.6, 0.7])
    ours = layer(torch.tensor([[-1.0, 0.2, 0.35], [0.5, 0.65, 0.8], [0.9, 2.0, math.inf]]))
    expected = torch.tensor([[0.1, 0.1, 0.15], [0.2, 0.65, 0.7], [0.7, 0.7, 0.7]])
    torch.testing.assert_close(ours, expected)
    assert Isotonic([0.5], [0.4])(torch.tensor([0.0, 0.5, 1.0])).tolist() == pytest.approx([0.4] * 3)


def test_output_is_cut_to_probabilities_and_nan_is_not_hidden() -> None:
    layer = Isotonic([0.0, 1.0], [-1.0, 2.0])
    assert layer(torch.tensor([0.0, 0.5, 1.0])).tolist() == [0, 0.5, 1]
    assert torch.isnan(layer(torch.tensor([math.nan]))).all()


def test_layer_never_descends_and_gradient_is_the_slope() -> None:
    layer = fit_isotonic(*_sample(3000), num_bins=50)
    grid = layer(torch.linspace(-0.1, 1.1, 5000))
    assert (grid.diff() >= 0).all()
    line = Isotonic([0.0, 1.0], [0.25, 0.75]).double()
    assert torch.autograd.gradcheck(line, torch.tensor([0.3, 0.8], dtype=torch.float64, requires_grad=True))


def test_state_goes_through_plain_json() -> None:
    layer = fit_isotonic(*_sample(1000), num_bins=22)
    again = Isotonic.from_dict(json.loads(json.dumps(layer.to_dict(), allow_nan=False)))
    x = torch.rand(100)
    assert torch.equal(layer(x), again(x))
    assert set(layer.to_dict()) == {"x", "y"}


@pytest.mark.parametrize(
    ("xs", "ys"), [([], []), ([0.1], [0.1, 0.2]), ([0.2, 0.1], [0, 1]), ([0, 1], [1, 0]), ([0, math.nan], [0, 1])]
)
def test_points_that_are_not_a_calibration_are_refused(xs: list[float], ys: list[float]) -> None:
    with pytest.raises(DataError):
        Isotonic.from_dict({"x": xs, "y": ys})


@pytest.mark.parametrize(
    ("predictions", "labels", "weights", "message"),
    [
        ([0.1, math.nan], [0.0, 1.0], None, "prediction cannot be used"),
        ([0.1, 0.2], [0.0, math.inf], None, "label cannot be used"),
        ([0.1, 0.2], [0.0, 1.0], [1.0, -1.0], "weight cannot be used"),
        ([0.1, 0.2], [0.0], None, "differ in length"),
        ([0.1, 0.2], [0.0, 1.0], [0.0, 1.0], "number of bins out of range"),
    ],
)
def test_bad_samples_are_refused(
    predictions: list[float], labels: list[float], weights: list[float] | None, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        fit_isotonic(predictions, labels, weights, num_bins=2)


def test_exported_layer_equals_the_eager_one(tmp_path: Path) -> None:
    module = fit_isotonic(*_sample(4000), num_bins=1500)
    x = torch.cat([torch.rand(300), module.xs[::7], torch.tensor([-1.0, 2.0])])
    run = exported(module, (x[:9],), tmp_path)
    torch.testing.assert_close(run(x)[0], module(x), rtol=1e-6, atol=1e-7)
