"""Files behind a URL: read by ranges, tried again, never half used."""

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tml.common.errors import DataError
from tml.common.filesystem.retry import Retry
from tml.common.reader import ParquetReader
from tml.common.reader.remote_file import RemoteFile

URL = "memory://reader-test/rows.parquet"
COLUMNS = {"row": pa.int64()}


@pytest.fixture(autouse=True)
def storage():
    memory = fsspec.filesystem("memory")
    rng = np.random.default_rng(0)
    with memory.open("/reader-test/rows.parquet", "wb") as file:
        pq.write_table(
            pa.table({"row": np.arange(20_000), "unread": rng.random(20_000)}),
            file,
            row_group_size=2500,
            compression="none",
            use_dictionary=False,
        )
    yield memory
    memory.rm("/reader-test", recursive=True)


def read_rows() -> list[int]:
    reader = ParquetReader([URL], COLUMNS, global_batch_size=64, shuffle_window_rows=4000)
    return [int(row) for batch in reader for row in batch.columns["row"]]


def fail_reads(monkeypatch, storage, fail) -> list[tuple[int, int]]:
    """Sends what each read brings through `fail(number of the read, content)`; returns the list of ranges read."""
    ranges: list[tuple[int, int]] = []
    cat_file = type(storage).cat_file

    def flaky(self, path, start=None, end=None, **options):
        ranges.append((start, end))
        return fail(len(ranges), cat_file(self, path, start=start, end=end, **options))

    monkeypatch.setattr(type(storage), "cat_file", flaky)
    monkeypatch.setattr("tml.common.reader.remote_file.Retry", lambda: Retry(attempts=3, first_wait=0.0))
    return ranges


def test_reads_a_url_like_a_file(tmp_path, storage):
    copied = tmp_path / "rows.parquet"
    copied.write_bytes(storage.cat_file("/reader-test/rows.parquet"))
    local = ParquetReader([str(copied)], COLUMNS, global_batch_size=64, shuffle_window_rows=4000)
    assert sorted(read_rows()) == list(range(20_000))
    assert read_rows() == [int(row) for batch in local for row in batch.columns["row"]]
    file_url = ParquetReader([f"file://{copied}"], COLUMNS, global_batch_size=64)
    assert file_url.fingerprint() == local.fingerprint()
    assert sum(batch.num_rows for batch in file_url) == 20_000


def test_columns_that_are_not_asked_for_are_not_fetched(monkeypatch, storage):
    ranges = fail_reads(monkeypatch, storage, lambda number, content: content)
    read_rows()
    column_bytes = 20_000 * 8
    assert column_bytes < sum(end - start for start, end in ranges) < 1.6 * column_bytes


def test_a_read_that_fails_or_ends_early_is_tried_again(monkeypatch, storage):
    def fail(number, content):
        if number % 3 == 1:
            raise TimeoutError("slow storage")
        return content[:-1] if number % 3 == 2 else content

    fail_reads(monkeypatch, storage, fail)
    assert sorted(read_rows()) == list(range(20_000))


def test_storage_that_stays_broken_names_the_object(monkeypatch, storage):
    def fail(number, content):
        raise TimeoutError("slow storage")

    fail_reads(monkeypatch, storage, fail)
    with pytest.raises(DataError, match=f"could not read {URL}(.|\n)*slow storage"):
        read_rows()


def test_missing_object():
    with pytest.raises(DataError, match=r"cannot open data file(.|\n)*nothing\.parquet"):
        ParquetReader(["memory://reader-test/nothing.parquet"], COLUMNS, global_batch_size=1)


def test_remote_file_seeks_like_a_file():
    file = RemoteFile(URL, Retry(attempts=1))
    whole = file.read()
    assert file.seek(-4, 2) == len(whole) - 4
    assert file.read(100) == b"PAR1"
    assert file.read(1) == b""
    file.seek(2)
    file.seek(3, 1)
    assert (file.tell(), file.read(6)) == (5, whole[5:11])
