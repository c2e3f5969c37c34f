"""Areas and statistics at thresholds: scikit-learn, and the original's formulas one threshold at a time."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, confusion_matrix, roc_auc_score

from tests.core.metric_rows import batches_of, random_rows, value
from tests.core.test_metrics_ranker import columns_of, skewed_rows
from tml.common.errors import ConfigError, DataError
from tml.core import metrics as m


@pytest.mark.parametrize("seed", range(3))
def test_pr_auc_equals_scikit_learns_average_precision_with_ties_and_weights(seed):
    rows = random_rows(seed=seed)
    expected = average_precision_score(rows["labels"], rows["probabilities"], sample_weight=rows["weights"])
    assert value(m.PrAuc(), *batches_of(rows, 7, 7, 200)) == pytest.approx(expected, abs=1e-12)


def test_pr_auc_of_hand_worked_rows():
    # Precisions at the positives, from the top: 1, then 2/3.
    assert value(m.PrAuc(), probabilities=[0.9, 0.5, 0.4], labels=[1, 0, 1]) == pytest.approx((1 + 2 / 3) / 2)


def areas_of_200_thresholds(y, p, w):
    """Both areas by the formulas of tf.metrics.auc with careful interpolation, one threshold at a time."""
    t = np.array([-1e-7, *(i / 199 for i in range(1, 199)), 1 + 1e-7], dtype=np.float32)
    tp = [w[(p > t_i) & (y == 1)].sum() for t_i in t]
    fp = [w[(p > t_i) & (y == 0)].sum() for t_i in t]
    positive, negative, eps = w[y == 1].sum(), w[y == 0].sum(), 1e-6
    x = [fp_i / (negative + eps) for fp_i in fp]
    h = [(tp_i + eps) / (positive + eps) for tp_i in tp]
    roc = sum((x[i] - x[i + 1]) * (h[i] + h[i + 1]) / 2 for i in range(199))
    pr = 0.0
    for i in range(199):
        here, above = tp[i] + fp[i], tp[i + 1] + fp[i + 1]
        slope = (tp[i] - tp[i + 1]) / (here - above) if here > above else 0.0
        ratio = here / above if here > 0 and above > 0 else 1.0
        pr += slope * (tp[i] - tp[i + 1] + (tp[i + 1] - slope * above) * math.log(ratio)) / positive
    return roc, pr


@pytest.mark.parametrize("seed", range(2))
def test_areas_of_200_thresholds_equal_the_originals_formulas(seed):
    rows = skewed_rows(num_rows=500, seed=seed, calibrated=1.3)
    roc, pr = areas_of_200_thresholds(rows["labels"], rows["probabilities"], rows["weights"].astype(np.float64))
    batches = batches_of(rows, 3, 100)
    assert value(m.RocAuc200(), *batches) == pytest.approx(roc, rel=1e-12)
    assert value(m.PrAuc200(), *batches) == pytest.approx(pr, rel=1e-12)


def test_areas_of_200_thresholds_are_near_the_exact_ones_where_probabilities_spread():
    rows = skewed_rows(level=0.4)
    y, p, w = columns_of(rows)
    assert value(m.RocAuc200(), **rows) == pytest.approx(roc_auc_score(y, p, sample_weight=w), abs=1e-3)
    assert value(m.PrAuc200(), **rows) == pytest.approx(average_precision_score(y, p, sample_weight=w), abs=5e-3)


def test_a_prediction_on_a_threshold_lies_below_it():
    on = np.float32(7 / 199)
    rows = {"probabilities": np.array([on, np.nextafter(on, np.float32(1))]), "labels": [0, 1]}
    assert value(m.RocAuc200(), **rows) == pytest.approx(1.0, abs=1e-5)
    rows["probabilities"] = np.array([np.nextafter(on, np.float32(0)), on])
    assert value(m.RocAuc200(), **rows) == pytest.approx(0.5, abs=1e-5)


def test_areas_of_rare_events_come_out_lower_over_200_thresholds():
    rows = skewed_rows(level=0.004, num_rows=20000)
    y, p, w = columns_of(rows)
    assert value(m.RocAuc200(), **rows) < roc_auc_score(y, p, sample_weight=w) - 0.02


@pytest.mark.parametrize("metric", [m.PrAuc(), m.PrAuc200()])
def test_areas_refuse_labels_that_are_not_binary(metric):
    with pytest.raises(DataError, match="neither 0 nor 1"):
        value(metric, probabilities=[0.1, 0.2], labels=[0.0, 0.25])


# ---- thresholds


@pytest.mark.parametrize("threshold", [0.5, 0.125])
def test_counts_and_shares_at_a_threshold_equal_scikit_learns_confusion_matrix(threshold):
    rows = random_rows()
    y, p, w = columns_of(rows)
    tn, fp, fn, tp = confusion_matrix(y, p >= threshold, sample_weight=w).ravel()
    expected = {"tp": tp, "fp": fp, "tn": tn, "fn": fn, "accuracy": (tp + tn) / w.sum()}
    for statistic, number in expected.items():
        got = value(m.AtThreshold(statistic, threshold), *batches_of(rows, 10))
        assert got == pytest.approx(number, abs=1e-9), statistic
    assert value(m.Accuracy(threshold), **rows) == pytest.approx(expected["accuracy"], abs=1e-12)


def test_statistics_at_percentiles_are_those_of_each_threshold():
    rows = random_rows()
    for statistic in ("tp", "fn", "recall", "accuracy"):
        metric = m.AtThresholds(statistic)
        metric.update({name: torch.as_tensor(column) for name, column in rows.items()})
        got = metric.compute()
        assert got.shape == (101,)
        for place in (0, 17, 50, 99, 100):
            expected = value(m.AtThreshold(statistic, place / 100), **rows)
            assert got[place].item() == pytest.approx(expected, abs=1e-12), (statistic, place)


def test_precision_is_nan_only_where_nothing_is_predicted_positive():
    metric = m.AtThresholds("precision", thresholds=(0.1, 0.5, 0.9))
    metric.update({"probabilities": torch.tensor([0.2, 0.5]), "labels": torch.tensor([0, 1])})
    got = metric.compute()
    assert got[:2].tolist() == [0.5, 1.0]
    assert math.isnan(got[2])


def test_a_float32_prediction_reaches_the_threshold_it_was_rounded_from():
    assert value(m.AtThreshold("tp", 0.1), probabilities=torch.tensor([0.1]), labels=[1]) == 1.0
    assert value(m.AtThreshold("tp", 0.7), probabilities=torch.tensor([0.7]), labels=[1]) == 1.0


@pytest.mark.parametrize("thresholds", [(), (0.5, 0.5), (0.7, 0.2)])
def test_thresholds_that_do_not_rise_are_refused(thresholds):
    with pytest.raises(ConfigError, match="do not rise"):
        m.AtThresholds("tp", thresholds)
