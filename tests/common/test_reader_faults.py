"""Bad data under the reader: each fault is an error that names the file and the way out, or is survived."""

import itertools
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tml.common.errors import ConfigError, DataError
from tml.common.reader import ParquetReader

EDGES = {"lhs": pa.int64(), "rhs": pa.int64()}


def write(path: Path, row_group_size: int = 10, **columns) -> str:
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return str(path)


def write_edges(path: Path, start: int = 0, num_rows: int = 40) -> str:
    rows = np.arange(start, start + num_rows)
    return write(path, lhs=rows, rhs=rows + 1)


def read(files, **arguments) -> list[int]:
    reader = ParquetReader(files, EDGES, **({"global_batch_size": 8, "shuffle_window_rows": 10} | arguments))
    return [int(row) for batch in reader for row in batch.columns["lhs"]]


class TestNoFilesEmptyFilesOrFewRows:
    def test_no_files(self):
        with pytest.raises(DataError, match="no data files"):
            read([])

    def test_missing_file_is_named(self, tmp_path):
        with pytest.raises(DataError, match=r"cannot open(.|\n)*gone\.parquet"):
            read([write_edges(tmp_path / "a.parquet"), str(tmp_path / "gone.parquet")])

    def test_empty_file_is_skipped_with_a_warning(self, tmp_path, caplog):
        empty = write(tmp_path / "empty.parquet", lhs=pa.array([], pa.int64()))
        assert sorted(read([empty, write_edges(tmp_path / "full.parquet")])) == list(range(40))
        assert "empty.parquet" in caplog.text
        assert "full.parquet" not in caplog.text

    def test_only_empty_files(self, tmp_path):
        with pytest.raises(DataError, match="no rows to read"):
            read([write_edges(tmp_path / "empty.parquet", num_rows=0)])

    def test_offset_beyond_the_data(self, tmp_path):
        with pytest.raises(DataError, match=r"no rows to read(.|\n)*offset=40(.|\n)*hold 40"):
            read([write_edges(tmp_path / "a.parquet")], offset=40)

    def test_fewer_rows_than_a_batch_are_one_short_batch(self, tmp_path):
        assert sorted(read([write_edges(tmp_path / "a.parquet", num_rows=3)])) == [0, 1, 2]

    def test_one_row_group_feeds_all_ranks(self, tmp_path):
        path = write(tmp_path / "one.parquet", row_group_size=1000, lhs=np.arange(64), rhs=np.arange(64))
        shares = [read([path], rank=rank, world_size=4) for rank in range(4)]
        assert [len(share) for share in shares] == [16] * 4
        assert sorted(itertools.chain(*shares)) == list(range(64))

    def test_the_same_file_twice(self, tmp_path):
        path = write_edges(tmp_path / "a.parquet")
        with pytest.raises(DataError, match=r"listed twice(.|\n)*a\.parquet"):
            read([path, path])


