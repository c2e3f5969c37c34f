"""Values of the light ranker's metrics: hand-worked numbers, scikit-learn, torchrec and slow loops."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import brier_score_loss, log_loss, mean_absolute_error, mean_squared_error
from torchrec.metrics.ne import compute_cross_entropy, compute_ne

from tests.core.metric_rows import batches_of, random_rows, value
from tml.common.errors import ConfigError, DataError, NonFiniteError
from tml.core import metrics as m


def columns_of(rows, *names):
    return [np.asarray(rows[name], dtype=np.float64) for name in names or ("labels", "probabilities", "weights")]


def skewed_rows(num_rows=4000, seed=0, calibrated=1.0, level=0.2):
    """Clicks of a known chance, predictions off by a factor, uneven weights."""
    rng = np.random.default_rng(seed)
    chance = np.clip(level * rng.gamma(2.0, 0.5, num_rows), 0.001, 0.9)
    return {
        "probabilities": np.clip(chance * calibrated, 0, 1).astype(np.float32),
        "labels": (rng.random(num_rows) < chance).astype(np.int64),
        "weights": rng.integers(1, 5, num_rows).astype(np.float32),
    }


def rce_of(y, p, w, epsilon=1e-5):
    mean = np.average(y, weights=w)
    p = np.clip(p, epsilon, 1 - epsilon)
    return 100 * (1 - log_loss(y, p, sample_weight=w) / log_loss(y, np.full(len(y), mean), sample_weight=w))


# ---- relative cross-entropies


def test_rce_is_one_hundred_less_torchrecs_normalised_entropy():
    rows = skewed_rows()
    y, p, w = map(torch.from_numpy, columns_of(rows))
    ce = compute_cross_entropy(y, p, w, 1e-12).sum()
    entropy = compute_ne(ce, w.sum(), (w * y).sum(), (w * (1 - y)).sum(), 1e-12)
    assert value(m.Rce(epsilon=1e-12), **rows) == pytest.approx(100 * (1 - entropy.item()), rel=1e-9)


def test_rce_clips_at_the_epsilon_it_is_given_also_from_another_output():
    rows = {"before": [0.0, 0.0], "labels": [1, 0], "probabilities": [0.5, 0.5]}
    ce = (-math.log(1e-5) - math.log1p(-1e-5)) / 2
    expected = 100 * (1 - ce / math.log(2))
    assert value(m.Rce(epsilon=1e-5, prediction="before"), **rows) == pytest.approx(expected, rel=1e-12)


def test_arce_moves_the_odds_of_predictions_to_the_mean_label():
    # Labels average 1/2 and predictions 3/8: odds are multiplied by (1 / .75) / (1 / 1.25) = 5/3.
    got = value(m.Arce(), probabilities=[0.5, 0.25], labels=[1, 0])
    p1, p0 = (5 / 3) / (5 / 3 + 1), (5 / 9) / (5 / 9 + 1)
    assert got == pytest.approx(100 * (1 + (math.log(p1) + math.log(1 - p0)) / 2 / math.log(2)), rel=1e-12)


@pytest.mark.parametrize("up_weight", [True, False])
def test_arce_equals_the_rce_of_predictions_adjusted_over_the_whole_data_set(up_weight):
    rows = skewed_rows(calibrated=1.7)
    y, p, w = columns_of(rows)
    if up_weight:
        a, b, counted = (w @ y) / (w @ p), (w @ (1 - y)) / (w @ (1 - p)), w
    else:
        a, b, counted = y.sum() / (w @ y), (1 - y).sum() / (w @ (1 - y)), np.ones_like(w)
    expected = rce_of(y, p * a / (p * a + (1 - p) * b), counted)
    order = np.argsort(rows["labels"], kind="stable")
    by_label = {name: column[order] for name, column in rows.items()}
    for batches in (batches_of(rows, 10, 20), batches_of(by_label, 700)):
        assert value(m.Arce(up_weight=up_weight), *batches) == pytest.approx(expected, rel=1e-9)


def test_arce_original_undoes_the_weights_of_the_training_data():
    # Positives weighed three times as much in training, so honest predictions of 1/4 became 1/2.
    rows = {"probabilities": [0.5] * 4, "labels": [1, 0, 0, 0], "weights": [3.0, 1.0, 1.0, 1.0]}
    assert value(m.Arce(up_weight=False), **rows) == pytest.approx(0.0, abs=1e-9)
    assert value(m.Rce(weighted=False), **rows) < -10


@pytest.mark.parametrize("calibrated", [0.5, 1.0, 2.0])
def test_lolly_nrce_is_near_nrce_while_probabilities_are_small(calibrated):
    rows = skewed_rows(calibrated=calibrated, level=0.02)
    exact, series = m.Nrce(epsilon=1e-5), m.LollyNrce()
    assert value(series, *batches_of(rows, 30, 900)) == pytest.approx(value(exact, **rows), abs=1e-3)


def test_lolly_nrce_with_many_terms_becomes_nrce():
    rows = skewed_rows(calibrated=0.8, level=0.3)
    rows["probabilities"] = rows["probabilities"].clip(0, 0.6)
    exact = value(m.Nrce(epsilon=1e-5), **rows)
    errors = [abs(value(m.LollyNrce(num_terms=terms), **rows) - exact) for terms in (2, 5, 60)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-6


def test_lolly_nrce_of_hand_worked_rows_with_one_term():
    # Predictions .3 and .1, labels 1 and 0: a = 2.5; the one negative adds (2.5 - 1) * .1.
    normalised = -math.log(0.3) - math.log(0.9) - math.log(2.5) + 1.5 * 0.1
    got = value(m.LollyNrce(num_terms=1), probabilities=[0.3, 0.1], labels=[1, 0])
    assert got == pytest.approx(100 * (1 - normalised / 2 / math.log(2)), rel=1e-6)


def std_err_of(y, p, w):
    """The original's formula, with its centring term and a numeric gradient."""
    p = np.clip(p, 1e-5, 1 - 1e-5)
    f = np.stack((-w * (y * np.log(p) + (1 - y) * np.log1p(-p)), y * w, w), axis=1)
    total = f.sum(0)

    def rce(sums):
        c = sums[1] / sums[2]
        return 100 * (1 - sums[0] / sums[2] / -(c * np.log(c) + (1 - c) * np.log1p(-c)))

    steps = np.eye(3) * total * 1e-6
    g = np.array([(rce(total + step) - rce(total - step)) / (2 * step.sum()) for step in steps])
    return np.sqrt(g @ (f.T @ f - np.outer(total, total) / len(y)) @ g)


