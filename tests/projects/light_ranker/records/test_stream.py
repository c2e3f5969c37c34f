"""Streams of records: shards are disjoint and complete, and keep rates are what they say."""

from __future__ import annotations

import pytest

from tml.common.errors import ConfigError, DataError
from tml.projects.light_ranker.records.block_reader import BlockCounts
from tml.projects.light_ranker.records.block_writer import BlockWriter
from tml.projects.light_ranker.records.stream import iterate_records


@pytest.fixture
def files(tmp_path, monkeypatch) -> list[str]:
    monkeypatch.chdir(tmp_path)  # the draws depend on the names
    made = []
    for number in range(5):
        made.append(f"part-{number}{'.gz' if number % 2 else ''}")
        with BlockWriter(made[-1]) as writer:
            for record in range(1000):
                writer.write(f"{number}:{record}".encode())
    return made


@pytest.mark.parametrize("num_ranks", [1, 2, 5, 7])
@pytest.mark.parametrize("keep_rate", [1.0, 0.3])
def test_shards_are_disjoint_and_complete(files, num_ranks, keep_rate):
    whole = list(iterate_records(files, keep_rate, 3))
    shards = [list(iterate_records(files, keep_rate, 3, (rank, num_ranks))) for rank in range(num_ranks)]
    assert sorted(record for shard in shards for record in shard) == sorted(whole)
    assert min(map(len, shards)) > 0
    if num_ranks > len(files):  # ranks take turns, so that their parts are of one size but for the draws
        assert max(map(len, shards)) - min(map(len, shards)) <= (1 if keep_rate == 1 else 100)


def test_records_are_kept_at_the_rate_and_anew_for_each_seed(files):
    kept = [set(iterate_records(files, 0.2, seed)) for seed in (0, 1)]
    deviation = (5000 * 0.2 * 0.8) ** 0.5
    assert all(abs(len(each) - 1000) < 5 * deviation for each in kept)
    assert abs(len(kept[0] & kept[1]) - 200) < 5 * deviation
    assert set(iterate_records(files, 0.2, 0)) == kept[0]
    # Draws of a file do not depend on the others.
    assert set(iterate_records(files[2:3], 0.2, 0)) == {record for record in kept[0] if record.startswith(b"2:")}


def test_files_are_kept_at_the_rate(files):
    sizes = [len(list(iterate_records(files, seed=seed, file_keep_rate=0.8))) for seed in range(40)]
    assert set(sizes) <= {1000, 2000, 3000, 4000, 5000}
    assert abs(sum(sizes) - 40 * 5000 * 0.8) < 5 * 1000 * (200 * 0.8 * 0.2) ** 0.5


def test_what_was_read_is_counted(files):
    counts = BlockCounts()
    list(iterate_records(files, 0.5, counts=counts))
    assert counts == BlockCounts(blocks=50, records=5000)


def test_damage_is_an_error_or_skipped(files, tmp_path):
    data = (tmp_path / "part-0").read_bytes()
    (tmp_path / "part-0").write_bytes(data[:-1])
    with pytest.raises(DataError, match="part-0, byte"):
        list(iterate_records(files))
    counts = BlockCounts()
    assert len(list(iterate_records(files, on_error="skip", counts=counts))) == 4900
    assert counts.bad_blocks == 1


@pytest.mark.parametrize(
    "settings",
    [{"keep_rate": 0.0}, {"keep_rate": 1.5}, {"file_keep_rate": -1.0}, {"shard": (2, 2)}, {"shard": (0, 0)}],
)
def test_settings_out_of_range_are_refused(files, settings):
    with pytest.raises(ConfigError, match="out of range"):
        next(iterate_records(files, **settings))
