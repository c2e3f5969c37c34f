"""Isotonic calibration of few rows: the number of bins chosen on held-out parts, and anchored ends."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss

from tml.common.errors import DataError
from tml.common.modules.calibrators import choose_num_bins, fit_isotonic


def _sample(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    truth = random.beta(1, 6, size=rows)
    labels = (random.uniform(size=rows) < truth).astype(np.float64)
    return truth**1.3, labels, random.uniform(0.5, 2.0, size=rows)


@pytest.mark.parametrize("anchored", [False, True])
def test_the_chosen_number_has_the_least_log_loss_on_held_out_folds(anchored: bool) -> None:
    predictions, labels, weights = _sample(1003)
    order = np.argsort(predictions)
    x, y, w = predictions[order], labels[order], weights[order]
    losses = {}
    for num_bins in (2, 6, 30, 400):
        found = np.empty(len(x))
        for fold in range(5):
            held = np.arange(len(x)) % 5 == fold
            layer = fit_isotonic(x[~held], y[~held], w[~held], num_bins, anchored=anchored)
            found[held] = np.interp(x[held], layer.xs.double().numpy(), layer.ys.double().numpy())
        losses[num_bins] = log_loss(y, found.clip(1e-6, 1 - 1e-6), sample_weight=w)
    assert choose_num_bins(predictions, labels, weights, list(losses), anchored) == min(losses, key=losses.get)
    assert min(losses, key=losses.get) not in (2, 400)


def test_the_order_of_samples_and_those_of_weight_zero_make_no_difference() -> None:
    predictions, labels, weights = _sample(700, seed=2)
    candidates = [2, 4, 8, 16, 32, 64]
    chosen = choose_num_bins(predictions, labels, weights, candidates)
    mixed = np.random.default_rng(3).permutation(700)
    assert choose_num_bins(predictions[mixed], labels[mixed], weights[mixed], candidates[::-1]) == chosen
    padded = [
        np.concatenate([column, extra]) for column, extra in ((predictions, [0.5]), (labels, [1]), (weights, [0]))
    ]
    assert choose_num_bins(*padded, candidates) == chosen


def test_candidates_beyond_the_samples_are_left_out_and_none_at_all_is_an_error() -> None:
    predictions, labels, _ = _sample(50)
    assert choose_num_bins(predictions, labels, None, [3, 41, 1000]) == 3
    with pytest.raises(DataError, match="too few samples"):
        choose_num_bins(predictions, labels, None, [41, 1000])


def test_anchored_ends_keep_the_highest_and_lowest_predictions_apart() -> None:
    predictions, labels, _ = _sample(4000)
    flat, anchored = (fit_isotonic(predictions, labels, num_bins=8, anchored=one) for one in (False, True))
    assert anchored.xs.tolist() == [0.0, *flat.xs.tolist(), 1.0]
    assert anchored.ys.tolist() == [0.0, *flat.ys.tolist(), 1.0]
    high = torch.linspace(float(flat.xs[-1]), 1.0, 20)
    assert (flat(high).diff() == 0).all()
    assert (anchored(high).diff() > 0).all()
    assert anchored(torch.tensor([0.0, 1.0])).tolist() == [0.0, 1.0]
