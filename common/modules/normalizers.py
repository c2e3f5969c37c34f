"""Normalisers of continuous features: fitted once from a weighted stream, or learnt as moving averages.

    statistics = NormalizerStatistics(["age", "followers"], ["z_score", "log_z_score"])
    for values, weights in sample:
        statistics.update(values, weights)
    normalizer = Normalizer.from_statistics(statistics)
    normalised, missing = normalizer(values)

Missing values are NaN. Letters: `B` examples, `F` features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from tml.common.errors import ConfigError, DataError

Transform = Literal["none", "z_score", "log_z_score", "max_norm"]

# Below this share of the mean a standard deviation is the rounding of float32 values that are all the same.
_FLOAT32_RESOLUTION = float(np.finfo(np.float32).eps)


class NormalizerStatistics:
    """Weighted mean, variance and largest absolute value of each feature, one batch at a time.

    Sums are float64 and merged after Chan, Golub and LeVeque, so that neither many rows nor a large mean costs digits,
    and the parts of several ranks or passes can be merged. Statistics of `log_z_score` are those of
    `sign(x) log(1 + |x|)`.

    Args:
        names: of the features.
        transforms: one for each feature.

    Attributes:
        sums: float64 `[4, F]`: weight, mean, weighted squares of deviations from it, largest absolute value.
    """

    def __init__(self, names: Sequence[str], transforms: Sequence[Transform]) -> None:
        _check_transforms(names, transforms)
        self.names, self.transforms = tuple(names), tuple(transforms)
        self.sums = torch.zeros(4, len(self.names), dtype=torch.float64)
        self._is_log = torch.tensor([transform == "log_z_score" for transform in transforms], dtype=torch.bool)

    def update(self, values: Tensor, weights: Tensor | None = None) -> None:
        """Count a batch in.

        Args:
            values: float `[B, F]`, NaN where missing.
            weights: `[B]`, not negative; None means ones. Rows of weight zero have no say.

        Raises:
            DataError: an infinite value, a negative or non-finite weight, or shapes that do not fit.
        """
        x = values.detach().to("cpu", torch.float64)
        mass = torch.ones(len(x), dtype=torch.float64) if weights is None else weights.detach().to("cpu", torch.float64)
        self._check(x, mass)
        present = ~torch.isnan(x) & (mass > 0).unsqueeze(1)
        x = torch.where(present, x, 0.0)
        x = torch.where(self._is_log, signed_log(x), x)
        mass = present * mass.unsqueeze(1)
        weight = mass.sum(0)
        mean = (mass * x).sum(0) / torch.where(weight > 0, weight, 1.0)
        squares = (mass * (x - mean).square()).sum(0)
        largest = x.abs().amax(0) if len(x) else torch.zeros_like(mean)
        self.merge(torch.stack((weight, mean, squares, largest)))

    def merge(self, sums: Tensor) -> None:
        """Count in the `sums` of other statistics of the same features, such as another rank's."""
        weight, mean, squares, largest = self.sums
        other_weight, other_mean, other_squares, other_largest = sums.to("cpu", torch.float64)
        total = weight + other_weight
        share = other_weight / torch.where(total > 0, total, 1.0)
        delta = other_mean - mean
        self.sums = torch.stack(
            (
                total,
                mean + delta * share,
                squares + other_squares + delta.square() * weight * share,
                torch.maximum(largest, other_largest),
            )
        )

    @property
    def std(self) -> Tensor:
        """Population standard deviations, float64 `[F]`; 0 for a feature without weight."""
        weight, _, squares, _ = self.sums
        return torch.sqrt(squares / torch.where(weight > 0, weight, 1.0))

    def _check(self, values: Tensor, weights: Tensor) -> None:
        if values.dim() != 2 or values.shape[1] != len(self.names) or weights.shape != values.shape[:1]:
            raise DataError(
                "a batch does not fit the features", where="normaliser's statistics",
                value=(tuple(values.shape), tuple(weights.shape)), limit=f"[B, {len(self.names)}] and [B]",
            )  # fmt: skip
        infinite = torch.isinf(values).nonzero()
        if len(infinite):
            row, column = (int(place) for place in infinite[0])
            raise DataError(
                "value is infinite", where=f"feature {self.names[column]!r}, row {row} of the batch",
                value=values[row, column].item(), limit="finite, or NaN where it is missing", fix="repair the data",
            )  # fmt: skip
        bad = (~torch.isfinite(weights) | (weights < 0)).nonzero()
        if len(bad):
            row = int(bad[0])
            raise DataError(
                "weight cannot be used", where=f"row {row} of the batch", value=weights[row].item(),
                limit="finite and not negative", fix="repair the data",
            )  # fmt: skip


