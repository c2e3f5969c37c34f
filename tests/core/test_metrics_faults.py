"""Metrics of no data, of broken data, and of several metrics at once."""

import math

import pytest
import torch

from tests.core.metric_rows import value
from tml.common.errors import DataError, NonFiniteError
from tml.core import metrics as m
from tml.core.metrics import Stratifier, metric_collection

pytestmark = pytest.mark.usefixtures("nothing_said")

EMPTY = {
    name: torch.empty(0) for name in ("probabilities", "logits", "labels", "ranks", "hits_at_3", "num_relevant", "x")
}


MEANS = [m.StableMean("x"), m.Ctr(), m.Pctr(), m.MeanRank(), m.MeanReciprocalRank(), m.HitsAtK(3), m.RecallAtK(3)]


OTHERS = [m.Auc(), m.AurocWithMwu(), m.Rce(), m.Rce(from_logits=True), m.Nrce(), m.Precision(), m.Recall()]


@pytest.mark.parametrize("metric", [*MEANS, *OTHERS], ids=lambda metric: type(metric).__name__)
@pytest.mark.filterwarnings("error")
def test_metric_of_no_rows_is_nan_and_the_log_names_it_once(metric, caplog):
    for _ in range(2):
        metric.update(EMPTY)
        assert math.isnan(metric.compute())
        metric.reset()
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.message.startswith(f"{type(metric).__name__} has no value for the rows evaluated, NaN is reported: ")


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_metric_that_was_never_updated_is_nan_with_a_warning(caplog):
    assert math.isnan(m.Auc(task_idx=1, stratifier=Stratifier("country", 3)).compute())
    assert "Auc of task 1 where country is 3 has no value" in caplog.text


@pytest.mark.parametrize("metric", [m.Count(), m.NumSamples(), m.TotalWeight()])
def test_counts_of_no_rows_are_zero(metric):
    assert value(metric, EMPTY) == 0


@pytest.mark.parametrize(
    ("metric", "labels"),
    [
        (m.Auc(), [1, 1]),
        (m.Auc(), [0, 0]),
        (m.AurocWithMwu(), [1, 1]),
        (m.Rce(), [1, 1]),
        (m.Nrce(), [0, 0]),
        (m.Recall(), [0, 0]),
    ],
)
def test_metric_that_needs_both_classes_is_nan_with_a_warning(metric, labels, caplog):
    assert math.isnan(value(metric, probabilities=[0.25, 0.5], labels=labels))
    assert "has no value" in caplog.text


@pytest.mark.parametrize("metric", [m.Auc(), m.Rce(), m.Nrce(), m.Ctr()])
def test_rows_without_weight_are_as_if_absent(metric):
    rows = {"probabilities": [0.9, 0.2, 0.6], "labels": [1, 0, 0], "weights": [1.0, 2.0, 3.0]}
    with_ghosts = {"probabilities": [0.9, 0.1, 0.2, 0.6], "labels": [1, 1, 0, 0], "weights": [1.0, 0.0, 2.0, 3.0]}
    expected = value(metric, **rows)
    metric.reset()
    assert value(metric, **with_ghosts) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("metric", [m.Auc(), m.AurocWithMwu(), m.Rce(), m.Nrce(), m.Pctr(), m.Precision(), m.Recall()])
def test_nan_and_infinite_predictions_fail_with_their_row(metric, bad):
    with pytest.raises(NonFiniteError, match=rf"{type(metric).__name__}, output 'probabilities', row 1(.|\n)*{bad}"):
        value(metric, probabilities=[0.5, bad, 0.5], labels=[1, 0, 1])


def test_nan_rank_fails():
    with pytest.raises(NonFiniteError, match="output 'ranks', row 0"):
        value(m.MeanReciprocalRank(), ranks=[math.nan, 1.0])


@pytest.mark.parametrize(("weight", "error"), [(math.nan, NonFiniteError), (-1.0, DataError)])
def test_bad_weights_fail_with_their_row(weight, error):
    with pytest.raises(error, match="output 'weights', row 2"):
        value(m.Ctr(), labels=[1, 0, 1], weights=[1.0, 1.0, weight])


def test_a_refused_batch_leaves_the_metric_as_it_was():
    metric = m.Auc()
    rows = {"probabilities": torch.tensor([0.9, 0.1]), "labels": torch.tensor([1, 0])}
    metric.update(rows)
    with pytest.raises(NonFiniteError):
        metric.update({**rows, "probabilities": torch.tensor([0.1, math.nan])})
    assert metric.compute().item() == 1.0


def test_collection_does_not_merge_strata_that_are_empty_at_first():
    strata = {f"ctr_{i}": m.Ctr(stratifier=Stratifier("country", i)) for i in range(3)}
    collection = metric_collection(strata)
    for country, label in [(0, 1), (1, 0), (2, 1)]:
        collection.update({"labels": torch.tensor([label]), "stratifiers": {"country": torch.tensor([country])}})
    assert {name: got.item() for name, got in collection.compute().items()} == {"ctr_0": 1, "ctr_1": 0, "ctr_2": 1}


def test_collection_can_be_reset_and_used_again():
    collection = metric_collection({"auc": m.Auc(), "rce": m.Rce(), "ctr": m.Ctr()})
    first = {"probabilities": torch.tensor([0.2, 0.9]), "labels": torch.tensor([1, 0])}
    second = {"probabilities": torch.tensor([0.75, 0.25]), "labels": torch.tensor([1, 0])}
    collection.update(first)
    assert collection.compute()["auc"] == 0.0
    collection.reset()
    collection.update(second)
    got = collection.compute()
    assert (got["auc"].item(), got["ctr"].item()) == (1.0, 0.5)
    assert got["rce"].item() == pytest.approx(100 * (1 - math.log(4 / 3) / math.log(2)), abs=1e-9)


def test_value_of_a_batch_does_not_disturb_the_running_value():
    metric = m.Ctr()
    assert metric({"labels": torch.tensor([1, 0])}).item() == 0.5
    assert metric({"labels": torch.tensor([1, 1])}).item() == 1.0
    assert metric.compute().item() == 0.75
