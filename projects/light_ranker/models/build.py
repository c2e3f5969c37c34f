"""From the config to a model ready to train."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tml.common.device import world_size
from tml.common.modules.embedding_tables import LocalTables, ShardedTables
from tml.common.modules.sharding import ShardedModel
from tml.ml_logging import get_logger
from tml.projects.light_ranker.calibration import Calibration
from tml.projects.light_ranker.config import LightRankerConfig
from tml.projects.light_ranker.features.spec import FeatureSpec
from tml.projects.light_ranker.lolly.hashed import HashedLolly, hash_lolly
from tml.projects.light_ranker.lolly.initial import initial_model
from tml.projects.light_ranker.models.lolly_lr import LollyRanker
from tml.projects.light_ranker.models.lolly_slots import LollySlots
from tml.projects.light_ranker.models.mlp import MlpRanker, RankerHead
from tml.projects.light_ranker.models.objective import Objective
from tml.projects.light_ranker.models.pretrained import read_pretrained
from tml.projects.light_ranker.models.tables import MlpSlots

logger = get_logger(__name__)

AnySlots = MlpSlots | LollySlots
Ranker = MlpRanker | LollyRanker
Built = TypeVar("Built")


def build_slots(config: LightRankerConfig, spec: FeatureSpec, calibration: Calibration, device_type: str) -> AnySlots:
    """Where each id of an example lies.

    Raises:
        ConfigError, DataError: the tables cannot be had on this device, or a text model cannot be read.
    """
    slots: AnySlots
    if config.model.mlp is not None:
        slots = MlpSlots(spec, config.model.mlp, device_type)
    else:
        assert config.model.lolly_lr is not None
        slots = LollySlots(spec, config.model.lolly_lr, _text_model(config))
        if spec.vectors:
            logger.warning(
                "lolly_lr learns from ids and bins alone; vectors and target encodings are left out: %s",
                ", ".join(feature.name for feature in spec.vectors),
            )
    slots.set_boundaries(calibration.boundaries)
    return slots


def build_model(
    config: LightRankerConfig, slots: AnySlots, calibration: Calibration, device: torch.device, local: bool = False
) -> nn.Module:
    """A model at its start, the same for any number of ranks.

    Args:
        config: the whole config.
        slots: of `build_slots`.
        calibration: scales of the numbers.
        device: of this rank.
        local: keep all of it in this process, whatever the number of ranks, as for an export.

    Returns:
        A model on one CPU rank; else it is inside a `ShardedModel`, or `DistributedDataParallel` if it has no tables.
    """
    seed = config.runtime.seed
    section = config.model.lolly_lr
    replicate_label = section.replicate_label if section else None
    objective = Objective(config.loss, slots.spec, replicate_label, num_ranks=1 if local else None)
    alone = local or (device.type == "cpu" and world_size() == 1)
    if isinstance(slots, LollySlots):
        return _replicated(_lolly(config, slots, objective), device, alone)
    assert config.model.mlp is not None
    pretrained = {feature.name: read_pretrained(feature) for feature in slots.pretrained}
    head = seeded(seed, lambda: RankerHead(slots, config.model.mlp, objective, calibration, pretrained))  # type: ignore[arg-type]
    if slots.layout is None:
        return _replicated(MlpRanker(None, head), device, alone)
    if alone:
        return MlpRanker(LocalTables(slots.layout, seed), head)
    return ShardedModel(MlpRanker(ShardedTables(slots.layout), head.to(device)), device, seed)


def unwrapped(model: nn.Module) -> Ranker:
    """The ranker inside whatever wraps it."""
    inner = model
    while not isinstance(inner, MlpRanker | LollyRanker):
        inner = inner.module  # type: ignore[assignment]
    return inner


def seeded(seed: int, build: Callable[[], Built]) -> Built:
    """What `build` makes with torch's random stream at a seed of its own; the stream comes out as it went in."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def _lolly(config: LightRankerConfig, slots: LollySlots, objective: Objective) -> LollyRanker:
    model = LollyRanker(slots, objective)
    initial = _text_model(config)
    if initial is not None:
        with torch.no_grad():
            model.weight.copy_(torch.as_tensor(initial.weight, dtype=torch.float32).unsqueeze(1))
            model.bias.fill_(float(initial.bias))
    return model


def _text_model(config: LightRankerConfig) -> HashedLolly | None:
    text, section = initial_model(config), config.model.lolly_lr
    return None if text is None or section is None else hash_lolly(text, section.input_size_bits)


def _replicated(model: nn.Module, device: torch.device, alone: bool) -> nn.Module:
    return model.to(device) if alone else DistributedDataParallel(model.to(device))


def replicated_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter outside the tables that learns, by name."""
    inner = unwrapped(model)
    return inner.dense_tensors() if isinstance(inner, MlpRanker) else inner.checkpoint_tensors()
