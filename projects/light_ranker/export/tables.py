"""Embedding tables beside the graph: one file of rows, which ONNX Runtime maps into memory and processes share.

Letters: `R` rows of a table, `D` its columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from tml.common.errors import NonFiniteError

# Offsets of the operating system's pages, so that the file can be mapped.
_ALIGNMENT = 4096
_BLOCK_ROWS = 1 << 18
# GatherBlockQuantized of ONNX Runtime: unsigned bytes around this zero, and blocks of at least 16 values.
_ZERO, _LEAST_BLOCK = 128, 16
_MICROSOFT = "com.microsoft"
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


def write_byte_tables(path: Path, tables: Mapping[str, Tensor]) -> list[Section]:
    """Write tables `[R, D]` in 8 bits: per row `scale = max|x| / 127`, byte = round(x / scale) + 128.

    They take a third of the space, and ONNX Runtime needs several times as long to look them up.

    Raises:
        NonFiniteError: a row is NaN or infinite.
    """
    writer = _Writer(path)
    for name, table in tables.items():
        scales = np.concatenate([_row_scales(block) for _, block in _blocks(name, table)])
        quantized = (
            (np.rint(block / scales[first : first + len(block)]) + _ZERO).astype(np.uint8)
            for first, block in _blocks(name, table)
        )
        writer.add(name, TensorProto.UINT8, table.shape, quantized)
        writer.add(f"{name}.scale", TensorProto.FLOAT, scales.shape, [scales])
    return writer.finish()


def attach_tables(graph: onnx.ModelProto, sections: list[Section], file: str) -> None:
    """Put the tables in place of the graph's stand-ins of the same name; look-ups become the fastest of their kind."""
    by_name = {section.name: section for section in sections}
    stand_ins = [tensor for tensor in graph.graph.initializer if tensor.name in by_name]
    for tensor in stand_ins:
        graph.graph.initializer.remove(tensor)
    graph.graph.initializer.extend(section.initializer(file) for section in sections)
    nodes = []
    for node in graph.graph.node:
        section = by_name.get(node.input[0]) if node.op_type == "Gather" else None
        nodes += [node] if section is None else _lookup(node, section)
    last_axis = numpy_helper.from_array(np.array([-1]), _LAST_AXIS)
    graph.graph.initializer.append(last_axis)
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)
    if any(node.domain == _MICROSOFT for node in nodes) and not any(o.domain == _MICROSOFT for o in graph.opset_import):
        graph.opset_import.append(helper.make_opsetid(_MICROSOFT, 1))


def _lookup(gather: onnx.NodeProto, section: Section) -> list[onnx.NodeProto]:
    """The look-up in the real table.

    ONNX Runtime takes half as long for GatherND as for Gather: it finds all addresses first, and memory then answers
    several at a time.
    """
    table, ids = gather.input
    if section.kind != TensorProto.UINT8:
        places = f"{gather.name}.places"
        return [
            helper.make_node("Unsqueeze", [ids, _LAST_AXIS], [places], name=places),
            helper.make_node("GatherND", [table, places], list(gather.output), name=gather.name),
        ]
    block_size = max(_LEAST_BLOCK, 1 << (section.shape[1] - 1).bit_length())
    return [
        helper.make_node(
            "GatherBlockQuantized", [table, ids, f"{table}.scale"], list(gather.output), name=gather.name,
            domain=_MICROSOFT, gather_axis=0, quantize_axis=1, bits=8, block_size=block_size,
        )
    ]  # fmt: skip


def _blocks(name: str, table: Tensor) -> Any:
    """`(first row, rows as float32)`, checked."""
    for first in range(0, len(table), _BLOCK_ROWS):
        block = table[first : first + _BLOCK_ROWS].detach().to(torch.float32).numpy()
        if not np.isfinite(block).all():
            row = first + int(np.argwhere(~np.isfinite(block))[0][0])
            raise NonFiniteError(
                "an embedding is not finite", where=f"{name}, row {row}", limit="finite values",
                fix="export an earlier step, and train with a lower learning rate",
            )  # fmt: skip
        yield first, block


def _row_scales(block: NDArray[np.float32]) -> NDArray[np.float32]:
    scales = np.abs(block).max(axis=1, keepdims=True) / np.float32(_ZERO - 1)
    return np.where(scales > np.finfo(np.float32).tiny, scales, np.float32(1)).astype(np.float32)


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
