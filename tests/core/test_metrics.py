"""Values of the metrics: hand-worked numbers, scikit-learn and brute force."""

import math

import numpy as np
import pytest
from sklearn.metrics import log_loss, precision_score, recall_score, roc_auc_score

from tests.core.metric_rows import batches_of, random_rows, value
from tml.common.errors import ConfigError, DataError
from tml.core import metrics as m
from tml.core.metrics import Stratifier

# ---- AUC

AUCS = [m.Auc, m.AurocWithMwu]


@pytest.mark.parametrize("metric", AUCS)
def test_auc_counts_ordered_pairs(metric):
    # Of the 6 pairs, positives .9 and .4 beat negatives .5, .3, .4 in 3 + 1 cases and tie once.
    got = value(metric(), probabilities=[0.9, 0.5, 0.4, 0.3, 0.4], labels=[1, 0, 1, 0, 0])
    assert got == pytest.approx((3 + 1 + 0.5) / 6, abs=1e-12)


@pytest.mark.parametrize("metric", AUCS)
def test_auc_weighs_pairs_by_both_weights(metric):
    # Won pairs weigh 2 * 3, tied pairs 2 * 1 by one half, lost pairs 5 * 3 and 5 * 1.
    outputs = {"probabilities": [0.7, 0.1, 0.2, 0.7], "labels": [1, 1, 0, 0], "weights": [2.0, 5.0, 3.0, 1.0]}
    assert value(metric(), **outputs) == pytest.approx((6 + 1) / (7 * 4), abs=1e-12)


