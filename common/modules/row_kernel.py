"""A table of one CPU process: look-up, and an update of just the rows that were looked up, on all cores.

Letters: `V` rows of the table, `K` ids of a look-up, `U` different ids among them, `D` embedding dim.

fbgemm's table-batched kernel for CPUs updates on one thread, which takes several times as long as its look-up. Here the
gradient of a look-up is sorted by id, summed per id and applied once to each row: the same exact, deduplicated update,
on every core. `common/native/rows.cpp` does it in one pass; where that cannot be compiled, torch's operations do, more
slowly. Sums run in the order of the ids' places, so a result depends neither on threads nor on timing (the two ways
differ by rounding).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tml.common import native
from tml.common.allocator import zeros_on_large_pages
from tml.common.modules.table_layout import FusedKind, FusedOptimizerSpec
from tml.common.native.compiler import compiled
from tml.common.profiling import kernel, phase

SOURCE = Path(native.__file__).with_name("rows.cpp")
# The numbers of the rules in rows.cpp.
_KINDS: tuple[FusedKind, ...] = ("sgd", "adagrad", "rowwise_adagrad")


class RowKernel(nn.Module):
    """A float32 table with its fused optimizer.

    Args:
        num_rows: `V`.
        dim: `D`.
        optimizer: sgd, adagrad or rowwise_adagrad, without weight decay.

    Attributes:
        weight: `[V, D]`, zeros until they are filled.
        state: what the optimizer remembers: `[V, D]` for adagrad, `[V]` for rowwise_adagrad, else None.
    """

    weight: Tensor
    state: Tensor | None

    def __init__(self, num_rows: int, dim: int, optimizer: FusedOptimizerSpec) -> None:
        super().__init__()
        self._kind, self._eps, self._learning_rate = optimizer.kind, optimizer.eps, optimizer.learning_rate
        # Ids and places share a word there.
        self._library = compiled(SOURCE) if num_rows < 1 << 32 else None
        self.register_buffer("weight", zeros_on_large_pages(num_rows, dim), persistent=False)
        shapes = {"sgd": None, "adagrad": (num_rows, dim), "rowwise_adagrad": (num_rows,)}
        shape = shapes[optimizer.kind]
        self.register_buffer("state", None if shape is None else zeros_on_large_pages(*shape), persistent=False)

    def set_learning_rate(self, learning_rate: float) -> None:
        """Set the rate of every update from the next backward on."""
        self._learning_rate = learning_rate

    def forward(self, ids: Tensor, offsets: Tensor) -> Tensor:
        """Rows of bags of one id, zeros for bags of none.

        Args:
            ids: int64 `[K]`.
            offsets: int64 `[B + 1]`, where each bag begins, and `K`.

        Returns:
            float32 `[B, D]`; its backward updates the table.
        """
        if not torch.is_grad_enabled():
            return self._rows(ids, offsets)
        # Autograd calls a backward only where an input asks for a gradient; the table is no such input.
        return _LookUp.apply(torch.empty(0, requires_grad=True), self, ids, offsets)  # type: ignore[no-untyped-call]

    def states(self) -> list[Tensor]:
        """What a checkpoint must hold beside the weight, live."""
        return [] if self.state is None else [self.state]

    def _rows(self, ids: Tensor, offsets: Tensor) -> Tensor:
        if self._library is None:
            return F.embedding_bag(ids, self.weight, offsets, mode="sum", include_last_offset=True)
        num_bags, dim = len(offsets) - 1, self.weight.shape[1]
        rows = torch.empty(num_bags, dim)
        ids, offsets = _packed(ids), _packed(offsets)
        with kernel("look_up"):
            self._library.tml_look_up(
                _pointer(self.weight), _int64(dim), _pointer(ids), _pointer(offsets), _int64(num_bags), _pointer(rows),
                torch.get_num_threads(),
            )  # fmt: skip
        return rows

    @torch.no_grad()
    def update(self, ids: Tensor, offsets: Tensor, gradient: Tensor) -> None:
        """Apply the optimizer to the rows `ids`, once to each, with the sum of its gradients `[B, D]`."""
        if len(ids) == 0:
            return
        if self._library is None:
            self._update_by_operations(ids, offsets, gradient)
            return
        ids, offsets, gradient = _packed(ids), _packed(offsets), gradient.contiguous()
        with kernel("update"):
            self._library.tml_update(
                _KINDS.index(self._kind), _pointer(self.weight), _pointer(self.state), *map(_int64, self.weight.shape),
                _pointer(ids), _pointer(offsets), _int64(len(offsets) - 1), _pointer(gradient),
                ctypes.c_float(self._learning_rate), ctypes.c_float(self._eps), torch.get_num_threads(),
            )  # fmt: skip

    def _update_by_operations(self, ids: Tensor, offsets: Tensor, gradient: Tensor) -> None:
        ordered, place = torch.sort(ids, stable=True)
        rows, counts = torch.unique_consecutive(ordered, return_counts=True)
        if len(offsets) != len(ids) + 1:
            bag_of_id = (offsets[1:] > offsets[:-1]).nonzero().squeeze(1)
            place = bag_of_id[place]
        first = F.pad(counts.cumsum(0), (1, 0))
        summed = F.embedding_bag(place, gradient, first, mode="sum", include_last_offset=True)
        _RULES[self._kind](self, rows, summed)

    def _sgd(self, rows: Tensor, gradient: Tensor) -> None:
        self.weight.index_add_(0, rows, gradient, alpha=-self._learning_rate)

    def _adagrad(self, rows: Tensor, gradient: Tensor) -> None:
        assert self.state is not None
        squares = self.state.index_select(0, rows).addcmul_(gradient, gradient)
        self.state.index_copy_(0, rows, squares)
        self.weight.index_add_(0, rows, gradient.div_(squares.sqrt_().add_(self._eps)), alpha=-self._learning_rate)

    def _rowwise_adagrad(self, rows: Tensor, gradient: Tensor) -> None:
        assert self.state is not None
        mean_squares = torch.linalg.vector_norm(gradient, dim=1).square_().div_(gradient.shape[1])
        mean_squares += self.state.index_select(0, rows)
        self.state.index_copy_(0, rows, mean_squares)
        rate = mean_squares.sqrt_().add_(self._eps).reciprocal_().mul_(-self._learning_rate)
        self.weight.index_add_(0, rows, gradient.mul_(rate.unsqueeze(1)))


class _LookUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, anchor: Tensor, kernel: RowKernel, ids: Tensor, offsets: Tensor) -> Tensor:
        ctx.kernel = kernel
        ctx.save_for_backward(ids, offsets)
        return kernel._rows(ids, offsets)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None, None]:
        with phase("update"):
            ctx.kernel.update(*ctx.saved_tensors, gradient)
        return None, None, None, None


_int64 = ctypes.c_int64


def _packed(integers: Tensor) -> Tensor:
    """As the library reads them: torchrec counts several groups' bags in int32."""
    return integers.to(torch.int64).contiguous()


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


_RULES: dict[FusedKind, Callable[[RowKernel, Tensor, Tensor], None]] = {
    "sgd": RowKernel._sgd,
    "adagrad": RowKernel._adagrad,
    "rowwise_adagrad": RowKernel._rowwise_adagrad,
}
