"""Optimizers that live inside the embedding kernel and update the tables during backward.

The only thing the loop has to say to them is the learning rate; their momentum belongs to the model's checkpoint
tensors. The adapters know their kernels by the methods they call and import neither fbgemm nor torchrec.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, Protocol, get_args

from tml.common.errors import ConfigError
from tml.common.modules.table_layout import FusedKind, FusedOptimizerSpec
from tml.core.config import config_hash
from tml.core.optimizers.config import OptimizerConfig
from tml.core.optimizers.schedules import build_schedule

_FUSED_KINDS = get_args(FusedKind)


class FusedOptimizer(Protocol):
    """What the loop asks of an optimizer that updates its tables during backward."""

    def set_learning_rate(self, learning_rate: float) -> None:
        """Sets the rate of every update from the next backward on."""


class LocalFusedOptimizer:
    """The optimizer inside embedding kernels that this process calls directly.

    Args:
        kernels: modules with `set_learning_rate(float)`, such as those of `tml.common.modules.embedding_tables`.
    """

    def __init__(self, *kernels: Any) -> None:
        self._kernels = kernels

    def set_learning_rate(self, learning_rate: float) -> None:
        """Sets the rate in each kernel."""
        for kernel in self._kernels:
            kernel.set_learning_rate(learning_rate)


class ShardedFusedOptimizer:
    """The optimizer inside torchrec's sharded modules: `DistributedModelParallel.fused_optimizer`.

    Args:
        fused_optimizer: a keyed optimizer whose parameter keys hold the table's name as one of their dotted parts.
        tables: names of the tables whose rate is set here, or None for all. A rank may hold no shard of a table; its
            rate then has no effect there.

    Raises:
        ConfigError: a kernel updates some of the named tables together with others, so a rate cannot be theirs alone.
    """

    def __init__(self, fused_optimizer: Any, tables: Collection[str] | None = None) -> None:
        self._fused_optimizer = fused_optimizer
        groups = list(fused_optimizer.param_groups)
        self._groups = groups if tables is None else _groups_of_tables(fused_optimizer, groups, set(tables))

    def set_learning_rate(self, learning_rate: float) -> None:
        """Sets the rate in the parameter groups and hands it on to the kernels."""
        for group in self._groups:
            group["lr"] = learning_rate
        # The kernels read their groups only here; the update itself happens in backward.
        self._fused_optimizer.step()


def _groups_of_tables(fused_optimizer: Any, groups: Iterable[Any], tables: set[str]) -> list[Any]:
    key_of = {id(parameter): key for key, parameter in fused_optimizer.params.items()}
    chosen = []
    for group in groups:
        keys = [key_of[id(parameter)] for parameter in group["params"]]
        mine = [key for key in keys if tables & set(key.split("."))]
        if mine and len(mine) < len(keys):
            raise ConfigError(
                "tables that share a kernel cannot have different learning rates",
                where=f"embedding tables {', '.join(sorted(keys))}",
                value=sorted(tables),
                limit="all of the kernel's tables or none",
                fix="give these tables the same optimizer and the same learning rate",
            )
        if mine:
            chosen.append(group)
    return chosen


def fused_spec(config: OptimizerConfig, device_type: str, where: str = "optimizer") -> FusedOptimizerSpec:
    """The optimizer of a table, with the rate before its first step.

    Args:
        config: its section.
        device_type: `torch.device.type` of the tables.
        where: path of the section in the config, for a message.

    Raises:
        ConfigError: the kernels lack a setting, see `check_fused_support`.
    """
    check_fused_support(config, device_type, where)
    kind, section = config.chosen
    return FusedOptimizerSpec(
        kind=next(known for known in _FUSED_KINDS if known == kind),
        learning_rate=build_schedule(section.learning_rate)(0),
        eps=getattr(section, "eps", 1e-8),
        betas=getattr(section, "betas", (0.9, 0.999)),
        weight_decay=section.weight_decay,
        # Tables whose schedules differ cannot share a kernel.
        schedule_key=config_hash(section.learning_rate),
    )


def check_fused_support(config: OptimizerConfig, device_type: str, where: str = "optimizer") -> None:
    """Refuses settings that the fused kernels do not have, or would silently ignore.

    On a CPU the kernels have SGD, Adagrad and row-wise Adagrad, and accept a weight decay without applying it; on a GPU
    they also have Adam, and apply weight decay for Adam and row-wise Adagrad. No kernel has SGD with momentum, nor
    RMSProp, FTRL or LazyAdam; Adam itself is lazy in a table, as only rows of the batch are updated.

    Args:
        config: the optimizer of embedding tables.
        device_type: `torch.device.type` of the tables.
        where: path of the section in the config, for the message.

    Raises:
        ConfigError: names the setting and what to do instead.
    """
    name, section = config.chosen
    if name not in _FUSED_KINDS:
        raise ConfigError(
            f"{name} is not available for embedding tables",
            where=f"{where}.{name}",
            limit=", ".join(_FUSED_KINDS),
            fix="use rowwise_adagrad",
        )
    if name == "adam" and device_type == "cpu":
        raise ConfigError(
            "Adam is not available for embedding tables on a CPU",
            where=f"{where}.adam",
            limit="sgd, adagrad or rowwise_adagrad",
            fix="use rowwise_adagrad, or train on a GPU",
        )
    if name == "sgd" and section.momentum > 0:
        raise ConfigError(
            "momentum is not available for embedding tables",
            where=f"{where}.sgd.momentum",
            value=section.momentum,
            limit=0,
            fix="leave momentum out, or use rowwise_adagrad",
        )
    if name == "adagrad" and section.initial_accumulator > 0:
        raise ConfigError(
            "the accumulator of embedding tables begins at 0",
            where=f"{where}.adagrad.initial_accumulator",
            value=section.initial_accumulator,
            limit=0,
            fix="leave initial_accumulator out",
        )
    decays = device_type != "cpu" and name in ("rowwise_adagrad", "adam")
    if section.weight_decay > 0 and not decays:
        raise ConfigError(
            "weight decay would have no effect on these embedding tables",
            where=f"{where}.{name}.weight_decay",
            value=section.weight_decay,
            limit="0 (only rowwise_adagrad and adam on a GPU apply it)",
            fix="leave weight_decay out",
        )
