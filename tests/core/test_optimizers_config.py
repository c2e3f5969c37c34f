import pydantic
import pytest

from tml.common.errors import ConfigError
from tml.core.optimizers.config import MAX_LEARNING_RATE, LearningRateConfig, OptimizerConfig
from tml.core.optimizers.fused import check_fused_support


def optimizer(**settings):
    return OptimizerConfig.model_validate(settings)


def refusal(config_type, value):
    with pytest.raises(pydantic.ValidationError) as caught:
        config_type.model_validate(value)
    return str(caught.value)


def test_chosen_names_the_optimizer_and_hands_over_its_section():
    config = optimizer(adam={"learning_rate": 0.01, "betas": [0.5, 0.75]})
    name, section = config.chosen
    assert (name, section.betas) == ("adam", (0.5, 0.75))
    assert config.learning_rate.chosen == ("constant", 0.01)


def test_two_optimizers_or_none_are_refused():
    both = {"sgd": {"learning_rate": 1}, "adagrad": {"learning_rate": 1}}
    assert "exactly one of 'sgd'" in refusal(OptimizerConfig, both)
    assert "exactly one of 'sgd'" in refusal(OptimizerConfig, {})


def test_two_schedules_are_refused():
    ramp = {"learning_rate": 1, "num_ramp_steps": 5}
    assert "exactly one of 'constant'" in refusal(LearningRateConfig, {"constant": 1, "linear_ramp_to_constant": ramp})


# Fault 27: an absurd learning rate is rejected with the range.
@pytest.mark.parametrize(
    ("rate", "limit"),
    [
        (0, "greater than 0"),
        (-0.1, "greater than 0"),
        (MAX_LEARNING_RATE * 1.01, "less than or equal to 1000"),
        (float("nan"), "finite"),
        (float("inf"), "finite"),
    ],
)
def test_absurd_learning_rates_are_refused_with_the_range(rate, limit):
    message = refusal(OptimizerConfig, {"sgd": {"learning_rate": rate}})
    assert "sgd.learning_rate.constant" in message
    assert limit in message


def test_true_is_not_a_learning_rate():
    assert "sgd.learning_rate" in refusal(OptimizerConfig, {"sgd": {"learning_rate": True}})


@pytest.mark.parametrize(
    ("section", "reason"),
    [
        ({"boundaries": [10], "values": [0.1]}, "values must be one more"),
        ({"boundaries": [10, 10], "values": [0.1, 0.2, 0.3]}, "must ascend"),
        ({"boundaries": [20, 10], "values": [0.1, 0.2, 0.3]}, "must ascend"),
    ],
)
def test_pieces_that_do_not_fit_are_refused(section, reason):
    assert reason in refusal(LearningRateConfig, {"piecewise_constant": section})


def test_ramp_longer_than_the_whole_schedule_is_refused():
    section = {"learning_rate": 1, "final_learning_rate": 0, "num_ramp_steps": 100, "final_num_steps": 100}
    message = refusal(LearningRateConfig, {"linear_ramp_to_cosine": section})
    assert "final_num_steps (100) must be greater than num_ramp_steps (100)" in message


# B31: an eps of zero divides zero by zero.
@pytest.mark.parametrize("name", ["adagrad", "rowwise_adagrad", "adam"])
def test_eps_is_positive_by_default_and_cannot_be_zero(name):
    assert optimizer(**{name: {"learning_rate": 1}}).chosen[1].eps > 0
    assert f"{name}.eps" in refusal(OptimizerConfig, {name: {"learning_rate": 1, "eps": 0}})


@pytest.mark.parametrize("name", ["sgd", "adagrad", "rowwise_adagrad"])
def test_cpu_kernels_support_sgd_and_both_adagrads(name):
    check_fused_support(optimizer(**{name: {"learning_rate": 1}}), "cpu")


def test_adam_of_tables_is_refused_on_a_cpu_and_taken_on_a_gpu():
    adam = optimizer(adam={"learning_rate": 1, "weight_decay": 0.1})
    with pytest.raises(ConfigError, match=r"Adam is not available.*\n  where: model.user.adam\n.*rowwise_adagrad"):
        check_fused_support(adam, "cpu", where="model.user")
    check_fused_support(adam, "gpu")


def test_momentum_of_tables_is_refused_everywhere():
    for device_type in ("cpu", "gpu"):
        with pytest.raises(ConfigError, match="momentum is not available"):
            check_fused_support(optimizer(sgd={"learning_rate": 1, "momentum": 0.9}), device_type)


@pytest.mark.parametrize("name", ["sgd", "adagrad", "rowwise_adagrad"])
def test_weight_decay_that_the_kernel_would_ignore_is_refused(name):
    config = optimizer(**{name: {"learning_rate": 1, "weight_decay": 0.1}})
    with pytest.raises(ConfigError, match=f"no effect(.|\n)*{name}.weight_decay"):
        check_fused_support(config, "cpu")


def test_weight_decay_of_rowwise_adagrad_is_taken_on_a_gpu():
    check_fused_support(optimizer(rowwise_adagrad={"learning_rate": 1, "weight_decay": 0.1}), "gpu")


@pytest.mark.parametrize("name", ["momentum", "rmsprop", "ftrl", "lazy_adam"])
def test_optimizers_that_no_kernel_has_are_refused_for_tables(name):
    for device_type in ("cpu", "gpu"):
        with pytest.raises(ConfigError, match=rf"{name} is not available(.|\n)*model\.user\.{name}"):
            check_fused_support(optimizer(**{name: {"learning_rate": 1}}), device_type, where="model.user")


def test_an_initial_accumulator_that_the_kernel_would_ignore_is_refused():
    with pytest.raises(ConfigError, match=r"begins at 0(.|\n)*adagrad\.initial_accumulator"):
        check_fused_support(optimizer(adagrad={"learning_rate": 1, "initial_accumulator": 0.1}), "cpu")


def test_rmsprop_and_momentum_begin_as_in_tensorflow_1():
    rmsprop = optimizer(rmsprop={"learning_rate": 1}).chosen[1]
    assert (rmsprop.decay, rmsprop.eps, rmsprop.momentum, rmsprop.initial_accumulator) == (0.9, 1e-10, 0.0, 1.0)
    assert optimizer(momentum={"learning_rate": 1}).chosen[1].momentum == 0.9
    assert optimizer(ftrl={"learning_rate": 1}).chosen[1].initial_accumulator == 0.1


@pytest.mark.parametrize(
    ("settings", "limit"),
    [
        ({"initial_accumulator": 0}, "greater than 0"),
        ({"learning_rate_power": 0.5}, "less than or equal to 0"),
        ({"l1": -1}, "greater than or equal to 0"),
        ({"l2": float("inf")}, "finite"),
    ],
)
def test_fault_27_ftrl_settings_out_of_range_are_refused(settings, limit):
    assert limit in refusal(OptimizerConfig, {"ftrl": {"learning_rate": 1, **settings}})
