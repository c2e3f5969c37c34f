"""Which files make up a data set: paths, patterns, folders, and folders by date.

A pattern may hold the codes of `strftime`, such as `clicks/%Y/%m/%d/*.parquet`; it then stands for the files of every
hour, or every `hour_resolution` hours, from a start to an end, both included.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path

import mmh3

from tml.common.differences import differences
from tml.common.errors import ConfigError, DataError
from tml.common.filesystem import glob_files, is_remote, write_json

_DATE_CODE = re.compile(r"%[YmdHjy]")
_DATE_FORMATS = ("%Y-%m-%d", "%Y/%m/%d", "%Y-%m-%dT%H", "%Y-%m-%d %H", "%Y/%m/%d/%H", "%Y-%m-%dT%H:%M", "%Y%m%d")


@dataclass(frozen=True)
class DateRange:
    """The dates of a pattern.

    Args:
        start, end: the first and the last, both included; an `end` without an hour means its whole day.
        hour_resolution: hours from one folder to the next.
    """

    start: datetime
    end: datetime
    hour_resolution: int = 1

    @classmethod
    def parse(cls, start: str, end: str, hour_resolution: int = 1, date_format: str | None = None) -> DateRange:
        """Reads the dates, such as 2026-04-08 or 2026/04/08/13, or in a `strftime` format.

        Raises:
            ConfigError: a date cannot be read, or the end lies before the start.
        """
        first, _ = _date(start, date_format)
        last, has_hour = _date(end, date_format)
        if not has_hour:
            last += timedelta(hours=23)
        if last < first or hour_resolution < 1:
            raise ConfigError(
                "dates that hold nothing", where="start, end, hour_resolution", value=(start, end, hour_resolution),
                limit="start <= end, and at least 1 hour",
            )  # fmt: skip
        return cls(first, last, hour_resolution)

    def paths(self, pattern: str) -> list[str]:
        """The pattern filled in for every date, each result once."""
        return list(dict.fromkeys(moment.strftime(pattern) for moment in self._moments()))

    def _moments(self) -> Iterator[datetime]:
        moment = self.start
        while moment <= self.end:
            yield moment
            moment += timedelta(hours=self.hour_resolution)


def _date(text: str, date_format: str | None) -> tuple[datetime, bool]:
    for known in (date_format,) if date_format else _DATE_FORMATS:
        try:
            return datetime.strptime(text, known), "%H" in known
        except ValueError:
            continue
    raise ConfigError(
        "a date cannot be read",
        value=text,
        limit=date_format or "a date like 2026-04-08, or 2026-04-08T13 with an hour",
    )


def find_files(paths: str | Sequence[str], dates: DateRange | None = None) -> list[str]:
    """The files that paths stand for, each once, in order.

    Args:
        paths: files, patterns (`*`, `?`, `**`), folders or URLs, of which one text may name several, with commas.
        dates: needed if a path holds date codes; folders of dates without data are passed over.

    Raises:
        DataError: nothing is found. ConfigError: date codes without dates, or dates without codes.
    """
    given = [paths] if isinstance(paths, str) else list(paths)
    named = [part.strip() for path in given for part in path.split(",") if part.strip()]
    with_codes = [path for path in named if _DATE_CODE.search(path)]
    if bool(with_codes) != (dates is not None):
        raise ConfigError(
            "date codes need a start and an end date, and dates need codes", where=", ".join(named),
            value=None if dates is None else f"{dates.start} to {dates.end}",
            limit="a path like clicks/%Y/%m/%d/*.parquet together with start and end, or neither",
        )  # fmt: skip
    files = [file for path in named for file in (_files_by_date(path, dates) if path in with_codes else _files(path))]
    if not files:
        raise DataError("no data files", where=", ".join(given) or "paths", limit="at least one file")
    return list(dict.fromkeys(files))


def _files(path: str) -> list[str]:
    # Names that begin so are marks of other programs: _SUCCESS, .crc, .part files.
    files = glob_files(path)
    return [file for file in files if not os.path.basename(file).startswith(("_", "."))] if len(files) > 1 else files


def _files_by_date(pattern: str, dates: DateRange | None) -> list[str]:
    assert dates is not None
    found: list[str] = []
    for path in dates.paths(pattern):
        try:
            found += _files(path)
        except DataError:
            continue  # a day without data
    if not found:
        raise DataError(
            "no data files between the dates", where=pattern, value=f"{dates.start} to {dates.end}",
            limit="at least one file", fix="check the pattern and the dates",
        )  # fmt: skip
    return found


def check_no_overlap(splits: Mapping[str, Sequence[str]]) -> None:
    """Refuses files that are in two splits, or that occur twice.

    Raises:
        DataError: names the file and the splits.
    """
    owner: dict[str, str] = {}
    for split, files in splits.items():
        for file in files:
            identity = file if is_remote(file) else os.path.realpath(file)
            if identity in owner:
                raise DataError(
                    "a file is used twice", where=file, value=f"{owner[identity]} and {split}",
                    limit="rows that are trained on are not evaluated on", fix="give each split files of its own",
                )  # fmt: skip
            owner[identity] = split


def keep_files(files: Sequence[str], keep_rate: float, seed: int) -> list[str]:
    """A share of the files, drawn by their names: neither their order nor other files make a difference.

    Args:
        keep_rate: the chance of each file, in (0, 1].

    Raises:
        DataError: no file is left.
    """
    kept = [file for file in files if unit_hash(file, seed) < keep_rate]
    if not kept:
        raise DataError(
            "no file is left", where="file keep rate", value=keep_rate, limit=f"{len(files)} files to draw from",
            fix="raise the rate, change the seed, or use the keep rate of records",
        )  # fmt: skip
    return kept


def unit_hash(text: str, seed: int) -> float:
    """A number in [0, 1) that depends on a text and a seed alone."""
    return (mmh3.hash64(f"{seed}:{text}", signed=False)[0] >> 11) / 2.0**53


@dataclass(frozen=True)
class FilesList:
    """A list of files that is kept, so that a later run takes the same ones.

    Args:
        files: the files.
        data_dir, start_datetime, end_datetime, datetime_format, hour_resolution: what they were found by.
    """

    files: list[str]
    data_dir: str
    start_datetime: str | None = None
    end_datetime: str | None = None
    datetime_format: str | None = None
    hour_resolution: int = 1

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes JSON."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> FilesList:
        """Reads what `save` wrote.

        Raises:
            DataError: the file is missing or is no list of files.
        """
        try:
            return cls(**json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise DataError("a list of files cannot be read", where=str(path), value=str(error)) from None


def cached_files(wanted: FilesList, path: str | os.PathLike[str], overwrite: bool = False) -> list[str]:
    """The files of a kept list, or finds and keeps them.

    Args:
        wanted: how to find the files; its own `files` are ignored.
        path: where the list is kept.
        overwrite: find them again.

    Raises:
        ConfigError: the kept list was found by something else.
    """
    if Path(path).exists() and not overwrite:
        kept = FilesList.load(path)
        before, now = ({**asdict(one), "files": None} for one in (kept, wanted))
        changed = differences(before, now)
        if changed:
            raise ConfigError(
                "the kept list of files was found by something else", where=str(path),
                value="; ".join(map(str, changed)), limit="the same folder and dates",
                fix="overwrite the list, or name another file for it",
            )  # fmt: skip
        return kept.files
    dates = None
    if wanted.start_datetime is not None or wanted.end_datetime is not None:
        ends = (wanted.start_datetime or wanted.end_datetime or "", wanted.end_datetime or wanted.start_datetime or "")
        dates = DateRange.parse(*ends, wanted.hour_resolution, wanted.datetime_format)
    files = find_files(wanted.data_dir, dates)
    FilesList(**{**asdict(wanted), "files": files}).save(path)
    return files
