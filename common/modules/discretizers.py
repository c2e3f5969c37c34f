"""Discretizers: continuous values become ids of bins.

`DenseDiscretizer` serves tables: one column a feature. The other modules serve sparse inputs as the original light
ranker has them: flat arrays of (feature id, value), out of which come (id, value) in one space of `2 ** output_bits`
ids. Both can be exported. Bins are intervals `(a, b]`; a missing value (NaN) has no id and is masked.

Letters: `B` examples, `F` features, `N` entries of a batch, `P` boundaries of a feature (bins fitted plus one).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tml.common.errors import ConfigError, DataError
from tml.common.modules.bin_boundaries import check_boundaries
from tml.common.modules.discretizer_fitting import FittedDiscretizer, fit_features, floats_to_json
from tml.common.modules.hashing import HashWidth, hash_bins, limit_bits
from tml.common.modules.sorted_search import count_below, count_below_in_columns, padded_rows
from tml.common.modules.sparse_ops import SparseRows

BinSearch = Literal["lower_bound", "upper_bound"]


class DenseDiscretizer(nn.Module):
    """One id for each value of a dense table of features; each feature may be of its own kind and size.

    `percentile` and `mdlp` features number their own bins from 1 on. `hashed_percentile` and `hashing` features hash
    (feature id, bin) into `2 ** output_bits` ids that such features may share. `num_rows` says how large each
    feature's table must be.

    Args:
        fitted: one for each column, in their order.
    """

    boundaries: Tensor
    last: Tensor
    last_bin: Tensor
    feature_ids: Tensor
    hash_divisor: Tensor
    hashed: Tensor
    counted: Tensor

    def __init__(self, fitted: Sequence[FittedDiscretizer]) -> None:
        super().__init__()
        self.fitted = tuple(fitted)
        self.num_rows = tuple(one.plan.num_rows for one in self.fitted)
        self._hashes = any(one.plan.is_hashed for one in self.fitted)
        longest = max((len(one.boundaries) for one in self.fitted), default=1)
        rows = [one.boundaries + (torch.inf,) * (longest - len(one.boundaries)) for one in self.fitted]
        plans = [one.plan for one in self.fitted]
        buffers = {
            "boundaries": torch.tensor(rows, dtype=torch.float32).reshape(len(rows), longest),
            "last": torch.tensor([one.boundaries[-1] for one in self.fitted], dtype=torch.float32),
            "last_bin": torch.tensor([plan.num_bins for plan in plans], dtype=torch.int64),
            "feature_ids": torch.tensor([plan.feature_id for plan in plans], dtype=torch.int64),
            "hash_divisor": torch.tensor([1 << (32 - plan.output_bits) for plan in plans], dtype=torch.int64),
            "hashed": torch.tensor([plan.is_hashed for plan in plans], dtype=torch.bool),
            "counted": torch.tensor([plan.kind == "hashing" for plan in plans], dtype=torch.bool),
        }
        for name, buffer in buffers.items():
            # Not part of a checkpoint: calibration is a phase of its own, kept as JSON.
            self.register_buffer(name, buffer, persistent=False)

    def forward(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Ids of the bins.

        Args:
            values: float `[B, F]`, NaN where missing.

        Returns:
            int64 ids `[B, F]` and the mask of present values, bool `[B, F]`. A missing value has id 0 and is masked;
            0 is an id of its own for numbered bins, but not for hashed ones.
        """
        values = values.to(self.boundaries.dtype)
        present = ~torch.isnan(values)
        count = count_below_in_columns(self.boundaries, values)
        bins = torch.where(values >= self.last, self.last_bin, torch.clamp(count - 1, min=0))
        ids = bins + 1
        if self._hashes:
            # The top bits of the 32-bit hash, as many as each feature has; ONNX has no shift by a tensor.
            hashes = hash_bins(self.feature_ids, torch.where(self.counted, count, bins), 32)
            ids = torch.where(self.hashed, torch.div(hashes, self.hash_divisor, rounding_mode="floor"), ids)
        return torch.where(present, ids, 0), present


