"""The reader's promises: every row once, one order for any number of ranks, exact cursors, bounded memory."""

import gc
import itertools
import threading
import weakref
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tml.common.batch import Cursor
from tml.common.errors import CheckpointError, ConfigError, DataError
from tml.common.reader import ParquetReader, joined_columns
from tml.common.reader.order import EpochOrder, Segment, cut_segments

COLUMNS = {"row": pa.int64()}


def write_rows(path: Path, start: int, num_rows: int, row_group_size: int = 10) -> str:
    table = pa.table({"row": np.arange(start, start + num_rows), "extra": np.zeros(num_rows)})
    pq.write_table(table, path, row_group_size=row_group_size)
    return str(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[str]:
    """Rows 0..46 in order of file name: 3 files of 20, 1 and 26 rows in row groups of 7, 10 and 4."""
    folder = tmp_path_factory.mktemp("rows")
    sizes = [("a", 0, 20, 7), ("b", 20, 1, 10), ("c", 21, 26, 4)]
    return [write_rows(folder / f"{name}.parquet", start, num, size) for name, start, num, size in sizes]


NUM_ROWS = 47


def rows_of(batches) -> list[int]:
    return [int(row) for batch in batches for row in batch.columns["row"]]


def make(files, **arguments) -> ParquetReader:
    defaults = {"global_batch_size": 6, "shuffle_window_rows": 15, "seed": 3, "prefetch": False}
    return ParquetReader(files, COLUMNS, **(defaults | arguments))


layouts = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 12)), min_size=1, max_size=4).filter(
    lambda files: sum(num for num, _ in files) > 0
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    layout=layouts,
    share=st.integers(1, 11),
    world_size=st.integers(1, 4),
    window=st.integers(1, 40),
    shuffle=st.booleans(),
    seed=st.integers(0, 5),
)
def test_every_row_exactly_once_per_epoch_on_any_layout_and_world_size(
    tmp_path_factory, layout, share, world_size, window, shuffle, seed
):
    folder = tmp_path_factory.mktemp("layout")
    starts = np.cumsum([0, *(num for num, _ in layout)])
    files = [write_rows(folder / f"{i}.parquet", int(starts[i]), num, group) for i, (num, group) in enumerate(layout)]
    batch_size = share * world_size
    single = ParquetReader(
        files, COLUMNS, global_batch_size=batch_size, seed=seed, shuffle=shuffle, shuffle_window_rows=window,
        num_epochs=2,
    )  # fmt: skip
    ranks = [list(single.for_rank(rank, world_size)) for rank in range(world_size)]

    num_rows = int(starts[-1])
    whole = list(single)
    assert single.num_rows == num_rows
    assert len(whole) == 2 * single.steps_per_epoch == 2 * -(-num_rows // batch_size)
    assert {len(batches) for batches in ranks} == {len(whole)}
    for epoch in range(2):
        epoch_rows = rows_of(batch for batch in whole if batch.epoch == epoch)
        assert sorted(epoch_rows) == list(range(num_rows))
        if not shuffle:
            assert epoch_rows == list(range(num_rows))
    for batch, *shares in zip(whole, *ranks, strict=True):
        assert rows_of(shares) == rows_of([batch])
        assert {other.cursor for other in shares} == {batch.cursor}
        assert {other.global_num_rows for other in shares} == {batch.num_rows}
        position = batch.first_row
        for other in shares:
            assert other.num_rows == len(other.columns["row"]) <= share
            assert other.first_row == position
            position += other.num_rows


def test_resume_from_every_cursor_gives_exactly_the_remaining_batches_on_any_world_size(files):
    whole = list(make(files, num_epochs=2))
    for done, world_size in itertools.product(range(len(whole)), (1, 2, 3)):
        start = whole[done - 1].cursor if done else Cursor(0, 0)
        reader = make(files, num_epochs=2, world_size=world_size, rank=0)
        reader.load_cursor(start)
        ranks = [list(reader.for_rank(rank, world_size)) for rank in range(world_size)]
        for batch, *shares in zip(whole[done:], *ranks, strict=True):
            assert rows_of(shares) == rows_of([batch])
            assert (shares[0].epoch, shares[0].global_first_row, shares[0].cursor) == (
                batch.epoch,
                batch.global_first_row,
                batch.cursor,
            )


def test_cursor_at_the_end_of_an_epoch_is_the_start_of_the_next(files):
    batches = list(make(files, num_epochs=2))
    assert [batch.cursor for batch in batches if batch.global_num_rows < 6] == [Cursor(1, 0), Cursor(2, 0)]
    reader = make(files, num_epochs=2)
    reader.load_cursor(Cursor(0, NUM_ROWS))
    assert rows_of(reader) == rows_of(batches[len(batches) // 2 :])
    reader.load_cursor(Cursor(2, 0))
    assert list(reader) == []


def test_resume_with_another_batch_size_keeps_every_row_once(files):
    first = list(itertools.islice(make(files), 3))
    reader = make(files, global_batch_size=10)
    reader.load_cursor(first[-1].cursor)
    rest = [list(reader.for_rank(rank, 2)) for rank in range(2)]
    assert [batch.global_num_rows for batch in rest[0]] == [10, 10, 9]
    assert sorted(rows_of(first) + rows_of(rest[0]) + rows_of(rest[1])) == list(range(NUM_ROWS))


def test_cursor_outside_the_data_is_refused(files):
    with pytest.raises(CheckpointError, match="row <= 47"):
        make(files).load_cursor(Cursor(0, NUM_ROWS + 1))


def test_short_last_batch_leaves_some_ranks_short_or_empty_but_all_make_equal_steps(files):
    reader = make(files, global_batch_size=12)
    last = [list(reader.for_rank(rank, 4))[-1] for rank in range(4)]
    assert reader.steps_per_epoch == 4
    assert [batch.num_rows for batch in last] == [3, 3, 3, 2]
    short = make(files, global_batch_size=44)
    last = [list(short.for_rank(rank, 4)) for rank in range(4)]
    assert [len(batches) for batches in last] == [2, 2, 2, 2]
    assert [batches[-1].num_rows for batches in last] == [3, 0, 0, 0]
    assert last[2][-1].columns["row"].dtype == np.int64
    assert last[2][-1].first_row == NUM_ROWS
    assert last[2][-1].cursor == Cursor(1, 0)


def test_order_changes_with_epoch_and_seed_and_repeats_with_both(files):
    def order(seed, epoch):
        return tuple(
            row for batch in make(files, seed=seed, num_epochs=3) if batch.epoch == epoch for row in rows_of([batch])
        )

    orders = {order(seed, epoch) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9
    assert order(1, 2) == order(1, 2)
    assert tuple(range(NUM_ROWS)) not in orders


def test_order_does_not_depend_on_batch_size_prefetch_or_threads(files):
    expected = rows_of(make(files))
    assert rows_of(make(files, global_batch_size=1)) == expected
    assert rows_of(make(files, global_batch_size=100, prefetch=True, use_threads=True)) == expected
    assert rows_of(make(list(reversed(files)))) == expected


def test_the_first_windows_of_a_run_are_smaller_so_that_training_begins_sooner():
    order = EpochOrder([Segment(0, i, 0, 10, 10 * i) for i in range(50)], seed=7, shuffle=True, window_rows=80)
    assert [window.num_rows for window in order.windows(0)] == [10, 20, 40, 80, 80, 80, 80, 80, 30]
    assert [window.num_rows for window in order.windows(1)] == [80, 80, 80, 80, 80, 80, 20]


def test_another_order_is_another_fingerprint(files, monkeypatch):
    before = make(files).fingerprint()
    monkeypatch.setattr("tml.common.reader.parquet_reader.ORDER_VERSION", 0)
    assert make(files).fingerprint() != before


def test_the_order_of_a_seed_is_pinned():
    # A numpy that draws other permutations breaks the resumption of runs that began with an older one.
    order = EpochOrder([Segment(0, i, 0, 4, 4 * i) for i in range(4)], seed=7, shuffle=True, window_rows=8)
    assert [order.locate(1, position)[1] for position in range(16)] == [
        7,
        11,
        6,
        10,
        4,
        8,
        9,
        5,
        15,
        1,
        12,
        13,
        3,
        2,
        0,
        14,
    ]


def test_shuffling_mixes_files_and_row_groups(tmp_path):
    files = [write_rows(tmp_path / f"{i}.parquet", 1000 * i, 1000, 100) for i in range(4)]
    # The second epoch, as the first windows of a run are smaller.
    one_window = rows_of(make(files, global_batch_size=400, shuffle_window_rows=4000, num_epochs=2))[4000:]
    for first in range(0, 4000, 400):
        per_file = Counter(row // 1000 for row in one_window[first : first + 400])
        # 400 draws of a fair 4-way choice: mean 100, standard deviation 8.2 without replacement.
        assert all(60 < per_file[file] < 140 for file in range(4))
    correlation = np.corrcoef(np.arange(4000), one_window)[0, 1]
    assert abs(correlation) < 0.08

    windows = rows_of(make(files, shuffle_window_rows=500, num_epochs=2))[4000:]
    first_window = Counter(row // 100 for row in windows[:500])
    assert sorted(first_window.values()) == [100] * 5
    assert len({group // 10 for group in first_window}) > 1


def test_offset_and_limit_cut_rows_in_file_order(files):
    for offset, limit in [(0, 5), (19, 3), (7, None), (46, 10), (0, 47), (20, 1)]:
        expected = list(range(NUM_ROWS))[offset:][:limit]
        assert rows_of(make(files, offset=offset, limit=limit, shuffle=False)) == expected
        shuffled = make(files, offset=offset, limit=limit)
        assert sorted(rows_of(shuffled)) == expected
        assert shuffled.num_rows == len(expected)


def test_train_and_validation_share_files_without_sharing_rows(files):
    train, validation = make(files, limit=40), make(files, offset=40)
    assert sorted(rows_of(train) + rows_of(validation)) == list(range(NUM_ROWS))


def test_locate_names_file_and_row_of_every_position(files):
    for arguments in ({}, {"shuffle": False}, {"offset": 9, "limit": 30}):
        reader = make(files, num_epochs=2, **arguments)
        for batch in reader:
            for i, row in enumerate(rows_of([batch])):
                path, row_in_file = reader.locate(batch.epoch, batch.first_row + i)
                assert pq.read_table(path)["row"][row_in_file].as_py() == row
    with pytest.raises(DataError, match="position < 47"):
        make(files).locate(0, NUM_ROWS)


def test_endless_epochs_go_on(files):
    batches = itertools.islice(make(files, num_epochs=None, prefetch=True), 20)
    assert [batch.epoch for batch in batches] == [0] * 8 + [1] * 8 + [2] * 4


def test_every_iteration_starts_again(files):
    reader = make(files)
    reader.load_cursor(Cursor(0, 12))
    assert rows_of(reader) == rows_of(reader)
    first, second = iter(reader), iter(reader)
    assert [rows_of([next(first)]), rows_of([next(first)])] == [rows_of([next(second)]), rows_of([next(second)])]


def test_columns_come_as_the_asked_types_and_extra_ones_are_ignored(tmp_path):
    table = pa.table({
        "lhs": pa.array([1, 2, 3], pa.int32()), "weight": pa.array([0.5, 1.5, 2.5], pa.float32()),
        "label": pa.array([True, False, True]), "text": pa.array(["a", None, "c"]),
        "nested": pa.array([{"x": 1}, None, {"x": 2}]),
    })  # fmt: skip
    pq.write_table(table, tmp_path / "typed.parquet")
    wanted = {"label": pa.bool_(), "lhs": pa.int64(), "weight": pa.float64()}
    (batch,) = ParquetReader([str(tmp_path / "typed.parquet")], wanted, global_batch_size=8, shuffle=False)
    assert list(batch.columns) == list(wanted)
    assert [array.dtype for array in batch.columns.values()] == [np.bool_, np.int64, np.float64]
    assert batch.columns["lhs"].tolist() == [1, 2, 3]
    assert batch.columns["weight"].tolist() == [0.5, 1.5, 2.5]
    assert batch.columns["label"].tolist() == [True, False, True]
    assert all(array.flags.c_contiguous and array.flags.writeable for array in batch.columns.values())


def test_rows_of_several_columns_stay_together(tmp_path):
    rows = np.arange(50)
    pq.write_table(pa.table({"a": rows, "b": rows * 2.0}), tmp_path / "pair.parquet", row_group_size=8)
    columns = {"b": pa.float64(), "a": pa.int64()}
    reader = ParquetReader([str(tmp_path / "pair.parquet")], columns, global_batch_size=7, shuffle_window_rows=20)
    for batch in reader:
        assert (batch.columns["b"] == 2.0 * batch.columns["a"]).all()


@pytest.mark.parametrize("prefetch", [False, True])
def test_memory_is_bounded_by_windows(tmp_path, monkeypatch, prefetch):
    path = write_rows(tmp_path / "many.parquet", 0, 400, 10)
    reader = make([path], prefetch=prefetch, shuffle_window_rows=20, global_batch_size=7)
    decoded: list[weakref.ref] = []
    most_alive = 0
    decode = ParquetReader._decode

    def counted(self, epoch, window, first_row, use_threads):
        nonlocal most_alive
        found = decode(self, epoch, window, first_row, use_threads)
        assert window.num_rows < 20 + 10
        decoded.append(weakref.ref(next(iter(found.blocks.values()))))
        most_alive = max(most_alive, sum(array() is not None for array in decoded))
        return found

    monkeypatch.setattr(ParquetReader, "_decode", counted)
    kept = list(reader)  # batches that are kept do not keep their windows
    assert len(decoded) == 22  # three of 10 rows, then of 20
    assert sorted(rows_of(kept)) == list(range(400))
    assert most_alive <= (2 if prefetch else 1)


def test_neighbouring_columns_of_a_type_are_joined_without_a_copy_and_any_others_with_one(tmp_path):
    path = tmp_path / "types.parquet"
    columns = {"a": pa.int64(), "x": pa.float32(), "b": pa.int64(), "c": pa.int64()}
    numbers = {name: np.arange(6) * 10 + place for place, name in enumerate(columns)}
    pq.write_table(pa.table({name: pa.array(numbers[name], kind) for name, kind in columns.items()}), path)
    (batch,) = ParquetReader([str(path)], columns, global_batch_size=6, shuffle=False, num_epochs=1)
    for names, shares in ((["a", "b", "c"], True), (["b", "c"], True), (["c", "a"], False), (["a", "c"], False)):
        joined = batch.joined(names, np.dtype(np.int64))
        assert np.array_equal(joined, np.stack([numbers[name] for name in names], axis=1))
        assert np.shares_memory(joined, batch.columns["b"]) == shares
    later = {name: column[2:] for name, column in batch.columns.items()}
    assert np.array_equal(
        joined_columns(later, ["a", "b"], np.dtype(np.int64), 4), batch.joined(["a", "b"], np.dtype(np.int64))[2:]
    )
    joined = batch.joined(["a", "x"], np.dtype(np.float32))
    assert joined.dtype == np.float32
    assert np.array_equal(joined, np.stack([numbers["a"], numbers["x"]], axis=1))
    assert batch.joined([], np.dtype(np.float32)).shape == (6, 0)


def test_dropping_the_iterator_ends_its_thread(files):
    iterator = iter(make(files, num_epochs=None, prefetch=True))
    next(iterator)
    assert any(thread.name.startswith("tml-reader") for thread in threading.enumerate())
    del iterator
    gc.collect()
    assert not any(thread.name.startswith("tml-reader") for thread in threading.enumerate())


def test_fingerprint_follows_the_data_and_not_its_directory(tmp_path, files):
    folder = tmp_path / "copy"
    folder.mkdir()
    copies = [str(folder / Path(file).name) for file in files]
    for file, copied in zip(files, copies, strict=True):
        Path(copied).write_bytes(Path(file).read_bytes())
    fingerprint = make(files).fingerprint()
    assert make(copies, seed=9, global_batch_size=2).fingerprint() == fingerprint
    different = [make(files, offset=1), make(files, limit=9), make(files[:2])]
    different.append(ParquetReader(files, {"extra": pa.float64()}, global_batch_size=6))
    write_rows(Path(copies[1]), 99, 1)
    different.append(make(copies))
    assert len({reader.fingerprint() for reader in different} | {fingerprint}) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"global_batch_size": 7, "world_size": 2}, "use 8"),
        ({"rank": 2, "world_size": 2}, "0 <= rank < 2"),
        ({"global_batch_size": 0}, "global_batch_size"),
        ({"seed": -1}, "seed"),
        ({"offset": -1}, "offset"),
        ({"limit": 0}, "limit"),
        ({"num_epochs": 0}, "num_epochs"),
        ({"shuffle_window_rows": 0}, "shuffle_window_rows"),
    ],
)
def test_impossible_settings_are_refused(files, arguments, message):
    with pytest.raises(ConfigError, match=message):
        make(files, **arguments)


def test_cut_segments_keeps_row_numbers_of_the_file():
    assert cut_segments([[4, 4], [], [2]], offset=3, limit=6) == [
        Segment(0, 0, 3, 4, 0),
        Segment(0, 1, 0, 4, 4),
        Segment(2, 0, 0, 1, 0),
    ]