def test_rce_std_err_equals_the_originals_formula():
    rows = skewed_rows()
    expected = std_err_of(*columns_of(rows))
    assert value(m.RceStdErr(), *batches_of(rows, 100, 2000)) == pytest.approx(expected, rel=1e-6)


def test_rce_std_err_is_the_spread_of_the_rce_under_bootstrap():
    rows = skewed_rows(num_rows=3000)
    y, p, w = columns_of(rows)
    rng = np.random.default_rng(1)
    draws = [rng.integers(0, len(y), len(y)) for _ in range(300)]
    spread = np.std([rce_of(y[rows], p[rows], w[rows]) for rows in draws])
    assert value(m.RceStdErr(), **rows) == pytest.approx(spread, rel=0.15)


# ---- spread, errors, calibration


def test_standard_deviation_of_predictions_equals_numpys():
    rows = random_rows()
    _, p, w = columns_of(rows)
    expected = math.sqrt(np.cov(p, aweights=w, ddof=0))
    assert value(m.PredictionStdDev(), *batches_of(rows, 1, 50, 50, 299)) == pytest.approx(expected, rel=1e-9)


def test_standard_deviation_of_a_constant_is_zero():
    batches = [{"probabilities": [0.1] * 7, "weights": [1 / 3] * 7}] * 3
    assert value(m.PredictionStdDev(), *batches) == pytest.approx(0.0, abs=1e-12)


# Bug 8 of the original: its MSE against logged scores was that of the last batch.
def test_errors_are_those_of_all_batches():
    batches = [{"probabilities": [0.5, 0.5], "labels": [1.0, 0.0]}, {"probabilities": [1.0], "labels": [1.0]}]
    assert value(m.MeanSquaredError(), *batches) == pytest.approx(0.5 / 3, rel=1e-12)
    assert value(m.MeanAbsoluteError(), *batches) == pytest.approx(1 / 3, rel=1e-12)


