import math
import pickle

import pydantic
import pytest

from tml.core.optimizers.config import LearningRateConfig, PolynomialConfig
from tml.core.optimizers.schedules import build_schedule


def rates(config, steps):
    schedule = build_schedule(LearningRateConfig.model_validate(config))
    return [schedule(step) for step in steps]


def test_plain_number_is_a_constant_rate():
    assert rates(0.25, [0, 1, 10**9]) == [0.25, 0.25, 0.25]


def test_piecewise_constant_begins_the_next_value_at_its_boundary():
    config = {"piecewise_constant": {"boundaries": [10, 20], "values": [0.3, 0.2, 0.1]}}
    assert rates(config, [0, 9, 10, 19, 20, 21]) == [0.3, 0.3, 0.2, 0.2, 0.1, 0.1]


def test_linear_ramp_to_constant_rises_evenly_and_stays():
    config = {"linear_ramp_to_constant": {"learning_rate": 0.8, "num_ramp_steps": 4}}
    assert rates(config, [0, 1, 2, 3, 4, 5, 400]) == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8, 0.8, 0.8], rel=1e-12)


def test_linear_ramp_to_cosine_passes_top_middle_and_end():
    section = {"learning_rate": 1.0, "final_learning_rate": 0.2, "num_ramp_steps": 10, "final_num_steps": 30}
    # Half-way down the wave the rate is the mean of top and end; at a third of the way it is .2 + .8 * .75.
    got = rates({"linear_ramp_to_cosine": section}, [0, 5, 10, 20, 30, 31, 1000])
    assert got == pytest.approx([0.0, 0.5, 1.0, 0.6, 0.2, 0.2, 0.2], rel=1e-12)
    section = {"learning_rate": 1.0, "final_learning_rate": 0.2, "num_ramp_steps": 0, "final_num_steps": 30}
    assert rates({"linear_ramp_to_cosine": section}, [0, 10, 20]) == pytest.approx([1.0, 0.8, 0.4], rel=1e-12)


def test_exponential_decays_continuously():
    config = {"exponential": {"learning_rate": 0.4, "decay_rate": 0.25, "decay_steps": 10}}
    assert rates(config, [0, 5, 10, 20]) == pytest.approx([0.4, 0.2, 0.1, 0.025], rel=1e-12)


def test_polynomial_reaches_its_final_rate_and_stays():
    config = {"polynomial": {"learning_rate": 1.1, "final_learning_rate": 0.1, "decay_steps": 4, "power": 2.0}}
    assert rates(config, [0, 1, 2, 4, 5]) == pytest.approx([1.1, 0.6625, 0.35, 0.1, 0.1], rel=1e-12)


def test_polynomial_is_a_straight_line_by_default():
    config = {"polynomial": {"learning_rate": 0.4001, "decay_steps": 4}}
    assert rates(config, [0, 1, 2, 3, 4]) == pytest.approx([0.4001, 0.3001, 0.2001, 0.1001, 0.0001], rel=1e-12)


@pytest.mark.parametrize("name", ["polynomial", "exponential", "inverse"])
def test_bug_10_decay_steps_are_checked_by_value_and_the_default_power_is_1(name):
    section = {"learning_rate": 1, "decay_rate": 0.5} if name != "polynomial" else {"learning_rate": 1}
    for decay_steps in (0, -5):
        with pytest.raises(pydantic.ValidationError, match="decay_steps"):
            LearningRateConfig.model_validate({name: {**section, "decay_steps": decay_steps}})
    assert PolynomialConfig(learning_rate=1, decay_steps=4).power == 1.0


def test_cosine_without_restarts_is_a_ramp_of_length_0():
    # Reference 1.8: lr * ((1 - alpha) * (1 + cos(pi * min(s, T) / T)) / 2 + alpha).
    rate, alpha, length = 0.8, 0.25, 12
    section = {"learning_rate": rate, "final_learning_rate": alpha * rate, "num_ramp_steps": 0}
    got = rates({"linear_ramp_to_cosine": {**section, "final_num_steps": length}}, range(20))
    waves = [0.5 * (1 + math.cos(math.pi * min(step, length) / length)) for step in range(20)]
    assert got == pytest.approx([rate * ((1 - alpha) * wave + alpha) for wave in waves], rel=1e-12)


