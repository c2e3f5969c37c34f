"""Batches of ids with labels, for tests of what passes them on and of what trains on them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torchrec import KeyedJaggedTensor

from tml.common.batch import Cursor, DataclassBatch

NUM_IDS = 12


@dataclass
class IdBatch(DataclassBatch):
    features: KeyedJaggedTensor
    labels: Tensor
    cursor: Cursor
    num_examples: int = field(metadata={"concat": "sum"})


def id_batch(step: int, rank: int = 0, num: int = 4) -> IdBatch:
    generator = torch.Generator().manual_seed(1000 * rank + step)
    ids = torch.randint(NUM_IDS, (num,), generator=generator)
    features = KeyedJaggedTensor(["ids"], ids, lengths=torch.ones(num, dtype=torch.int64))
    return IdBatch(features, torch.rand(num, generator=generator), Cursor(0, (step + 1) * num), num)
