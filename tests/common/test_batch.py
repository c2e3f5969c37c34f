from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from tml.common.batch import Cursor, DataclassBatch
from tml.common.errors import DataError


@dataclass
class Ids(DataclassBatch):
    ids: torch.Tensor


@dataclass
class Batch(DataclassBatch):
    x: torch.Tensor
    nested: Ids
    features: KeyedJaggedTensor
    weight: torch.Tensor | None
    cursor: Cursor
    num_examples: int = field(metadata={"concat": "sum"})
    split: str = "train"


def _batch(values: list[int], row: int, split: str = "train") -> Batch:
    num = len(values)
    features = KeyedJaggedTensor(
        keys=["a", "b"],
        values=torch.tensor([*values, *[10 * v for v in values], 7]),
        lengths=torch.tensor([1] * num + [1] * (num - 1) + [2]),
    )
    x = torch.tensor(values, dtype=torch.float32)
    return Batch(x, Ids(torch.tensor(values)), features, None, Cursor(0, row), num, split)


def test_to_moves_every_tensor_and_keeps_the_rest() -> None:
    batch = _batch([1, 2], row=2)
    moved = batch.to(torch.device("meta"))
    assert {t.device.type for t in moved.named_tensors().values()} == {"meta"}
    assert (moved.cursor, moved.num_examples, moved.split, moved.weight) == (Cursor(0, 2), 2, "train", None)
    assert {t.device.type for t in batch.named_tensors().values()} == {"cpu"}


def test_record_stream_reaches_nested_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: seen.append(self.data_ptr()))
    batch = _batch([1, 2], row=2)
    batch.record_stream("stream")
    assert {batch.x.data_ptr(), batch.nested.ids.data_ptr(), batch.features.values().data_ptr()} <= set(seen)


def test_named_tensors_are_dotted() -> None:
    assert set(_batch([1], row=1).named_tensors()) == {"x", "nested.ids", "features.values", "features.lengths"}


def test_concat_joins_rows_in_order_per_key() -> None:
    joined = Batch.concat([_batch([1, 2], row=2), _batch([3], row=3)])
    assert joined.x.tolist() == [1, 2, 3]
    assert joined.nested.ids.tolist() == [1, 2, 3]
    assert (joined.cursor, joined.num_examples) == (Cursor(0, 3), 3)
    by_key = joined.features.to_dict()
    assert by_key["a"].values().tolist() == [1, 2, 3]
    assert by_key["b"].values().tolist() == [10, 20, 7, 30, 7]
    assert by_key["b"].lengths().tolist() == [1, 2, 2]


def test_concat_refuses_fields_that_disagree() -> None:
    with pytest.raises(DataError, match=r"Batch\.split"):
        Batch.concat([_batch([1], row=1), _batch([2], row=2, split="test")])


def test_concat_of_one_is_that_one_and_of_none_an_error() -> None:
    batch = _batch([1], row=1)
    assert Batch.concat([batch]) is batch
    with pytest.raises(DataError, match="no batches"):
        Batch.concat([])


def test_cursor_round_trip_and_order() -> None:
    assert Cursor.from_dict(Cursor(2, 30).to_dict()) == Cursor(2, 30)
    assert Cursor(0, 99) < Cursor(1, 0) < Cursor(1, 1)


@pytest.mark.parametrize("state", [{}, {"epoch": 1}, {"epoch": 1, "row": -1}, {"epoch": "1", "row": 0}])
def test_bad_cursor_is_refused(state: dict) -> None:
    with pytest.raises(DataError, match="cursor"):
        Cursor.from_dict(state)