@pytest.mark.parametrize("metric", AUCS)
@pytest.mark.parametrize("seed", range(3))
def test_auc_equals_scikit_learn_with_ties_and_weights(metric, seed):
    rows = random_rows(seed=seed)
    expected = roc_auc_score(rows["labels"], rows["probabilities"], sample_weight=rows["weights"])
    assert value(metric(), *batches_of(rows, 7, 7, 200)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("metric", AUCS)
def test_auc_equals_all_pairs_by_brute_force(metric):
    rows = random_rows(num_rows=40, num_levels=6)
    p, y, w = (rows[name].astype(np.float64) for name in ("probabilities", "labels", "weights"))
    won, weight = 0.0, 0.0
    for i in np.flatnonzero(y == 1):
        for j in np.flatnonzero(y == 0):
            won += w[i] * w[j] * (1.0 if p[i] > p[j] else 0.5 if p[i] == p[j] else 0.0)
            weight += w[i] * w[j]
    assert value(metric(), **rows) == pytest.approx(won / weight, abs=1e-12)


@pytest.mark.parametrize("metric", AUCS)
@pytest.mark.parametrize(
    ("probabilities", "expected"), [([0.8, 0.9, 0.1], 1.0), ([0.1, 0.2, 0.3], 0.0), ([0.5] * 3, 0.5)]
)
def test_auc_of_perfect_reversed_and_constant_scores(metric, probabilities, expected):
    assert value(metric(), probabilities=probabilities, labels=[1, 1, 0]) == expected


def test_auc_takes_logits():
    assert value(m.Auc(prediction="logits"), logits=[3.0, -2.0, -7.0], labels=[1, 0, 1]) == 0.5


# B27: the label threshold decides which rows are positive everywhere, also in the numerator.
def test_mwu_counts_labels_above_the_threshold_as_positive():
    outputs = {"probabilities": [0.9, 0.6, 0.5, 0.1], "labels": [4.0, 1.0, 2.5, 2.0]}
    # Positives are .9 and .5 (labels 4 and 2.5): of the 4 pairs with .6 and .1 they win 3.
    assert value(m.AurocWithMwu(label_threshold=2.0), **outputs) == 0.75


def test_auc_refuses_labels_that_are_not_binary():
    with pytest.raises(DataError, match=r"neither 0 nor 1(.|\n)*0.25(.|\n)*AurocWithMwu"):
        value(m.Auc(), probabilities=[0.1, 0.2], labels=[0.0, 0.25])


# ---- relative cross-entropy


def test_rce_of_hand_worked_rows():
    # CE = (log 4/3 + log 4/3 + log 2 + log 4) / 4; the mean label is one half, so CE0 = log 2.
    outputs = {"probabilities": [0.75, 0.25, 0.5, 0.75], "labels": [1, 0, 1, 0]}
    ce = (2 * math.log(4 / 3) + math.log(2) + math.log(4)) / 4
    assert value(m.Rce(), **outputs) == pytest.approx(100 * (1 - ce / math.log(2)), abs=1e-9)


def test_rce_of_the_mean_label_is_zero_and_of_the_labels_is_a_hundred():
    labels = [1, 0, 0, 0]
    assert value(m.Rce(), probabilities=[0.25] * 4, labels=labels) == pytest.approx(0, abs=1e-9)
    assert value(m.Rce(), probabilities=[1.0, 0.0, 0.0, 0.0], labels=labels) == pytest.approx(100, abs=1e-4)


def test_rce_equals_scikit_learn_log_loss_ratio():
    rows = random_rows()
    y, p, w = rows["labels"], rows["probabilities"].astype(np.float64), rows["weights"]
    mean = np.average(y, weights=w)
    expected = 100 * (1 - log_loss(y, p, sample_weight=w) / log_loss(y, np.full(len(y), mean), sample_weight=w))
    assert value(m.Rce(), *batches_of(rows, 50, 250)) == pytest.approx(expected, abs=1e-9)


def test_rce_clips_wrong_certainties_at_epsilon():
    outputs = {"probabilities": [0.0, 0.0], "labels": [1, 0]}
    expected = 100 * (1 - (-math.log(0.01) - math.log(0.99)) / 2 / math.log(2))
    assert value(m.Rce(epsilon=0.01), **outputs) == pytest.approx(expected, abs=1e-9)


def test_rce_from_logits_equals_rce_of_their_probabilities_and_does_not_clip():
    logits, labels = [math.log(3), -math.log(3), 0.0, math.log(3)], [1, 0, 1, 0]
    of_probabilities = value(m.Rce(), probabilities=[0.75, 0.25, 0.5, 0.75], labels=labels)
    assert value(m.Rce(from_logits=True), logits=logits, labels=labels) == pytest.approx(of_probabilities, abs=1e-5)
    # A logit of -100 for a positive costs 100, where clipping at 1e-7 would charge 16.
    got = value(m.Rce(from_logits=True), logits=[-100.0, -100.0], labels=[1, 0])
    assert got == pytest.approx(100 * (1 - 50 / math.log(2)), rel=1e-9)


def test_label_smoothing_moves_labels_towards_one_half():
    # Labels 1 and 0 become .9 and .1; predictions of .75 and .25 then cost .9 log 4/3 + .1 log 4 each.
    ce = 0.9 * math.log(4 / 3) + 0.1 * math.log(4)
    got = value(m.Rce(label_smoothing=0.2), probabilities=[0.75, 0.25], labels=[1, 0])
    assert got == pytest.approx(100 * (1 - ce / math.log(2)), abs=1e-9)


@pytest.mark.parametrize("metric", [m.Rce, m.Nrce])
def test_logits_handed_over_as_probabilities_are_refused(metric):
    with pytest.raises(DataError, match=r"out of range(.|\n)*1.5(.|\n)*from_logits"):
        value(metric(), probabilities=[0.5, 1.5], labels=[0, 1])


def test_nrce_scales_predictions_to_the_mean_label():
    # Predictions average .2 and labels .5: scaled by 2.5 they are .75 and .25.
    got = value(m.Nrce(), probabilities=[0.3, 0.1], labels=[1, 0])
    assert got == pytest.approx(100 * (1 - math.log(4 / 3) / math.log(2)), abs=1e-4)


def test_nrce_of_logits_and_smoothed_labels():
    # Predictions .5 and .25 average .375; labels .9 and .1 average .5; scaled by 4/3 the predictions are 2/3 and 1/3.
    ce = 0.9 * math.log(3 / 2) + 0.1 * math.log(3)
    got = value(m.Nrce(from_logits=True, label_smoothing=0.2), logits=[0.0, -math.log(3)], labels=[1, 0])
    assert got == pytest.approx(100 * (1 - ce / math.log(2)), abs=1e-4)


# B27: the normaliser is that of the whole data set, so the order of batches does not matter.
def test_nrce_does_not_depend_on_the_order_or_size_of_batches():
    rows = random_rows()
    order = np.argsort(rows["labels"], kind="stable")
    by_label = {name: column[order] for name, column in rows.items()}
    y, p, w = (rows[name].astype(np.float64) for name in ("labels", "probabilities", "weights"))
    scaled = np.clip(p * (w @ y) / (w @ p), 1e-7, 1 - 1e-7)
    baseline = log_loss(y, np.full(len(y), np.average(y, weights=w)), sample_weight=w)
    expected = 100 * (1 - log_loss(y, scaled, sample_weight=w) / baseline)
    for batches in (batches_of(rows), batches_of(rows, 10, 20), batches_of(by_label, 100), batches_of(by_label, 250)):
        assert value(m.Nrce(), *batches) == pytest.approx(expected, abs=1e-6)


# ---- rates, counts, thresholds

ROWS = {"probabilities": [0.9, 0.5, 0.4, 0.2], "labels": [1, 0, 1, 1], "weights": [1.0, 2.0, 3.0, 4.0]}


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        (m.Ctr(), 8 / 10),
        (m.Pctr(), (0.9 + 1.0 + 1.2 + 0.8) / 10),
        (m.Count(), 3),
        (m.NumSamples(), 4),
        (m.TotalWeight(), 10),
        (m.Precision(), 1 / 3),
        (m.Precision(threshold=0.3), 4 / 6),
        (m.Recall(), 1 / 8),
        (m.Recall(threshold=0.3), 4 / 8),
    ],
    ids=lambda item: type(item).__name__,
)
def test_rates_counts_and_thresholds_of_hand_worked_rows(metric, expected):
    assert value(metric, *batches_of(ROWS, 1, 3)) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize(("metric", "reference"), [(m.Precision, precision_score), (m.Recall, recall_score)])