class SparseDiscretizer(nn.Module):
    """Base of the discretizers of sparse entries: which features are calibrated, and where their boundaries lie.

    Args:
        feature_ids: int64 `[features]`, distinct; already cut to the bits that entries are cut to.
        boundaries: `[features, P]`, each row ascending, inf where a feature has fewer.
        output_bits: ids lie in `[0, 2 ** output_bits)`.
        dtype: in which values are compared with boundaries.

    Raises:
        DataError: ids repeat, or boundaries do not ascend.
        ConfigError: too few output bits.
    """

    kind: ClassVar[str]
    feature_ids: Tensor
    boundaries: Tensor

    def __init__(
        self,
        feature_ids: npt.ArrayLike,
        boundaries: npt.ArrayLike,
        output_bits: int = 22,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        keys, rows = np.asarray(feature_ids, dtype=np.int64), np.asarray(boundaries, dtype=np.float64)
        check_boundaries(rows, where=type(self).__name__)
        if len(np.unique(keys)) != len(keys) or keys.shape != rows.shape[:1]:
            raise DataError(
                "one row of boundaries is needed for each of distinct features", where=type(self).__name__,
                value=(keys.shape, rows.shape), fix="cut the ids to their bits before fitting, then fit each once",
            )  # fmt: skip
        order = np.argsort(keys)
        self.num_features, self.num_boundaries = rows.shape
        self.output_bits = output_bits
        self._check_bits()
        padded_keys = padded_rows(torch.from_numpy(keys[order]).unsqueeze(0))
        padded = padded_rows(torch.from_numpy(rows[order]).to(dtype))
        self.register_buffer("feature_ids", padded_keys, persistent=False)
        self.register_buffer("boundaries", padded, persistent=False)

    @classmethod
    def fit(
        cls,
        entries: SparseRows,
        weights: npt.ArrayLike | None = None,
        num_bins: int = 20,
        output_bits: int = 22,
        allow_empty: bool = False,
    ) -> Self:
        """Fit percentile boundaries to every feature of a sample.

        Args:
            entries: the sample; its `ids` are feature ids, already cut to their bits.
            weights: of the records, `[num_rows]`; None means ones.
            num_bins: bins of a feature.
            output_bits: of the ids that come out.
            allow_empty: accept a sample without a value; the layer then only cuts ids to their bits.

        Raises:
            DataError: the sample is empty, or see `percentile_boundaries`.
        """
        rows = entries.rows.numpy()
        of_entry = None if weights is None else np.asarray(weights, dtype=np.float64)[rows]
        features, boundaries = fit_features(entries.ids.numpy(), entries.values.numpy(), of_entry, num_bins)
        if not len(features) and not allow_empty:
            raise DataError(
                "nothing to calibrate: the sample holds no continuous value", where=cls.__name__, value=len(rows),
                limit="at least one value", fix="raise the calibration's keep rates, or allow an empty calibration",
            )  # fmt: skip
        return cls(features, boundaries, output_bits)

    def forward(self, ids: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Discretise entries.

        Args:
            ids: int64 `[N]`, the feature of each entry.
            values: float `[N]`, NaN where missing.

        Returns:
            int64 ids `[N]`, values `[N]` (1 for a calibrated feature, else as they were) and the mask of present
            entries, bool `[N]`. A missing entry has id 0 and value 0 and has to be left out.
        """
        present = ~torch.isnan(values)
        if self.num_features:
            place = torch.clamp(count_below(self.feature_ids, torch.zeros_like(ids), ids), max=self.num_features - 1)
            known = self.feature_ids[0][place] == ids
            new_ids = torch.where(known, self.calibrated_ids(ids, place, values), self.uncalibrated_ids(ids))
            new_values = torch.where(known, torch.ones_like(values), values)
        else:
            new_ids, new_values = limit_bits(ids, self.output_bits), values
        return torch.where(present, new_ids, 0), torch.where(present, new_values, 0.0), present

    def on_rows(self, entries: SparseRows) -> SparseRows:
        """Discretise a batch and leave out its missing entries."""
        ids, values, present = self(entries.ids, entries.values)
        return entries.with_entries(ids, values).kept(present)

    def calibrated_ids(self, ids: Tensor, place: Tensor, values: Tensor) -> Tensor:
        """Ids `[N]` of entries whose feature is the `place`-th calibrated one."""
        raise NotImplementedError

    def uncalibrated_ids(self, ids: Tensor) -> Tensor:
        """Ids `[N]` of entries whose feature is not calibrated."""
        return limit_bits(ids, self.output_bits)

    def bins(self, place: Tensor, values: Tensor) -> Tensor:
        """Numbers of the percentile bins, 0 to P - 1: the boundary at or left of the value, 0 before the second
        boundary's bin begins and P - 1 from the last boundary on."""
        last = self.boundaries[:, self.num_boundaries - 1][place]
        below = torch.clamp(count_below(self.boundaries, place, values) - 1, min=0)
        return torch.where(values >= last, self.num_boundaries - 1, below)

    def to_dict(self) -> dict[str, Any]:
        """The discretizer as plain JSON (see `discretizer_from_dict`)."""
        rows = self.boundaries[:, : self.num_boundaries].tolist()
        return {
            "kind": self.kind,
            "feature_ids": self.feature_ids[0, : self.num_features].tolist(),
            "num_boundaries": self.num_boundaries,
            "bin_boundaries": [floats_to_json(row) for row in rows],
            "output_bits": self.output_bits,
        }

    def _check_bits(self) -> None:
        if not 1 <= self.output_bits <= 32:
            raise ConfigError(
                "output_bits out of range", where=type(self).__name__, value=self.output_bits, limit="1..32"
            )


class PercentileDiscretizer(SparseDiscretizer):
    """Bins of calibrated features get the ids 1 to features * P, in order of feature id, then bin.

    Entries of other features go to the ids above: `id mod room + features * P + 1`. (The original began one lower,
    where the last bin already was.)
    """

    kind = "percentile"

    @property
    def num_bin_ids(self) -> int:
        """Ids that belong to bins: 1 up to and with this."""
        return self.num_features * self.num_boundaries

    def calibrated_ids(self, ids: Tensor, place: Tensor, values: Tensor) -> Tensor:
        """The number of the bin among all bins, from 1 on."""
        return place * self.num_boundaries + self.bins(place, values) + 1

    def uncalibrated_ids(self, ids: Tensor) -> Tensor:
        """An id above those of the bins."""
        first = self.num_bin_ids + 1
        return torch.remainder(ids, (1 << self.output_bits) - first) + first

    def _check_bits(self) -> None:
        super()._check_bits()
        if (1 << self.output_bits) <= self.num_bin_ids + 1:
            raise ConfigError(
                "output_bits leave no room", where="PercentileDiscretizer", value=self.output_bits,
                limit=f"2 ** output_bits > features * (num_bins + 1) + 1 = {self.num_bin_ids + 1}",
                fix="raise output_bits, or fit fewer bins or features",
            )  # fmt: skip


# The original's name: no description length is computed. `mdlp_boundaries` are the supervised ones.
MDL = PercentileDiscretizer


class HashedPercentileDiscretizer(SparseDiscretizer):
    """Percentile bins whose ids are hashes of (feature id, bin)."""

    kind = "hashed_percentile"

    def calibrated_ids(self, ids: Tensor, place: Tensor, values: Tensor) -> Tensor:
        """The 32-bit hash of the feature and its bin."""
        return hash_bins(ids, self.bins(place, values), self.output_bits)


class HashingDiscretizer(SparseDiscretizer):
    """Ids are hashes of (feature id, number of boundaries below the value): P + 1 bins of P boundaries.

    Args:
        feature_ids: see `SparseDiscretizer`.
        boundaries: see `SparseDiscretizer`.
        output_bits: see `SparseDiscretizer`.
        search: `lower_bound` counts boundaries below the value, `upper_bound` those equal to it too.
        width: of the hashed integers.
        dtype: see `SparseDiscretizer`.
    """

    kind = "hashing"

    def __init__(
        self,
        feature_ids: npt.ArrayLike,
        boundaries: npt.ArrayLike,
        output_bits: int = 22,
        search: BinSearch = "lower_bound",
        width: HashWidth = 32,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if search not in get_args(BinSearch) or width not in get_args(HashWidth):
            raise ConfigError(
                "unknown option", where="HashingDiscretizer", value=(search, width),
                limit=f"search one of {get_args(BinSearch)}, width one of {get_args(HashWidth)}",
            )  # fmt: skip
        super().__init__(feature_ids, boundaries, output_bits, dtype)
        self.search, self.width = search, width

    def calibrated_ids(self, ids: Tensor, place: Tensor, values: Tensor) -> Tensor:
        """The hash of the feature and its count."""
        count = count_below(self.boundaries, place, values, or_equal=self.search == "upper_bound")
        return hash_bins(ids, torch.clamp(count, max=self.num_boundaries), self.output_bits, self.width)

    def to_dict(self) -> dict[str, Any]:
        """The discretizer as plain JSON (see `discretizer_from_dict`)."""
        return super().to_dict() | {"search": self.search, "width": self.width}


_KINDS: dict[str, type[SparseDiscretizer]] = {
    one.kind: one for one in (PercentileDiscretizer, HashedPercentileDiscretizer, HashingDiscretizer)
}


def discretizer_from_dict(state: Mapping[str, Any]) -> SparseDiscretizer:
    """The inverse of `SparseDiscretizer.to_dict`.

    Raises:
        DataError: a key is missing, unknown or of the wrong type, or the boundaries do not ascend.
    """
    try:
        rest = dict(state)
        kind = _KINDS[rest.pop("kind")]
        keys, num_boundaries = rest.pop("feature_ids"), rest.pop("num_boundaries")
        rows = np.asarray([[float(value) for value in row] for row in rest.pop("bin_boundaries")], dtype=np.float64)
        return kind(np.asarray(keys, dtype=np.int64), rows.reshape(len(keys), num_boundaries), **rest)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError("a discretizer's state cannot be read", where=repr(error), value=dict(state)) from error