class TestMissingExtraOrWrongTypedColumnsAndNulls:
    def test_missing_column(self, tmp_path):
        path = write(tmp_path / "a.parquet", lhs=np.arange(3), dst=np.arange(3))
        with pytest.raises(DataError, match=r"missing(.|\n)*a\.parquet, column 'rhs'(.|\n)*'lhs', 'dst'"):
            read([path])

    def test_extra_columns_are_ignored(self, tmp_path):
        path = write(tmp_path / "a.parquet", note=["x", None], rhs=np.arange(2), lhs=np.arange(2))
        assert sorted(read([path])) == [0, 1]

    def test_int32_is_widened(self, tmp_path):
        path = write(tmp_path / "a.parquet", lhs=np.array([5], np.int32), rhs=np.array([2**31], np.uint32))
        (batch,) = ParquetReader([path], EDGES, global_batch_size=1)
        assert batch.columns["lhs"].dtype == np.int64
        assert batch.columns["rhs"].tolist() == [2**31]

    @pytest.mark.parametrize(
        ("found", "expected"),
        [
            (pa.int64(), pa.int32()),
            (pa.uint64(), pa.int64()),
            (pa.float64(), pa.int64()),
            (pa.float64(), pa.float32()),
            (pa.int64(), pa.float64()),
            (pa.string(), pa.int64()),
        ],
    )
    def test_types_that_could_lose_a_value_are_refused(self, tmp_path, found, expected):
        path = write(tmp_path / "a.parquet", lhs=pa.array([1, 2]).cast(found))
        with pytest.raises(DataError, match=f"wrong type(.|\n)*a.parquet, column 'lhs'(.|\n)*{found}(.|\n)*{expected}"):
            ParquetReader([path], {"lhs": expected}, global_batch_size=1)

    def test_types_the_reader_cannot_give_are_refused(self, tmp_path):
        with pytest.raises(ConfigError, match="not supported"):
            ParquetReader([write_edges(tmp_path / "a.parquet")], {"lhs": pa.string()}, global_batch_size=1)

    def test_nulls_are_counted_before_reading(self, tmp_path):
        rhs = pa.array([None if row in (13, 17, 25) else row for row in range(30)], pa.int64())
        path = write(tmp_path / "a.parquet", lhs=np.arange(30), rhs=rhs)
        with pytest.raises(DataError, match=r"nulls(.|\n)*a\.parquet, column 'rhs', row group 1(.|\n)*3 nulls"):
            read([path])

    @pytest.mark.parametrize("prefetch", [False, True])
    def test_nulls_without_statistics_are_found_on_decoding(self, tmp_path, prefetch):
        rhs = pa.array([None if row == 13 else row for row in range(30)], pa.int64())
        path = str(tmp_path / "a.parquet")
        pq.write_table(pa.table({"lhs": np.arange(30), "rhs": rhs}), path, row_group_size=10, write_statistics=False)
        with pytest.raises(DataError, match=r"a\.parquet, column 'rhs', row group 1(.|\n)*1 nulls"):
            read([path], prefetch=prefetch)

    def test_nulls_in_a_column_beside_a_nested_one(self, tmp_path):
        nested = pa.array([{"x": 1, "y": None}] * 3)
        path = write(tmp_path / "a.parquet", nested=nested, lhs=np.arange(3), rhs=pa.array([1, None, 3]))
        with pytest.raises(DataError, match=r"column 'rhs', row group 0(.|\n)*1 nulls"):
            read([path])