def test_precision_and_recall_equal_scikit_learn(metric, reference):
    rows = random_rows()
    expected = reference(rows["labels"], rows["probabilities"] >= 0.5, sample_weight=rows["weights"])
    assert value(metric(), *batches_of(rows, 10)) == pytest.approx(expected, abs=1e-12)


def test_mean_of_large_numbers_keeps_their_small_differences():
    batches = [{"x": np.array([1e9 + i, 1e9 + i + 1])} for i in range(0, 1000, 2)]
    assert value(m.StableMean("x"), *batches) == 1e9 + 499.5


# B28
def test_mean_passes_over_batches_without_weight():
    batches = [{"x": [5.0], "weights": [0.0]}, {"x": [1.0, 4.0], "weights": [2.0, 1.0]}, {"x": [9.0], "weights": [0.0]}]
    assert value(m.StableMean("x"), *batches) == 2.0


# ---- rankings (B26: they take the rank of each edge among its own candidates)

RANKS = [1.0, 2.0, 1.5, 10.0]


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        (m.MeanRank(), 14.5 / 4),
        (m.MeanReciprocalRank(), (1 + 1 / 2 + 2 / 3 + 1 / 10) / 4),
        (m.HitsAtK(1), 1 / 4),
        (m.HitsAtK(2), 3 / 4),
        (m.HitsAtK(10), 1),
    ],
)
def test_rank_metrics_of_hand_worked_ranks(metric, expected):
    assert value(metric, {"ranks": RANKS[:1]}, {"ranks": RANKS[1:]}) == pytest.approx(expected, abs=1e-12)


def test_rank_metrics_weigh_queries():
    assert value(m.HitsAtK(3), ranks=[1, 4, 9], weights=[1.0, 2.0, 1.0]) == 0.25


def test_rank_metrics_by_relation():
    outputs = {"ranks": [1, 2, 4], "stratifiers": {"relation": [0, 1, 1]}}
    metric = m.MeanReciprocalRank(stratifier=Stratifier("relation", 1))
    assert value(metric, **outputs) == pytest.approx((1 / 2 + 1 / 4) / 2, abs=1e-12)


def test_recall_at_k_is_the_mean_over_queries_that_have_an_answer():
    got = value(m.RecallAtK(2), hits_at_2=[1, 2, 0, 0], num_relevant=[1, 8, 0, 5])
    assert got == pytest.approx((1 + 2 / 8 + 0) / 3, abs=1e-12)


