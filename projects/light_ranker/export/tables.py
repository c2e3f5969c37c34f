"""Embedding tables beside the graph: one file of rows, which ONNX Runtime maps into memory and processes share.

Letters: `R` rows of a table, `D` its columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from tml.common.errors import NonFiniteError
from tml.projects.light_ranker.export.byte_layers import LARGEST, to_bytes

# Offsets of the operating system's pages, so that the file can be mapped.
_ALIGNMENT = 4096
_BLOCK_ROWS = 1 << 18
_LAST_AXIS = "last_axis"


@dataclass(frozen=True)
class Section:
    """Where a tensor lies in the file of tables."""

    name: str
    kind: int
    shape: tuple[int, ...]
    offset: int
    length: int

    def initializer(self, file: str) -> TensorProto:
        """The tensor as the graph names it."""
        tensor = TensorProto(name=self.name, data_type=self.kind, dims=self.shape, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", file), ("offset", self.offset), ("length", self.length)):
            tensor.external_data.add(key=key, value=str(value))
        return tensor


def write_float_tables(path: Path, tables: Mapping[str, Tensor]) -> list[Section]:
    """Write tables `[R, D]` as float32.

    Raises:
        NonFiniteError: a row is NaN or infinite.
    """
    writer = _Writer(path)
    for name, table in tables.items():
        writer.add(name, TensorProto.FLOAT, table.shape, (block for _, block in _blocks(name, table)))
    return writer.finish()


class RowSteps:
    """What a step of each column is worth, in bytes around `ZERO`, for stretches of a table's rows.

    Args:
        starts: first row of each stretch, ascending from 0.
        values: float32 `[len(starts), D]`.
    """

    def __init__(self, starts: Sequence[int], values: Tensor) -> None:
        self.starts, self.values = torch.tensor(starts), values

    @classmethod
    def of(cls, name: str, table: Tensor, starts: Sequence[int]) -> RowSteps:
        """Steps with which the largest value of each stretch and column is `LARGEST` steps.

        Raises:
            NonFiniteError: a row is NaN or infinite.
        """
        largest = torch.zeros(len(starts), table.shape[1])
        ends = [*starts[1:], len(table)]
        for place, (first, end) in enumerate(zip(starts, ends, strict=True)):
            for _, block in _blocks(name, table[first:end], first):
                largest[place] = torch.maximum(largest[place], torch.from_numpy(block).abs().amax(0))
        return cls(starts, torch.where(largest > torch.finfo(torch.float32).tiny, largest, 1.0) / LARGEST)

    def of_rows(self, rows: Tensor) -> Tensor:
        """Steps `[B, D]` of rows `[B]`."""
        return self.values[torch.searchsorted(self.starts, rows, right=True) - 1]

    def to_bytes(self, rows: Tensor, first: int = 0) -> Tensor:
        """The rows `[B, D]` from row `first` on, in uint8."""
        return to_bytes(rows / self.of_rows(torch.arange(first, first + len(rows))))


def write_byte_tables(path: Path, tables: Mapping[str, Tensor], steps: Mapping[str, RowSteps]) -> list[Section]:
    """Write tables `[R, D]` as bytes, in these steps.

    Raises:
        NonFiniteError: a row is NaN or infinite.
    """
    writer = _Writer(path)
    for name, table in tables.items():
        of_table = steps[name]
        rows = (of_table.to_bytes(torch.from_numpy(block), first).numpy() for first, block in _blocks(name, table))
        writer.add(name, TensorProto.UINT8, table.shape, rows)
    return writer.finish()


def attach_tables(graph: onnx.ModelProto, sections: list[Section], file: str) -> None:
    """Put the tables in place of the graph's stand-ins of the same name; look-ups become the fastest of their kind."""
    by_name = {section.name: section for section in sections}
    stand_ins = [tensor for tensor in graph.graph.initializer if tensor.name in by_name]
    for tensor in stand_ins:
        graph.graph.initializer.remove(tensor)
    graph.graph.initializer.extend(section.initializer(file) for section in sections)
    nodes: list[onnx.NodeProto] = []
    for node in graph.graph.node:
        is_lookup = node.op_type == "Gather" and node.input[0] in by_name
        nodes += _lookup(node) if is_lookup else [node]
    graph.graph.initializer.append(numpy_helper.from_array(np.array([-1]), _LAST_AXIS))
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)


def _lookup(gather: onnx.NodeProto) -> list[onnx.NodeProto]:
    """The look-up as a GatherND.

    ONNX Runtime takes half as long for it as for Gather: it finds all addresses first, and memory then answers several
    at a time.
    """
    table, ids = gather.input
    places = f"{gather.name}.places"
    return [
        helper.make_node("Unsqueeze", [ids, _LAST_AXIS], [places], name=places),
        helper.make_node("GatherND", [table, places], list(gather.output), name=gather.name),
    ]


def _blocks(name: str, table: Tensor, start: int = 0) -> Any:
    """`(first row, rows as float32)`, checked; the table's own first row is `start`."""
    for first in range(0, len(table), _BLOCK_ROWS):
        block = table[first : first + _BLOCK_ROWS].detach().to(torch.float32).numpy()
        if not np.isfinite(block).all():
            row = start + first + int(np.argwhere(~np.isfinite(block))[0][0])
            raise NonFiniteError(
                "an embedding is not finite", where=f"{name}, row {row}", limit="finite values",
                fix="export an earlier step, and train with a lower learning rate",
            )  # fmt: skip
        yield start + first, block


class _Writer:
    """Writes one aligned section after the other."""

    def __init__(self, path: Path) -> None:
        self._file, self._sections = path.open("wb"), list[Section]()

    def add(self, name: str, kind: int, shape: Any, blocks: Any) -> None:
        """Append a tensor, block by block."""
        self._file.write(b"\0" * (-self._file.tell() % _ALIGNMENT))
        offset = self._file.tell()
        for block in blocks:
            self._file.write(np.ascontiguousarray(block).data)
        self._sections.append(Section(name, kind, tuple(shape), offset, self._file.tell() - offset))

    def finish(self) -> list[Section]:
        """Close the file and say what lies where."""
        self._file.close()
        return self._sections
