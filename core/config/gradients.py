"""What happens to the gradients of dense parameters between the backward and their optimizer. No torch here."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from tml.core.config.base_config import BaseConfig


class DensityDecayConfig(BaseConfig):
    """The density falls in stages: `max(density, initial_density * rate ** floor(step / every_n))`.

    The warm-up of Deep Gradient Compression is 0.25 (a sparsity of 75 %), then 6.25 %, 1.6 %, 0.4 %: the defaults, with
    an epoch for `every_n`.
    """

    initial_density: float = Field(default=0.25, gt=0, le=1, description="Density of the first stage.")
    rate: float = Field(default=0.25, gt=0, lt=1, description="Factor from stage to stage.")
    every_n: int = Field(ge=1, le=10**12, description="Steps of a stage.")


class CompressionConfig(BaseConfig):
    """Deep Gradient Compression (Lin et al., arXiv 1712.01887): ranks send the largest parts of a gradient only.

    Made for plain `sgd`: momentum belongs here, before the exchange, not in the optimizer.
    """

    unit: Literal["element", "row"] = Field(
        default="element",
        description="What is kept or left out: single values by their size, or rows of matrices by the sum of their "
        "absolute values. Parameters with less than two dimensions have no rows and are sent whole.",
    )
    density: float = Field(
        default=0.001, gt=0, le=1, description="Share of each parameter that a step sends, one value or row at least."
    )
    density_decay: DensityDecayConfig | None = Field(
        default=None, description="Begin with a larger density that falls to `density`."
    )
    momentum: float = Field(
        default=0.9,
        ge=0,
        lt=1,
        description="Momentum of each rank's own gradients; where something is sent, its momentum begins anew.",
    )
    accumulate: bool = Field(
        default=True, description="Keep what is not sent and add it to later gradients, instead of dropping it."
    )
    clip_norm: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Scale down each parameter's own gradient of a rank, before anything is added to it, to this norm "
        "divided by the root of the number of ranks.",
    )

    @model_validator(mode="after")
    def _fields_fit(self) -> Self:
        if self.momentum > 0 and not self.accumulate:
            raise ValueError("momentum is of what accumulates: set momentum to 0, or accumulate to true")
        if self.density_decay is not None and self.density_decay.initial_density <= self.density:
            raise ValueError(
                f"density_decay begins at {self.density_decay.initial_density}, which must be above density "
                f"({self.density})"
            )
        return self


class GradientsConfig(BaseConfig):
    """Gradients of dense parameters on their way to the optimizer: exchanged, then noise, then clipping.

    Embedding tables with a fused optimizer are no part of this: they are updated inside the backward.
    """

    compression: CompressionConfig | None = Field(
        default=None, description="Send only the largest parts of gradients between ranks; whole gradients if null."
    )
    noise_scale: float = Field(
        default=0.0,
        ge=0,
        le=1e6,
        description="Add this times a standard normal draw, cut at two deviations, to every value of a gradient; of a "
        "sparse one, to its rows. The draws follow from seed and step and are the same on all ranks.",
    )
    clip_norm: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Scale the gradients of all dense parameters down to this norm of them together; no limit if null.",
    )
