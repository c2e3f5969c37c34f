"""DataRecord: one example as typed features by id, as the original's logs hold it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableSet
from dataclasses import dataclass, field, fields
from typing import Any, Generic, Self, TypeVar

from tml.projects.light_ranker.records.feature_ids import feature_id
from tml.projects.light_ranker.records.tensors import GeneralTensor, SparseTensor

T = TypeVar("T")


class OrderedSet(MutableSet[T], Generic[T]):
    """A set that remembers the order in which its members came, so that a record is written as it was read.

    It is equal to any set of the same members.
    """

    __slots__ = ("_members",)

    def __init__(self, members: Iterable[T] = ()) -> None:
        self._members = dict.fromkeys(members)

    def __contains__(self, member: object) -> bool:
        return member in self._members

    def __iter__(self) -> Iterator[T]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def __repr__(self) -> str:
        return f"OrderedSet({list(self._members)!r})"

    def add(self, value: T) -> None:
        """Adds a member, last, unless it is there."""
        self._members[value] = None

    def discard(self, value: T) -> None:
        """Removes a member if it is there."""
        self._members.pop(value, None)


@dataclass
class DataRecord:
    """One example. Features are keyed by their 64-bit id (`feature_ids.feature_id` of the name).

    Args:
        binary: ids of the features that are true; a false feature is absent.
        continuous: id -> number.
        discrete: id -> signed 64-bit integer.
        string: id -> text. Bytes that are no UTF-8 survive reading and writing as surrogate escapes.
        sparse_binary: id -> set of texts.
        sparse_continuous: id -> text -> number.
        blobs: id -> bytes.
        tensors: id -> dense tensor.
        sparse_tensors: id -> tensor in coordinate form.
    """

    binary: OrderedSet[int] = field(default_factory=OrderedSet)
    continuous: dict[int, float] = field(default_factory=dict)
    discrete: dict[int, int] = field(default_factory=dict)
    string: dict[int, str] = field(default_factory=dict)
    sparse_binary: dict[int, OrderedSet[str]] = field(default_factory=dict)
    sparse_continuous: dict[int, dict[str, float]] = field(default_factory=dict)
    blobs: dict[int, bytes] = field(default_factory=dict)
    tensors: dict[int, GeneralTensor] = field(default_factory=dict)
    sparse_tensors: dict[int, SparseTensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.binary, OrderedSet):
            self.binary = OrderedSet(self.binary)
        for key, texts in self.sparse_binary.items():
            if not isinstance(texts, OrderedSet):
                self.sparse_binary[key] = OrderedSet(texts)

    @classmethod
    def from_names(cls, binary: Iterable[str] = (), **features: Mapping[str, Any]) -> Self:
        """A record whose features are given by name: `DataRecord.from_names(["is_reply"], continuous={"age": 2.5})`."""
        by_id = {kind: {feature_id(name): value for name, value in given.items()} for kind, given in features.items()}
        return cls(OrderedSet(feature_id(name) for name in binary), **by_id)

    def merged_over(self, common: DataRecord) -> DataRecord:
        """A record with the features of `common` first; where both have a feature, this record's holds."""
        merged: dict[str, Any] = {}
        for kind in (each.name for each in fields(self)):
            ours, theirs = getattr(self, kind), getattr(common, kind)
            merged[kind] = OrderedSet((*theirs, *ours)) if kind == "binary" else {**theirs, **ours}
        return DataRecord(**merged)
