"""One batch of encoded rows, as a model takes it.

Letters: `B` rows, `S` id slots, `T` table slots (own tables and bins), `P` other ids, `C` continuous features, `V`
values of dense vectors, `L` labels.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor
from torchrec import KeyedJaggedTensor

from tml.common.batch import Cursor, DataclassBatch


@dataclass
class RankerBatch(DataclassBatch):
    """A rank's rows of one global batch.

    Args:
        nodes: rows of the physical embedding table, `[B * T]` in the order of rows; None for a model without tables.
            A padding slot looks up row 0 of its feature and is masked.
        ids: int64 `[B, P]`, ids that no kernel looks up: rows of pretrained tables, or hashed ids (-1: absent).
        slot_mask: float32 `[B, S]`, 0 at padding slots; `[B, 0]` if no feature has several slots.
        continuous: float32 `[B, C]`, NaN where missing.
        vectors: float32 `[B, V]`.
        labels: float32 `[B, L]`, in the order of `spec.labels`.
        weight: float32 `[B]`, 0 for rows that only pad.
        group: int64 `[B]`, zeros without groups.
        is_real: bool `[B]`, False for rows that only pad so that ranks have equally many.
        num_examples: rows of all ranks together, without padding.
        cursor: the place in the data after this batch.
    """

    nodes: KeyedJaggedTensor | None
    ids: Tensor
    slot_mask: Tensor
    continuous: Tensor
    vectors: Tensor
    labels: Tensor
    weight: Tensor
    group: Tensor
    is_real: Tensor
    num_examples: int = field(metadata={"concat": "sum"})
    cursor: Cursor
