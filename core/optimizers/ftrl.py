"""FTRL-proximal: Adagrad whose L1 penalty makes weights exactly zero."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tml.core.optimizers.touched_rows import update_touched_rows, zero_steps


class Ftrl(torch.optim.Optimizer):
    """FTRL-proximal (McMahan et al., "Ad click prediction: a view from the trenches", KDD 2013, algorithm 1), in the
    form of TensorFlow's `Ftrl`. Per weight `w` with gradient `g`, where `p` is `-learning_rate_power`:

        n' = n + g^2
        z' = z + lr g - (n'^p - n^p) w
        w' = -(z' - sign(z') lr l1) / (n'^p + 2 lr l2)   where |z'| > lr l1, else 0

    TensorFlow and the paper keep `z / lr`. While the rate is constant that is the same. With a schedule it is not:
    there a falling rate shrinks all weights, here it does not, and without penalties this is Adagrad at any rate.

    `z` begins such that the initial weights are its solution; TensorFlow begins with 0, which pulls a weight that was
    initialised, a bias or a warm start, to 0 at its first update.

    A sparse gradient updates the rows it has and no others. A rate of 0 updates nothing.

    Args:
        params: parameters, or `(name, parameter)` pairs.
        lr: learning rate.
        learning_rate_power: from -1 to 0; -0.5 is Adagrad's root, 0 a rate that does not fall.
        initial_accumulator: `n` at the start, above 0.
        l1: penalty of the absolute value.
        l2: penalty of the square.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.05,
        *,
        learning_rate_power: float = -0.5,
        initial_accumulator: float = 0.1,
        l1: float = 0.0,
        l2: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "learning_rate_power": learning_rate_power, "l1": l1, "l2": l2})
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter] = {
                    "step": zero_steps(),
                    "accumulator": torch.full_like(parameter, initial_accumulator),
                    "linear": torch.zeros_like(parameter),
                }

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Updates every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and group["lr"] > 0:
                    _step_of_parameter(parameter, self.state[parameter], group)
        return loss


def _step_of_parameter(parameter: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
    accumulator, linear = state["accumulator"], state["linear"]
    if state["step"] == 0:
        # Not when the optimizer is made: a warm start may load other weights before the first step.
        penalty = parameter.sign().mul_(group["lr"] * group["l1"])
        linear.copy_(-parameter * _quadratic(accumulator, group) - penalty)
    state["step"] += 1
    assert parameter.grad is not None
    update_touched_rows(partial(_update, group), parameter.grad, parameter, accumulator, linear)


def _update(group: dict[str, Any], gradient: Tensor, weight: Tensor, accumulator: Tensor, linear: Tensor) -> None:
    power, threshold = -group["learning_rate_power"], group["lr"] * group["l1"]
    before = accumulator.pow(power)
    accumulator.addcmul_(gradient, gradient)
    linear.add_(gradient, alpha=group["lr"]).sub_((accumulator.pow(power) - before).mul_(weight))
    shrunk = linear.sign().mul_((linear.abs() - threshold).clamp_(min=0))
    weight.copy_(shrunk.neg_().div_(_quadratic(accumulator, group)))


def _quadratic(accumulator: Tensor, group: dict[str, Any]) -> Tensor:
    return accumulator.pow(-group["learning_rate_power"]).add_(2 * group["lr"] * group["l2"])
