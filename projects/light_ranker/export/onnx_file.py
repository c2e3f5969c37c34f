"""From a serving graph in torch to ONNX.

A graph is recorded with as many users as candidates. ONNX's broadcasting then also takes one user for all candidates,
which torch's types cannot say: the recorded operators keep the first dimension free, so only its name changes here. The
self-check runs both ways.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

# The newest that ONNX Runtime reads without a warning; graphs of old versions stay readable.
_OPSET, _IR_VERSION = 20, 10
_EXAMPLE_ROWS = 3
_NOISY = ("torch.onnx._internal.exporter._registration", "torch.fx._symbolic_trace")


def record_graph(graph: nn.Module, inputs: dict[str, tuple[torch.dtype, int]], outputs: list[str]) -> onnx.ModelProto:
    """Record a graph.

    Args:
        graph: takes the inputs by name, returns its outputs in order; its tables are stand-ins.
        inputs: type and columns of each input, by name; names begin with the side.
        outputs: names.
    """
    examples = {name: torch.zeros(_EXAMPLE_ROWS, columns, dtype=kind) for name, (kind, columns) in inputs.items()}
    rows = torch.export.Dim("rows", min=2, max=2**31)
    with torch.no_grad():
        program = torch.onnx.export(
            graph.eval(),
            kwargs=examples,
            input_names=list(examples),
            output_names=outputs,
            dynamic_shapes={name: {0: rows} for name in examples},
            opset_version=_OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    recorded = program.model_proto
    recorded.ir_version = _IR_VERSION
    del recorded.graph.value_info[:]
    del recorded.metadata_props[:]
    for node in recorded.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*recorded.graph.input, *recorded.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "users" if value.name.startswith("user_") else "candidates"
    return recorded


def save_graph(graph: onnx.ModelProto, path: Path) -> None:
    """Write a graph whose tables are already in a file beside it."""
    path.write_bytes(graph.SerializeToString())


def stand_in(table: Tensor) -> Tensor:
    """What a graph is recorded with in place of a table."""
    return torch.zeros(2, table.shape[1])


@contextlib.contextmanager
def without_advice() -> Iterator[None]:
    """Hold back what torch's exporter says of missing packages and of its own use of old functions, and what torchrec
    causes once the exporter is loaded."""
    noisy = [logging.getLogger(name) for name in _NOISY]
    try:
        for logger in noisy:
            # A level would not do: the exporter sets the levels of its loggers anew.
            logger.addFilter(_drop)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger in noisy:
            logger.removeFilter(_drop)


def _drop(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR
