"""A module as ONNX Runtime runs it, for tests that hold an export against the eager module."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor, nn


def exported(module: nn.Module, inputs: tuple[Tensor, ...], folder: Path) -> Callable[..., tuple[Tensor, ...]]:
    """Export with a free first dimension and return a function that runs the file."""
    rows = torch.export.Dim("rows")
    program = torch.onnx.export(
        module.eval(), inputs, dynamo=True, verbose=False, dynamic_shapes=tuple({0: rows} for _ in inputs)
    )
    assert program is not None
    path = folder / "module.onnx"
    program.save(path)
    session = onnxruntime.InferenceSession(path)
    names = [one.name for one in session.get_inputs()]

    def run(*values: Tensor) -> tuple[Tensor, ...]:
        feeds = {name: value.numpy() for name, value in zip(names, values, strict=True)}
        return tuple(torch.from_numpy(output) for output in session.run(None, feeds))

    return run
