"""The optimizers of a run: dense ones that step, fused ones that update during backward, and the rates of both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tml.common.errors import ConfigError
from tml.core.optimizers.config import OptimizerConfig
from tml.core.optimizers.ftrl import Ftrl
from tml.core.optimizers.fused import FusedOptimizer
from tml.core.optimizers.lazy_adam import LazyAdam
from tml.core.optimizers.schedules import Schedule


class Optimizers:
    """All optimizers of a model and their schedules, by name.

    The order within a step is `zero_grad()`, `set_learning_rates(step)`, forward, backward (tables are updated here, so
    their rate must be set before), `step()` (dense parameters are updated here).

    The state of dense optimizers exists from the start, so a checkpoint can always be loaded into it in place.

    Args:
        dense: optimizers that update in `step()`; see `build_dense_optimizer`. Move parameters to their device before.
        fused: optimizers that update during backward.
        schedules: a schedule for every name of `dense` and `fused`.

    Raises:
        ValueError: the names of optimizers and schedules are not the same, or a name is both dense and fused.
    """

    def __init__(
        self,
        dense: Mapping[str, torch.optim.Optimizer],
        fused: Mapping[str, FusedOptimizer],
        schedules: Mapping[str, Schedule],
    ) -> None:
        if set(dense) & set(fused):
            raise ValueError(f"names of dense and fused optimizers must differ: {sorted(set(dense) & set(fused))}")
        if set(dense) | set(fused) != set(schedules):
            raise ValueError(
                f"each optimizer needs a schedule of its name: optimizers {sorted({*dense, *fused})}, "
                f"schedules {sorted(schedules)}"
            )
        self.dense = dict(dense)
        self.fused = dict(fused)
        self.schedules = dict(schedules)
        for optimizer in self.dense.values():
            initialise_state(optimizer)
        self._may_be_sparse = True

    def zero_grad(self) -> None:
        """Forgets the gradients of dense parameters. Fused tables keep none."""
        for optimizer in self.dense.values():
            optimizer.zero_grad(set_to_none=True)

    def dense_parameters(self) -> list[nn.Parameter]:
        """The parameters that `step()` updates, in the order of optimizers and of their groups."""
        return list(self.named_dense_parameters().values())

    def named_dense_parameters(self) -> dict[str, nn.Parameter]:
        """The same by `<optimizer>.<parameter>`, as in the keys of a checkpoint."""
        return {
            f"{name}.{parameter_name}": parameter
            for name, optimizer in self.dense.items()
            for parameter_name, parameter in _named_parameters(optimizer)
        }

    def step(self) -> None:
        """Updates dense parameters. Fused tables have been updated during backward.

        Raises:
            ConfigError: an optimizer cannot use a sparse gradient.
        """
        if self._may_be_sparse:
            for name, optimizer in self.dense.items():
                _require_usable_gradients(name, optimizer)
            self._may_be_sparse = False  # how a module makes its gradients does not change
        for optimizer in self.dense.values():
            optimizer.step()

    def set_learning_rates(self, step: int) -> dict[str, float]:
        """Sets every optimizer's rate; call it before the backward of this step.

        Args:
            step: number of updates made so far (0 for the first).

        Returns:
            The rate by optimizer name, for the log.
        """
        rates = {name: schedule(step) for name, schedule in self.schedules.items()}
        for name, optimizer in self.dense.items():
            for group in optimizer.param_groups:
                group["lr"] = rates[name]
        for name, fused in self.fused.items():
            fused.set_learning_rate(rates[name])
        return rates

    def checkpoint_tensors(self) -> dict[str, Tensor]:
        """Returns the dense optimizers' state as live references, to be saved from and loaded into in place.

        Keys are `<optimizer>.<parameter>.<state>`, with the parameter's name where the optimizer knows it, else its
        place among the optimizer's parameters. Learning rates are not among them: they follow from the step.
        """
        return {
            f"{name}.{parameter_name}.{state_name}": value
            for name, optimizer in self.dense.items()
            for parameter_name, parameter in _named_parameters(optimizer)
            for state_name, value in sorted(optimizer.state.get(parameter, {}).items())
            if value is not None
        }


def build_dense_optimizer(config: OptimizerConfig, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
    """Builds the optimizer that the config names for parameters outside the fused tables.

    Args:
        config: exactly one optimizer is set. Its learning rate is applied later, by `Optimizers.set_learning_rates`.
        parameters: by name; the names become part of the checkpoint's keys.

    Raises:
        ConfigError: the optimizer cannot update such parameters, or there are none.
    """
    if not parameters:
        raise ConfigError(
            "an optimizer has no parameters to update",
            where=f"optimizer {config.chosen[0]}",
            fix="leave this optimizer out, or give the model parameters of its kind",
        )
    name, section = config.chosen
    return _DENSE_BUILDERS[name](section, parameters)


def initialise_state(optimizer: torch.optim.Optimizer) -> None:
    """Makes the state that an optimizer would make lazily in its first step, as zeros; parameters keep their values.

    Without it a checkpoint loaded before the first step would be dropped silently: there is nothing to load into.
    """
    fresh = [p for group in optimizer.param_groups for p in group["params"] if p not in optimizer.state]
    if not fresh:
        return
    gradients = {p: p.grad for group in optimizer.param_groups for p in group["params"]}
    rates = [group["lr"] for group in optimizer.param_groups]
    for parameter in gradients:
        parameter.grad = torch.zeros_like(parameter) if parameter in set(fresh) else None
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    for parameter, gradient in gradients.items():
        parameter.grad = gradient
    for parameter in fresh:
        _zero_state(optimizer.state[parameter])


def _zero_state(state: dict[str, Any]) -> None:
    # The dummy step has counted a step, and weight decay has put the parameter itself into the moments.
    for name, value in state.items():
        if isinstance(value, Tensor):
            value.zero_()
        elif value is not None:
            raise TypeError(f"optimizer state {name!r} is a {type(value).__name__}; a checkpoint holds tensors only")


def _require_usable_gradients(name: str, optimizer: torch.optim.Optimizer) -> None:
    of_dense_gradients = type(optimizer).__name__ in ("Adam", "RMSprop", "RowWiseAdagrad")
    sparse = [key for key, p in _named_parameters(optimizer) if p.grad is not None and p.grad.is_sparse]
    if sparse and (of_dense_gradients or any(group.get("weight_decay") for group in optimizer.param_groups)):
        raise ConfigError(
            "the optimizer cannot use a sparse gradient",
            where=f"optimizer {name}, parameter {sparse[0]}",
            value=type(optimizer).__name__,
            limit="sgd, momentum, adagrad, ftrl or lazy_adam, without weight_decay",
            fix="use lazy_adam for adam, adagrad for the others",
        )


def _named_parameters(optimizer: torch.optim.Optimizer) -> list[tuple[str, nn.Parameter]]:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    names = [name for group in optimizer.param_groups for name in group.get("param_names", ())]
    if len(names) != len(parameters):
        names = [str(place) for place in range(len(parameters))]
    return list(zip(names, parameters, strict=True))


def _sgd(section: Any, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters.items(), lr=0.0, momentum=section.momentum, weight_decay=section.weight_decay)


def _adagrad(section: Any, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adagrad(
        parameters.items(),
        lr=0.0,
        eps=section.eps,
        weight_decay=section.weight_decay,
        initial_accumulator_value=section.initial_accumulator,
    )


def _rowwise_adagrad(section: Any, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
    for name, parameter in parameters.items():
        if parameter.dim() != 2:
            raise ConfigError(
                "row-wise Adagrad needs parameters with rows",
                where=f"parameter {name}",
                value=tuple(parameter.shape),
                limit="two dimensions",
                fix="use adagrad",
            )
    # torchrec takes seconds to import and only this optimizer needs it.
    from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

    optimizer: torch.optim.Optimizer = RowWiseAdagrad(
        parameters.items(), lr=0.0, eps=section.eps, weight_decay=section.weight_decay
    )
    return optimizer


def _adam(section: Any, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(
        parameters.items(),
        lr=0.0,
        betas=section.betas,
        eps=section.eps,
        weight_decay=section.weight_decay,
        fused=True,  # one pass over each parameter; a small one is updated by a dozen operations otherwise
    )


def _lazy_adam(section: Any, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
    return LazyAdam(parameters.items(), lr=0.0, betas=section.betas, eps=section.eps)


def _rmsprop(section: Any, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
    optimizer = torch.optim.RMSprop(
        parameters.items(),
        lr=0.0,
        alpha=section.decay,
        eps=section.eps,
        weight_decay=section.weight_decay,
        momentum=section.momentum,
        centered=section.centered,
    )
    initialise_state(optimizer)
    for state in optimizer.state.values():
        state["square_avg"].fill_(section.initial_accumulator)
    return optimizer


def _ftrl(section: Any, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
    return Ftrl(
        parameters.items(),
        lr=0.0,
        learning_rate_power=section.learning_rate_power,
        initial_accumulator=section.initial_accumulator,
        l1=section.l1,
        l2=section.l2,
    )


_DENSE_BUILDERS: dict[str, Callable[[Any, Mapping[str, nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": _sgd,
    "momentum": _sgd,
    "adagrad": _adagrad,
    "rowwise_adagrad": _rowwise_adagrad,
    "rmsprop": _rmsprop,
    "ftrl": _ftrl,
    "lazy_adam": _lazy_adam,
    "adam": _adam,
}
