"""A head and a batch of random rows, for `tml plan --measure`: what a step costs shows without data.

Letters: `B` rows, `T` table slots, `D` embedding dim.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tml.common.batch import Cursor
from tml.common.modules.normalizers import Normalizer
from tml.projects.light_ranker.calibration import Calibration
from tml.projects.light_ranker.config import LightRankerConfig
from tml.projects.light_ranker.data.batch import RankerBatch
from tml.projects.light_ranker.features.spec import FeatureSpec
from tml.projects.light_ranker.models.mlp import RankerHead
from tml.projects.light_ranker.models.objective import Objective
from tml.projects.light_ranker.models.pretrained import read_pretrained
from tml.projects.light_ranker.models.tables import MlpSlots

# Rows of a group, where there are groups.
_GROUP_ROWS = 10


def sample_head(config: LightRankerConfig, slots: MlpSlots, num_rows: int) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """The loss of `num_rows` random rows, and the tensors it is derived by: looked-up rows and parameters.

    Args:
        config: the whole config, of an mlp.
        slots: of its model.
        num_rows: `B`.

    Raises:
        ConfigError: a label is unknown.
        DataError: pretrained embeddings cannot be read.
    """
    assert config.model.mlp is not None
    objective = Objective(config.loss, slots.spec, num_ranks=1)
    pretrained = {feature.name: read_pretrained(feature) for feature in slots.pretrained}
    head = RankerHead(slots, config.model.mlp, objective, _calibration(slots.spec), pretrained)
    batch = _batch(slots, num_rows)
    ids = num_rows * slots.num_table_slots
    rows = (torch.randn(ids, config.model.mlp.embedding_dim) / 10).requires_grad_()
    return lambda: head(rows, batch)[0], [rows, *head.dense_tensors().values()]


def _calibration(spec: FeatureSpec) -> Calibration:
    """Scales that change nothing, and bins of equal width."""
    names = [feature.name for feature in spec.continuous]
    ones = torch.ones(len(names), dtype=torch.float64)
    normalizer = Normalizer(names, [feature.transform for feature in spec.continuous], ones, ones, ones)
    boundaries = {f.name: torch.linspace(-3, 3, f.num_pieces + 1).tolist() for f in spec.continuous}
    return Calibration(normalizer, boundaries, "made up")


def _batch(slots: MlpSlots, num_rows: int) -> RankerBatch:
    spec = slots.spec
    num_mask_slots = spec.num_slots if slots.has_mask else 0
    places = [torch.randint(f.num_rows, (num_rows, f.num_slots)) for f in slots.pretrained]
    return RankerBatch(
        nodes=None,
        ids=torch.cat([torch.empty(num_rows, 0, dtype=torch.int64), *places], dim=1),
        slot_mask=torch.ones(num_rows, num_mask_slots),
        continuous=torch.randn(num_rows, len(spec.continuous)),
        vectors=torch.randn(num_rows, spec.num_vector_values),
        labels=torch.randint(2, (num_rows, len(spec.labels))).float(),
        weight=torch.ones(num_rows),
        group=torch.arange(num_rows) // _GROUP_ROWS,
        is_real=torch.ones(num_rows, dtype=torch.bool),
        num_examples=num_rows,
        cursor=Cursor(),
    )
