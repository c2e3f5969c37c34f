"""The graph that serves a `lolly_lr` model: `probability = sigmoid(bias + sum of weights)`.

Hashes are taken at export, not at every request: the offset table holds, for each feature, the weight of each of its
encoded rows and bins, so the graph looks up and adds.

Letters: `R` rows of the table.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from tml.common.modules.calibrators import Isotonic
from tml.projects.light_ranker.export.graph import SIDES, TABLE, ServingGraph
from tml.projects.light_ranker.export.sides import SideInput, SideLookup, bins_of, slots_of
from tml.projects.light_ranker.features.spec import MISSING
from tml.projects.light_ranker.models.bins import Bins
from tml.projects.light_ranker.models.lolly_lr import LollyRanker

_BLOCK_ROWS = 1 << 16


class LollyGraph(ServingGraph):
    """Serves a `LollyRanker`.

    Args:
        model: trained.
        isotonic: calibration of the click's probability, if any.
    """

    bias: Tensor

    def __init__(self, model: LollyRanker, isotonic: Isotonic | None) -> None:
        super().__init__(model.spec, isotonic, takes_vectors=False)
        spec, bins = model.spec, model.slots.bins
        weights = _row_weights(model)
        offsets, total = {}, 0
        for feature in spec.ids:
            offsets[feature.name] = total
            total += feature.num_rows
        moved = None
        if bins is not None and len(bins.columns):
            moved = Bins([], [], [], bins.left_closed)
            moved.columns, moved.boundaries = bins.columns, bins.boundaries
            moved.rows = total + torch.arange(bins.rows.numel()).view_as(bins.rows)
            weights.append(_weights_of(model, bins.rows.flatten()))
        self.add_table(TABLE, torch.cat(weights).unsqueeze(1))
        self.sides = nn.ModuleDict()
        for side in SIDES:
            slots = slots_of(spec, side)
            first = [offsets[feature.name] for feature, _ in slots]
            self.sides[side] = SideLookup(slots, first, bins_of(moved, spec, side), 1)
        self.register_buffer("bias", model.bias.detach().clone())

    def scores(self, user: SideInput | None, candidate: SideInput) -> tuple[Tensor, ...]:
        """Probabilities and logits."""
        logits = self.bias + self._sum("candidate", candidate)
        if user is not None:
            logits = logits + self._sum("user", user)
        return self.probability(logits), logits

    def _sum(self, side: str, given: SideInput) -> Tensor:
        rows = self.sides[side](getattr(self, TABLE), given)
        # A padding slot has looked up row 0 of its feature, which stands for a missing value and weighs nothing.
        return rows.squeeze(2).sum(1)


def _row_weights(model: LollyRanker) -> list[Tensor]:
    """Weights `[num_rows]` of each id feature's encoded rows; a missing value has none."""
    spec = model.spec
    slots = [spec.slot_features().tolist().index(place) for place in range(len(spec.ids))]
    parts: list[list[Tensor]] = [[] for _ in slots]
    for first in range(0, max((feature.num_rows for feature in spec.ids), default=0), _BLOCK_ROWS):
        rows = np.full((_BLOCK_ROWS, spec.num_slots), MISSING, np.int64)
        rows[:, slots] = np.arange(first, first + _BLOCK_ROWS)[:, None]
        hashed = torch.from_numpy(model.slots.hash_ids(rows))
        for feature, slot, part in zip(spec.ids, slots, parts, strict=True):
            part.append(_weights_of(model, hashed[: max(feature.num_rows - first, 0), slot]))
    return [torch.cat(part) for part in parts]


def _weights_of(model: LollyRanker, hashed: Tensor) -> Tensor:
    weights = model.weight.detach().squeeze(1)[hashed.clamp_min(0)]
    return torch.where(hashed >= 0, weights, 0.0)