@pytest.mark.parametrize(("hits", "num_relevant"), [(3, 9), (2, 1), (-1, 2)])
def test_impossible_numbers_of_hits_are_refused(hits, num_relevant):
    with pytest.raises(DataError, match="impossible"):
        value(m.RecallAtK(2), hits_at_2=[0, hits], num_relevant=[3, num_relevant])


def test_ranks_below_one_are_refused():
    with pytest.raises(DataError, match=r"below 1(.|\n)*MeanReciprocalRank(.|\n)*value: 0.0"):
        value(m.MeanReciprocalRank(), ranks=[1, 0])


@pytest.mark.parametrize("metric", [m.HitsAtK, m.RecallAtK])
def test_k_below_one_is_refused(metric):
    with pytest.raises(ConfigError, match="k is too small"):
        metric(0)


# ---- tasks and strata

TWO_TASKS = {"probabilities": [[0.9, 0.1], [0.8, 0.2], [0.1, 0.3]], "labels": [[1, 1], [0, 0], [0, 1]]}


def test_a_metric_looks_at_its_own_task():
    assert value(m.Auc(task_idx=0), **TWO_TASKS) == 1.0
    assert value(m.Auc(task_idx=1), **TWO_TASKS) == 0.5


def test_weights_are_shared_by_tasks_or_their_own():
    assert value(m.Ctr(task_idx=1), **TWO_TASKS, weights=[1.0, 2.0, 1.0]) == 0.5
    assert value(m.Ctr(task_idx=1), **TWO_TASKS, weights=[[9.0, 3.0], [9.0, 1.0], [9.0, 0.0]]) == 0.75


def test_a_single_column_needs_no_task():
    assert value(m.Ctr(), labels=[[1], [0]], weights=[[3.0], [1.0]]) == 0.75


@pytest.mark.parametrize(
    ("task_idx", "labels"), [(None, [[1, 0]]), (2, [[1, 0]]), (-1, [[1, 0]]), (0, [1, 0])], ids=str
)
def test_columns_that_do_not_fit_the_task_are_refused(task_idx, labels):
    with pytest.raises(DataError, match="no column for this metric's task"):
        value(m.Ctr(task_idx=task_idx), labels=labels)


def test_a_stratum_is_chosen_by_name_and_value():
    outputs = {
        "probabilities": [0.9, 0.1, 0.8, 0.2],
        "labels": [1, 1, 0, 0],
        "weights": [1.0, 1.0, 2.0, 3.0],
        "stratifiers": {"country": [4, 7, 7, 7], "age": [7, 4, 4, 4]},
    }
    assert value(m.NumSamples(stratifier=Stratifier("country", 7)), **outputs) == 3
    assert value(m.Pctr(stratifier=Stratifier("country", 7)), **outputs) == pytest.approx(2.3 / 6, abs=1e-7)
    assert value(m.Auc(stratifier=Stratifier("country", 7)), **outputs) == 0.0
    assert value(m.Count(stratifier=Stratifier("age", 4)), **outputs) == 1


def test_unknown_stratifier_and_missing_output_are_named():
    with pytest.raises(ConfigError, match=r"needs 'city'(.|\n)*\['country'\]"):
        value(m.Ctr(stratifier=Stratifier("city", 1)), labels=[1], stratifiers={"country": [1]})
    with pytest.raises(ConfigError, match=r"needs 'probabilities'(.|\n)*Pctr(.|\n)*\['labels'\]"):
        value(m.Pctr(), labels=[1])


@pytest.mark.parametrize(
    "outputs",
    [
        {"probabilities": [0.5, 0.5], "labels": [1]},
        {"probabilities": [0.5], "labels": [1], "weights": [1.0, 1.0]},
        {"probabilities": [0.5, 0.5], "labels": [1, 0], "stratifiers": {"country": [1]}},
    ],
)
def test_outputs_of_different_lengths_are_refused(outputs):
    with pytest.raises(DataError, match="different numbers of rows"):
        value(m.Auc(stratifier=Stratifier("country", 1) if "stratifiers" in outputs else None), **outputs)
