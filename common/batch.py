"""Batches: dataclasses of tensors that know how to travel, and the cursor that says where in the data they end.

    @dataclass
    class EdgeBatch(DataclassBatch):
        lhs: torch.Tensor            # int64 [B]
        rhs: torch.Tensor            # int64 [B]
        cursor: Cursor
        num_examples: int = field(metadata={"concat": "sum"})

A batch goes through torchrec's pipelines as it is: `core/train_pipeline.py` registers `DataclassBatch` there, so that
this file needs torch alone. Tensors, nested batches and KeyedJaggedTensors travel; other fields are kept as they are.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch

from tml.common.errors import DataError


@dataclass(frozen=True, order=True)
class Cursor:
    """A place in the data: `row` rows of the global order of `epoch` have been consumed.

    Rows are counted over all ranks, so a cursor means the same on any world size.
    """

    epoch: int = 0
    row: int = 0

    def to_dict(self) -> dict[str, int]:
        """The cursor as JSON-able numbers."""
        return {"epoch": self.epoch, "row": self.row}

    @classmethod
    def from_dict(cls, state: Mapping[str, int]) -> Self:
        """The inverse of `to_dict`.

        Raises:
            DataError: a key is missing or not a whole number of zero or more.
        """
        numbers = {key: state.get(key) for key in ("epoch", "row")}
        for key, number in numbers.items():
            if not isinstance(number, int) or isinstance(number, bool) or number < 0:
                raise DataError("cursor cannot be read", where=f"key {key!r}", value=state, limit="integers >= 0")
        return cls(**numbers)  # type: ignore[arg-type]


class DataclassBatch:
    """Base of dataclasses of tensors: moves between devices, pins, marks streams, concatenates.

    The loop also reads two attributes that a concrete batch has to offer: `cursor` (a `Cursor`, the place after this
    batch) and `num_examples` (int, the examples of all ranks together).
    """

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """A copy of the batch whose tensors lie on `device`; host-side checks of `__post_init__` do not run again."""
        return self._map(lambda value: value.to(device=device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """A copy of the batch in page-locked host memory, from which copies to a GPU can overlap with compute."""
        return self._map(lambda value: value.pin_memory())

    def record_stream(self, stream: Any) -> None:
        """Tell the caching allocator that `stream` still uses the tensors of this batch."""
        for _, value in self._moving_fields():
            value.record_stream(stream)

    def named_tensors(self, prefix: str = "") -> dict[str, torch.Tensor]:
        """Every tensor by its dotted path; a KeyedJaggedTensor as `<field>.values` and `<field>.lengths`."""
        found: dict[str, torch.Tensor] = {}
        for name, value in self._moving_fields():
            if isinstance(value, torch.Tensor):
                found[prefix + name] = value
            elif isinstance(value, DataclassBatch):
                found |= value.named_tensors(f"{prefix}{name}.")
            else:
                found |= {f"{prefix}{name}.values": value.values(), f"{prefix}{name}.lengths": value.lengths()}
        return found

    @classmethod
    def concat(cls, batches: Sequence[Self]) -> Self:
        """One batch that holds the rows of all, in order.

        Tensors are joined along their first dimension and KeyedJaggedTensors key by key; the last cursor counts.
        Another field has to be equal in all batches, or to say `metadata={"concat": "sum"}` or `"last"`.

        Raises:
            DataError: the batches disagree in a field for which no rule was given.
        """
        if not batches:
            raise DataError("no batches to join", where=cls.__name__)
        if len(batches) == 1:
            return batches[0]
        joined = copy.copy(batches[0])
        for spec in dataclasses.fields(joined):  # type: ignore[arg-type]
            values = [getattr(batch, spec.name) for batch in batches]
            object.__setattr__(
                joined, spec.name, _join(f"{cls.__name__}.{spec.name}", values, spec.metadata.get("concat"))
            )
        return joined

    def _moving_fields(self) -> Iterator[tuple[str, Any]]:
        for spec in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, spec.name)
            if isinstance(value, (torch.Tensor, DataclassBatch)) or _is_jagged(value):
                yield spec.name, value

    def _map(self, move: Callable[[Any], Any]) -> Self:
        moved = copy.copy(self)
        for name, value in self._moving_fields():
            object.__setattr__(moved, name, move(value))
        return moved


def _is_jagged(value: object) -> bool:
    return all(hasattr(value, name) for name in ("to", "record_stream", "pin_memory", "values", "lengths"))


def _join(where: str, values: list[Any], rule: str | None) -> Any:
    first = values[0]
    if rule == "sum":
        return sum(values[1:], start=first)
    if rule == "last" or isinstance(first, Cursor):
        return values[-1]
    if isinstance(first, torch.Tensor) and first.dim() > 0:
        return torch.cat(values)
    if isinstance(first, DataclassBatch):
        return type(first).concat(values)
    if _is_jagged(first):
        return _join_jagged(values)
    if isinstance(first, torch.Tensor) or any(value != first for value in values[1:]):
        raise DataError(
            "batches cannot be joined", where=where, value=values, limit="equal values",
            fix='give the field a rule: metadata={"concat": "sum"} or {"concat": "last"}',
        )  # fmt: skip
    return first


def _join_jagged(values: list[Any]) -> Any:
    parts = [value.to_dict() for value in values]
    keys = values[0].keys()
    weights = None
    if values[0].weights_or_none() is not None:
        weights = torch.cat([part[key].weights() for key in keys for part in parts])
    return type(values[0])(
        keys=keys,
        values=torch.cat([part[key].values() for key in keys for part in parts]),
        lengths=torch.cat([part[key].lengths() for key in keys for part in parts]),
        weights=weights,
    )
