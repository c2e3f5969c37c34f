"""Config of optimizers and of their learning-rate schedules. No torch here: reading a config stays quick."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from tml.core.config.base_config import BaseConfig

MAX_LEARNING_RATE = 1000.0

Rate = Annotated[float, Field(gt=0, le=MAX_LEARNING_RATE, allow_inf_nan=False)]
RateOrZero = Annotated[float, Field(ge=0, le=MAX_LEARNING_RATE, allow_inf_nan=False)]
NumSteps = Annotated[int, Field(gt=0, le=10**12)]
Step = Annotated[int, Field(ge=0, le=10**12)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Eps = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
WeightDecay = Annotated[float, Field(ge=0, le=1)]
Accumulator = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]


class PiecewiseConstantConfig(BaseConfig):
    """Constant pieces: `values[i]` from step `boundaries[i - 1]` on, until step `boundaries[i]`."""

    boundaries: tuple[Step, ...] = Field(description="Ascending steps; at a boundary the next value begins.")
    values: tuple[RateOrZero, ...] = Field(description="Learning rates, one more than boundaries.")

    @model_validator(mode="after")
    def _pieces_fit(self) -> Self:
        if len(self.values) != len(self.boundaries) + 1:
            raise ValueError(
                f"there are {len(self.values)} values and {len(self.boundaries)} boundaries; values must be one more"
            )
        if any(left >= right for left, right in pairwise(self.boundaries)):
            raise ValueError(f"boundaries must ascend, not {list(self.boundaries)}")
        return self


class LinearRampToConstantConfig(BaseConfig):
    """A straight line from zero to `learning_rate`, which then stays."""

    learning_rate: Rate = Field(description="Rate after the ramp.")
    num_ramp_steps: NumSteps = Field(description="Length of the ramp in steps.")


class LinearRampToCosineConfig(BaseConfig):
    """A straight line from zero to `learning_rate`, then half a cosine wave to `final_learning_rate`, which stays."""

    learning_rate: Rate = Field(description="Rate at the top of the ramp.")
    final_learning_rate: RateOrZero = Field(description="Rate from `final_num_steps` on.")
    num_ramp_steps: Step = Field(description="Length of the ramp in steps; 0 for a plain cosine decay.")
    final_num_steps: NumSteps = Field(description="Step at which the final rate is reached, counted from the start.")

    @model_validator(mode="after")
    def _ramp_ends_before_the_end(self) -> Self:
        if self.final_num_steps <= self.num_ramp_steps:
            raise ValueError(
                f"final_num_steps ({self.final_num_steps}) must be greater than num_ramp_steps ({self.num_ramp_steps})"
            )
        return self


class ExponentialConfig(BaseConfig):
    """The rate times `decay_rate` every `decay_steps` steps, continuously."""

    learning_rate: Rate = Field(description="Rate at step 0.")
    decay_rate: float = Field(gt=0, le=1, description="Factor after each `decay_steps` steps.")
    decay_steps: NumSteps = Field(description="Steps in which the rate falls by the factor.")


class PolynomialConfig(BaseConfig):
    """A polynomial from `learning_rate` down to `final_learning_rate` in `decay_steps` steps."""

    learning_rate: Rate = Field(description="Rate at step 0.")
    final_learning_rate: RateOrZero = Field(default=1e-4, description="Rate from `decay_steps` on.")
    decay_steps: NumSteps = Field(description="Steps until the final rate.")
    power: float = Field(default=1.0, gt=0, le=100, description="1 is a straight line.")


class InverseConfig(BaseConfig):
    """The rate divided by `1 + decay_rate * step / decay_steps`, but never below `min_learning_rate`."""

    learning_rate: Rate = Field(description="Rate at step 0.")
    decay_rate: float = Field(gt=0, le=1e6, description="How much the divisor grows in `decay_steps` steps.")
    decay_steps: NumSteps = Field(default=1, description="Unit of time of the decay, in steps.")
    min_learning_rate: RateOrZero = Field(default=0.0, description="Lower limit of the rate.")


class CosineRestartsConfig(BaseConfig):
    """Half cosine waves, each `t_mul` times as long and `m_mul` times as high as the one before."""

    learning_rate: Rate = Field(description="Rate at step 0.")
    first_decay_steps: NumSteps = Field(description="Length of the first wave in steps.")
    t_mul: float = Field(default=2.0, ge=1, le=100, description="Growth of the length from wave to wave.")
    m_mul: float = Field(default=1.0, gt=0, le=1, description="Growth of the height from wave to wave.")
    alpha: float = Field(default=0.0, ge=0, le=1, description="Lowest rate as a fraction of `learning_rate`.")


class LearningRateConfig(BaseConfig):
    """A learning rate as a function of the step. A plain number means `constant`."""

    one_of: ClassVar[tuple[tuple[str, ...], ...]] = (
        (
            "constant",
            "piecewise_constant",
            "linear_ramp_to_constant",
            "linear_ramp_to_cosine",
            "exponential",
            "polynomial",
            "inverse",
            "cosine_restarts",
        ),
    )

    constant: Rate | None = Field(default=None, description="The same rate at every step.")
    piecewise_constant: PiecewiseConstantConfig | None = Field(default=None, description="Constant pieces.")
    linear_ramp_to_constant: LinearRampToConstantConfig | None = Field(default=None, description="Warm-up, then level.")
    linear_ramp_to_cosine: LinearRampToCosineConfig | None = Field(default=None, description="Warm-up, then cosine.")
    exponential: ExponentialConfig | None = Field(default=None, description="Exponential decay.")
    polynomial: PolynomialConfig | None = Field(default=None, description="Polynomial decay.")
    inverse: InverseConfig | None = Field(default=None, description="Inverse-time decay.")
    cosine_restarts: CosineRestartsConfig | None = Field(default=None, description="Cosine waves with warm restarts.")

    @model_validator(mode="before")
    @classmethod
    def _number_means_constant(cls, value: Any) -> Any:
        is_number = isinstance(value, int | float | str) and not isinstance(value, bool)
        return {"constant": value} if is_number else value

    @property
    def chosen(self) -> tuple[str, Any]:
        """The name of the schedule that is set and its section (for `constant`, the number)."""
        return _chosen(self)


class SgdConfig(BaseConfig):
    """Stochastic gradient descent."""

    learning_rate: LearningRateConfig = Field(description="Number or schedule.")
    momentum: Beta = Field(default=0.0, description="Momentum; not for embedding tables.")
    weight_decay: WeightDecay = Field(default=0.0, description="L2 penalty; not for embedding tables.")


class MomentumConfig(BaseConfig):
    """Stochastic gradient descent along the decaying sum of gradients; not for embedding tables."""

    learning_rate: LearningRateConfig = Field(description="Number or schedule.")
    momentum: Beta = Field(default=0.9, description="Decay of the sum.")
    weight_decay: WeightDecay = Field(default=0.0, description="L2 penalty, added to the gradient.")


class AdagradConfig(BaseConfig):
    """Adagrad, one accumulator per weight."""

    learning_rate: LearningRateConfig = Field(description="Number or schedule.")
    # Zero would make 0 / 0 of every weight whose gradient has always been zero.
    eps: Eps = Field(default=1e-8, description="Added to the root of the accumulator.")
    weight_decay: WeightDecay = Field(default=0.0, description="L2 penalty; not for embedding tables.")
    initial_accumulator: Accumulator = Field(
        default=0.0,
        description="Sum of squares at the start, which tames the first steps; TensorFlow 1 has 0.1. Not for embedding "
        "tables.",
    )


class RowwiseAdagradConfig(BaseConfig):
    """Adagrad with one accumulator per row: the mean over the row of the squared gradient."""

    learning_rate: LearningRateConfig = Field(description="Number or schedule.")
    eps: Eps = Field(default=1e-8, description="Added to the root of the accumulator.")
    weight_decay: WeightDecay = Field(default=0.0, description="L2 penalty; not for embedding tables on a CPU.")


class AdamConfig(BaseConfig):
    """Adam; not for embedding tables on a CPU."""

    learning_rate: LearningRateConfig = Field(description="Number or schedule.")
    betas: tuple[Beta, Beta] = Field(default=(0.9, 0.999), description="Decay of the two moments.")
    eps: Eps = Field(default=1e-8, description="Added to the root of the second moment.")
    weight_decay: WeightDecay = Field(default=0.0, description="L2 penalty, added to the gradient.")


class LazyAdamConfig(BaseConfig):
    """Adam that leaves rows without a gradient alone, where gradients are sparse; not for embedding tables."""

    learning_rate: LearningRateConfig = Field(description="Number or schedule.")
    betas: tuple[Beta, Beta] = Field(default=(0.9, 0.999), description="Decay of the two moments.")
    eps: Eps = Field(default=1e-8, description="Added to the root of the second moment.")


class RmspropConfig(BaseConfig):
    """RMSProp; not for embedding tables.

    The defaults of decay, eps and initial_accumulator are TensorFlow 1's; torch has 0.99, 1e-8 and 0. As in torch, eps
    is added to the root of the mean square, where TensorFlow adds it inside the root.
    """

    learning_rate: LearningRateConfig = Field(description="Number or schedule.")
    decay: Beta = Field(default=0.9, description="Decay of the mean square of the gradient.")
    eps: Eps = Field(default=1e-10, description="Added to the root of the mean square.")
    momentum: Beta = Field(default=0.0, description="Decay of the sum of scaled gradients.")
    centered: bool = Field(default=False, description="Divide by the deviation of the gradient, not by its size.")
    weight_decay: WeightDecay = Field(default=0.0, description="L2 penalty, added to the gradient.")
    initial_accumulator: Accumulator = Field(
        default=1.0, description="Mean square at the start; with 0 the first steps are about 1 / sqrt(1 - decay) rates."
    )


class FtrlConfig(BaseConfig):
    """FTRL-proximal, whose L1 penalty makes weights exactly zero; not for embedding tables."""

    learning_rate: LearningRateConfig = Field(description="Number or schedule.")
    learning_rate_power: float = Field(
        default=-0.5, ge=-1, le=0, description="Power of the sum of squares in a weight's rate; 0 keeps the rate."
    )
    # Zero would make 0 / 0 of every weight whose gradient has always been zero.
    initial_accumulator: Accumulator = Field(default=0.1, gt=0, description="Sum of squares at the start.")
    l1: Penalty = Field(default=0.0, description="Penalty of a weight's absolute value.")
    l2: Penalty = Field(default=0.0, description="Penalty of a weight's square.")


class OptimizerConfig(BaseConfig):
    """One optimizer by name."""

    one_of: ClassVar[tuple[tuple[str, ...], ...]] = (
        ("sgd", "momentum", "adagrad", "rowwise_adagrad", "rmsprop", "ftrl", "lazy_adam", "adam"),
    )

    sgd: SgdConfig | None = Field(default=None, description="Stochastic gradient descent.")
    momentum: MomentumConfig | None = Field(default=None, description="Gradient descent with momentum.")
    adagrad: AdagradConfig | None = Field(default=None, description="Adagrad.")
    rowwise_adagrad: RowwiseAdagradConfig | None = Field(default=None, description="Row-wise Adagrad.")
    rmsprop: RmspropConfig | None = Field(default=None, description="RMSProp.")
    ftrl: FtrlConfig | None = Field(default=None, description="FTRL-proximal.")
    lazy_adam: LazyAdamConfig | None = Field(default=None, description="Adam for sparse gradients.")
    adam: AdamConfig | None = Field(default=None, description="Adam.")

    @property
    def chosen(self) -> tuple[str, Any]:
        """The name of the optimizer that is set and its section."""
        return _chosen(self)

    @property
    def learning_rate(self) -> LearningRateConfig:
        """The learning rate of the optimizer that is set."""
        learning_rate: LearningRateConfig = self.chosen[1].learning_rate
        return learning_rate


def _chosen(config: LearningRateConfig | OptimizerConfig) -> tuple[str, Any]:
    return next((name, value) for name in config.one_of[0] if (value := getattr(config, name)) is not None)
