"""One view of every kind of tensor: global shape, and the pieces of it that this rank holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.tensor import DTensor

from tml.common.errors import CheckpointError

# Upper bound of one stored item. Reading and writing need this much memory beside the tensors themselves.
BLOCK_BYTES = 64 << 20


@dataclass(frozen=True)
class Piece:
    """A box of a tensor: its place in the global tensor, and a live view of the data."""

    offsets: tuple[int, ...]
    tensor: Tensor


@dataclass(frozen=True)
class TensorPieces:
    """A named tensor as this rank sees it.

    `replicated` tensors are plain ones, equal on all ranks: rank 0 writes them and every rank loads them.
    A sharded tensor may have no piece on a rank.
    """

    size: torch.Size
    dtype: torch.dtype
    pieces: tuple[Piece, ...]
    replicated: bool

    def staged(self) -> TensorPieces:
        """A copy in CPU memory that later changes of the tensor do not reach."""
        copies = (Piece(p.offsets, p.tensor.to("cpu", copy=True).contiguous()) for p in self.pieces)
        return TensorPieces(self.size, self.dtype, tuple(copies), self.replicated)


def pieces_of(name: str, tensor: Tensor) -> TensorPieces:
    """The pieces of a plain, strided tensor or of a ShardedTensor; no data is copied.

    Raises:
        CheckpointError: for anything else.
    """
    if isinstance(tensor, ShardedTensor):
        shards = tensor.local_shards()
        pieces = tuple(Piece(tuple(s.metadata.shard_offsets), s.tensor.detach()) for s in shards)
        metadata = tensor.metadata()
        return TensorPieces(torch.Size(metadata.size), metadata.tensor_properties.dtype, pieces, replicated=False)
    if not isinstance(tensor, Tensor) or isinstance(tensor, DTensor) or tensor.layout != torch.strided:
        raise CheckpointError(
            "cannot checkpoint this kind of value",
            where=f"tensors[{name!r}]",
            value=type(tensor).__name__,
            limit="a strided torch.Tensor or a ShardedTensor",
            fix="put plain values into `extra`",
        )
    whole = Piece((0,) * tensor.dim(), tensor.detach())
    return TensorPieces(tensor.size(), tensor.dtype, (whole,), replicated=True)


def pieces_to_save(tensors: Mapping[str, Tensor], rank: int) -> dict[str, TensorPieces]:
    """What `rank` writes: its shards, and on rank 0 the replicated tensors."""
    views = {name: pieces_of(name, tensor) for name, tensor in tensors.items()}
    return {name: view for name, view in views.items() if rank == 0 or not view.replicated}


def blocks(view: TensorPieces, block_bytes: int = BLOCK_BYTES) -> Iterator[Piece]:
    """Cut pieces along their rows into blocks of at most `block_bytes` (or one row); empty pieces are left out.

    A tensor without elements yields its empty pieces, so that its name and shape are still recorded.
    """
    for piece in view.pieces:
        if piece.tensor.numel() > 0:
            yield from _row_blocks(piece, block_bytes)
        elif view.size.numel() == 0:
            yield piece


def _row_blocks(piece: Piece, block_bytes: int) -> Iterator[Piece]:
    if piece.tensor.dim() == 0 or piece.tensor.nbytes <= block_bytes:
        yield piece
        return
    num_rows = piece.tensor.size(0)
    rows_per_block = max(1, block_bytes // (piece.tensor.nbytes // num_rows))
    for row in range(0, num_rows, rows_per_block):
        offsets = (piece.offsets[0] + row, *piece.offsets[1:])
        yield Piece(offsets, piece.tensor[row : row + rows_per_block])
