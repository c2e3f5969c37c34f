"""Embedding tables, the hot path: ids in, rows out, and a fused update of just these rows during backward.

Letters: `K` ids of a look-up, `G` groups (physical tables, usually one), `D` embedding dim.

Two engines behind one door, chosen by `build_tables`:

- `LocalTables`: one CPU rank calls its kernels itself and is spared torchrec's work between ranks. float32 tables have
  the kernel of `row_kernel.py`, which uses all cores; float16 ones fbgemm's table-batched kernel.
- `ShardedTables`: several ranks or a GPU go through torchrec's EmbeddingBagCollection, which
  `DistributedModelParallel` shards row-wise.

Both take a KeyedJaggedTensor with one key a group and bags of one id (with several groups: bags of zero or one, each
id in the bag of its group), start from the same rows for a seed, and name their tensors alike, so a checkpoint moves
between them.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType, SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import BoundsCheckMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    EmbeddingLocation,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.modules.embedding_configs import DataType as TorchrecDataType

from tml.common.modules.row_kernel import RowKernel
from tml.common.modules.table_layout import FusedKind, FusedOptimizerSpec, TableGroup, TableLayout
from tml.common.profiling import phase

# Rows are drawn in blocks that each have a seed of their own, so that a rank can draw just its shard and any sharding
# starts from the same table.
_INIT_BLOCK_ROWS = 16_384

_EMB_OPTIMIZERS: dict[FusedKind, EmbOptimType] = {
    "sgd": EmbOptimType.EXACT_SGD,
    "adagrad": EmbOptimType.EXACT_ADAGRAD,
    "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
    "adam": EmbOptimType.ADAM,
}


class LocalTables(nn.Module):
    """Tables of one CPU rank, one kernel a group.

    Args:
        layout: the groups.
        seed: of the initial rows.
    """

    def __init__(self, layout: TableLayout, seed: int) -> None:
        super().__init__()
        self.layout = layout
        self.kernels = nn.ModuleList(_local_kernel(group) for group in layout.groups)
        for group, weight in zip(layout.groups, self.weights(), strict=True):
            init_rows(group, weight, seed)
        self._offsets = torch.arange(1)

    def forward(self, nodes: KeyedJaggedTensor) -> Tensor:
        """Rows `[K, D]` of `nodes` (see the module's docstring)."""
        with phase("lookup"):
            if len(self.kernels) == 1:
                ids = nodes.values()
                return self.kernels[0](ids, self._unit_offsets(len(ids)))
            rows = [
                kernel(nodes[group.name].values(), nodes[group.name].offsets())
                for group, kernel in zip(self.layout.groups, self.kernels, strict=True)
            ]
            return torch.stack(rows).sum(0)

    def weights(self) -> list[Tensor]:
        """The live physical tables, `[rows, D]` each, in the order of `layout.groups`."""
        return [kernel.weight for kernel in self.kernels]  # type: ignore[misc]

    def set_learning_rate(self, group: int, learning_rate: float) -> None:
        """Set the rate of one group's fused optimizer from the next backward on."""
        self.kernels[group].set_learning_rate(learning_rate)  # type: ignore[operator]

    def checkpoint_tensors(self) -> dict[str, Tensor]:
        """Live weights and optimizer states by name."""
        tensors: dict[str, Tensor] = {}
        for group, kernel in zip(self.layout.groups, self.kernels, strict=True):
            tensors[f"tables.{group.name}.weight"] = kernel.weight  # type: ignore[assignment]
            for number, state in enumerate(kernel.states(), start=1):  # type: ignore[operator]
                tensors[f"tables.{group.name}.momentum{number}"] = state
        return tensors

    def _unit_offsets(self, num_ids: int) -> Tensor:
        if len(self._offsets) <= num_ids:
            self._offsets = torch.arange(2 * num_ids + 1)
        return self._offsets[: num_ids + 1]


class ShardedTables(nn.Module):
    """Tables for several ranks or a GPU: torchrec's EmbeddingBagCollection on the meta device until it is sharded.

    Their fused optimizers are attached before sharding; see `tml.common.modules.sharding` for the plan, the initial
    rows and the checkpoint tensors after it.
    """

    def __init__(self, layout: TableLayout) -> None:
        super().__init__()
        self.layout = layout
        self.bags = EmbeddingBagCollection(
            tables=[
                EmbeddingBagConfig(
                    name=group.name,
                    num_embeddings=group.num_rows,
                    embedding_dim=group.embedding_dim,
                    feature_names=[group.name],
                    data_type=TorchrecDataType.FP16 if group.data_type == "fp16" else TorchrecDataType.FP32,
                )
                for group in layout.groups
            ],
            device=torch.device("meta"),
        )

    def forward(self, nodes: KeyedJaggedTensor) -> Tensor:
        """Rows `[K, D]` of `nodes` (see the module's docstring)."""
        with phase("lookup"):
            rows = self.bags(nodes).values()
        if len(self.layout.groups) == 1:
            return rows
        # No len(rows): torchrec's pipeline traces this with a stand-in for the tensor.
        return rows.unflatten(1, (len(self.layout.groups), self.layout.groups[0].embedding_dim)).sum(1)


@torch.no_grad()
def init_rows(group: TableGroup, rows: Tensor, seed: int, first_row: int = 0) -> None:
    """Fill rows `[first_row, first_row + len(rows))` of a group's initial table, the same values for any sharding."""
    generator = torch.Generator()
    start = 0
    for table in group.tables:
        stop = start + table.num_embeddings
        low, high = max(start, first_row), min(stop, first_row + len(rows))
        blocks = range((low - start) // _INIT_BLOCK_ROWS, -(-(high - start) // _INIT_BLOCK_ROWS))
        first_seed = _first_seed(seed, table.name)
        for block in blocks if low < high else ():
            block_start = start + block * _INIT_BLOCK_ROWS
            block_stop = min(block_start + _INIT_BLOCK_ROWS, stop)
            generator.manual_seed(first_seed + block)
            values = torch.randn(block_stop - block_start, group.embedding_dim, generator=generator) * table.init_scale
            from_row, to_row = max(low, block_start), min(high, block_stop)
            rows[from_row - first_row : to_row - first_row] = values[from_row - block_start : to_row - block_start]
        start = stop


def _first_seed(seed: int, table: str) -> int:
    # By name, so that tables differ however they are grouped. The generator uses 32 bits.
    return int.from_bytes(hashlib.blake2b(f"{seed}/{table}".encode(), digest_size=4).digest())


def keyed_ids(layout: TableLayout, physical_ids: Tensor, group_of_id: Tensor | None = None) -> KeyedJaggedTensor:
    """Wrap the ids of a look-up.

    Args:
        layout: the groups.
        physical_ids: int64 `[K]`, rows of their groups.
        group_of_id: int64 `[K]`, needed with several groups.

    Returns:
        One key a group, stride `K`: bags of one id, or with several groups of zero or one.
    """
    keys = [group.name for group in layout.groups]
    if len(keys) == 1:
        return KeyedJaggedTensor(keys=keys, values=physical_ids, lengths=_ones(len(physical_ids)))
    assert group_of_id is not None, "several groups need the group of each id"
    member = group_of_id == torch.arange(len(keys)).unsqueeze(1)
    values = torch.cat([physical_ids[mask] for mask in member])
    return KeyedJaggedTensor(keys=keys, values=values, lengths=member.to(torch.int32).flatten())


@functools.lru_cache(maxsize=8)
def _ones(count: int) -> Tensor:
    """Lengths of bags of one id; batches are of few sizes, and nobody writes to lengths."""
    return torch.ones(count, dtype=torch.int32)


def kernel_arguments(optimizer: FusedOptimizerSpec) -> Mapping[str, object]:
    """The fused optimizer in fbgemm's words."""
    arguments: dict[str, object] = {
        "optimizer": _EMB_OPTIMIZERS[optimizer.kind],
        "learning_rate": optimizer.learning_rate,
        "eps": optimizer.eps,
        "weight_decay": optimizer.weight_decay,
    }
    if optimizer.kind == "adam":
        arguments["beta1"], arguments["beta2"] = optimizer.betas
    return arguments


class _HalfKernel(nn.Module):
    """fbgemm's table-batched kernel for a float16 table; the same interface as `RowKernel`."""

    def __init__(self, group: TableGroup) -> None:
        super().__init__()
        self._kernel = SplitTableBatchedEmbeddingBagsCodegen(
            [(group.num_rows, group.embedding_dim, EmbeddingLocation.HOST, ComputeDevice.CPU)],
            weights_precision=SparseType.FP16,
            output_dtype=SparseType.FP32,
            stochastic_rounding=False,
            # Ids are checked once, where their file and row are still known (projects' data rooms).
            bounds_check_mode=BoundsCheckMode.NONE,
            table_names=[group.name],
            **kernel_arguments(group.optimizer),  # type: ignore[arg-type]
        )

    @property
    def weight(self) -> Tensor:
        return self._kernel.split_embedding_weights()[0]

    def states(self) -> list[Tensor]:
        states = self._kernel.split_optimizer_states()
        return list(states[0]) if states else []

    def set_learning_rate(self, learning_rate: float) -> None:
        self._kernel.set_learning_rate(learning_rate)

    def forward(self, ids: Tensor, offsets: Tensor) -> Tensor:
        return self._kernel(ids, offsets)


def _local_kernel(group: TableGroup) -> RowKernel | _HalfKernel:
    if group.data_type == "fp16":
        return _HalfKernel(group)
    return RowKernel(group.num_rows, group.embedding_dim, group.optimizer)
