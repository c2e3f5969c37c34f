"""Between the backward and the dense optimizers: noise, the global norm, clipping.

Tables with a fused optimizer are updated inside the backward; nothing here reaches them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tml.common.errors import NonFiniteError
from tml.core.config.gradients import GradientsConfig

_NOISE = 0x6E6F697365  # keeps these draws apart from others of the same seed and step


class GradientStep:
    """Takes the place of the optimizers in the pipeline: works on the gradients, then has the optimizers step.

    In this order, as in TensorFlow's `optimize_loss`: noise is added, the norm of all gradients together is taken, and
    gradients are scaled down to `clip_norm`. Ranks have equal gradients by now, and make the same draws, so all do the
    same.

    Args:
        optimizers: has `zero_grad()`, `step()` and `dense_parameters()`.
        config: `noise_scale` and `clip_norm`.
        seed: of the noise.
        wants_norm: called with the number of completed steps: whether the next step's norm will be asked for.
    """

    def __init__(
        self, optimizers: Any, config: GradientsConfig, seed: int = 0, wants_norm: Callable[[int], bool] | None = None
    ) -> None:
        self.norm: Tensor | None = None
        self._optimizers, self._config, self._seed = optimizers, config, seed
        self._wants_norm = wants_norm or (lambda step: False)
        self._step = 0

    def begin(self, step: int) -> None:
        """Say which step comes next: the number of completed ones."""
        self._step = step

    def zero_grad(self) -> None:
        """Forgets the gradients."""
        self._optimizers.zero_grad()

    def step(self) -> None:
        """Updates dense parameters. `norm` is then that of this step, before clipping, or None if nobody asked for it.

        Raises:
            NonFiniteError: the norm was looked at and is not finite; no dense parameter has been changed.
        """
        self.norm = None
        clip_norm = self._config.clip_norm
        if self._config.noise_scale > 0 or clip_norm is not None or self._wants_norm(self._step):
            values = gradient_values(self._optimizers.dense_parameters())
            if self._config.noise_scale > 0:
                add_noise(values, self._config.noise_scale, self._seed, self._step)
            if values and (clip_norm is not None or self._wants_norm(self._step)):
                self.norm = torch.nn.utils.get_total_norm(values)
                _require_finite(self.norm, self._step)
            if self.norm is not None and clip_norm is not None:
                scale_down(values, self.norm, clip_norm)
        self._optimizers.step()


def gradient_values(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """The gradients as tensors that may be changed in place; of sparse ones the values of their rows, each once."""
    values = []
    for parameter in parameters:
        if parameter.grad is None:
            continue
        if parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
            values.append(parameter.grad.values())
        else:
            values.append(parameter.grad)
    return values


def add_noise(values: Sequence[Tensor], scale: float, seed: int, step: int) -> None:
    """Add `scale` times a normal draw, cut at two deviations; a function of seed, step and the shapes alone."""
    if not values:
        return
    state = np.random.SeedSequence([seed, step, _NOISE]).generate_state(1, np.uint64)
    generator = torch.Generator(device=values[0].device).manual_seed(int(state[0] >> np.uint64(1)))
    for value in values:
        draws = torch.empty_like(value)
        nn.init.trunc_normal_(draws, a=-2.0, b=2.0, generator=generator)
        value.add_(draws, alpha=scale)


def scale_down(values: Sequence[Tensor], norm: Tensor, limit: float) -> None:
    """Scale values of this norm together down to `limit`, if the norm is larger."""
    factor = (limit / (norm + 1e-6)).clamp(max=1.0)  # as torch.nn.utils.clip_grad_norm_ has it
    for value in values:
        value.mul_(factor)


def _require_finite(norm: Tensor, step: int) -> None:
    value = float(norm)
    if not math.isfinite(value):
        raise NonFiniteError(
            "the gradient of the dense parameters is not finite",
            where=f"step {step + 1}",
            value=value,
            limit="a finite norm",
            fix="lower the learning rate or look for bad values in the batch; the last checkpoint is from before it",
        )
