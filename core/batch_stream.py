"""Batches on their way to the pipeline: epochs, accumulation, a background thread, and agreement between ranks.

    source = Prefetcher(accumulate(batches_of_epochs(data, cursor, num_epochs=3), 4), depth=2)
    for batch in AgreedBatches(source, stop):
        ...

`data` has `load_cursor(cursor)`, and `iter(data)` gives batches with `cursor` and `num_examples` from there on, at
least to the end of the epoch. After the last batch of an epoch the cursor is the start of the next one.
"""

from __future__ import annotations

import enum
import logging
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from tml.common.batch import Cursor, DataclassBatch
from tml.common.device import gather_numbers, gather_objects, rank, world_size
from tml.common.errors import DataError
from tml.common.profiling import phase

logger = logging.getLogger(__name__)

_POLL_S = 0.1
_JOIN_S = 5.0


class TrainingData(Protocol):
    """What the loop asks of data."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch, the same on all ranks."""

    def load_cursor(self, cursor: Cursor) -> None:
        """Make the next iteration start at `cursor`."""

    def __iter__(self) -> Iterator[Any]:
        """This rank's batches from the cursor on."""

    def fingerprint(self) -> str:
        """The identity of the data's content."""


class StopKind(enum.IntEnum):
    """Why training stops before its end; the larger one wins when ranks disagree."""

    NONE = 0
    DONE = 1
    PREEMPTED = 2


class StopRequest:
    """Asked for on one rank, effective once all ranks know."""

    def __init__(self) -> None:
        self.asked = StopKind.NONE
        self.agreed = StopKind.NONE
        self.reason: str | None = None

    def ask(self, reason: str, kind: StopKind = StopKind.DONE, everywhere: bool = False) -> None:
        """Ask for a stop; safe in a signal handler.

        Args:
            reason: shown in the log and kept in the checkpoint.
            kind: `PREEMPTED` if the run is to be continued later.
            everywhere: True if all ranks ask at this very step, so that no agreement is needed.
        """
        if kind > self.asked:
            self.asked, self.reason = kind, reason
        if everywhere or world_size() == 1:
            self.agreed = max(self.agreed, kind)

    def learn(self, asked: list[float]) -> None:
        """Take note of what every rank asks for, in the order of ranks."""
        strongest = StopKind(int(max(asked)))
        if strongest > self.agreed:
            self.agreed = strongest
            self.reason = self.reason or f"asked for by rank {asked.index(float(strongest))}"

    def poll(self) -> bool:
        """True once any rank has asked for a stop. All ranks have to poll together."""
        self.learn([told for [told] in gather_numbers([self.asked])])
        return self.agreed > StopKind.NONE


def batches_of_epochs(data: TrainingData, cursor: Cursor, num_epochs: int | None) -> Iterator[Any]:
    """The batches from `cursor` to the end of epoch `num_epochs - 1`, or for ever.

    Raises:
        DataError: an epoch has no batch.
    """
    while num_epochs is None or cursor.epoch < num_epochs:
        data.load_cursor(cursor)
        start = cursor
        for batch in data:
            yield batch
            cursor = batch.cursor
            if num_epochs is not None and cursor.epoch >= num_epochs:
                return
        if cursor == start:
            raise DataError(
                "the data gives no batch", where=f"epoch {cursor.epoch}, row {cursor.row}", limit="at least one batch",
                fix="see that the data is not empty and offers as many epochs as training.num_epochs",
            )  # fmt: skip
        if cursor.row > 0:
            cursor = Cursor(cursor.epoch + 1, 0)


def accumulate(batches: Iterable[DataclassBatch], num: int) -> Iterator[DataclassBatch]:
    """Every `num` batches joined into one; at the end of an epoch the rest, which may be fewer."""
    group: list[Any] = []
    for batch in batches:
        group.append(batch)
        if len(group) == num or batch.cursor.row == 0:  # type: ignore[attr-defined]
            yield type(batch).concat(group)
            group = []
    if group:
        yield type(group[0]).concat(group)


class Status(enum.IntEnum):
    """What became of an attempt to get a batch; the larger one wins when ranks disagree."""

    BATCH = 0
    END = 1
    INTERRUPTED = 2
    ERROR = 3