class Normalizer(nn.Module):
    """Fitted transforms of continuous features.

    - `none`: the value itself.
    - `z_score`: `(x - mean) / std`.
    - `log_z_score`: the same of `sign(x) log(1 + |x|)`.
    - `max_norm`: `x / max |x|`, cut to [-1, 1].

    A feature that was constant or absent in the sample gives 0 under either z-score: nothing can be learnt from it, so
    nothing unforeseen may come through it later.

    Args:
        names: of the features.
        transforms: one for each.
        mean: float64 `[F]`, after the logarithm where there is one.
        std: float64 `[F]`.
        max_abs: float64 `[F]`.
    """

    shift: Tensor
    scale: Tensor
    limit: Tensor
    is_log: Tensor

    def __init__(
        self, names: Sequence[str], transforms: Sequence[Transform], mean: Tensor, std: Tensor, max_abs: Tensor
    ) -> None:
        super().__init__()
        _check_transforms(names, transforms)
        self.names, self.transforms = tuple(names), tuple(transforms)
        self.mean, self.std, self.max_abs = (part.to(torch.float64) for part in (mean, std, max_abs))
        is_z = torch.tensor([transform in ("z_score", "log_z_score") for transform in transforms], dtype=torch.bool)
        is_max = torch.tensor([transform == "max_norm" for transform in transforms], dtype=torch.bool)
        varies = self.std > _FLOAT32_RESOLUTION * self.mean.abs()
        z_scale = torch.where(varies, 1 / torch.where(varies, self.std, 1.0), 0.0)
        max_scale = torch.where(self.max_abs > 0, 1 / torch.where(self.max_abs > 0, self.max_abs, 1.0), 1.0)
        scale = torch.where(is_z, z_scale, torch.where(is_max, max_scale, 1.0))
        buffers = {
            "shift": torch.where(is_z, self.mean, 0.0).to(torch.float32),
            "scale": scale.to(torch.float32),
            "limit": torch.where(is_max, 1.0, torch.inf).to(torch.float32),
            "is_log": torch.tensor([transform == "log_z_score" for transform in transforms], dtype=torch.bool),
        }
        for name, buffer in buffers.items():
            # Not part of a checkpoint: calibration is a phase of its own, kept as JSON.
            self.register_buffer(name, buffer, persistent=False)

    @classmethod
    def from_statistics(cls, statistics: NormalizerStatistics) -> Normalizer:
        """The normaliser of what was counted."""
        _, mean, _, max_abs = statistics.sums
        return cls(statistics.names, statistics.transforms, mean, statistics.std, max_abs)

    def forward(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Normalise a batch.

        Args:
            values: float `[B, F]`, NaN where missing.

        Returns:
            float32 values `[B, F]`, 0 where missing, and float32 `[B, F]` that is 1 where missing, else 0.
        """
        missing = torch.isnan(values)
        x = torch.where(missing, 0.0, values.to(torch.float32))
        x = torch.where(self.is_log, signed_log(x), x)
        x = torch.minimum(torch.maximum((x - self.shift) * self.scale, -self.limit), self.limit)
        return torch.where(missing, 0.0, x), missing.to(torch.float32)

    def to_dict(self) -> dict[str, Any]:
        """The normaliser as plain JSON."""
        columns = zip(
            self.names, self.transforms, self.mean.tolist(), self.std.tolist(), self.max_abs.tolist(), strict=True
        )
        keys = ("name", "transform", "mean", "std", "max_abs")
        return {"features": [dict(zip(keys, column, strict=True)) for column in columns]}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Normalizer:
        """The inverse of `to_dict`.

        Raises:
            DataError: a key is missing or a number is not one, not finite, or negative where it cannot be.
        """
        try:
            features = list(state["features"])
            numbers = torch.tensor(
                [[float(one[key]) for key in ("mean", "std", "max_abs")] for one in features], dtype=torch.float64
            ).reshape(len(features), 3)
            names, transforms = [one["name"] for one in features], [one["transform"] for one in features]
        except (KeyError, TypeError, ValueError) as error:
            raise DataError("a normaliser's state cannot be read", where=repr(error), value=dict(state)) from error
        if not torch.isfinite(numbers).all() or (numbers[:, 1:] < 0).any():
            raise DataError(
                "a normaliser's state holds impossible numbers", value=dict(state), limit="finite, std >= 0"
            )
        return cls(names, transforms, *numbers.unbind(1))


class ZscoreNormalization(nn.Module):
    """Standardises by moving averages of the batches' means and variances (twml's contrib layer), for a first layer.

    The averages start at zero and are divided by `1 - decay^t` (t batches in which the feature was present), which
    takes the start's weight off. A batch's variance is taken about the moving mean, which includes this batch. Where
    the variance is zero the divisor is 1. A feature absent from a whole batch keeps its averages. (The original moved
    them towards zero.)

    Args:
        num_features: F.
        decay: of the averages.
        zero_debias: whether the start's weight is taken off.
        handle_single: give 1 rather than 0 to present values of a feature without variance, such as a one-hot one.
    """

    mean: Tensor
    variance: Tensor
    num_batches: Tensor

    def __init__(
        self, num_features: int, decay: float = 0.9999, zero_debias: bool = True, handle_single: bool = False
    ) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ConfigError("decay out of range", where="ZscoreNormalization", value=decay, limit="0 <= decay < 1")
        self.decay, self.zero_debias, self.handle_single = decay, zero_debias, handle_single
        for name in ("mean", "variance", "num_batches"):
            self.register_buffer(name, torch.zeros(num_features, dtype=torch.float64))

    def forward(self, values: Tensor, present: Tensor | None = None) -> Tensor:
        """Standardised values.

        Args:
            values: float `[B, F]`.
            present: bool `[B, F]`; None means where values are not NaN.

        Returns:
            `[B, F]` of the type of `values`, 0 where missing.
        """
        present = ~torch.isnan(values) if present is None else present
        x = torch.where(present, values, 0.0).to(torch.float64)
        if self.training:
            self._count_in(x.detach(), present)
        mean, variance = self._debiased(self.mean), self._debiased(self.variance)
        std = torch.sqrt(variance)
        scores = (x - mean) / torch.where(std > 0, std, 1.0)
        if self.handle_single:
            scores = torch.where(std > 0, scores, 1.0)
        return torch.where(present, scores, 0.0).to(values.dtype)

    @torch.no_grad()
    def _count_in(self, x: Tensor, present: Tensor) -> None:
        count = present.sum(0)
        seen, divisor = count > 0, torch.clamp(count, min=1)
        self.num_batches += seen
        self._move(self.mean, x.sum(0) / divisor, seen)
        deviations = torch.where(present, x - self._debiased(self.mean), 0.0)
        self._move(self.variance, (deviations.square() / divisor).sum(0), seen)

    def _move(self, average: Tensor, batch: Tensor, seen: Tensor) -> None:
        average += torch.where(seen, (1 - self.decay) * (batch - average), 0.0)

    def _debiased(self, average: Tensor) -> Tensor:
        if not self.zero_debias:
            return average
        share = 1 - torch.pow(self.decay, self.num_batches)
        return average / torch.where(share > 0, share, 1.0)


def signed_log(values: Tensor) -> Tensor:
    """`sign(x) log(1 + |x|)`, elementwise."""
    return torch.sign(values) * torch.log1p(values.abs())


def _check_transforms(names: Sequence[str], transforms: Sequence[str]) -> None:
    if len(names) != len(transforms):
        raise ConfigError("one transform is needed for each feature", value=len(transforms), limit=len(names))
    for name, transform in zip(names, transforms, strict=True):
        if transform not in get_args(Transform):
            raise ConfigError(
                "unknown transform", where=f"feature {name!r}", value=transform, limit=get_args(Transform)
            )
