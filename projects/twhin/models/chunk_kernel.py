"""The head's work in one C++ call for one CPU process: rows of some chunks in, their loss and its derivatives out.

Letters: `S` chunks, `C` edges in a chunk, `G` uniform negatives, `W = C + G` nodes of a side, `D` embedding dim, `R`
rows of relation parameters.

Where scores are dot products, `chunk_kernel.cpp` does what `TwhinHead` does by torch's operations. They are its
definition, and what runs where the kernel cannot.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tml.common.native.compiler import compiled
from tml.common.profiling import kernel
from tml.ml_logging import get_logger, warn_once
from tml.projects.twhin.data.chunks import ChunkShape
from tml.projects.twhin.models.chunk_runs import ChunkRun

logger = get_logger(__name__)

_SOURCE = Path(__file__).with_name("chunk_kernel.cpp")
_OPERATORS = ("identity", "translation", "diagonal", "complex_diagonal")
_LOSSES = ("softmax", "logistic", "ranking")
_REGULARIZERS = (None, "l2", "n3")

# Floats of a vector: what a row must be a multiple of.
_LANES = 16
# A larger chunk leaves the cache of a core; if there are fewer than threads, a library's product of large matrices,
# which all cores share, is better.
_MAX_CHUNK_BYTES = 2 << 20
# Translations of a chunk whose differences are worth making, to share in-batch scores.
_MAX_TRANSLATIONS = 8
# Sums by relation are kept in so many parts, whatever the number of threads, so that a result does not depend on it.
_MAX_SUMS = 32


class _Arguments(ctypes.Structure):
    """`Arguments` in chunk_kernel.cpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("num_chunks", "size", "num_in_batch", "num_global", "dim")),
        *((name, ctypes.c_int32) for name in ("op", "loss", "num_lanes", "num_threads", "max_shared")),
        ("margin", ctypes.c_float),
        ("regularizer", ctypes.c_int32),
        ("regularization", ctypes.c_float),
        ("bfloat16", ctypes.c_int32),
        ("rows", ctypes.c_void_p * 2),
        ("by_rows", ctypes.c_void_p * 2),
        *((name, ctypes.c_void_p) for name in ("rel", "params", "inverse", "by_params", "by_inverse")),
        ("lane_stride", ctypes.c_int64),
        ("weight", ctypes.c_void_p),
        ("masked", ctypes.c_void_p * 2),
        ("num_masked", ctypes.c_int64 * 2),
        *((name, ctypes.c_void_p) for name in ("losses", "positive")),
    )


@dataclass(frozen=True)
class HeadCase:
    """What decides whether the compiled head does the work of some chunks.

    Args:
        device_type: `torch.device.type` of the rows.
        dtype: of the rows.
        autocast: whether products are made in a shorter type by torch.
        comparator: of the model.
        shape: sizes of a chunk.
        dim: `D`.
        num_chunks: `S`.
        num_threads: that share them.
    """

    device_type: str
    dtype: torch.dtype
    autocast: bool
    comparator: str
    shape: ChunkShape
    dim: int
    num_chunks: int
    num_threads: int

    @property
    def suits_kernel(self) -> bool:
        """Whether scores are dot products of float32 rows that fill vectors, and chunks fit the processor.

        Those are small, or there is one for every thread. A compiler is needed besides, see `ChunkKernel.is_built`.
        """
        plain = self.device_type == "cpu" and self.dtype == torch.float32 and not self.autocast
        floats = 2 * self.shape.num_nodes_of_side * self.dim
        floats += self.shape.size * (self.shape.num_candidates + 2 * self.dim)
        fits = 4 * floats <= _MAX_CHUNK_BYTES or self.num_chunks >= self.num_threads
        return plain and self.comparator == "dot" and self.dim % _LANES == 0 and fits


