"""Layers in 8 bits: weights per output column, activations by their range at every call."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx

from tml.common.errors import ConfigError

_LAYERS = ("Gemm", "MatMul")
_SMALL = 8


def quantize_layers(graph: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a graph whose dense layers multiply in 8 bits (ONNX Runtime's dynamic quantisation).

    Args:
        graph: with stand-ins for tables.

    Raises:
        ConfigError: the graph has no layers.
    """
    # Imported late: it brings sympy, which serving never needs.
    from onnxruntime.quantization import QuantType, quantize_dynamic

    if not any(node.op_type in _LAYERS for node in graph.graph.node):
        raise ConfigError(
            "a model without layers has nothing to quantise", where="export.int8", fix="leave int8 out for lolly_lr"
        )
    with tempfile.TemporaryDirectory() as folder, _quiet():
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save(graph, str(source))
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=list(_LAYERS),
            per_channel=True,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=_small_layers(graph),
        )
        quantized = onnx.load(str(target))
    del quantized.graph.value_info[:]
    return quantized


def _small_layers(graph: onnx.ModelProto) -> list[str]:
    """Layers that cost next to nothing as they are, and would only lose digits: the heads, and the user's half."""
    shapes = {tensor.name: tensor.dims for tensor in graph.graph.initializer}
    small = [
        node.name
        for node in graph.graph.node
        if node.op_type in _LAYERS
        and any(name == "user_weight" or min(shapes.get(name, [_SMALL])) < _SMALL for name in node.input[:2])
    ]
    # Quantisation begins by splitting each Gemm into a product of this name and a sum.
    return [*small, *(f"{name}_MatMul" for name in small)]


@contextmanager
def _quiet() -> Iterator[None]:
    """It logs advice to the root logger: to simplify the graph first, which the exporter has done."""
    logger = logging.getLogger()
    was = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = was
