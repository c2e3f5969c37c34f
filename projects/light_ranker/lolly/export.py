"""A trained `lolly_lr` as a lolly text model."""

from __future__ import annotations

import numpy as np

from tml.common.errors import ConfigError
from tml.ml_logging import get_logger
from tml.projects.light_ranker.lolly.hashed import HashedBins, bin_rows, feature_row, lolly_of_weights
from tml.projects.light_ranker.lolly.initial import initial_model
from tml.projects.light_ranker.lolly.model import LollyModel
from tml.projects.light_ranker.models.lolly_lr import LollyRanker
from tml.projects.light_ranker.models.lolly_slots import LollySlots
from tml.projects.light_ranker.phases import TrainedRanker

logger = get_logger(__name__)


def lolly_of_ranker(trained: TrainedRanker, name: str) -> LollyModel:
    """The text model that scores as the trained model does, for all numbers in float32.

    Features of the text that the run began with and that its data lacks keep their weights.

    Args:
        trained: a run of `lolly_lr`, see `load_trained`.
        name: of the text model.

    Raises:
        ConfigError: the model is another, or has a weight for every value of an id, which the text has no line for.
    """
    if not isinstance(trained.model, LollyRanker):
        raise ConfigError(
            "only lolly_lr can be written as a lolly model", where=str(trained.config.training.save_dir),
            value=type(trained.model).__name__, fix="train one: model: {lolly_lr: {}}",
        )  # fmt: skip
    slots = trained.model.slots
    presence = {feature: feature_row(feature, slots.bits) for feature in _present(slots)}
    bins = {feature: _bins(slots, feature, edges) for feature, edges in slots.boundaries.items()}
    weight = trained.model.weight.detach().numpy()[:, 0]
    bias = float(trained.model.bias.detach()[0])
    model = lolly_of_weights(name, bias, weight, presence, bins, slots.left_closed)
    initial = initial_model(trained.config)
    return model if initial is None else _with_rest(model, initial.in_float32())


def _present(slots: LollySlots) -> list[str]:
    by_value = [feature.name for feature in slots.spec.ids if feature.name not in slots.presence]
    if by_value:
        raise ConfigError(
            "a lolly model has no weights for the values of an id", where="features.yaml", value=by_value,
            limit="continuous features, and features that count by their presence",
            fix="train without these features, or serve the ONNX export",
        )  # fmt: skip
    return [feature.name for feature in slots.spec.features if feature.name in slots.presence]


def _bins(slots: LollySlots, feature: str, edges: list[float]) -> HashedBins:
    # The model compares float32 numbers.
    boundaries = tuple(float(np.float32(edge)) for edge in edges)
    return HashedBins(boundaries, bin_rows(feature, len(edges), slots.bits, slots.left_closed))


def _with_rest(model: LollyModel, initial: LollyModel) -> LollyModel:
    known = set(model.feature_names())
    rest = [feature for feature in initial.feature_names() if feature not in known]
    if rest:
        logger.info("%d features of the initial model are not in the data and keep their weights", len(rest))
    binary = {**{name: initial.binary[name] for name in rest if name in initial.binary}, **model.binary}
    others = {name: initial.discretized[name] for name in rest if name in initial.discretized}
    return LollyModel(model.name, model.bias, binary, {**others, **model.discretized}, model.source)
