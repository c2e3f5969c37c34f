"""The original light ranker: logistic regression over hashed one-hot ids.

Letters: `B` rows, `K` ids of a row, `N` weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tml.common.profiling import phase
from tml.projects.light_ranker.data.batch import RankerBatch
from tml.projects.light_ranker.features.spec import FeatureSpec
from tml.projects.light_ranker.models.lolly_slots import LollySlots
from tml.projects.light_ranker.models.objective import Objective
from tml.projects.light_ranker.models.pretrained import has_sparse_gradients

# FullSparse of the original starts its bias at 1 / number of outputs.
INITIAL_BIAS = 1.0


class LollyRanker(nn.Module):
    """`z = bias + sum of the weights of the ids that are present`; weights start at zero.

    Args:
        slots: how rows become ids.
        objective: turns logits into a loss.
    """

    def __init__(self, slots: LollySlots, objective: Objective) -> None:
        super().__init__()
        self.slots, self.objective = slots, objective
        self.weight = nn.Parameter(torch.zeros(1 << slots.bits, 1))
        self.bias = nn.Parameter(torch.full((1,), INITIAL_BIAS))

    def forward(self, batch: RankerBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and outputs of a batch, see `Objective`."""
        with phase("scores"):
            logits = self.logits(batch.ids)
        with phase("loss"):
            return self.objective({"click": logits}, batch)

    def logits(self, ids: Tensor) -> Tensor:
        """`[B]` from hashed ids `[B, K]`; negative ones are absent."""
        with phase("lookup"):
            weights = nn.functional.embedding(ids.clamp_min(0), self.weight, sparse=has_sparse_gradients()).squeeze(2)
        return self.bias + (weights * (ids >= 0)).sum(1)

    @property
    def spec(self) -> FeatureSpec:
        """The features."""
        return self.slots.spec

    def checkpoint_tensors(self) -> dict[str, Tensor]:
        """All that a checkpoint must hold, live."""
        return {"lolly.weight": self.weight, "lolly.bias": self.bias}