def max_shared_relations(operator: str, shape: ChunkShape, reciprocal: bool) -> int:
    """A chunk's in-batch scores are made once for both sides if it has at most so many relations; 0 is never.

    An edge's score against another edge's end is nearly that edge's score against its end: the same product of rows,
    with another relation. Where relations differ, the difference of two translations is known without another product
    of all pairs.

    Args:
        operator: of the chunk.
        shape: its sizes.
        reciprocal: inverse relations have parameters of their own.
    """
    if reciprocal or shape.num_in_batch < shape.size:
        return 0
    return {"identity": shape.size, "translation": _MAX_TRANSLATIONS}.get(operator, 1)


class ChunkKernel:
    """The compiled head.

    Args:
        loss: a name of `LOSSES`.
        margin: of the loss.
        reciprocal: inverse relations have parameters of their own, in the second half of the relations.
        regularizer: a name of `REGULARIZERS`, or None.
        regularization: factor of its penalty.

    Attributes:
        has_bfloat16: whether the processor multiplies bfloat16 numbers.
    """

    def __init__(
        self, loss: str, margin: float, reciprocal: bool, regularizer: str | None = None, regularization: float = 0.0
    ) -> None:
        library = compiled(_SOURCE)
        assert library is not None, "look at is_built first"
        self._losses_of = library.tml_chunk_losses
        self._losses_of.restype = None
        self.has_bfloat16 = bool(library.tml_has_bfloat16())
        self._loss, self._margin, self._reciprocal = _LOSSES.index(loss), margin, reciprocal
        self._regularizer, self._regularization = _REGULARIZERS.index(regularizer), regularization

    @staticmethod
    def is_built() -> bool:
        """Whether there is a compiler."""
        return compiled(_SOURCE) is not None

    def losses(self, run: ChunkRun, relations: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Weighted losses of chunks `[S]`, forward scores of edges `[S, C]`, derivatives by `relations [R, D]`."""
        num_chunks, dim = len(run.rel), relations.shape[1]
        num_sums = max(1, min(_MAX_SUMS, num_chunks, run.rows[0].numel() // relations.numel()))
        sums = torch.zeros(num_sums, *relations.shape)
        losses, positive = torch.empty(num_chunks), torch.empty(run.rel.shape)
        params = relations.detach()
        inverse, by_inverse = (tensor[..., len(relations) // 2 :, :] for tensor in (params, sums))
        pair = ctypes.c_void_p * 2
        arguments = _Arguments(
            num_chunks=num_chunks,
            size=run.shape.size,
            num_in_batch=run.shape.num_in_batch,
            num_global=run.shape.num_global,
            dim=dim,
            op=_OPERATORS.index(run.operator),
            loss=self._loss,
            num_lanes=num_sums,
            num_threads=torch.get_num_threads(),
            max_shared=max_shared_relations(run.operator, run.shape, self._reciprocal),
            margin=self._margin,
            regularizer=self._regularizer,
            regularization=self._regularization,
            bfloat16=self._multiplies_bfloat16(),
            rows=pair(*(rows.data_ptr() for rows in run.rows)),
            by_rows=pair(*(rows.data_ptr() for rows in run.by_rows)),
            rel=run.rel.data_ptr(),
            params=params.data_ptr(),
            inverse=inverse.data_ptr() if self._reciprocal else None,
            by_params=sums.data_ptr(),
            by_inverse=by_inverse.data_ptr() if self._reciprocal else None,
            lane_stride=relations.numel(),
            weight=run.weight.data_ptr(),
            masked=pair(*(places.data_ptr() for places in run.masked)),
            num_masked=(ctypes.c_int64 * 2)(*map(len, run.masked)),
            losses=losses.data_ptr(),
            positive=positive.data_ptr(),
        )
        with kernel("chunk_losses"):
            self._losses_of(ctypes.byref(arguments))
        return losses, positive, sums.sum(0)

    def _multiplies_bfloat16(self) -> bool:
        """Whether `float32_matmul_precision` allows products of bfloat16 numbers, and the processor has them."""
        is_allowed = torch.get_float32_matmul_precision() != "highest"
        if is_allowed and not self.has_bfloat16:
            warn_once(
                logger,
                "runtime.enable_tensorfloat32 has no effect on scores: this processor has no instruction for products "
                "of bfloat16 numbers (AVX-512 BF16)",
            )
        return is_allowed and self.has_bfloat16
