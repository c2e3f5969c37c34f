import math

import pytest
import torch

from tests.core.metric_rows import value
from tml.common.errors import ConfigError
from tml.core import metrics as m
from tml.core.metrics import DEFAULT_METRICS, Stratifier, build_metrics, scalars
from tml.core.metrics.catalogue import higher_is_better


def outputs(num_rows=64):
    generator = torch.Generator().manual_seed(3)
    draw = lambda: torch.rand(num_rows, generator=generator)  # noqa: E731
    return {
        "probabilities": draw(),
        "uncalibrated_probabilities": draw(),
        "lolly_probabilities": draw(),
        "labels": (draw() < 0.3).long(),
        "weights": draw() + 0.5,
        "groups": torch.randint(0, 9, (num_rows,), generator=generator),
        "watch_time_prediction": draw() * 3,
        "watch_time_label": draw() * 3,
    }


def test_default_list_is_the_originals():
    got = scalars(build_metrics()(outputs()))
    assert set(got) == set(DEFAULT_METRICS)
    assert all(math.isfinite(number) for number in got.values())


def test_names_give_the_metrics_they_name_with_the_originals_clamp():
    rows = outputs()
    rows["probabilities"][0] = 0.0
    rows["labels"][0] = 1
    got = scalars(
        build_metrics(["rce", "roc_auc", "pr_auc", "ndcg@3", "predicted_ctr", "watch_time_mae_seconds"])(rows)
    )
    assert got["rce"] == pytest.approx(value(m.Rce(epsilon=1e-5), **rows))
    assert got["roc_auc"] == value(m.Auc(), **rows)
    assert got["pr_auc"] == value(m.PrAuc(), **rows)
    assert got["ndcg@3"] == value(m.Ndcg(3), **rows)
    assert got["predicted_ctr"] == value(m.Pctr(), **rows)
    seconds = (rows["watch_time_prediction"].double().expm1() - rows["watch_time_label"].double().expm1()).abs()
    expected = (seconds @ rows["weights"].double()) / rows["weights"].double().sum()
    assert got["watch_time_mae_seconds"] == pytest.approx(expected.item())


def test_prefixes_choose_weights_and_predictions_in_any_order():
    rows = outputs()
    names = ["rce", "unweighted_rce", "uncalibrated_rce", "unweighted_uncalibrated_rce", "uncalibrated_unweighted_rce"]
    got = scalars(build_metrics(names)(rows))
    before = "uncalibrated_probabilities"
    assert got["unweighted_rce"] == pytest.approx(value(m.Rce(epsilon=1e-5, weighted=False), **rows))
    assert got["uncalibrated_rce"] == pytest.approx(value(m.Rce(epsilon=1e-5, prediction=before), **rows))
    both = value(m.Rce(epsilon=1e-5, prediction=before, weighted=False), **rows)
    assert got["unweighted_uncalibrated_rce"] == got["uncalibrated_unweighted_rce"] == pytest.approx(both)
    assert len(set(got.values())) == 4


def test_epsilon_threshold_and_stratum_reach_the_metrics():
    rows = {**outputs(), "stratifiers": {"half": torch.arange(64) // 32}}
    got = scalars(build_metrics(["recall", "rce"], epsilon=0.2, threshold=0.25, stratifier=Stratifier("half", 1))(rows))
    half = {name: column[32:] for name, column in outputs().items()}
    assert got["recall"] == pytest.approx(value(m.Recall(0.25), **half))
    assert got["rce"] == pytest.approx(value(m.Rce(epsilon=0.2), **half))


# Bug 8 of the original: the logged-score MSE was that of the last batch.
def test_lolly_tf_score_mse_is_over_all_batches_and_unweighted():
    rows = outputs()
    metrics = build_metrics(["lolly_tf_score_mse"])
    metrics.update({name: column[:60] for name, column in rows.items()})
    metrics.update({name: column[60:] for name, column in rows.items()})
    expected = (rows["probabilities"].double() - rows["lolly_probabilities"].double()).square().mean()
    assert scalars(metrics.compute())["lolly_tf_score_mse"] == pytest.approx(expected.item())


def test_vectors_become_scalars_named_by_their_threshold():
    rows = outputs()
    got = scalars(build_metrics(["fn_at_percentiles", "fn"])(rows))
    assert len(got) == 102
    assert got["fn_at_percentiles/050"] == pytest.approx(got["fn"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("roc_acu", r"unknown metric; did you mean 'roc_auc'\?"),
        ("unweighted_prauc", r"unknown metric; did you mean 'pr_auc'\?(.|\n)*'unweighted_prauc'"),
        ("ndcg", r"did you mean 'ndcg@10'"),
        ("ndcg@0", "unknown metric"),
        ("ndcg@ten", "unknown metric"),
        ("unweighted_unweighted_rce", "unknown metric"),
        ("uncalibrated_ctr", r"uncalibrated_ would change nothing(.|\n)*name it ctr"),
        ("unweighted_num_samples", r"unweighted_ would change nothing(.|\n)*name it num_samples"),
        ("uncalibrated_watch_time_mae", "would change nothing"),
    ],
)
def test_unknown_names_and_useless_prefixes_are_refused(name, message):
    with pytest.raises(ConfigError, match=message):
        build_metrics([name])


def test_repeated_names_are_refused():
    with pytest.raises(ConfigError, match=r"named twice(.|\n)*'rce'"):
        build_metrics(["rce", "ctr", "rce"])


def test_direction_of_a_metric_is_known_by_name():
    assert higher_is_better("unweighted_roc_auc") is True
    assert higher_is_better("precision") is True
    assert higher_is_better("ndcg@5") is True
    assert higher_is_better("uncalibrated_ece") is False
    assert higher_is_better("watch_time_mae_seconds") is False
    assert higher_is_better("num_samples") is None
