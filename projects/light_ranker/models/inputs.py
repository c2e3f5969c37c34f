"""Numbers and vectors as a layer takes them: transformed by fitted scales, missing ones zero and marked.

Letters: `B` rows, `C` continuous features, `K` of them that keep their value, `P` columns of piecewise-linear
encodings, `V` values of dense vectors.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tml.common.errors import DataError
from tml.common.modules import number_kernel
from tml.common.modules.normalizers import Normalizer
from tml.common.modules.piecewise_linear import PiecewiseLinear
from tml.projects.light_ranker.features.spec import ContinuousFeature, FeatureSpec, Side, VectorFeature

# Values further out than this many standard deviations are moved there, so that one wild row cannot wreck a step.
MAX_DEVIATION = 10.0


class DenseInputs(nn.Module):
    """`(continuous [B, C], vectors [B, V]) -> [B, 2 K + P + V]`: values, then marks of missing ones, then
    piecewise-linear encodings, then vectors.

    Args:
        spec: the features.
        normalizer: fitted, of these features at least.
        boundaries: of the features with a piecewise-linear encoding, at least.

    Attributes:
        names: feature of each output column.
        normalizer: of the features that keep their value.
        pieces: the encodings; None without any.
        num_columns: `2 K + P + V`.
    """

    columns: Tensor
    limit: Tensor

    def __init__(self, spec: FeatureSpec, normalizer: Normalizer, boundaries: Mapping[str, list[float]]) -> None:
        super().__init__()
        self._fitted = normalizer, boundaries
        kept = [(place, feature) for place, feature in enumerate(spec.continuous) if feature.keep_value]
        self.kept = tuple(feature for _, feature in kept)
        pieces = [feature for feature in spec.continuous for _ in range(feature.num_pieces)]
        vectors = [feature for feature in spec.vectors for _ in range(feature.dim)]
        owners: list[ContinuousFeature | VectorFeature] = [*self.kept, *self.kept, *pieces, *vectors]
        self.names = [feature.name for feature in owners]
        self._sides = [feature.side for feature in owners]
        self.num_columns = len(owners)
        self._takes_all = len(self.kept) == len(spec.continuous)
        self.normalizer = normalizer_of(spec, normalizer)
        self.pieces = _pieces_of(spec, boundaries) if pieces else None
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

    def of(self, spec: FeatureSpec) -> DenseInputs:
        """The same for some of the features."""
        return DenseInputs(spec, *self._fitted)

    def forward(self, continuous: Tensor, vectors: Tensor) -> Tensor:
        """The columns, float32 `[B, 2 K + P + V]`."""
        parts = [] if self.pieces is None else [self.pieces(continuous)]
        if self.kept:
            values = continuous if self._takes_all else continuous[:, self.columns]
            parts = [*self._scaled_and_marked(values), *parts]
        parts += [vectors] if vectors.shape[1] or not parts else []
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _scaled_and_marked(self, values: Tensor) -> list[Tensor]:
        scales = self.normalizer
        if number_kernel.can_run(values):
            limit = torch.minimum(scales.limit, self.limit)
            return [number_kernel.scaled_and_marked(values, scales.shift, scales.scale, limit, scales.is_log)]
        x, missing = scales(values)
        return [torch.clamp(x, -self.limit, self.limit), missing]

    def _columns_of(self, side: Side) -> list[int]:
        return [place for place, of_column in enumerate(self._sides) if of_column == side]


def _pieces_of(spec: FeatureSpec, boundaries: Mapping[str, list[float]]) -> PiecewiseLinear:
    encoded = [(place, feature) for place, feature in enumerate(spec.continuous) if feature.num_pieces]
    return PiecewiseLinear(
        [place for place, _ in encoded],
        [boundaries[feature.name] for _, feature in encoded],
        [feature.num_pieces for _, feature in encoded],
    )


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
