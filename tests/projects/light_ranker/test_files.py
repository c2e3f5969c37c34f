"""Lists of data files: patterns, dates, overlap, shares, and lists that are kept."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import fsspec
import pytest

from tml.common.errors import ConfigError, DataError
from tml.projects.light_ranker.data.files import (
    DateRange,
    FilesList,
    cached_files,
    check_no_overlap,
    find_files,
    keep_files,
)


@pytest.fixture
def days(tmp_path: Path) -> Path:
    for day in ("2026/04/08", "2026/04/09", "2026/04/11"):
        (tmp_path / day).mkdir(parents=True)
        (tmp_path / day / "part-0.parquet").touch()
        (tmp_path / day / "_SUCCESS").touch()
    return tmp_path


def test_a_folder_a_pattern_and_a_list_give_their_files_once(tmp_path: Path):
    for name in ("a.csv", "b.csv", "_SUCCESS", ".a.crc"):
        (tmp_path / name).touch()
    a, b = str(tmp_path / "a.csv"), str(tmp_path / "b.csv")
    assert find_files(str(tmp_path)) == [a, b]
    assert find_files(f"{tmp_path}/*.csv") == [a, b]
    assert find_files([b, f"{a},{b}"]) == [b, a]


def test_dates_include_both_ends_and_pass_over_days_without_data(days: Path):
    pattern = f"{days}/%Y/%m/%d/*.parquet"
    found = find_files(pattern, DateRange.parse("2026-04-08", "2026-04-10"))
    assert [path.split("/")[-2] for path in found] == ["08", "09"]
    assert len(find_files(pattern, DateRange.parse("2026/04/08", "2026/04/11"))) == 3


def test_hours_step_by_their_resolution():
    dates = DateRange.parse("2026-04-08", "2026-04-09T06", hour_resolution=6)
    assert dates.paths("%d/%H") == ["08/00", "08/06", "08/12", "08/18", "09/00", "09/06"]
    assert dates.paths("%m/%d") == ["04/08", "04/09"]


def test_an_end_without_an_hour_is_its_whole_day():
    assert DateRange.parse("2026-04-08", "2026-04-08").end == datetime(2026, 4, 8, 23)


def test_remote_files_are_found():
    memory = fsspec.filesystem("memory")
    memory.pipe("/clicks/2026/04/08/x.parquet", b"1")
    found = find_files("memory://clicks/%Y/%m/%d/*.parquet", DateRange.parse("2026-04-07", "2026-04-09"))
    assert [name.removeprefix("memory://").lstrip("/") for name in found] == ["clicks/2026/04/08/x.parquet"]


@pytest.mark.parametrize(
    ("paths", "dates"), [("clicks/%Y/%m", None), ("clicks", DateRange.parse("2026-04-08", "2026-04-08"))]
)
def test_codes_and_dates_need_each_other(paths, dates):
    with pytest.raises(ConfigError, match="start and an end"):
        find_files(paths, dates)


def test_faults_of_dates_and_patterns_are_told(days: Path):
    with pytest.raises(ConfigError, match=r"08\.04\.2026"):
        DateRange.parse("08.04.2026", "2026-04-09")
    with pytest.raises(ConfigError, match="hold nothing"):
        DateRange.parse("2026-04-09", "2026-04-08")
    with pytest.raises(DataError, match="between the dates"):
        find_files(f"{days}/%Y/%m/%d/*.parquet", DateRange.parse("2025-04-08", "2025-04-10"))
    with pytest.raises(DataError, match="no file matches"):
        find_files(f"{days}/nothing-*.csv")


def test_a_file_in_two_splits_is_refused_under_any_name(tmp_path: Path):
    (tmp_path / "a.parquet").touch()
    (tmp_path / "same.parquet").symlink_to(tmp_path / "a.parquet")
    with pytest.raises(DataError, match="train and test"):
        check_no_overlap({"train": [f"{tmp_path}/a.parquet"], "test": [f"{tmp_path}/same.parquet"]})


def test_the_share_of_files_does_not_depend_on_order_or_other_files():
    files = [f"part-{i}" for i in range(400)]
    kept = keep_files(files, 0.3, seed=1)
    assert 80 < len(kept) < 160
    assert set(keep_files(files[::-2], 0.3, seed=1)) == set(kept) & set(files[::-2])
    assert keep_files(files, 0.3, seed=2) != kept
    assert keep_files(files, 1.0, seed=1) == files
    with pytest.raises(DataError, match="no file is left"):
        keep_files(files[:2], 1e-9, seed=1)


def test_a_kept_list_wins_over_new_files_and_refuses_other_dates(days: Path):
    wanted = FilesList([], f"{days}/%Y/%m/%d/*.parquet", "2026/04/08", "2026/04/09", "%Y/%m/%d")
    kept = days / "files.json"
    first = cached_files(wanted, kept)
    (days / "2026/04/08/part-1.parquet").touch()
    assert cached_files(wanted, kept) == first
    assert len(cached_files(wanted, kept, overwrite=True)) == len(first) + 1
    other = FilesList([], wanted.data_dir, "2026/04/08", "2026/04/11", "%Y/%m/%d")
    with pytest.raises(ConfigError, match='end_datetime: "2026/04/09" -> "2026/04/11"'):
        cached_files(other, kept)