class Prefetcher:
    """Makes batches in a background thread, a bounded number ahead.

    Args:
        batches: where they come from; iterated and closed in the thread.
        depth: batches that may lie ready; 0 for no thread.
        prepare: done to each batch in the thread, such as pinning its memory.
    """

    def __init__(self, batches: Iterable[Any], depth: int, prepare: Callable[[Any], Any] | None = None) -> None:
        self._batches = iter(batches)
        self._prepare = prepare or (lambda batch: batch)
        self._queue: queue.Queue[tuple[Status, Any]] = queue.Queue(maxsize=max(depth, 1))
        self._closing = threading.Event()
        self._last: tuple[Status, Any] | None = None
        self._thread = threading.Thread(target=self._fill, name="tml-prefetch", daemon=True) if depth else None
        if self._thread is not None:
            self._thread.start()

    def get(self, interrupted: Callable[[], bool] = lambda: False) -> tuple[Status, Any]:
        """The next batch, or why there is none: the end, an interruption while waiting, or an error that was raised."""
        if self._last is not None:
            return self._last
        status, item = self._next() if self._thread is None else self._wait(interrupted)
        if status in (Status.END, Status.ERROR):
            self._last = (status, item)
        return status, item

    def close(self) -> None:
        """End the thread and the source; what lies ready is dropped."""
        self._closing.set()
        if self._thread is None:
            _close(self._batches)
            return
        self._thread.join(_JOIN_S)
        if self._thread.is_alive():
            logger.warning("the data source does not answer; its thread is left behind")

    def _wait(self, interrupted: Callable[[], bool]) -> tuple[Status, Any]:
        while True:
            try:
                return self._queue.get(timeout=_POLL_S)
            except queue.Empty:
                if interrupted():
                    return Status.INTERRUPTED, None

    def _next(self) -> tuple[Status, Any]:
        try:
            with phase("read"):
                return Status.BATCH, self._prepare(next(self._batches))
        except StopIteration:
            return Status.END, None
        except BaseException as error:
            return Status.ERROR, error

    def _fill(self) -> None:
        status = Status.BATCH
        while status == Status.BATCH and not self._closing.is_set():
            status, item = self._next()
            self._put((status, item))
            del item  # else it lives on while the next one is made
        _close(self._batches)

    def _put(self, item: tuple[Status, Any]) -> None:
        while not self._closing.is_set():
            try:
                self._queue.put(item, timeout=_POLL_S)
                return
            except queue.Full:
                continue


class AgreedBatches:
    """This rank's batches, for as long as every rank has one and none asks for a stop.

    One small exchange between ranks per batch, so that no rank enters a collective that another one never will.

    Args:
        source: this rank's batches.
        stop: asked for by hooks and signals; learns here what the other ranks ask for.
        must_agree: raise instead of warn when some ranks have reached the end and others have not.
    """

    def __init__(self, source: Prefetcher, stop: StopRequest | None = None, must_agree: bool = False) -> None:
        self._source = source
        self._stop = stop or StopRequest()
        self._must_agree = must_agree

    def __iter__(self) -> AgreedBatches:
        return self

    def __next__(self) -> Any:
        """The next batch.

        Raises:
            StopIteration: the data of a rank has ended, or a stop is agreed.
            DataError: another rank failed. The failed rank raises its own error.
        """
        status, item = self._source.get(lambda: self._stop.asked > StopKind.NONE)
        told = gather_numbers([status, self._stop.asked])
        self._stop.learn([asked for _, asked in told])
        statuses = [Status(int(number)) for number, _ in told]
        if max(statuses) == Status.ERROR:
            raise _data_failure(statuses, item)
        if max(statuses) != Status.BATCH:
            self._check_ends(statuses)
            raise StopIteration
        if self._stop.agreed > StopKind.NONE:
            raise StopIteration
        return item

    def close(self) -> None:
        """Close the source."""
        self._source.close()

    def _check_ends(self, statuses: list[Status]) -> None:
        if Status.END not in statuses or len(set(statuses)) == 1 or Status.INTERRUPTED in statuses:
            return
        ended = [number for number, status in enumerate(statuses) if status == Status.END]
        message = "ranks have unequal numbers of batches"
        if self._must_agree:
            raise DataError(message, where=f"ranks {ended} have ended first", limit="the same number on every rank")
        logger.warning("%s: ranks %s have ended first; all stop here", message, ended)


def _data_failure(statuses: list[Status], item: Any) -> BaseException:
    stories = gather_objects(f"{type(item).__name__}: {item}" if statuses[rank()] == Status.ERROR else None)
    if isinstance(item, BaseException):
        return item
    failed = [number for number, status in enumerate(statuses) if status == Status.ERROR]
    return DataError("another rank could not make its next batch", where=f"rank {failed[0]}", value=stories[failed[0]])


def _close(batches: Any) -> None:
    if hasattr(batches, "close"):
        batches.close()
