"""The loss by hand: click, watch time, weights, one output, groups, replicated scores."""

from __future__ import annotations

import math

import pytest
import torch

from tml.common.batch import Cursor
from tml.common.errors import ConfigError
from tml.projects.light_ranker.config import LossConfig
from tml.projects.light_ranker.data.batch import RankerBatch
from tml.projects.light_ranker.features.spec import FeatureSpec, IdFeature, LabelSpec
from tml.projects.light_ranker.models.objective import Objective

SPEC = FeatureSpec(
    ids=(IdFeature("a", "user", 3),),
    continuous=(),
    vectors=(),
    labels=(LabelSpec("fav", "binary"), LabelSpec("click", "binary"), LabelSpec("seconds", "nonnegative")),
    has_group=True,
)


def _batch(click, seconds, weight, group=None) -> RankerBatch:
    size = len(click)
    labels = torch.stack([torch.full((size,), 9.0), torch.tensor(click), torch.tensor(seconds)], 1)
    empty = torch.empty(size, 0)
    return RankerBatch(
        None, empty.long(), empty, empty, empty, labels, torch.tensor(weight),
        torch.tensor(group or [0] * size), torch.tensor(weight) > 0, size, Cursor(),
    )  # fmt: skip


LOGITS = torch.tensor([0.0, 2.0, -1.0])
BATCH = _batch([1.0, 0.0, 1.0], [3.0, 0.0, 1.0], [1.0, 2.0, 1.0])
# -log sigmoid(0), -log(1 - sigmoid(2)), -log sigmoid(-1), weighted 1, 2, 1.
CLICK = (math.log(2) + 2 * math.log(1 + math.exp(2)) + math.log(1 + math.exp(1))) / 4


def _loss(config: LossConfig, watch=(0.0, 0.0, 0.0), batch=BATCH) -> float:
    predictions = {"click": LOGITS, "watch_time": torch.tensor(watch)}
    return float(Objective(config, SPEC)(predictions, batch)[0])


def test_click_alone_is_the_weighted_cross_entropy():
    assert _loss(LossConfig()) == pytest.approx(CLICK, rel=1e-6)
    assert _loss(LossConfig(alpha=0.5)) == pytest.approx(CLICK / 2, rel=1e-6)


def test_watch_time_adds_beta_times_the_squared_error_of_the_logarithm():
    config = LossConfig(watch_time_label="seconds", beta=3.0)
    # Errors 1 - log 4, 0.5, 0 - log 2.
    error = ((1 - math.log(4)) ** 2 + 2 * 0.25 + math.log(2) ** 2) / 4
    assert _loss(config, (1.0, 0.5, 0.0)) == pytest.approx(CLICK + 3 * error, rel=1e-6)


def test_watch_time_may_be_learnt_in_seconds():
    config = LossConfig(watch_time_label="seconds", watch_time_loss="mse", beta=1.0, alpha=0.0)
    assert _loss(config, (1.0, 0.5, 0.0)) == pytest.approx((4 + 2 * 0.25 + 1) / 4, rel=1e-6)


def test_rows_of_weight_zero_do_not_count_and_a_batch_of_none_costs_nothing():
    padded = _batch([1.0, 0.0, 1.0, 0.0], [3.0, 0.0, 1.0, 0.0], [1.0, 2.0, 1.0, 0.0])
    objective = Objective(LossConfig(), SPEC)
    loss, _ = objective({"click": torch.tensor([0.0, 2.0, -1.0, 77.0])}, padded)
    assert float(loss) == pytest.approx(CLICK, rel=1e-6)
    empty = _batch([1.0], [0.0], [0.0])
    assert float(objective({"click": torch.tensor([3.0])}, empty)[0]) == 0.0


def test_ranknet_adds_the_mean_over_groups_of_pair_losses():
    batch = _batch([1.0, 0.0, 0.0], [0.0] * 3, [1.0] * 3, [4, 4, 8])
    config = LossConfig(alpha=0.0, ranking={"kind": "ranknet", "weight": 2.0})
    # One pair: the click (logit 0) against the row with logit 2.
    assert _loss(config, batch=batch) == pytest.approx(2 * math.log(1 + math.exp(2)), rel=1e-6)


def test_a_replicated_score_is_learnt_by_the_plain_squared_error_of_logits():
    batch = _batch([1.0, 0.0], [50.0, 80.0], [1.0, 5.0])
    objective = Objective(LossConfig(), SPEC, replicate_label="seconds")
    loss, _ = objective({"click": torch.tensor([1.0, 0.0])}, batch)
    assert float(loss) == pytest.approx((1.0 + math.log(4) ** 2) / 2, rel=1e-6)


def test_metrics_see_real_rows_only_and_only_in_evaluation():
    padded = _batch([1.0, 0.0], [3.0, 0.0], [1.0, 0.0])
    objective = Objective(LossConfig(watch_time_label="seconds"), SPEC)
    predictions = {"click": torch.tensor([0.0, 5.0]), "watch_time": torch.tensor([1.0, 2.0])}
    assert objective(predictions, padded)[1] == {}
    outputs = objective.eval()(predictions, padded)[1]
    assert outputs["probabilities"].tolist() == [0.5]
    assert outputs["labels"].tolist() == [1.0]
    assert outputs["watch_time_label"].tolist() == pytest.approx([math.log(4)])


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (LossConfig(click_label="clicks"), "fav (binary), click (binary)"),
        (LossConfig(click_label="seconds"), "no binary label"),
        (LossConfig(watch_time_label="click"), "no nonnegative label"),
    ],
)
def test_fault_a_label_that_the_data_does_not_have_is_refused_with_those_it_has(config, said):
    with pytest.raises(ConfigError) as caught:
        Objective(config, SPEC)
    assert said in str(caught.value)


def test_fault_a_ranking_loss_without_groups_is_refused():
    plain = FeatureSpec(SPEC.ids, (), (), SPEC.labels, has_group=False)
    with pytest.raises(ConfigError, match="needs groups"):
        Objective(LossConfig(ranking={"kind": "listnet"}), plain)
