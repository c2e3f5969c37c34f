import math

import numpy as np
import pytest
import torch
from scipy.special import logit

from tml.common.errors import ConfigError, DataError
from tml.core.losses import (
    ClickAndWatchTimeLoss,
    Engagement,
    bce_with_logits,
    log1p_mse,
    lolly_logit,
    lolly_replication_loss,
    mse,
)

LOG_2 = math.log(2)


def test_mse_is_weighted_by_example():
    got = mse(torch.tensor([1.0, 5.0]), torch.tensor([3.0, 4.0]), torch.tensor([2.0, 6.0]))
    assert got.item() == pytest.approx((2 * 4 + 6 * 1) / 8, rel=1e-6)


def test_log1p_mse_compares_with_the_logarithm_of_one_plus_seconds():
    got = log1p_mse(torch.tensor([0.0, 2.0]), torch.tensor([0.0, math.e - 1]))
    assert got.item() == pytest.approx((0 + 1) / 2, rel=1e-6)


@pytest.mark.parametrize("loss", [mse, log1p_mse])
def test_masked_examples_have_no_say_whatever_they_hold(loss):
    predictions = torch.tensor([0.5, 2.0, -1.0], requires_grad=True)
    targets = torch.tensor([1.0, math.nan, -7.0])
    masked = loss(predictions, targets, torch.tensor([3.0, 1.0, 1.0]), torch.tensor([True, False, False]))
    alone = loss(predictions[:1], targets[:1])
    assert masked.item() == pytest.approx(alone.item(), rel=1e-6)
    masked.backward()
    assert predictions.grad[0] != 0
    assert predictions.grad[1:].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("loss", [mse, log1p_mse])
def test_nothing_to_count_gives_zero_loss_and_gradient(loss):
    predictions = torch.ones(2, requires_grad=True)
    got = loss(predictions, torch.tensor([math.nan, math.nan]), mask=torch.zeros(2, dtype=torch.bool))
    got.backward()
    assert got.item() == 0.0
    assert not predictions.grad.any()


def test_negative_watch_time_is_refused_with_its_row():
    with pytest.raises(DataError, match=r"watch time is negative(.|\n)*row 1(.|\n)*-2.0"):
        log1p_mse(torch.zeros(2), torch.tensor([3.0, -2.0]))


ENGAGEMENT = Engagement(
    clicks=torch.tensor([1.0, 0.0, 1.0]),
    seconds=torch.tensor([3.0, 0.0, 8.0]),
    weights=torch.tensor([1.0, 2.0, 1.0]),
    watched=torch.tensor([True, False, True]),
)


def test_combined_loss_is_alpha_clicks_plus_beta_watch_time():
    logits, watch_time = torch.zeros(3), torch.tensor([2.0, 7.0, 8.0])
    got = ClickAndWatchTimeLoss(alpha=3.0, beta=0.5, watch_time="mse")(logits, watch_time, ENGAGEMENT)
    assert got["loss/click"].item() == pytest.approx(LOG_2, rel=1e-6)
    assert got["loss/watch_time"].item() == pytest.approx(1 / 2, rel=1e-6)
    assert got["loss"].item() == pytest.approx(3 * LOG_2 + 0.5 * 0.5, rel=1e-6)


def test_gradients_of_the_parts_add_linearly():
    def gradient(alpha, beta):
        logits = torch.tensor([0.3, -0.2, 1.0], requires_grad=True)
        ClickAndWatchTimeLoss(alpha, beta).of_single_output(logits, ENGAGEMENT)["loss"].backward()
        return logits.grad

    torch.testing.assert_close(gradient(2.0, 3.0), 2 * gradient(1.0, 0.0) + 3 * gradient(0.0, 1.0))


def test_single_output_is_both_the_logit_and_the_watch_time():
    logits = torch.tensor([0.5, -1.0, 2.0])
    got = ClickAndWatchTimeLoss(1.0, 0.1, "mse").of_single_output(logits, ENGAGEMENT)
    click = bce_with_logits(logits, ENGAGEMENT.clicks, ENGAGEMENT.weights)
    watched = ((0.5 - 3) ** 2 + (2 - 8) ** 2) / 2
    assert got["loss"].item() == pytest.approx(click.item() + 0.1 * watched, rel=1e-6)


@pytest.mark.parametrize(("alpha", "beta"), [(-1.0, 1.0), (1.0, -0.1), (0.0, 0.0), (math.nan, 1.0), (math.inf, 0.0)])
def test_factors_that_make_no_loss_are_refused(alpha, beta):
    with pytest.raises(ConfigError, match="factors of the combined loss"):
        ClickAndWatchTimeLoss(alpha, beta)


def test_lolly_logit_equals_scipy_and_is_clamped_at_the_ends():
    scores = np.array([0.1, 25.0, 50.0, 99.9])
    np.testing.assert_allclose(lolly_logit(torch.from_numpy(scores)).numpy(), logit(scores / 100), rtol=1e-12)
    ends = lolly_logit(torch.tensor([0.0, 100.0]))
    assert ends.tolist() == pytest.approx([logit(1e-5), -logit(1e-5)], rel=1e-6)
    assert lolly_logit(torch.tensor([0]), epsilon=0.25).item() == pytest.approx(-math.log(3), rel=1e-6)


def test_replication_loss_is_the_plain_mean_of_squared_differences_of_logits():
    logits = torch.tensor([math.log(3), 1.0, 9.0], requires_grad=True)
    scores = torch.tensor([75.0, 50.0, math.nan])
    got = lolly_replication_loss(logits, scores, torch.tensor([True, True, False]))
    assert got.item() == pytest.approx((0 + 1) / 2, abs=1e-6)
    got.backward()
    assert logits.grad.tolist() == pytest.approx([0.0, 1.0, 0.0], abs=1e-6)


@pytest.mark.parametrize("score", [-0.5, 100.5, math.nan])
def test_logged_scores_outside_0_to_100_are_refused(score):
    with pytest.raises(DataError, match=r"out of range(.|\n)*row 1"):
        lolly_logit(torch.tensor([50.0, score]))