class TestCorruptTruncatedDeletedOrChangedFiles:
    @pytest.mark.parametrize("kept", [0, 3, 11, 500, -1])
    def test_truncated_file(self, tmp_path, kept):
        path = tmp_path / "cut.parquet"
        path.write_bytes(Path(write_edges(tmp_path / "whole.parquet")).read_bytes()[:kept])
        with pytest.raises(DataError, match=r"corrupt, truncated(.|\n)*cut\.parquet"):
            read([str(path)])

    def test_not_parquet(self, tmp_path):
        path = tmp_path / "text.parquet"
        path.write_text("lhs\trhs\n1\t2\n" * 50)
        with pytest.raises(DataError, match=r"not parquet(.|\n)*text\.parquet"):
            read([str(path)])

    def test_garbled_footer(self, tmp_path):
        path = tmp_path / "a.parquet"
        content = bytearray(Path(write_edges(path)).read_bytes())
        content[-60:-8] = b"\xff" * 52
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"a\.parquet, footer"):
            read([str(path)])

    @pytest.mark.parametrize("prefetch", [False, True])
    def test_garbled_page(self, tmp_path, prefetch):
        path = tmp_path / "a.parquet"
        rows = pa.table({"lhs": np.arange(40), "rhs": np.arange(40)})
        pq.write_table(rows, path, row_group_size=10, write_page_checksum=True, use_dictionary=False)
        content = bytearray(path.read_bytes())
        content[100] ^= 0xFF
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"corrupt(.|\n)*a\.parquet, row group \d"):
            read([str(path)], prefetch=prefetch)

    @pytest.mark.parametrize("prefetch", [False, True])
    def test_deleted_during_the_run(self, tmp_path, prefetch):
        path = write_edges(tmp_path / "a.parquet")
        batches = iter(ParquetReader([path], EDGES, global_batch_size=8, shuffle_window_rows=10, prefetch=prefetch))
        next(batches)
        Path(path).unlink()
        with pytest.raises(DataError, match=r"cannot open(.|\n)*a\.parquet"):
            list(batches)

    @pytest.mark.parametrize(("start", "num_rows", "same_size"), [(0, 30, False), (1, 40, True)])
    def test_replaced_during_the_run(self, tmp_path, start, num_rows, same_size):
        path, other = str(tmp_path / "a.parquet"), str(tmp_path / "other.parquet")
        for name, rows in ((path, np.arange(40)), (other, np.arange(start, start + num_rows))):
            table = pa.table({"lhs": rows, "rhs": rows})
            pq.write_table(table, name, row_group_size=10, compression="none", use_dictionary=False)
        assert (Path(path).stat().st_size == Path(other).stat().st_size) == same_size
        batches = iter(ParquetReader([path], EDGES, global_batch_size=8, shuffle_window_rows=10, prefetch=False))
        next(batches)
        shutil.copy(other, path)
        with pytest.raises(DataError, match=r"changed during the run(.|\n)*a\.parquet"):
            list(batches)

    def test_rows_before_the_fault_are_still_given(self, tmp_path):
        good, bad = write_edges(tmp_path / "a.parquet"), write_edges(tmp_path / "b.parquet", start=40)
        reader = ParquetReader([good, bad], EDGES, global_batch_size=8, shuffle_window_rows=10, shuffle=False)
        Path(bad).unlink()
        batches = iter(reader)
        seen = [int(row) for _ in range(5) for row in next(batches).columns["lhs"]]
        assert seen == list(range(40))
        with pytest.raises(DataError, match=r"b\.parquet"):
            next(batches)

    def test_changed_data_has_another_fingerprint(self, tmp_path):
        path = write_edges(tmp_path / "a.parquet")
        before = ParquetReader([path], EDGES, global_batch_size=8).fingerprint()
        write_edges(tmp_path / "a.parquet", start=1)
        assert ParquetReader([path], EDGES, global_batch_size=8).fingerprint() != before


class TestShortLastBatchAndOddRowGroups:
    @pytest.mark.parametrize("batch_size", [1, 7, 10, 33, 1000])
    def test_every_row_is_seen_once(self, tmp_path, batch_size):
        files = [write_edges(tmp_path / "a.parquet", 0, 33), write_edges(tmp_path / "b.parquet", 33, 20)]
        for shuffle in (False, True):
            assert sorted(read(files, global_batch_size=batch_size, shuffle=shuffle)) == list(range(53))


class TestRanksGetUnequalNumbersOfBatches:
    @pytest.mark.parametrize("num_rows", [1, 8, 9, 15, 17, 40])
    def test_all_ranks_make_equal_steps(self, tmp_path, num_rows):
        path = write_edges(tmp_path / "a.parquet", num_rows=num_rows)
        for world_size in (1, 2, 4, 8):
            readers = [
                ParquetReader([path], EDGES, global_batch_size=8, rank=r, world_size=world_size)
                for r in range(world_size)
            ]
            assert {len(list(reader)) for reader in readers} == {-(-num_rows // 8)}
            assert {reader.steps_per_epoch for reader in readers} == {-(-num_rows // 8)}


class TestFewerFilesOrRowGroupsThanRanks:
    def test_split_by_row_without_duplicates(self, tmp_path):
        files = [write_edges(tmp_path / "a.parquet", 0, 3), write_edges(tmp_path / "b.parquet", 3, 2)]
        shares = [read(files, rank=rank, world_size=8) for rank in range(8)]
        assert sorted(itertools.chain(*shares)) == [0, 1, 2, 3, 4]
        assert [len(share) for share in shares] == [1, 1, 1, 1, 1, 0, 0, 0]
