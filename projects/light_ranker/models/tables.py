"""Where an example's ids lie: the embedding tables of an mlp, and how slots and bins become rows of them.

Letters: `B` rows, `S` id slots, `T` table slots (own tables' slots, then bins), `P` slots of pretrained tables.

All own tables and bins have one dim, data type and optimizer, so they share one physical table; its row for an id is
the table's offset plus the id. Pretrained tables have dims of their own and lie apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchrec import KeyedJaggedTensor

from tml.common.errors import ConfigError
from tml.common.modules.embedding_tables import keyed_ids
from tml.common.modules.table_layout import FusedOptimizerSpec, TableLayout, TableSpec
from tml.core.optimizers.fused import fused_spec
from tml.projects.light_ranker.config import MlpConfig
from tml.projects.light_ranker.features.spec import ContinuousFeature, FeatureSpec, IdFeature
from tml.projects.light_ranker.lolly.hashed import bin_rows
from tml.projects.light_ranker.models.bins import Bins

# Bins of all features with a hashing discretizer share this table; no feature can have its name.
HASHED_BINS = "#hashed_bins"

Boundaries = Mapping[str, list[float]]


@dataclass(frozen=True)
class BatchIds:
    """The ids of a batch, see `RankerBatch`."""

    nodes: KeyedJaggedTensor | None
    ids: Tensor
    slot_mask: Tensor


class MlpSlots:
    """The slots of an mlp's tables.

    Args:
        spec: the features.
        config: the `model.mlp` section.
        device_type: of the tables.

    Attributes:
        own: id features with a table of their own.
        pretrained: id features whose table was trained elsewhere.
        binned: continuous features that enter as ids.
        layout: the own tables and the bins'; None if there are none.

    Raises:
        ConfigError: the kernels of this device lack the optimizer, or hashing discretizers differ in their bits.
    """

    def __init__(self, spec: FeatureSpec, config: MlpConfig, device_type: str) -> None:
        self.spec = spec
        self.own = tuple(feature for feature in spec.ids if feature.embedding is None)
        self.pretrained = tuple(feature for feature in spec.ids if feature.embedding is not None)
        self.binned = tuple(feature for feature in spec.continuous if feature.has_bin_ids)
        optimizer = fused_spec(config.table_optimizer, device_type, "model.mlp.table_optimizer")
        self.layout = self._layout(config, optimizer)
        slots = spec.slot_features()
        is_own = np.array([feature.embedding is None for feature in spec.ids], dtype=bool)
        self._own_slots = np.flatnonzero(is_own[slots]) if len(slots) else slots
        self._pretrained_slots = np.flatnonzero(~is_own[slots]) if len(slots) else slots
        self.has_mask = any(feature.num_slots > 1 for feature in spec.ids)
        self._offsets = np.array(
            [self.layout.offset[feature.name] for feature in self.own for _ in range(feature.num_slots)]
            if self.layout
            else [],
            dtype=np.int64,
        )
        self.bins: Bins | None = None

    @property
    def num_table_slots(self) -> int:
        """T: ids of an example that the tables look up."""
        return len(self._own_slots) + len(self.binned)

    def set_boundaries(self, boundaries: Boundaries) -> None:
        """Take the fitted boundaries of every binned feature; to be called before the first batch is made."""
        assert self.layout is not None or not self.binned
        names = [feature.name for feature in self.spec.continuous]
        rows = [self._bin_rows(feature, len(boundaries[feature.name])) for feature in self.binned]
        columns = [names.index(feature.name) for feature in self.binned]
        self.bins = Bins(columns, [boundaries[feature.name] for feature in self.binned], rows) if rows else None

    def arrange(self, ids: np.ndarray, continuous: Tensor) -> BatchIds:
        """Physical rows, pretrained tables' rows and the mask of a batch.

        Args:
            ids: int32 or int64 `[B, S]`, valid encoded rows.
            continuous: float32 `[B, C]`.
        """
        mask = torch.from_numpy((ids >= 0).astype(np.float32)) if self.has_mask else torch.empty(len(ids), 0)
        ids = np.maximum(ids, 0) if self.has_mask else ids
        if not len(self._pretrained_slots):
            return BatchIds(self._nodes(ids + self._offsets, continuous), torch.empty(len(ids), 0).long(), mask)
        other = torch.from_numpy(ids[:, self._pretrained_slots].astype(np.int64))
        return BatchIds(self._nodes(ids[:, self._own_slots] + self._offsets, continuous), other, mask)

    def _nodes(self, physical: np.ndarray, continuous: Tensor) -> KeyedJaggedTensor | None:
        if self.layout is None:
            return None
        rows = torch.from_numpy(physical)
        if self.binned:
            assert self.bins is not None, "boundaries come before batches"
            rows = torch.cat([rows, self.bins(continuous)], dim=1)
        return keyed_ids(self.layout, rows.flatten())

    def _layout(self, config: MlpConfig, optimizer: FusedOptimizerSpec) -> TableLayout | None:
        sizes = {feature.name: feature.num_rows for feature in self.own}
        for feature in self.binned:
            name, num_rows = _bin_table(feature)
            if sizes.setdefault(name, num_rows) != num_rows:
                raise ConfigError(
                    "hashing discretizers must agree on their output_bits, since they share a table",
                    where=f"features.yaml, feature {feature.name!r}",
                    value=num_rows - 1,
                    limit=f"{sizes[name] - 1} hashed bins, as of the features before it",
                )
        tables = [
            TableSpec(name, rows, config.embedding_dim, optimizer, config.data_type, config.init_scale)
            for name, rows in sizes.items()
        ]
        return TableLayout(tables) if tables else None

    def _bin_rows(self, feature: ContinuousFeature, num_boundaries: int) -> list[int]:
        """The physical row of each code of `Bins`."""
        assert self.layout is not None
        assert feature.discretizer is not None
        table, num_rows = _bin_table(feature)
        offset = self.layout.offset[table]
        if table != HASHED_BINS:
            assert num_boundaries + 2 <= num_rows
            return [offset + code for code in range(num_boundaries + 2)]
        bits = feature.discretizer.output_bits
        return [offset, *(offset + 1 + row for row in bin_rows(feature.name, num_boundaries, bits, left_closed=False))]


def slot_slices(features: tuple[IdFeature, ...]) -> list[slice]:
    """The slots of each feature, when those of all lie side by side."""
    ends = np.cumsum([feature.num_slots for feature in features], dtype=np.int64)
    return [slice(int(end) - feature.num_slots, int(end)) for feature, end in zip(features, ends, strict=True)]


def _bin_table(feature: ContinuousFeature) -> tuple[str, int]:
    """The table of a feature's bins and its rows: one for a missing value, then one for each bin."""
    assert feature.discretizer is not None
    if feature.discretizer.kind in ("hashed_percentile", "hashing"):
        return HASHED_BINS, 1 + 2**feature.discretizer.output_bits
    # B bins have B + 1 boundaries, the outer ones the extremes of the sample, so two more intervals lie outside.
    return feature.name, 1 + feature.discretizer.num_bins + 2
