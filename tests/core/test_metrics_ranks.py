"""Two ranks report what one rank reports, also when one of them has no rows."""

import math
import warnings

import pytest
import torch
import torch.distributed as dist

from tests.distributed import run_ranks
from tml.core import metrics as m
from tml.core.metrics import Stratifier, build_metrics, metric_collection, scalars

NAMED = [
    *("total_weight", "num_samples", "ctr", "predicted_ctr", "pred_std_dev", "mse", "mae", "ece", "ece_equal_mass"),
    *("rce", "rce_std_err", "nrce", "lolly_nrce", "arce", "arce_original"),
    *("accuracy", "precision", "recall", "tp", "fp", "tn", "fn", "recall_at_percentiles"),
    *("roc_auc", "pr_auc", "roc_auc_200", "pr_auc_200", "ndcg@1", "ndcg@5"),
    *("watch_time_mse", "watch_time_mae_seconds", "lolly_tf_score_mse"),
    *("unweighted_nrce", "uncalibrated_rce", "unweighted_uncalibrated_arce", "unweighted_ndcg@5"),
]


def all_metrics():
    return metric_collection(
        {
            **build_metrics(NAMED),
            "auc": m.Auc(),
            "mwu": m.AurocWithMwu(),
            "pctr": m.Pctr(),
            "count": m.Count(),
            "mean": m.StableMean("probabilities"),
            "mean_rank": m.MeanRank(),
            "mrr": m.MeanReciprocalRank(),
            "hits": m.HitsAtK(3),
            "recall_at_3": m.RecallAtK(3),
            # All rows of this stratum are the first ones, so that only one rank has any.
            "auc_of_stratum": m.Auc(stratifier=Stratifier("half", 0)),
            "mrr_of_stratum": m.MeanReciprocalRank(stratifier=Stratifier("half", 0)),
        }
    )


def rows(first, last):
    generator = torch.Generator().manual_seed(0)
    outputs = {
        "probabilities": torch.randint(1, 20, (100,), generator=generator) / 20,
        "labels": torch.randint(0, 2, (100,), generator=generator),
        "weights": torch.rand(100, generator=generator),
        "ranks": torch.randint(1, 9, (100,), generator=generator),
        "hits_at_3": torch.randint(0, 3, (100,), generator=generator),
        "num_relevant": torch.full((100,), 4),
        # Ids whose halves, read as floats, are NaN or next to zero.
        "groups": torch.randint(-6, 6, (100,), generator=generator) * 2**33 + 1,
        "uncalibrated_probabilities": torch.rand(100, generator=generator),
        "lolly_probabilities": torch.rand(100, generator=generator),
        "watch_time_prediction": torch.rand(100, generator=generator),
        "watch_time_label": torch.rand(100, generator=generator) * 5,
        "unweighted": (torch.rand(100, generator=generator) < 0.9).float(),
    }
    stratifiers = {"half": torch.arange(100) // 50}
    return {
        **{name: column[first:last] for name, column in outputs.items()},
        "stratifiers": {name: column[first:last] for name, column in stratifiers.items()},
    }


def report(batches):
    """The values of all metrics after the batches, which are pairs of first and last row."""
    collection = all_metrics()
    for first, last in batches:
        collection.update(rows(first, last))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return scalars(collection.compute())


def _reports_of_rank(layouts):
    return [report(layout[dist.get_rank()]) for layout in layouts]


LAYOUTS = {
    "half each": [[(0, 30), (30, 50)], [(50, 100)]],
    "uneven": [[(0, 7)], [(7, 60), (60, 100)]],
    "an empty batch on one rank": [[(0, 100)], [(100, 100)]],
    "no batch on one rank": [[], [(0, 60), (60, 100)]],
    "no rows at all": [[], [(0, 0)]],
}


@pytest.fixture(scope="module")
def reports():
    by_rank = run_ranks(_reports_of_rank, 2, list(LAYOUTS.values()))
    return {name: [of_rank[place] for of_rank in by_rank] for place, name in enumerate(LAYOUTS)}


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "no rows at all"])
def test_two_ranks_report_what_one_rank_reports(reports, layout):
    expected = report([(0, 100)])
    assert not any(math.isnan(value) for value in expected.values())
    for of_rank in reports[layout]:
        assert of_rank == pytest.approx(expected, rel=1e-9)


def test_ranks_without_any_rows_report_nan_and_zero_counts_alike(reports):
    counts = {"count", "num_samples", "total_weight", "tp", "fp", "tn", "fn"}
    for of_rank in reports["no rows at all"]:
        assert {name for name, value in of_rank.items() if value == 0} == counts
        assert all(math.isnan(value) for name, value in of_rank.items() if name not in counts)


def test_ranks_report_the_same_to_the_last_bit(reports):
    for layout, (rank_0, rank_1) in reports.items():
        if layout != "no rows at all":
            assert rank_0 == rank_1
