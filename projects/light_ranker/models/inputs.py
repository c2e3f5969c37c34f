"""Numbers and vectors as a layer takes them: transformed by fitted scales, missing ones zero and marked.

Letters: `B` rows, `C` continuous features, `K` of them that keep their value, `V` values of dense vectors.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tml.common.errors import DataError
from tml.common.modules.normalizers import Normalizer
from tml.projects.light_ranker.features.spec import FeatureSpec, Side

# Values further out than this many standard deviations are moved there, so that one wild row cannot wreck a step.
MAX_DEVIATION = 10.0


class DenseInputs(nn.Module):
    """`(continuous [B, C], vectors [B, V]) -> [B, 2 K + V]`: values, then marks of missing ones, then vectors.

    Args:
        spec: the features.
        normalizer: fitted, of these features at least.

    Attributes:
        names: feature of each output column.
        normalizer: of the features that keep their value.
        num_columns: `2 K + V`.
    """

    columns: Tensor
    limit: Tensor

    def __init__(self, spec: FeatureSpec, normalizer: Normalizer) -> None:
        super().__init__()
        kept = [(place, feature) for place, feature in enumerate(spec.continuous) if feature.keep_value]
        self.kept = tuple(feature for _, feature in kept)
        vectors = [feature for feature in spec.vectors for _ in range(feature.dim)]
        owners = [*self.kept, *self.kept, *vectors]
        self.names = [feature.name for feature in owners]
        self._sides = [feature.side for feature in owners]
        self.num_columns = len(owners)
        self._takes_all = len(self.kept) == len(spec.continuous)
        self.normalizer = normalizer_of(spec, normalizer)
        is_z = [feature.transform in ("z_score", "log_z_score") for feature in self.kept]
        buffers = {
            "columns": torch.tensor([place for place, _ in kept], dtype=torch.int64),
            "limit": torch.tensor([MAX_DEVIATION if z else torch.inf for z in is_z]),
        }
        for name, values in buffers.items():
            self.register_buffer(name, values, persistent=False)

    @property
    def user_columns(self) -> list[int]:
        """Output columns that are the same for all candidates of a request."""
        return self._columns_of("user")

    @property
    def candidate_columns(self) -> list[int]:
        """Output columns that differ between candidates."""
        return self._columns_of("candidate")

    def forward(self, continuous: Tensor, vectors: Tensor) -> Tensor:
        """The columns, float32 `[B, 2 K + V]`."""
        if not self.kept:
            return vectors
        values = continuous if self._takes_all else continuous[:, self.columns]
        values, missing = self.normalizer(values)
        values = torch.minimum(torch.maximum(values, -self.limit), self.limit)
        return torch.cat([values, missing, vectors], dim=1)

    def _columns_of(self, side: Side) -> list[int]:
        return [place for place, of_column in enumerate(self._sides) if of_column == side]


def normalizer_of(spec: FeatureSpec, fitted: Normalizer) -> Normalizer:
    """The part of a fitted normaliser that belongs to the features of a spec that keep their value.

    Raises:
        DataError: it lacks one of them.
    """
    kept = [feature for feature in spec.continuous if feature.keep_value]
    lacking = [feature.name for feature in kept if feature.name not in fitted.names]
    if lacking:
        raise DataError(
            "a feature has not been calibrated", where=f"feature {lacking[0]!r}", fix="run --task calibrate again"
        )
    places = [fitted.names.index(feature.name) for feature in kept]
    statistics = (values[places] for values in (fitted.mean, fitted.std, fitted.max_abs))
    return Normalizer(
        [fitted.names[place] for place in places], [fitted.transforms[place] for place in places], *statistics
    )
