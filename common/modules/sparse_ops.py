"""Sparse batches as flat arrays of entries, and the original light ranker's operations on them in plain torch.

Letters: `N` entries of a batch, `R` rows (examples), `P` parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tml.common.errors import ConfigError, DataError
from tml.common.modules.sorted_search import is_exporting


@dataclass(frozen=True)
class SparseRows:
    """A sparse matrix by its entries, in the order in which they were recorded.

    Args:
        rows: int64 `[N]`, the example of each entry, `0 <= row < num_rows`.
        ids: int64 `[N]`, the feature or column of each entry.
        values: float `[N]`.
        num_rows: R.
    """

    rows: Tensor
    ids: Tensor
    values: Tensor
    num_rows: int

    def __post_init__(self) -> None:
        if not self.rows.shape == self.ids.shape == self.values.shape or self.rows.dim() != 1:
            raise DataError(
                "the arrays of a sparse batch differ in length",
                where="SparseRows",
                value=(tuple(self.rows.shape), tuple(self.ids.shape), tuple(self.values.shape)),
                limit="rows, ids and values [N]",
            )

    def with_entries(self, ids: Tensor, values: Tensor) -> SparseRows:
        """The same rows with other ids and values."""
        return replace(self, ids=ids, values=values)

    def kept(self, mask: Tensor) -> SparseRows:
        """The entries where `mask` (bool `[N]`) holds, in their order."""
        return replace(self, rows=self.rows[mask], ids=self.ids[mask], values=self.values[mask])

    def check(self, num_ids: int, where: str) -> None:
        """Raises a DataError unless every row is below `num_rows` and every id below `num_ids`, none negative."""
        if is_exporting() or not len(self.ids):
            return
        for name, column, limit in (("row", self.rows, self.num_rows), ("id", self.ids, num_ids)):
            low, high = (int(value) for value in torch.aminmax(column))
            if low < 0 or high >= limit:
                raise DataError(
                    f"{name} of a sparse entry out of range", where=where, value=low if low < 0 else high,
                    limit=f"0 <= {name} < {limit}", fix="cut ids to the layer's bits (limit_bits) or enlarge the layer",
                )  # fmt: skip

    def to_dense(self, num_ids: int) -> Tensor:
        """The matrix `[R, num_ids]`, entries at one place added up."""
        dense = self.values.new_zeros(self.num_rows * num_ids)
        return dense.index_add(0, self.rows * num_ids + self.ids, self.values).view(self.num_rows, num_ids)


def compress_sample_ids(rows: Tensor) -> Tensor:
    """How many entries each row has, as a CSR matrix is laid out.

    Args:
        rows: int64 `[N]`, ascending from 0 on; rows may be empty, but the last is not.

    Returns:
        int64 `[R]` with R one more than the last row, `[0]` without entries.

    Raises:
        DataError: a row is negative or smaller than the one before.
    """
    falls = torch.cat([rows[:1] < 0, rows[1:] < rows[:-1]])
    if bool(falls.any()):
        place = int(falls.nonzero()[0])
        raise DataError(
            "rows of entries must ascend from 0 on", where=f"entry {place}", value=int(rows[place]), fix="sort by row"
        )
    return torch.bincount(rows)


def decompress_sample_ids(counts: Tensor) -> Tensor:
    """The inverse of `compress_sample_ids`: row r stands `counts[r]` times. int64 `[R]` -> int64 `[sum]`.

    Raises:
        DataError: a count is negative.
    """
    if len(counts) and int(counts.min()) < 0:
        raise DataError("a row has a negative number of entries", where=f"row {int(counts.argmin())}")
    return torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)


def partition_sparse_tensor_mod(entries: SparseRows, num_parts: int) -> list[SparseRows]:
    """Deal entries out by `id mod num_parts`; in its part an entry's id is `id // num_parts`. Order is kept.

    Raises:
        ConfigError: fewer than one part.
    """
    if num_parts < 1:
        raise ConfigError("number of parts out of range", where="partition", value=num_parts, limit="at least 1")
    part = torch.remainder(entries.ids, num_parts)
    inner = entries.with_entries(torch.div(entries.ids, num_parts, rounding_mode="floor"), entries.values)
    return [inner.kept(part == number) for number in range(num_parts)]


def feature_mask(ids: Tensor, keep: Tensor | Sequence[int]) -> Tensor:
    """Which of `ids` (whole numbers, any shape) are among `keep`: bool of the shape of `ids`."""
    return torch.isin(ids, torch.as_tensor(keep, dtype=ids.dtype, device=ids.device))


def partition(
    part_of_entry: Tensor, tensors: Sequence[Tensor], num_parts: int = 2
) -> tuple[list[list[Tensor]], list[Tensor]]:
    """Split tensors along their first dimension by the part of each entry; order is kept (tf.dynamic_partition).

    Args:
        part_of_entry: int64 or bool `[N]`, `0 <= part < num_parts`.
        tensors: each `[N, ...]`.
        num_parts: P.

    Returns:
        For each of `tensors` its P parts, and the P arrays of places int64 that `stitch` needs.

    Raises:
        DataError: a part is out of range, or lengths differ.
    """
    part = part_of_entry.to(torch.int64)
    if len(part) and not 0 <= int(part.min()) <= int(part.max()) < num_parts:
        raise DataError(
            "part out of range",
            where="partition",
            value=(int(part.min()), int(part.max())),
            limit=f"0..{num_parts - 1}",
        )
    if any(len(tensor) != len(part) for tensor in tensors):
        raise DataError(
            "tensors differ in length", where="partition", value=[len(tensor) for tensor in tensors], limit=len(part)
        )
    places = [(part == number).nonzero().flatten() for number in range(num_parts)]
    return [[tensor[place] for place in places] for tensor in tensors], places


def stitch(parts: Sequence[Tensor], places: Sequence[Tensor]) -> Tensor:
    """The inverse of `partition`: put each entry of each part back to its place, `[N, ...]` (tf.dynamic_stitch)."""
    order, entries = torch.cat(list(places)), torch.cat(list(parts))
    return torch.empty_like(entries).index_copy(0, order, entries)
