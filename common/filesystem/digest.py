"""Size and checksum of a file: what says later whether it is still the same."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class FileInfo:
    """Bytes and SHA-256 of a file."""

    size: int
    sha256: str


def file_info(path: Path) -> FileInfo:
    """Size and checksum of a local file as it is on disk; both of the same reading."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileInfo(file.tell(), digest)
