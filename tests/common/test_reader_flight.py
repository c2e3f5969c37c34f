"""Reading through a server on loopback equals reading the files."""

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tml.common.batch import Cursor
from tml.common.errors import CheckpointError, ConfigError, DataError
from tml.common.reader import ParquetReader
from tml.common.reader.flight import FlightReader, serve

COLUMNS = {"lhs": pa.int64(), "weight": pa.float32(), "label": pa.bool_()}


@pytest.fixture
def local(tmp_path) -> ParquetReader:
    for i, num_rows in enumerate([31, 20]):
        lhs = np.arange(num_rows) + 100 * i
        table = pa.table({"lhs": lhs, "weight": (lhs / 2).astype(np.float32), "label": lhs % 3 == 0})
        pq.write_table(table, tmp_path / f"{i}.parquet", row_group_size=9)
    files = sorted(str(path) for path in tmp_path.iterdir())
    return ParquetReader(files, COLUMNS, global_batch_size=8, shuffle_window_rows=15, num_epochs=2, seed=4)


@pytest.fixture
def server(local):
    with serve(local) as server:
        yield server


def assert_same_batches(remote, local) -> None:
    for ours, theirs in itertools.zip_longest(remote, local):
        for field in ("first_row", "num_rows", "global_first_row", "global_num_rows", "epoch", "cursor"):
            assert getattr(ours, field) == getattr(theirs, field)
        assert list(ours.columns) == list(theirs.columns)
        for name, array in ours.columns.items():
            assert array.dtype == theirs.columns[name].dtype
            assert array.flags.writeable
            assert array.tolist() == theirs.columns[name].tolist()


def test_two_ranks_get_the_same_batches_in_the_same_order_as_locally(local, server):
    # 51 rows: the last batch has 3 for rank 0 and none for rank 1.
    for rank in range(2):
        assert_same_batches(FlightReader(server.location, rank=rank, world_size=2), local.for_rank(rank, 2))


def test_ranks_read_at_the_same_time(local, server):
    readers = [FlightReader(server.location, rank=rank, world_size=2) for rank in range(2)]
    both = zip(*readers, strict=True)
    rows = [row for shares in both for share in shares for row in share.columns["lhs"].tolist()]
    assert rows == [row for batch in local for row in batch.columns["lhs"].tolist()]


def test_resume_from_a_cursor(local, server):
    cursor = list(local)[9].cursor
    assert cursor.epoch == 1
    reader = FlightReader(server.location)
    reader.load_cursor(cursor)
    local.load_cursor(cursor)
    assert_same_batches(reader, local)


def test_knows_what_the_local_reader_knows(local, server):
    reader = FlightReader(server.location)
    for name in ("num_rows", "steps_per_epoch", "global_batch_size", "num_epochs"):
        assert getattr(reader, name) == getattr(local, name)
    assert reader.fingerprint() == local.fingerprint()
    assert reader.locate(1, 17) == local.locate(1, 17)


def test_nothing_is_decoded_and_thrown_away(server, monkeypatch):
    decoded = []
    decode = ParquetReader._decode
    monkeypatch.setattr(ParquetReader, "_decode", lambda *args: decoded.append(args[1:3]) or decode(*args))
    reader = FlightReader(server.location)
    assert decoded == []
    assert len(list(reader)) == 14
    assert len(decoded) == len(set(decoded))


def test_a_stream_can_be_dropped(server, local):
    assert next(iter(FlightReader(server.location))).num_rows == 8
    assert_same_batches(FlightReader(server.location), local)


def test_the_server_listens_on_loopback(server):
    assert server.location == f"grpc://127.0.0.1:{server.port}"


def test_bad_data_on_the_server_is_the_same_error_here(server, local):
    Path(local.locate(0, 0)[0]).unlink()
    with pytest.raises(DataError, match=r"cannot open data file(.|\n)*\.parquet(.|\n)*reader machine grpc"):
        list(FlightReader(server.location))


def test_bad_rank_cursor_and_position(server):
    with pytest.raises(ConfigError, match="multiple of 3"):
        list(FlightReader(server.location, world_size=3))
    with pytest.raises(CheckpointError, match="row <= 51"):
        FlightReader(server.location).load_cursor(Cursor(0, 52))
    with pytest.raises(DataError, match="position < 51"):
        FlightReader(server.location).locate(0, 51)


def test_a_server_that_is_gone(server):
    reader = FlightReader(server.location)
    server.shutdown()
    with pytest.raises(DataError, match=f"cannot be reached(.|\n)*{server.location}"):
        list(reader)
