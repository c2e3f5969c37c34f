"""Fully connected layers of one CPU process in two C++ calls, forward and backward, on all cores.

A library multiplies one layer at a time: inputs are joined and rounded, sums rectified and gradients masked in passes
of their own, each through memory. `common/native/dense.cpp` takes a block of examples through all layers while it lies
in a core's cache. Torch's operations are its definition, and what callers run where it cannot.

Letters: `B` examples, `X` inputs and `U` units of a layer, `O` outputs.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tml.common import native
from tml.common.native.compiler import compiled
from tml.common.profiling import kernel

SOURCE = Path(native.__file__).with_name("dense.cpp")


class _Layer(ctypes.Structure):
    """`Layer` in dense.cpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("num_inputs", "num_units")),
        *((name, ctypes.c_void_p) for name in ("weight", "bias", "by_weight", "by_bias")),
    )


class _Arguments(ctypes.Structure):
    """`Arguments` in dense.cpp."""

    _fields_ = (
        ("num_examples", ctypes.c_int64),
        *((name, ctypes.c_int32) for name in ("num_parts", "num_layers", "num_threads", "is_wide")),
        *((name, ctypes.c_void_p) for name in ("widths", "parts", "by_parts", "layers")),
        *((name, ctypes.c_void_p) for name in ("outputs", "by_outputs", "memory")),
    )


def can_run(parts: Sequence[Tensor], layers: Sequence[tuple[Tensor, Tensor]]) -> bool:
    """Whether these layers are float32 on a CPU, and the kernel is compiled and the fastest way.

    Under autocast to bfloat16 it multiplies bfloat16 numbers where the processor has instructions for vectors of them,
    and float32 ones elsewhere; but a processor that has them for matrices (AMX) is better used by torch.
    """
    tensors = [*parts, *(weight for weight, _ in layers)]
    is_plain = all(tensor.device.type == "cpu" and tensor.dtype == torch.float32 for tensor in tensors)
    if not is_plain or len(parts[0]) == 0 or not all(part.is_contiguous() for layer in layers for part in layer):
        return False
    if torch.is_autocast_enabled("cpu") and (
        torch.get_autocast_dtype("cpu") != torch.bfloat16 or torch.cpu.get_capabilities().get("amx_bf16")
    ):
        return False
    return compiled(SOURCE) is not None


def rectified_layers(parts: Sequence[Tensor], layers: Sequence[tuple[Tensor, Tensor]], is_wide: bool = False) -> Tensor:
    """Hidden layers with ReLU, and a linear layer of outputs.

    Args:
        parts: columns of the first layer's input, float32 `[B, width]` each, side by side.
        layers: weight `[U, X]` and bias `[U]` of the hidden layers, at least one, then of that of the outputs.
        is_wide: the first layer has `O` units more than the second has inputs; their sums are added to the outputs.

    Returns:
        float32 `[B, O]`.
    """
    values = [part.contiguous() for part in parts]
    for layer in layers:
        values += layer
    bfloat16 = torch.is_autocast_enabled("cpu")
    outputs: Tensor = _RectifiedLayers.apply(len(parts), is_wide, bfloat16, *values)  # type: ignore[no-untyped-call]
    return outputs


class _RectifiedLayers(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, num_parts: int, is_wide: bool, bfloat16: bool, *values: Tensor) -> Tensor:
        parts, parameters = values[:num_parts], values[num_parts:]
        outputs = torch.empty(len(parts[0]), len(parameters[-1]))
        call = _Call(parts, parameters, is_wide, bfloat16, outputs)
        ctx.memory = call.forward()
        ctx.options = num_parts, is_wide, bfloat16
        ctx.save_for_backward(*values)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_outputs: Tensor) -> tuple[Tensor | None, ...]:
        num_parts, is_wide, bfloat16 = ctx.options
        values = ctx.saved_tensors
        asked = ctx.needs_input_grad[3 : 3 + num_parts]
        by_parts = [torch.empty_like(part) if wanted else None for part, wanted in zip(values, asked, strict=False)]
        by_parameters = [torch.empty_like(parameter) for parameter in values[num_parts:]]
        call = _Call(values[:num_parts], values[num_parts:], is_wide, bfloat16, by_outputs.contiguous())
        call.backward(ctx.memory, by_parts, by_parameters)
        return None, None, None, *by_parts, *by_parameters


class _Call:
    """One call's arguments; `outputs` are written by the forward, and hold the derivatives by them in the backward."""

    def __init__(
        self, parts: Sequence[Tensor], parameters: Sequence[Tensor], is_wide: bool, bfloat16: bool, outputs: Tensor
    ) -> None:
        library = compiled(SOURCE)
        assert library is not None, "look at can_run first"
        self._library, self._bfloat16 = library, ctypes.c_int(bfloat16)
        self._tensors = [*parts, *parameters, outputs]
        weights, biases = parameters[::2], parameters[1::2]
        self._layers = (_Layer * len(weights))()
        for layer, weight, bias in zip(self._layers, weights, biases, strict=True):
            layer.num_units, layer.num_inputs = weight.shape
            layer.weight, layer.bias = weight.data_ptr(), bias.data_ptr()
        self._widths = (ctypes.c_int64 * len(parts))(*(part.shape[1] for part in parts))
        self._parts = _pointers(parts)
        self._arguments = _Arguments(
            num_examples=len(outputs),
            num_parts=len(parts),
            num_layers=len(weights),
            num_threads=torch.get_num_threads(),
            is_wide=is_wide,
            widths=ctypes.addressof(self._widths),
            parts=ctypes.addressof(self._parts),
            layers=ctypes.addressof(self._layers),
            outputs=outputs.data_ptr(),
            by_outputs=outputs.data_ptr(),
        )

    def forward(self) -> Tensor:
        """Writes the outputs; returns what the backward needs."""
        self._library.tml_dense_bytes.restype = ctypes.c_int64
        num_bytes = self._library.tml_dense_bytes(ctypes.byref(self._arguments), self._bfloat16)
        memory = torch.empty(num_bytes, dtype=torch.uint8)
        self._arguments.memory = memory.data_ptr()
        with kernel("dense_forward"):
            self._library.tml_dense_forward(ctypes.byref(self._arguments), self._bfloat16)
        return memory

    def backward(self, memory: Tensor, by_parts: Sequence[Tensor | None], by_parameters: Sequence[Tensor]) -> None:
        """Writes the derivatives."""
        pointers = _pointers(by_parts)
        for layer, by_weight, by_bias in zip(self._layers, by_parameters[::2], by_parameters[1::2], strict=True):
            layer.by_weight, layer.by_bias = by_weight.data_ptr(), by_bias.data_ptr()
        self._arguments.by_parts, self._arguments.memory = ctypes.addressof(pointers), memory.data_ptr()
        with kernel("dense_backward"):
            self._library.tml_dense_backward(ctypes.byref(self._arguments), self._bfloat16)


def _pointers(tensors: Sequence[Tensor | None]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*(None if tensor is None else tensor.data_ptr() for tensor in tensors))
