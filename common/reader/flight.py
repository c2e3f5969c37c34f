"""Reading through another machine: a server that decodes and shuffles, and a client that trains.

    server = serve(ParquetReader(files, columns, global_batch_size=8192))      # on the reader machine
    reader = FlightReader(server.location, rank=0, world_size=2)               # on each rank

There is no authentication and no encryption, and whoever can connect can read the rows. The server therefore listens on
loopback unless told otherwise; give it another host only inside a network where everybody may see the data.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import flight

from tml.common.batch import Cursor
from tml.common.errors import CheckpointError, ConfigError, DataError, TmlError
from tml.common.reader.parquet_reader import ParquetReader, RowBatch, checked_cursor

_ERROR_KINDS = {kind.__name__: kind for kind in (CheckpointError, ConfigError, DataError)}


def serve(reader: ParquetReader, host: str = "127.0.0.1", port: int = 0) -> ReaderServer:
    """Starts serving a reader's data in background threads.

    Args:
        reader: says which rows are served and in which order; its rank, world size and cursor play no part.
        host: the address to listen on.
        port: 0 takes a free one.

    Returns:
        The server, a context manager: `location` is where clients connect, `serve()` waits until `shutdown()`.
    """
    return ReaderServer(reader, host, port)


class ReaderServer(flight.FlightServerBase):
    """Streams the batches of any rank from any cursor on; see `serve`.

    A ticket is JSON: `{"epoch", "row", "rank", "world_size"}`, the first two being the cursor of the first batch.
    """

    def __init__(self, reader: ParquetReader, host: str, port: int) -> None:
        super().__init__(f"grpc://{host}:{port}")
        self._reader = reader
        self._host = host

    @property
    def location(self) -> str:
        """The address for `FlightReader`."""
        return f"grpc://{self._host}:{self.port}"

    def do_get(self, context: flight.ServerCallContext, ticket: flight.Ticket) -> flight.FlightDataStream:
        """The rank's batches, each a record batch with its place in the order as metadata."""
        with _errors_to_client():
            request = json.loads(ticket.ticket)
            reader = self._reader.for_rank(request["rank"], request["world_size"])
            reader.load_cursor(Cursor.from_dict(request))
        schema = pa.schema(list(reader.columns.items()))
        return flight.GeneratorStream(schema, _messages(reader, schema))

    def do_action(self, context: flight.ServerCallContext, action: flight.Action) -> list[bytes]:
        """`describe` and `locate`; the answer is one JSON text."""
        request = json.loads(action.body.to_pybytes())
        with _errors_to_client():
            return [json.dumps(self._answers[action.type](self, **request)).encode()]

    def _describe(self) -> dict[str, Any]:
        names = ("num_rows", "steps_per_epoch", "global_batch_size", "num_epochs")
        return {name: getattr(self._reader, name) for name in names} | {"fingerprint": self._reader.fingerprint()}

    def _locate(self, epoch: int, position: int) -> tuple[str, int]:
        return self._reader.locate(epoch, position)

    _answers: dict[str, Callable[..., Any]] = {"describe": _describe, "locate": _locate}  # noqa: RUF012


class FlightReader:
    """The same batches in the same order as the server's `ParquetReader` gives for this rank, read over the network.

    Args:
        location: `ReaderServer.location`.
        rank: this rank.
        world_size: the number of ranks; must divide the served global batch size.

    Raises:
        DataError: the server cannot be reached, or has met bad data.
        ConfigError: rank or world size do not suit the served global batch size (on iteration).
    """

    def __init__(self, location: str, *, rank: int = 0, world_size: int = 1) -> None:
        self._location = location
        self._rank, self._world_size = rank, world_size
        self._start = Cursor(0, 0)
        described = self._ask("describe")
        self.num_rows: int = described["num_rows"]
        self.steps_per_epoch: int = described["steps_per_epoch"]
        self.global_batch_size: int = described["global_batch_size"]
        self.num_epochs: int | None = described["num_epochs"]
        self._fingerprint: str = described["fingerprint"]

    def fingerprint(self) -> str:
        """As `ParquetReader.fingerprint`."""
        return self._fingerprint

    def load_cursor(self, cursor: Cursor) -> None:
        """As `ParquetReader.load_cursor`."""
        self._start = checked_cursor(cursor, self.num_rows)

    def for_rank(self, rank: int, world_size: int) -> FlightReader:
        """As `ParquetReader.for_rank`."""
        other = copy.copy(self)
        other._rank, other._world_size = rank, world_size
        return other

    def locate(self, epoch: int, position: int) -> tuple[str, int]:
        """As `ParquetReader.locate`; the file is named as the server sees it."""
        path, row = self._ask("locate", epoch=epoch, position=position)
        return path, row

    def __iter__(self) -> Iterator[RowBatch]:
        request = self._start.to_dict() | {"rank": self._rank, "world_size": self._world_size}
        with self._client() as client:
            stream = client.do_get(flight.Ticket(json.dumps(request).encode()))
            try:
                for chunk in stream:
                    yield _row_batch(chunk)
            finally:
                stream.cancel()

    def _ask(self, action: str, **request: int) -> Any:
        with self._client() as client:
            (answer,) = client.do_action(flight.Action(action, json.dumps(request).encode()))
            return json.loads(answer.body.to_pybytes())

    @contextmanager
    def _client(self) -> Iterator[flight.FlightClient]:
        try:
            with flight.connect(self._location) as client:
                yield client
        except (flight.FlightError, pa.ArrowException, OSError) as error:
            raise _error_from_server(error, self._location) from error


def _messages(reader: ParquetReader, schema: pa.Schema) -> Iterator[tuple[pa.RecordBatch, bytes]]:
    with _errors_to_client():
        for batch in reader:
            place = {
                "first_row": batch.first_row,
                "global_first_row": batch.global_first_row,
                "global_num_rows": batch.global_num_rows,
                "epoch": batch.epoch,
                "cursor": batch.cursor.to_dict(),
            }
            rows = pa.record_batch([pa.array(array) for array in batch.columns.values()], schema=schema)
            yield rows, json.dumps(place).encode()


def _row_batch(chunk: flight.FlightStreamChunk) -> RowBatch:
    place = json.loads(chunk.app_metadata.to_pybytes())
    place["cursor"] = Cursor.from_dict(place["cursor"])
    rows = chunk.data
    # Copies: arrow's own arrays are read-only.
    columns = {name: np.array(rows.column(name).to_numpy(zero_copy_only=False)) for name in rows.schema.names}
    return RowBatch(columns=columns, num_rows=rows.num_rows, **place)


@contextmanager
def _errors_to_client() -> Iterator[None]:
    try:
        yield
    except TmlError as error:
        told = f"{type(error).__name__}\n{error}"
        raise flight.FlightServerError(str(error), extra_info=told.encode()) from error


def _error_from_server(error: Exception, location: str) -> TmlError:
    kind, _, message = getattr(error, "extra_info", b"").decode().partition("\n")
    where = f"reader machine {location}"
    if message:
        return _ERROR_KINDS.get(kind, DataError)(message, where=where)
    return DataError("reader machine failed or cannot be reached", where=where, value=str(error), fix="check its log")