@pytest.mark.parametrize(
    ("config", "formula"),
    [
        (
            {"exponential": {"learning_rate": 0.3, "decay_rate": 0.7, "decay_steps": 5}},
            lambda s: 0.3 * 0.7 ** (s / 5),
        ),
        (
            {"polynomial": {"learning_rate": 0.3, "decay_steps": 7, "power": 3.0}},
            lambda s: (0.3 - 1e-4) * (1 - min(s, 7) / 7) ** 3 + 1e-4,
        ),
        (
            {"inverse": {"learning_rate": 0.3, "decay_rate": 0.7, "min_learning_rate": 0.05}},
            lambda s: max(0.3 / (1 + 0.7 * s), 0.05),
        ),
        (
            {"piecewise_constant": {"boundaries": [3, 8], "values": [0.3, 0.2, 0.1]}},
            lambda s: 0.3 if s < 3 else 0.2 if s < 8 else 0.1,
        ),
    ],
)
def test_decays_agree_with_their_closed_forms_at_every_step(config, formula):
    assert rates(config, range(20)) == pytest.approx([formula(step) for step in range(20)], rel=1e-12)


def test_inverse_decays_to_its_lower_limit():
    section = {"learning_rate": 1.0, "decay_rate": 0.5, "decay_steps": 2, "min_learning_rate": 0.3}
    assert rates({"inverse": section}, [0, 2, 4, 8, 100]) == pytest.approx([1.0, 2 / 3, 0.5, 1 / 3, 0.3], rel=1e-12)


def test_cosine_restarts_double_in_length():
    config = {"cosine_restarts": {"learning_rate": 1.0, "first_decay_steps": 10}}
    # Waves start at 0, 10 and 30; their middles are 5, 20 and 50.
    got = rates(config, [0, 5, 10, 20, 30, 50, 70])
    assert got == pytest.approx([1.0, 0.5, 1.0, 0.5, 1.0, 0.5, 1.0], rel=1e-12)


def test_cosine_restarts_shrink_in_height_towards_alpha():
    section = {"learning_rate": 2.0, "first_decay_steps": 4, "t_mul": 1.0, "m_mul": 0.5, "alpha": 0.1}
    # 2 * (.9 * height * wave + .1) with heights 1, .5, .25.
    got = rates({"cosine_restarts": section}, [0, 2, 4, 6, 8])
    assert got == pytest.approx([2.0, 1.1, 1.1, 0.65, 0.65], rel=1e-12)


@pytest.mark.parametrize("t_mul", [1.0, 1.5, 2.0, 3.0, 7.0])
def test_cosine_restarts_agree_with_walking_from_wave_to_wave(t_mul):
    schedule = build_schedule(
        LearningRateConfig.model_validate(
            {"cosine_restarts": {"learning_rate": 1.0, "first_decay_steps": 4, "t_mul": t_mul, "m_mul": 0.9}}
        )
    )
    start, length, height = 0.0, 4.0, 1.0
    for step in range(4 * 400):
        while step >= start + length:
            start, length, height = start + length, length * t_mul, height * 0.9
        expected = height * 0.5 * (1 + math.cos(math.pi * (step - start) / length))
        assert schedule(step) == pytest.approx(expected, abs=1e-9), step


def test_restart_is_not_missed_where_the_logarithm_rounds_down():
    # The sixth wave of t_mul 3 starts at (3 ** 5 - 1) / 2 = 121 and log(243) / log(3) is 4.999999999999999.
    assert rates({"cosine_restarts": {"learning_rate": 1.0, "first_decay_steps": 1, "t_mul": 3.0}}, [121]) == [1.0]


def test_schedules_can_be_sent_to_other_processes():
    schedule = build_schedule(LearningRateConfig.model_validate({"inverse": {"learning_rate": 1, "decay_rate": 1}}))
    assert pickle.loads(pickle.dumps(schedule))(1) == 0.5
