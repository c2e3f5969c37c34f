"""Encoded rows that lie in memory, as a batch of a model.

Letters: `B` rows, `S` id slots, `C` continuous features, `V` values of dense vectors, `L` labels.
"""

from __future__ import annotations

import numpy as np
import torch

from tml.common.batch import Cursor
from tml.projects.light_ranker.data.batch import RankerBatch
from tml.projects.light_ranker.data.dataset import Slots
from tml.projects.light_ranker.features.encoder import EncodedRows
from tml.projects.light_ranker.features.spec import FeatureSpec


def batch_in_memory(
    spec: FeatureSpec,
    slots: Slots,
    rows: EncodedRows,
    labels: np.ndarray | None = None,
    weight: np.ndarray | None = None,
    group: np.ndarray | None = None,
) -> RankerBatch:
    """A batch of all rows.

    Args:
        spec: the features.
        slots: of the model.
        rows: as an encoder gives them.
        labels: float32 [B, L]; zeros if None.
        weight: float32 [B]; ones if None.
        group: int64 [B]; zeros if None.
    """
    size = len(rows.ids)
    continuous = torch.from_numpy(rows.continuous)
    arranged = slots.arrange(rows.ids, continuous)
    return RankerBatch(
        nodes=arranged.nodes,
        ids=arranged.ids,
        slot_mask=arranged.slot_mask,
        continuous=continuous,
        vectors=torch.from_numpy(rows.vectors),
        labels=torch.zeros(size, len(spec.labels)) if labels is None else torch.from_numpy(labels),
        weight=torch.ones(size) if weight is None else torch.from_numpy(weight),
        group=torch.zeros(size, dtype=torch.int64) if group is None else torch.from_numpy(group),
        is_real=torch.ones(size, dtype=torch.bool),
        num_examples=size,
        cursor=Cursor(0, 0),
    )
