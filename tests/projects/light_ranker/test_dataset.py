"""Encoded rows as batches: what they hold, on any number of ranks and from any cursor, and rows that may not be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.projects.light_ranker.tiny_run import (
    SIZES,
    TinyData,
    config_of,
    random_rows,
    read_rows,
    tiny_settings,
    write_data,
    write_rows,
)
from tml.common.errors import ConfigError, DataError
from tml.projects.light_ranker.config import DataConfig, TrainDataConfig
from tml.projects.light_ranker.data.dataset import RankerDataset, Share, count_rows, keep_mask
from tml.projects.light_ranker.models.tables import HASHED_BINS, MlpSlots

BOUNDARIES = {"age": [1.0, 2.0, 4.0], "likes": [0.5, 3.0], "rate": [2.0, 3.0]}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> TinyData:
    return write_data(tmp_path_factory.mktemp("data"))


def _slots(data: TinyData) -> MlpSlots:
    config = config_of(tiny_settings(data, "unused"))
    slots = MlpSlots(data.spec, config.model.mlp, "cpu")
    slots.set_boundaries(BOUNDARIES)
    return slots


def _train(data: TinyData, rank: int = 0, num_ranks: int = 1, size: int = 300, **options) -> RankerDataset:
    config = TrainDataConfig(data_root=data.split("train"), global_batch_size=size, **options)
    return RankerDataset(config, data.spec, _slots(data), Share(size, 7, rank, num_ranks))


def _epoch(dataset: RankerDataset) -> list:
    batches = []
    for batch in dataset:
        batches.append(batch)
        if batch.cursor.row == 0:
            return batches
    return batches


def test_a_batch_holds_the_rows_of_the_file_as_physical_ids_masks_numbers_and_labels(data):
    slots = _slots(data)
    dataset = RankerDataset(DataConfig(data_root=data.split("valid")), data.spec, slots, Share(100))
    batch = next(iter(dataset))
    columns = {name: values[:100] for name, values in read_rows(data.split("valid")).items()}
    names = [name for feature in data.spec.ids for name in feature.columns()]
    owners = [feature.name for feature in data.spec.ids for _ in feature.columns()]
    rows = batch.nodes.values().view(100, -1)
    for place, (name, owner) in enumerate(zip(names, owners, strict=True)):
        expected = np.maximum(columns[name], 0) + slots.layout.offset[owner]
        assert np.array_equal(rows[:, place], expected), name
        assert np.array_equal(batch.slot_mask[:, place], columns[name] >= 0), name
    for place, feature in enumerate(data.spec.continuous):
        np.testing.assert_array_equal(batch.continuous[:, place], columns[f"x.{feature.name}"])
    assert np.array_equal(batch.vectors[:, 1], columns["v.taste.1"])
    assert np.array_equal(batch.labels[:, 1], columns["y.watch_time"])
    assert np.array_equal(batch.weight, columns["w"])
    assert batch.is_real.all()
    assert batch.num_examples == 100


def test_a_number_is_looked_up_by_its_bin_and_a_missing_one_by_row_zero_of_its_table(data):
    slots = _slots(data)
    batch = next(iter(RankerDataset(DataConfig(data_root=data.split("valid")), data.spec, slots, Share(200))))
    rows = batch.nodes.values().view(200, -1)[:, -3:]  # age, likes, rate
    age = batch.continuous[:, 0].numpy()
    code = np.where(np.isnan(age), 0, 1 + np.searchsorted(BOUNDARIES["age"], age, side="left"))
    assert np.array_equal(rows[:, 0] - slots.layout.offset["age"], code)
    assert {0, 1, 2, 3, 4} == set(code)
    hashed = rows[:, 1] - slots.layout.offset[HASHED_BINS]
    likes = batch.continuous[:, 1]
    assert (hashed[likes.isnan()] == 0).all()
    assert (hashed[~likes.isnan()] > 0).all()
    assert len(hashed.unique()) == 4  # three bins and missing


def test_an_epoch_is_every_row_once_in_an_order_of_the_seed(data):
    seen = np.concatenate([batch.continuous[:, 2].numpy() for batch in _epoch(_train(data))])
    again = np.concatenate([batch.continuous[:, 2].numpy() for batch in _epoch(_train(data))])
    every = read_rows(data.split("train"))["x.hour"]
    np.testing.assert_array_equal(seen, again)
    np.testing.assert_array_equal(np.sort(seen), np.sort(every))
    assert not np.array_equal(seen, every, equal_nan=True)


def test_two_ranks_share_each_batch_and_padding_rows_have_no_weight(data):
    whole, parts = _epoch(_train(data)), [_epoch(_train(data, rank, 2)) for rank in (0, 1)]
    for batch, left, right in zip(whole, *parts, strict=True):
        assert len(left.weight) == len(right.weight) == 150
        real = torch.cat([part.weight[part.is_real] for part in (left, right)])
        assert torch.equal(real, batch.weight)
        assert batch.num_examples == left.num_examples == right.num_examples == len(real)
        for part in (left, right):
            assert (part.weight[~part.is_real] == 0).all()
    assert not parts[1][-1].is_real.all()  # 4000 rows leave the last batch of 300 short


def test_iteration_continues_at_a_cursor(data):
    batches = _epoch(_train(data, keep_rate=0.7))
    again = _train(data, keep_rate=0.7)
    again.load_cursor(batches[3].cursor)
    assert torch.equal(next(iter(again)).weight, batches[4].weight)


def test_a_keep_rate_draws_other_rows_in_every_epoch_the_same_on_any_number_of_ranks(data):
    whole = _train(data, keep_rate=0.3)
    first = _epoch(whole)
    total = sum(batch.num_examples for batch in first)
    assert total == pytest.approx(0.3 * SIZES["train"], abs=4 * (0.21 * SIZES["train"]) ** 0.5)
    parts = [_epoch(_train(data, rank, 2, keep_rate=0.3)) for rank in (0, 1)]
    for batch, left, right in zip(first, *parts, strict=True):
        assert torch.equal(torch.cat([part.weight[part.is_real] for part in (left, right)]), batch.weight)
        assert left.num_examples == batch.num_examples
    positions = np.arange(10_000)
    epochs = [keep_mask(positions, epoch, 1, 0.5) for epoch in (0, 1)]
    assert abs((epochs[0] & epochs[1]).mean() - 0.25) < 0.02


def test_a_batch_that_ranks_cannot_share_is_refused(data):
    with pytest.raises(ConfigError, match="multiple of 2 ranks"):
        _train(data, 0, 2, size=301)


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("id.tweet", 6, "0 <= id < 6"),
        ("id.tweet", -1, "0 <= id < 6"),
        ("id.topics.2", 99, "-1 <= id < 5"),
        ("id.topics.0", -1, "0 <= id < 5"),
        ("x.hour", np.inf, "finite number or NaN"),
        ("v.taste.1", np.nan, "a finite number"),
        ("y.click", 2.0, "0 or 1"),
        ("y.click", np.nan, "0 or 1"),
        ("y.watch_time", -1.0, "0 or more"),
        ("w", -0.5, "weight of 0 or more"),
        ("w", np.nan, "weight of 0 or more"),
    ],
)
def test_fault_a_value_out_of_range_is_named_by_file_row_column_and_limit(data, tmp_path, column, value, said):
    columns = random_rows(data.spec, 50, np.random.default_rng(1))
    columns[column][37] = value
    path = tmp_path / "bad" / "part.parquet"
    write_rows(path, data.spec, columns)
    config = DataConfig(data_root=str(tmp_path / "bad"))
    with pytest.raises(DataError) as caught:
        list(RankerDataset(config, data.spec, _slots(data), Share(50)))
    assert f"{path}, row 37, column {column}" in str(caught.value)
    assert said in str(caught.value)
    with pytest.raises(DataError, match="row 37"):
        count_rows(config, data.spec)


def test_fault_a_missing_column_is_named(data, tmp_path):
    columns = random_rows(data.spec, 5, np.random.default_rng(1))
    write_rows(tmp_path / "part.parquet", data.spec, columns)
    short = read_rows(str(tmp_path))
    short.pop("id.tweet")
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(short), tmp_path / "part.parquet")
    with pytest.raises(DataError, match=r"id\.tweet"):
        count_rows(DataConfig(data_root=str(tmp_path)), data.spec)


def test_fault_a_folder_without_files_is_named(data, tmp_path):
    with pytest.raises(DataError, match="nowhere"):
        count_rows(DataConfig(data_root=str(tmp_path / "nowhere")), data.spec)


def test_count_rows_reads_the_part_that_the_section_names(data):
    section = DataConfig(data_root=data.split("valid"), offset=10, limit=55)
    assert count_rows(section, data.spec) == 55


def test_files_of_a_pattern_or_a_single_file_are_read(data):
    path = str(Path(data.split("valid")) / "part-0.parquet")
    assert count_rows(DataConfig(data_root=path), data.spec) == 266
