"""DCP planners over `TensorPieces`: blocks of bounded size out, any sharding back in."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    ReadItem,
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from tml.common.checkpointing.pieces import BLOCK_BYTES, Piece, TensorPieces, blocks
from tml.common.errors import CheckpointError

_Place = tuple[str, tuple[int, ...]]


class BlockSavePlanner(DefaultSavePlanner):
    """Writes each tensor as row blocks, so that neither side ever holds a second copy of a large table.

    The state dict is a `dict[str, TensorPieces]`.
    """

    def __init__(self, block_bytes: int = BLOCK_BYTES) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._block_bytes = block_bytes
        self._views: Mapping[str, TensorPieces] = {}
        self._data: dict[_Place, Tensor] = {}

    def set_up_planner(
        self,
        state_dict: Mapping[str, Any],
        storage_meta: StorageMeta | None = None,
        is_coordinator: bool = False,
    ) -> None:
        """Remember what to save; see the base class."""
        self._views, self.is_coordinator = state_dict, is_coordinator

    def create_local_plan(self) -> SavePlan:
        """One write item for each block."""
        items = []
        for name, view in self._views.items():
            for block in blocks(view, self._block_bytes):
                self._data[name, block.offsets] = block.tensor
                items.append(_write_item(name, view, block))
        self.plan = SavePlan(items)
        return self.plan

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        """The block of an item."""
        return self._data[index.fqn, tuple(index.offset or ())]


def _write_item(name: str, view: TensorPieces, block: Piece) -> WriteItem:
    offsets = torch.Size(block.offsets)
    data = TensorWriteData(
        chunk=ChunkStorageMetadata(offsets=offsets, sizes=block.tensor.size()),
        properties=TensorProperties(dtype=view.dtype),
        size=view.size,
    )
    return WriteItem(index=MetadataIndex(name, offsets), type=WriteItemType.SHARD, tensor_data=data)


class PieceLoadPlanner(DefaultLoadPlanner):
    """Fills the pieces of this rank in place, whatever blocks they were saved as; a rank without pieces reads nothing.

    The state dict is a `dict[str, TensorPieces]` with names and sizes as in the checkpoint.
    """

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._views: Mapping[str, TensorPieces] = {}

    def set_up_planner(
        self, state_dict: Mapping[str, Any], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        """Remember what to load; see the base class."""
        self._views, self.metadata, self.is_coordinator = state_dict, metadata, is_coordinator
        self._data = {(name, p.offsets): p.tensor for name, view in state_dict.items() for p in view.pieces}

    def create_local_plan(self) -> LoadPlan:
        """One read item for each overlap of a saved block with a piece of this rank."""
        items: list[ReadItem] = []
        for name, view in self._views.items():
            saved = tensor_metadata(self.metadata, name)
            chunks = [ChunkStorageMetadata(torch.Size(p.offsets), p.tensor.size()) for p in view.pieces]
            items += create_read_items_for_chunk_list(name, saved, chunks)
        return LoadPlan(items)

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        """The piece that an item reads into."""
        return self._data[index.fqn, tuple(index.offset or ())]

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Never unpickle an object."""
        raise CheckpointError("a checkpoint may hold tensors only", value=read_item.dest_index.fqn)


def tensor_metadata(metadata: Metadata | None, name: str) -> TensorStorageMetadata:
    """What the checkpoint says about a tensor: global size, dtype and saved blocks.

    Raises:
        CheckpointError: there is no such tensor.
    """
    saved = metadata.state_dict_metadata if metadata is not None else {}
    found = saved.get(name)
    if not isinstance(found, TensorStorageMetadata):
        raise CheckpointError("no such tensor in the checkpoint", value=name, limit=f"one of {sorted(saved)}")
    return found
