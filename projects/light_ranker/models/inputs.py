"""Numbers and vectors as a layer takes them: transformed by fitted scales, missing ones zero and marked.

Letters: `B` rows, `C` continuous features, `K` of them that keep their value, `V` values of dense vectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from tml.common.errors import DataError
from tml.projects.light_ranker.features.spec import ContinuousFeature, FeatureSpec, Side

# Values further out than this many standard deviations are moved there, so that one wild row cannot wreck a step.
MAX_DEVIATION = 10.0


@dataclass(frozen=True)
class Scale:
    """What is subtracted from a (transformed) value, and what the rest is divided by."""

    shift: float = 0.0
    scale: float = 1.0


def fit_scale(feature: ContinuousFeature, values: np.ndarray, weights: np.ndarray) -> Scale:
    """The scale of a feature from a weighted sample.

    Args:
        feature: names the transform: z_score subtracts the mean and divides by the standard deviation, log_z_score does
            so after `sign(x) * log(1 + |x|)`, max_norm divides by the largest `|x|`.
        values: float `[n]`, NaN where missing.
        weights: float `[n]`.
    """
    present = ~np.isnan(values) & (weights > 0)
    values, weights = values[present].astype(np.float64), weights[present].astype(np.float64)
    if feature.transform == "none" or not len(values):
        return Scale()
    if feature.transform == "max_norm":
        return Scale(0.0, float(np.abs(values).max()) or 1.0)
    if feature.transform == "log_z_score":
        values = np.sign(values) * np.log1p(np.abs(values))
    mean = float(np.average(values, weights=weights))
    deviation = float(np.sqrt(np.average((values - mean) ** 2, weights=weights)))
    # A constant has no spread; what float rounding leaves of it must not be blown up.
    return Scale(mean, deviation if deviation > 1e-6 * max(1.0, abs(mean)) else 1.0)


class DenseInputs(nn.Module):
    """`(continuous [B, C], vectors [B, V]) -> [B, 2 K + V]`: values, then marks of missing ones, then vectors.

    Args:
        spec: the features.

    Attributes:
        names: feature of each output column.
        num_columns: `2 K + V`.
    """

    columns: Tensor
    is_log: Tensor
    is_scaled: Tensor
    is_max: Tensor
    shift: Tensor
    scale: Tensor

    def __init__(self, spec: FeatureSpec) -> None:
        super().__init__()
        kept = [(place, feature) for place, feature in enumerate(spec.continuous) if feature.keep_value]
        self.kept = tuple(feature for _, feature in kept)
        vectors = [feature for feature in spec.vectors for _ in range(feature.dim)]
        owners = [*self.kept, *self.kept, *vectors]
        self.names = [feature.name for feature in owners]
        self._sides = [feature.side for feature in owners]
        self.num_columns = len(owners)
        self._takes_all = len(self.kept) == len(spec.continuous)
        transforms = [feature.transform for feature in self.kept]
        limit = {"none": torch.inf, "max_norm": 1.0}
        buffers = {
            "columns": torch.tensor([place for place, _ in kept], dtype=torch.int64),
            "is_log": torch.tensor([name == "log_z_score" for name in transforms]),
            "limit": torch.tensor([limit.get(name, MAX_DEVIATION) for name in transforms]),
            "shift": torch.zeros(len(kept)),
            "scale": torch.ones(len(kept)),
        }
        for name, values in buffers.items():
            self.register_buffer(name, values, persistent=False)

    def set_scales(self, scales: Mapping[str, Scale]) -> None:
        """Take the fitted scales.

        Raises:
            DataError: a feature has none.
        """
        for place, feature in enumerate(self.kept):
            if feature.name not in scales:
                raise DataError(
                    "a feature has not been calibrated", where=f"feature {feature.name!r}",
                    fix="run --task calibrate again",
                )  # fmt: skip
            self.shift[place], self.scale[place] = scales[feature.name].shift, scales[feature.name].scale

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
        missing = values.isnan()
        values = torch.where(self.is_log, values.sign() * values.abs().log1p(), values)
        values = (values - self.shift) / self.scale
        values = torch.where(missing, 0.0, torch.clamp(values, -self.limit, self.limit))  # type: ignore[operator,arg-type]
        return torch.cat([values, missing.to(values.dtype), vectors], dim=1)

    def _columns_of(self, side: Side) -> list[int]:
        return [place for place, of_column in enumerate(self._sides) if of_column == side]
