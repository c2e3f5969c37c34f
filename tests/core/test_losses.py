import math

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss
from torch import nn

from tests.distributed import run_ranks
from tml.common.errors import ConfigError, DataError
from tml.core.losses import LossType, build_loss, build_multi_task_loss, get_global_loss_detached

LOG_2, LOG_3, LOG_4 = math.log(2), math.log(3), math.log(4)


def bce(*args, **settings):
    return build_loss(LossType.BCE_WITH_LOGITS, **settings)(*args)


def test_bce_of_even_and_three_to_one_odds():
    # p = 1/2 costs log 2 either way; p = 3/4 costs log 4/3 for a positive and log 4 for a negative.
    logits, labels = torch.tensor([0.0, LOG_3, LOG_3]), torch.tensor([1, 1, 0])
    assert bce(logits, labels).item() == pytest.approx((LOG_2 + (LOG_4 - LOG_3) + LOG_4) / 3, rel=1e-6)
    assert bce(logits, labels, reduction="sum").item() == pytest.approx(LOG_2 + LOG_4 - LOG_3 + LOG_4, rel=1e-6)


# B6: the mean is over the total weight, not over the number of rows.
def test_bce_mean_divides_by_the_total_weight():
    logits, labels = torch.tensor([0.0, LOG_3]), torch.tensor([1.0, 0.0])
    got = bce(logits, labels, torch.tensor([3.0, 0.5]))
    assert got.item() == pytest.approx((3 * LOG_2 + 0.5 * LOG_4) / 3.5, rel=1e-6)


def test_bce_equals_weighted_log_loss():
    rng = np.random.default_rng(0)
    logits, labels, weights = rng.normal(size=200), rng.integers(0, 2, 200), rng.random(200)
    expected = log_loss(labels, 1 / (1 + np.exp(-logits)), sample_weight=weights)
    assert bce(*map(torch.from_numpy, (logits, labels, weights))).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("loss_type", list(LossType))
def test_zero_weights_give_zero_loss_and_zero_gradient(loss_type):
    logits = torch.randn((3, 2) if loss_type is LossType.CROSS_ENTROPY else (3,), requires_grad=True)
    loss = build_loss(loss_type)(logits, torch.tensor([1, 0, 1]), torch.zeros(3))
    loss.backward()
    assert loss.item() == 0.0
    assert not logits.grad.any()


def test_empty_batch_gives_zero_loss():
    assert bce(torch.empty(0), torch.empty(0)).item() == 0.0


def test_weights_of_another_shape_are_refused():
    with pytest.raises(DataError, match=r"weights must(.|\n)*\(3, 1\)"):
        bce(torch.zeros(3), torch.zeros(3), torch.ones(3, 1))


# B29: cross-entropy is among the losses that can be named.
def test_cross_entropy_is_weighted_by_example():
    logits = torch.tensor([[0.0, 0.0], [LOG_3, 0.0]])
    got = build_loss(LossType("cross_entropy"))(logits, torch.tensor([0, 1]), torch.tensor([1.0, 3.0]))
    assert got.item() == pytest.approx((LOG_2 + 3 * LOG_4) / 4, rel=1e-6)


TWO_TASKS = {
    "logits": torch.tensor([[0.0, LOG_3], [0.0, LOG_3]]),
    "labels": torch.tensor([[1, 1], [0, 0]]),
}


def multi_task(weights=None, **settings):
    return build_multi_task_loss(["click", "fav"], **settings)(*TWO_TASKS.values(), weights)


@pytest.mark.parametrize(
    ("reduction", "expected"),
    [
        ("mean", (LOG_2 + LOG_4 - LOG_3 / 2) / 2),
        ("sum", LOG_2 + LOG_4 - LOG_3 / 2),
        ("min", LOG_2),
        ("max", LOG_4 - LOG_3 / 2),
        ("median", LOG_2),
    ],
)
def test_losses_of_tasks_are_combined_as_asked(reduction, expected):
    losses = multi_task(global_reduction=reduction)
    assert losses["loss/click"].item() == pytest.approx(LOG_2, rel=1e-6)
    assert losses["loss/fav"].item() == pytest.approx(LOG_4 - LOG_3 / 2, rel=1e-6)
    assert losses["loss"].item() == pytest.approx(expected, rel=1e-6)


def test_pos_weight_belongs_to_its_task_alone():
    losses = multi_task(pos_weights={"fav": 5.0})
    assert losses["loss/click"].item() == pytest.approx(LOG_2, rel=1e-6)
    assert losses["loss/fav"].item() == pytest.approx((5 * (LOG_4 - LOG_3) + LOG_4) / 2, rel=1e-6)


def test_weights_may_be_shared_by_tasks_or_be_their_own():
    shared = multi_task(torch.tensor([1.0, 0.0]))
    assert shared["loss/fav"].item() == pytest.approx(LOG_4 - LOG_3, rel=1e-6)
    own = multi_task(torch.tensor([[0.0, 0.0], [0.0, 2.0]]))
    assert own["loss/click"].item() == 0.0
    assert own["loss/fav"].item() == pytest.approx(LOG_4, rel=1e-6)


@pytest.mark.parametrize(("tasks", "pos_weights"), [([], None), (["a", "a"], None), (["a"], {"b": 2.0})])
def test_missing_repeated_or_unknown_tasks_are_refused(tasks, pos_weights):
    with pytest.raises(ConfigError, match="missing, repeated or unknown"):
        build_multi_task_loss(tasks, pos_weights)


def test_wrong_number_of_columns_is_refused():
    with pytest.raises(DataError, match=r"\[B, 3\] for tasks a, b, c"):
        build_multi_task_loss(["a", "b", "c"])(torch.zeros(4, 2), torch.zeros(4, 2))


# B19: the logged loss must not change the loss that is trained on.
def test_global_loss_of_a_single_process_is_a_copy():
    loss = nn.Parameter(torch.tensor(3.0)) * 2
    got = get_global_loss_detached(loss)
    got /= 4
    assert loss.item() == 6.0
    assert not got.requires_grad


def _global_loss(losses):
    loss = torch.tensor(losses[torch.distributed.get_rank()], requires_grad=True)
    return get_global_loss_detached(loss).item(), loss.item()


def test_global_loss_is_the_mean_over_ranks_and_leaves_each_rank_its_own():
    assert run_ranks(_global_loss, 2, [1.0, 4.0]) == [(2.5, 1.0), (2.5, 4.0)]
