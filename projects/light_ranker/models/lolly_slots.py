"""The ids of a `lolly_lr` model: everything present in a row becomes one of `2 ** bits` hashed ids.

Letters: `B` rows, `S` id slots, `C` continuous features.

- a number: the hash of its feature and bin; of the feature alone if it has no bins
- an id feature's value: the hash of feature and encoded row; of the feature alone if the model counts its presence
- missing values and padding slots: -1, nothing
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from tml.common.modules.hashing import limit_bits
from tml.projects.light_ranker.config import LollyLrConfig
from tml.projects.light_ranker.features.spec import MISSING, DiscretizerSpec, FeatureSpec
from tml.projects.light_ranker.lolly.hashed import HashedLolly, bin_rows, feature_row
from tml.projects.light_ranker.models.bins import Bins
from tml.projects.light_ranker.models.tables import BatchIds
from tml.projects.light_ranker.records.feature_ids import feature_id, mix_discrete

ABSENT = -1


class LollySlots:
    """Turns encoded rows into hashed ids.

    Args:
        spec: the features.
        config: the `model.lolly_lr` section.
        initial: the text model that the weights start from. Its binary features count by being there, whatever their
            value, and bins are `[a, b)` as in the text; without it they are `(a, b]`, as the original fits them.

    Attributes:
        bits: ids are below `2 ** bits`.
        left_closed: how bins are closed.
        presence: names of the features that count by being there.
        boundaries: of every continuous feature, once they are set; empty for one without bins.
    """

    layout = None

    def __init__(self, spec: FeatureSpec, config: LollyLrConfig, initial: HashedLolly | None = None) -> None:
        self.spec, self.bits = spec, config.input_size_bits
        self.left_closed = initial is not None
        self.presence = frozenset(initial.presence if initial else ())
        self.boundaries: dict[str, list[float]] = {}
        self.bins: Bins | None = None
        self._initial = initial
        keys = np.array([feature_id(feature.name) for feature in spec.ids], dtype=np.int64)
        by_presence = np.array([feature.name in self.presence for feature in spec.ids], dtype=bool)
        slots = spec.slot_features()
        self._keys, self._by_presence = keys[slots], by_presence[slots]

    def set_boundaries(self, boundaries: Mapping[str, list[float]]) -> None:
        """Take the fitted boundaries; those of a text model go before them."""
        names = [feature.name for feature in self.spec.continuous]
        of_text = self._initial.bins if self._initial else {}
        self.boundaries = {
            name: list(of_text[name].boundaries) if name in of_text else list(boundaries.get(name, []))
            for name in names
            if name not in self.presence
        }
        rows = [self._rows_of_codes(name) for name in names]
        edges = [self.boundaries.get(name, []) for name in names]
        self.bins = Bins(range(len(names)), edges, rows, self.left_closed)

    def arrange(self, ids: np.ndarray, continuous: Tensor) -> BatchIds:
        """The hashed ids `[B, S + C]` of a batch.

        Args:
            ids: int32 or int64 `[B, S]`, valid encoded rows.
            continuous: float32 `[B, C]`.
        """
        assert self.bins is not None, "boundaries come before batches"
        hashed = torch.from_numpy(self.hash_ids(ids.astype(np.int64)))
        return BatchIds(None, torch.cat([hashed, self.bins(continuous)], dim=1), torch.empty(len(ids), 0))

    def hash_ids(self, ids: np.ndarray) -> np.ndarray:
        """The hashed ids `[B, S]` of encoded rows `[B, S]`."""
        mixed = np.where(self._by_presence, self._keys, mix_discrete(np.broadcast_to(self._keys, ids.shape), ids))
        return np.where(ids > MISSING, limit_bits(mixed, self.bits), ABSENT)

    def _rows_of_codes(self, name: str) -> list[int]:
        if name in self.presence:
            return [ABSENT, feature_row(name, self.bits)]
        if self._initial is not None and name in self._initial.bins:
            return [ABSENT, *self._initial.bins[name].rows]
        return [ABSENT, *bin_rows(name, len(self.boundaries[name]), self.bits, self.left_closed)]


def discretizers_of(spec: FeatureSpec, config: LollyLrConfig) -> dict[str, DiscretizerSpec]:
    """How each continuous feature of a `lolly_lr` model is cut into bins."""
    default = DiscretizerSpec("hashing", config.num_bins, config.input_size_bits)
    return {feature.name: feature.discretizer or default for feature in spec.continuous}