def test_errors_equal_scikit_learns():
    rows = random_rows()
    y, p, w = columns_of(rows)
    batches = batches_of(rows, 20)
    assert value(m.MeanSquaredError(), *batches) == pytest.approx(brier_score_loss(y, p, sample_weight=w), rel=1e-9)
    assert value(m.MeanSquaredError(), *batches) == pytest.approx(mean_squared_error(y, p, sample_weight=w), rel=1e-9)
    assert value(m.MeanAbsoluteError(), *batches) == pytest.approx(mean_absolute_error(y, p, sample_weight=w), rel=1e-9)


def test_watch_time_error_in_seconds_undoes_the_logarithms_and_heeds_the_mask():
    rows = {
        "watch_time_prediction": np.log1p([10.0, 3.0, 8.0]),
        "watch_time_label": np.log1p([7.0, 5.0, 800.0]),
        "watched": [1, 1, 0],
        "weights": [1.0, 3.0, 5.0],
    }
    names = {"prediction": "watch_time_prediction", "target": "watch_time_label", "mask": "watched"}
    assert value(m.MeanAbsoluteError(**names, scale="from_log1p"), **rows) == pytest.approx((3 + 3 * 2) / 4)
    assert value(m.MeanSquaredError(**names, scale="from_log1p"), **rows) == pytest.approx((9 + 3 * 4) / 4)


def test_a_watch_time_beyond_all_numbers_is_an_error_not_a_nan():
    with pytest.raises(NonFiniteError, match=r"infinite(.|\n)*800.0"):
        value(m.MeanSquaredError("p", "t", scale="from_log1p"), p=[1.0, 800.0], t=[1.0, 2.0])


def test_calibration_error_of_hand_worked_bins():
    # Of four bins, (0, .25] holds .2 (label 0) and .25 (label 1), (.5, .75] holds .6 (label 1, weight 2).
    rows = {"probabilities": [0.2, 0.25, 0.6], "labels": [0, 1, 1], "weights": [1.0, 1.0, 2.0]}
    expected = (abs(0.45 - 1) + abs(1.2 - 2)) / 4
    assert value(m.ExpectedCalibrationError(num_bins=4), **rows) == pytest.approx(expected, rel=1e-6)


def test_calibration_error_equals_a_loop_over_bins():
    rows = skewed_rows(calibrated=1.5)
    y, p, w = columns_of(rows)
    expected = 0.0
    for lower in range(15):
        chosen = (p > lower / 15) & (p <= (lower + 1) / 15)
        expected += abs((w[chosen] * (p[chosen] - y[chosen])).sum()) / w.sum()
    assert value(m.ExpectedCalibrationError(), *batches_of(rows, 9)) == pytest.approx(expected, rel=1e-9)


def test_probabilities_of_zero_and_one_have_bins():
    assert value(m.ExpectedCalibrationError(), probabilities=[0.0, 1.0], labels=[0, 1]) == 0.0


def test_equal_mass_bins_see_what_equal_widths_average_away():
    # All predictions share the first of 15 bins, where the errors of the two halves cancel.
    rows = {"probabilities": [0.03] * 50 + [0.01] * 50, "labels": [0] * 50 + [1, 1] + [0] * 48}
    assert value(m.ExpectedCalibrationError(), **rows) == pytest.approx(0.0, abs=1e-6)
    assert value(m.EqualMassCalibrationError(), **rows) == pytest.approx(0.03, rel=1e-6)


def test_equal_mass_bins_hold_equal_weight():
    p, y = np.array([0.1, 0.2, 0.3, 0.4]), np.array([0, 1, 0, 1])
    got = value(m.EqualMassCalibrationError(num_bins=2), probabilities=p, labels=y, weights=[1.0, 1.0, 1.0, 3.0])
    # Bins by middle weight: .1 at 1/12, .2 at 3/12, .3 at 5/12, .4 at 9/12.
    assert got == pytest.approx((abs(0.6 - 1) + abs(1.2 - 3)) / 6, rel=1e-6)


# ---- weights and padding

