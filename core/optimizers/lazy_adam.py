"""Adam that leaves rows without a gradient alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam

from tml.core.optimizers.touched_rows import update_touched_rows, zero_steps


class LazyAdam(torch.optim.Optimizer):
    """`torch.optim.SparseAdam` for parameters with a sparse gradient, `torch.optim.Adam` for the others.

    A row without a gradient keeps its moments and its weights; Adam would move it on by its old momentum. The bias of
    the moments is corrected with the number of steps of the whole parameter. As in torch, `eps` is added to the root of
    the second moment after its correction where the gradient is dense, before it where it is sparse.

    Args:
        params: parameters, or `(name, parameter)` pairs.
        lr: learning rate.
        betas: decay of the two moments.
        eps: see above.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter] = {
                    "step": zero_steps(),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Updates every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            with_gradient = [parameter for parameter in group["params"] if parameter.grad is not None]
            self._dense_step(group, [parameter for parameter in with_gradient if not parameter.grad.is_sparse])
            for parameter in with_gradient:
                if parameter.grad.is_sparse:
                    self._sparse_step(group, parameter)
        return loss

    def _dense_step(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        states = [self.state[parameter] for parameter in parameters]
        if not states:
            return
        adam(
            parameters,
            [parameter.grad for parameter in parameters if parameter.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=0.0,
            eps=group["eps"],
            maximize=False,
        )

    def _sparse_step(self, group: dict[str, Any], parameter: Tensor) -> None:
        state = self.state[parameter]
        state["step"] += 1
        assert parameter.grad is not None
        update = partial(_update_rows, group, float(state["step"]))
        update_touched_rows(update, parameter.grad, parameter, state["exp_avg"], state["exp_avg_sq"])


def _update_rows(
    group: dict[str, Any], step: float, gradient: Tensor, weight: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor
) -> None:
    (beta1, beta2), eps = group["betas"], group["eps"]
    exp_avg.lerp_(gradient, 1 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    rate = group["lr"] * math.sqrt(1 - beta2**step) / (1 - beta1**step)
    weight.addcdiv_(exp_avg, exp_avg_sq.sqrt().add_(eps), value=-rate)
