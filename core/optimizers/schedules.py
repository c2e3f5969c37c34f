"""Learning-rate schedules: pure functions of the step.

`step` is the number of updates made so far, so the first update of a run uses `schedule(0)`. Because a schedule keeps
no state, a resumed run needs nothing but the step to go on exactly where it stopped.

Letters: `s` step, `T` the schedule's own number of steps, `lr` the base rate.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from functools import partial
from typing import Any

from tml.core.optimizers.config import (
    CosineRestartsConfig,
    ExponentialConfig,
    InverseConfig,
    LearningRateConfig,
    LinearRampToConstantConfig,
    LinearRampToCosineConfig,
    PiecewiseConstantConfig,
    PolynomialConfig,
)

Schedule = Callable[[int], float]


def build_schedule(config: LearningRateConfig) -> Schedule:
    """Builds the schedule that the config names.

    Args:
        config: exactly one of its schedules is set.

    Returns:
        A picklable function: step (int, 0 for the first update) -> learning rate.
    """
    name, section = config.chosen
    return partial(_FORMULAS[name], section)


def constant(learning_rate: float, step: int) -> float:
    """Returns `lr` at every step."""
    return learning_rate


def piecewise_constant(config: PiecewiseConstantConfig, step: int) -> float:
    """Returns `values[i]`, where `i` is the number of boundaries that `s` has reached (`boundary <= s`)."""
    return config.values[bisect_right(config.boundaries, step)]


def linear_ramp_to_constant(config: LinearRampToConstantConfig, step: int) -> float:
    """Returns `lr * min(s / num_ramp_steps, 1)`: zero at step 0, then a straight line to `lr`."""
    return _ramp(config.learning_rate, config.num_ramp_steps, step)


def linear_ramp_to_cosine(config: LinearRampToCosineConfig, step: int) -> float:
    """Returns a straight line to `lr`, then half a cosine wave down to the final rate at `final_num_steps`."""
    if step < config.num_ramp_steps:
        return _ramp(config.learning_rate, config.num_ramp_steps, step)
    fraction = (step - config.num_ramp_steps) / (config.final_num_steps - config.num_ramp_steps)
    height = config.learning_rate - config.final_learning_rate
    return config.final_learning_rate + height * _half_cosine(fraction)


def exponential(config: ExponentialConfig, step: int) -> float:
    """Returns `lr * decay_rate ** (s / T)`, continuous in the step."""
    return config.learning_rate * config.decay_rate ** (step / config.decay_steps)


def polynomial(config: PolynomialConfig, step: int) -> float:
    """Returns `(lr - end) * (1 - min(s, T) / T) ** power + end`."""
    remaining = 1.0 - min(step, config.decay_steps) / config.decay_steps
    height = config.learning_rate - config.final_learning_rate
    return height * remaining**config.power + config.final_learning_rate


def inverse(config: InverseConfig, step: int) -> float:
    """Returns `max(lr / (1 + decay_rate * s / T), min_learning_rate)`."""
    decayed = config.learning_rate / (1.0 + config.decay_rate * step / config.decay_steps)
    return max(decayed, config.min_learning_rate)


def cosine_restarts(config: CosineRestartsConfig, step: int) -> float:
    """Returns the warm-restart schedule of SGDR (Loshchilov and Hutter, arXiv 1608.03983).

    Cycle `i` lasts `first_decay_steps * t_mul ** i` steps, starts at `lr * m_mul ** i` and falls to `alpha * lr`:
    `lr * ((1 - alpha) * m_mul ** i * (1 + cos(pi * fraction)) / 2 + alpha)`.
    """
    cycle, fraction = _cycle_of(step / config.first_decay_steps, config.t_mul)
    height = config.m_mul**cycle * _half_cosine(fraction)
    return config.learning_rate * ((1.0 - config.alpha) * height + config.alpha)


def _ramp(learning_rate: float, num_ramp_steps: int, step: int) -> float:
    return learning_rate if step >= num_ramp_steps else learning_rate * step / num_ramp_steps


def _half_cosine(fraction: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * min(fraction, 1.0)))


def _cycle_of(position: float, t_mul: float) -> tuple[int, float]:
    """Finds the cycle of a position and the fraction of it that is done; both in units of the first cycle's length."""
    if t_mul == 1.0:
        cycle = math.floor(position)
        return cycle, position - cycle

    def start(index: int) -> float:
        return (t_mul**index - 1.0) / (t_mul - 1.0)

    cycle = math.floor(math.log1p(position * (t_mul - 1.0)) / math.log(t_mul))
    # The logarithm may fall on the wrong side of a restart by one rounding error: log(243) / log(3) is below 5.
    if start(cycle + 1) <= position:
        cycle += 1
    elif start(cycle) > position:
        cycle -= 1
    return cycle, (position - start(cycle)) / t_mul**cycle


_FORMULAS: dict[str, Callable[[Any, int], float]] = {
    "constant": constant,
    "piecewise_constant": piecewise_constant,
    "linear_ramp_to_constant": linear_ramp_to_constant,
    "linear_ramp_to_cosine": linear_ramp_to_cosine,
    "exponential": exponential,
    "polynomial": polynomial,
    "inverse": inverse,
    "cosine_restarts": cosine_restarts,
}