WEIGHTED = {
    "ctr": m.Ctr,
    "rce": m.Rce,
    "rce_std_err": m.RceStdErr,
    "nrce": m.Nrce,
    "lolly_nrce": m.LollyNrce,
    "arce": m.Arce,
    "auc": m.Auc,
    "pr_auc": m.PrAuc,
    "roc_auc_200": m.RocAuc200,
    "pr_auc_200": m.PrAuc200,
    "accuracy": m.Accuracy,
    "std_dev": m.PredictionStdDev,
    "mse": m.MeanSquaredError,
    "ece": m.ExpectedCalibrationError,
    "ece_equal_mass": m.EqualMassCalibrationError,
    "total_weight": m.TotalWeight,
}


@pytest.mark.parametrize("name", WEIGHTED)
def test_unweighted_is_with_all_weights_one(name):
    rows = skewed_rows(num_rows=300)
    ones = {**rows, "weights": np.ones(300, np.float32)}
    unweighted = value(WEIGHTED[name](weighted=False), **rows)
    assert unweighted == pytest.approx(value(WEIGHTED[name](), **ones), rel=1e-9)
    assert unweighted != pytest.approx(value(WEIGHTED[name](), **rows), rel=1e-9)


@pytest.mark.parametrize("name", WEIGHTED)
@pytest.mark.parametrize("weighted", [True, False])
def test_padding_is_seen_by_no_metric(name, weighted):
    rows = skewed_rows(num_rows=300)
    padded = {key: np.concatenate((column, column[:50])) for key, column in rows.items()}
    padded["unweighted"] = np.repeat([1.0, 0.0], [300, 50])
    expected = value(WEIGHTED[name](weighted=weighted), **rows)
    assert value(WEIGHTED[name](weighted=weighted), **padded) == expected
    assert value(m.NumSamples(), **padded) == 300


def test_padding_of_another_length_is_refused():
    with pytest.raises(DataError, match=r"different numbers of rows(.|\n)*'unweighted'"):
        value(m.Ctr(), labels=[1, 0], unweighted=[1.0])


# ---- undefined and broken data


@pytest.mark.parametrize(
    "metric", [m.RceStdErr(), m.LollyNrce(), m.Arce(), m.Arce(up_weight=False), m.RocAuc200(), m.PrAuc200()], ids=repr
)
@pytest.mark.parametrize("labels", [[], [0, 0], [1, 1]])
@pytest.mark.usefixtures("nothing_said")
def test_metric_that_needs_both_classes_is_nan_with_a_warning(metric, labels, caplog):
    metric.reset()
    metric.update({"probabilities": torch.full((len(labels),), 0.5), "labels": torch.tensor(labels)})
    assert math.isnan(metric.compute())
    assert f"{type(metric).__name__} has no value" in caplog.text


@pytest.mark.parametrize(
    "metric",
    [
        m.PrAuc(),
        m.PredictionStdDev(),
        m.MeanSquaredError(),
        m.Accuracy(),
        m.ExpectedCalibrationError(),
        m.EqualMassCalibrationError(),
        m.Ndcg(3),
    ],
    ids=lambda metric: type(metric).__name__,
)
@pytest.mark.usefixtures("nothing_said")
def test_metric_of_no_rows_is_nan_with_a_warning(metric, caplog):
    metric.update({name: torch.empty(0) for name in ("probabilities", "labels")} | {"groups": torch.empty(0).long()})
    assert math.isnan(metric.compute())
    assert f"{type(metric).__name__} has no value" in caplog.text


def test_normalised_metrics_of_predictions_that_are_all_zero_are_nan():
    for metric in (m.LollyNrce(), m.Arce(), m.Nrce()):
        assert math.isnan(value(metric, probabilities=[0.0, 0.0], labels=[1, 0]))


@pytest.mark.parametrize(
    "metric", [m.RceStdErr(), m.LollyNrce(), m.Arce(), m.RocAuc200(), m.ExpectedCalibrationError()], ids=repr
)
def test_logits_handed_over_as_probabilities_are_refused(metric):
    with pytest.raises(DataError, match=r"out of range(.|\n)*1.5"):
        value(metric, probabilities=[0.5, 1.5], labels=[0, 1])


@pytest.mark.parametrize("build", [lambda: m.LollyNrce(num_terms=0), lambda: m.ExpectedCalibrationError(num_bins=0)])
def test_settings_without_sense_are_refused(build):
    with pytest.raises(ConfigError, match="at least 1"):
        build()
