"""The checkpoint folder on disk: names, the commit record and the only writes that other code may trust.

<directory>/
  lock.json                 who writes here
  best.json                 the best step by a metric
  step-00000012/
    __0_0.distcp, ...       tensor data, one file per rank
    .metadata               DCP's table of contents
    extra.json              the caller's JSON
    COMMIT.json             written last: sizes and checksums of all of the above
  step-00000015.tmp/        not finished, or being deleted; never read
"""

from __future__ import annotations

import datetime
import json
import os
import re
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tml.common.errors import CheckpointError
from tml.common.versions import library_versions

COMMIT_NAME = "COMMIT.json"
EXTRA_NAME = "extra.json"
METADATA_NAME = ".metadata"
# Libraries that decide whether a checkpoint can be read.
_DECISIVE = ("torch", "torchrec")
FORMAT_VERSION = 1

_FOLDER = re.compile(r"step-(\d{8,})")
_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and CRC-32 of one file of a checkpoint."""

    size: int
    crc32: int


@dataclass(frozen=True)
class CommitRecord:
    """What `COMMIT.json` says about a checkpoint.

    `sequence` counts the commits of a directory. It orders checkpoints by when they were written, which is not the
    order of steps once a run has gone back to an earlier step.
    """

    step: int
    sequence: int
    world_size: int
    files: dict[str, FileRecord]
    fingerprints: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    saved_at: str = ""
    format: int = FORMAT_VERSION


@dataclass(frozen=True)
class Entry:
    """A finished step folder; `problem` says why its commit record cannot be trusted (then `record` is None)."""

    step: int
    path: Path
    record: CommitRecord | None
    problem: str | None = None


def step_folder(directory: Path, step: int) -> Path:
    """The folder of a committed step."""
    return directory / f"step-{step:08d}"


def temporary_folder(directory: Path, step: int) -> Path:
    """The folder in which a step is written before its commit."""
    return directory / f"step-{step:08d}.tmp"


def scan(directory: Path) -> list[Entry]:
    """All finished step folders, newest commit first; folders without `COMMIT.json` are not there.

    A folder whose commit record is damaged comes first, so that a reader meets it and can say so.
    """
    if not directory.is_dir():
        return []
    entries = []
    for path in directory.iterdir():
        match = _FOLDER.fullmatch(path.name)
        if match and (path / COMMIT_NAME).exists():
            entries.append(_entry(path, int(match.group(1))))
    return sorted(entries, key=_newness, reverse=True)


def _entry(path: Path, step: int) -> Entry:
    try:
        record = read_commit(path)
    except CheckpointError as error:
        return Entry(step, path, None, error.what)
    if record.step != step:
        return Entry(step, path, None, f"{COMMIT_NAME} is that of step {record.step}")
    return Entry(step, path, record)


def _newness(entry: Entry) -> tuple[int, int, int]:
    return (1, 0, entry.step) if entry.record is None else (0, entry.record.sequence, entry.step)


def committed(directory: Path) -> list[Entry]:
    """The finished step folders with a sound commit record, newest commit first."""
    return [entry for entry in scan(directory) if entry.record is not None]


def leftovers(directory: Path) -> list[Path]:
    """Folders of saves that never committed and of deletions that never ended."""
    return sorted(path for path in directory.glob("step-*.tmp") if path.is_dir())


def write_commit(folder: Path, record: CommitRecord) -> None:
    """Write `COMMIT.json`, with a checksum of itself, and make the folder's entries durable."""
    body = asdict(record)
    body["saved_at"] = record.saved_at or datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    body["versions"] = record.versions or library_versions(*_DECISIVE)
    body["crc32"] = _crc_of_json(body)
    write_durably(folder / COMMIT_NAME, json.dumps(body, indent=1).encode())
    sync_directory(folder)


def read_commit(folder: Path) -> CommitRecord:
    """Read and check a folder's commit record.

    Raises:
        CheckpointError: it is missing, not JSON, damaged or of a newer format.
    """
    path = folder / COMMIT_NAME
    try:
        body = json.loads(path.read_bytes())
        checksum = body.pop("crc32")
        if checksum != _crc_of_json(body):
            raise ValueError("its own checksum does not match")
        if body["format"] > FORMAT_VERSION:
            raise ValueError(f"format {body['format']} is newer than this program's {FORMAT_VERSION}")
        body["files"] = {name: FileRecord(**record) for name, record in body["files"].items()}
        return CommitRecord(**body)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{COMMIT_NAME} cannot be trusted: {error}", where=path, fix="use another step of this directory"
        ) from error


def _crc_of_json(body: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(body, sort_keys=True, separators=(",", ":")).encode())


def find_damage(
    folder: Path, record: CommitRecord, names: Iterable[str], *, sizes_only: bool = False
) -> tuple[Path, str] | None:
    """Compare files with their commit record; return the first that differs and why, else None."""
    for name in names:
        reason = _damage_of_file(folder / name, record.files[name], sizes_only)
        if reason is not None:
            return folder / name, reason
    return None


def _damage_of_file(path: Path, expected: FileRecord, sizes_only: bool) -> str | None:
    try:
        size = path.stat().st_size
        if size != expected.size:
            return f"{size} bytes instead of {expected.size} (truncated or overwritten)"
        if not sizes_only and crc32_of_file(path) != expected.crc32:
            return "checksum mismatch (the content has changed since it was written)"
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read ({error})"
    return None


def crc32_of_file(path: Path) -> int:
    """CRC-32 of a file's content, read in pieces of 1 MiB."""
    checksum = 0
    with path.open("rb") as file:
        while data := file.read(_READ_BYTES):
            checksum = zlib.crc32(data, checksum)
    return checksum


def write_durably(path: Path, data: bytes) -> FileRecord:
    """Write a new file, fsync it and return its record."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return FileRecord(len(data), zlib.crc32(data))


def replace_durably(path: Path, data: bytes) -> None:
    """Replace a file in one step: readers see the old content or the new, never a part."""
    temporary = path.with_name(path.name + ".tmp")
    write_durably(temporary, data)
    os.replace(temporary, path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make created and renamed entries of a directory survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(temporary: Path, final: Path) -> None:
    """Give a finished folder its final name; a folder that stands there already makes way first."""
    if final.exists():
        final.rename(final.with_name(final.name + ".replaced.tmp"))
    temporary.rename(final)
    sync_directory(final.parent)
