"""The stream of batches: epochs, accumulation, prefetching, ranks that stop together."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch.distributed as dist

from tests.core.id_batches import IdBatch, id_batch
from tests.distributed import run_ranks
from tml.common.batch import Cursor
from tml.common.errors import DataError
from tml.core.batch_stream import (
    AgreedBatches,
    Prefetcher,
    Status,
    StopKind,
    StopRequest,
    accumulate,
    batches_of_epochs,
)


def test_accumulation_never_joins_batches_of_two_epochs() -> None:
    cursors = [Cursor(0, 4), Cursor(0, 8), Cursor(1, 0), Cursor(1, 4), Cursor(2, 0)]
    batches = [IdBatch(id_batch(0).features, id_batch(0).labels, cursor, 4) for cursor in cursors]
    joined = [(batch.cursor, batch.num_examples) for batch in accumulate(batches, 2)]
    assert joined == [(Cursor(0, 8), 8), (Cursor(1, 0), 4), (Cursor(2, 0), 8)]


class _Epochs:
    """Two batches an epoch; gives `per_iter` epochs per iteration."""

    steps_per_epoch = 2

    def __init__(self, per_iter: int, num_batches: int = 2) -> None:
        self.per_iter, self.num_batches, self.cursor = per_iter, num_batches, Cursor()

    def load_cursor(self, cursor: Cursor) -> None:
        self.cursor = cursor

    def __iter__(self) -> Iterator[IdBatch]:
        for epoch in range(self.cursor.epoch, self.cursor.epoch + self.per_iter):
            first = self.cursor.row if epoch == self.cursor.epoch else 0
            for row in range(first, self.num_batches):
                after = Cursor(epoch, row + 1) if row + 1 < self.num_batches else Cursor(epoch + 1, 0)
                yield IdBatch(id_batch(row).features, id_batch(row).labels, after, 4)


@pytest.mark.parametrize("per_iter", [1, 2, 9])
def test_epochs_are_chained_whether_an_iteration_ends_with_the_epoch_or_not(per_iter: int) -> None:
    cursors = [batch.cursor for batch in batches_of_epochs(_Epochs(per_iter), Cursor(0, 1), num_epochs=3)]
    assert cursors == [Cursor(1, 0), Cursor(1, 1), Cursor(2, 0), Cursor(2, 1), Cursor(3, 0)]


def test_fault_28_data_without_a_batch_is_an_error_not_an_endless_loop() -> None:
    with pytest.raises(DataError, match=r"(?s)no batch.*epoch 0"):
        list(batches_of_epochs(_Epochs(1, num_batches=0), Cursor(), num_epochs=None))


def _threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name == "tml-prefetch"}


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_prefetching_keeps_order_and_end(depth: int) -> None:
    source = Prefetcher(iter(range(10)), depth, prepare=lambda number: number * 2)
    assert [source.get() for _ in range(11)] == [*((Status.BATCH, 2 * n) for n in range(10)), (Status.END, None)]
    assert source.get() == (Status.END, None)
    source.close()
    assert not _threads()


def test_prefetching_is_bounded_and_ends_with_close() -> None:
    made, closed = [], []

    def numbers() -> Iterator[int]:
        try:
            for number in range(1000):
                made.append(number)
                yield number
        finally:
            closed.append(True)

    source = Prefetcher(numbers(), depth=2)
    assert source.get() == (Status.BATCH, 0)
    source.close()
    assert len(made) <= 4
    assert closed == [True]
    assert not _threads()


@pytest.mark.parametrize("depth", [0, 2])
def test_an_error_of_the_source_is_raised_with_its_traceback(depth: int) -> None:
    def failing() -> Iterator[int]:
        yield 1
        raise DataError("bad row", where="part-3.parquet, row 17")

    batches = AgreedBatches(Prefetcher(failing(), depth))
    assert next(batches) == 1
    with pytest.raises(DataError, match="part-3") as caught:
        next(batches)
    batches.close()
    assert any(entry.name == "failing" for entry in caught.traceback)


def test_fault_14_a_wait_for_data_can_be_interrupted() -> None:
    release, stop = threading.Event(), StopRequest()

    def stalled() -> Iterator[int]:
        release.wait()
        yield 1

    batches = AgreedBatches(Prefetcher(stalled(), depth=1), stop)
    timer = threading.Timer(0.05, stop.ask, ["SIGTERM", StopKind.PREEMPTED])
    timer.start()
    with pytest.raises(StopIteration):
        next(batches)
    release.set()
    timer.join()
    batches.close()
    assert stop.agreed == StopKind.PREEMPTED


def _unequal(must_agree: bool) -> tuple[int, str | None]:
    batches = AgreedBatches(Prefetcher(iter(range(3 + dist.get_rank())), depth=2), must_agree=must_agree)
    try:
        return sum(1 for _ in batches), None
    except DataError as error:
        return -1, str(error)
    finally:
        batches.close()


def test_fault_33_ranks_with_unequal_numbers_of_batches_stop_together() -> None:
    assert run_ranks(_unequal, 2, False) == [(3, None), (3, None)]
    for num, message in run_ranks(_unequal, 2, True):
        assert num == -1
        assert "ranks [0] have ended first" in str(message)


def _one_source_fails() -> str:
    def numbers() -> Iterator[int]:
        yield 1
        if dist.get_rank() == 1:
            raise ValueError("disk on fire")
        yield 2

    batches = AgreedBatches(Prefetcher(numbers(), depth=1))
    try:
        list(batches)
    except (ValueError, DataError) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        batches.close()
    return "no error"


def test_fault_15_data_error_on_one_rank_ends_all_and_names_it() -> None:
    other, own = run_ranks(_one_source_fails, 2)
    assert own == "ValueError: disk on fire"
    assert other.startswith("DataError")
    assert "rank 1" in other
    assert "disk on fire" in other


def _stop_on_rank_1() -> tuple[list[int], str | None]:
    stop, seen = StopRequest(), []
    batches = AgreedBatches(Prefetcher(iter(range(10)), depth=2), stop)
    for number in batches:
        seen.append(number)
        if number == 2 and dist.get_rank() == 1:
            stop.ask("enough")
    batches.close()
    return seen, stop.reason


def test_a_stop_asked_on_one_rank_stops_all_at_the_same_batch() -> None:
    assert run_ranks(_stop_on_rank_1, 2) == [([0, 1, 2], "asked for by rank 1"), ([0, 1, 2], "enough")]
