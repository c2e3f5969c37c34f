"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from tml.common.errors import DataError
from tml.common.filesystem.filesystem import is_remote


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    """Write a local file so that readers see the old one or the whole new one, also after a crash.

    Args:
        path: the file to write; its folder is made when missing. Remote paths are refused.
        mode: "wb" or "w" (UTF-8).

    Yields:
        An open file beside `path`. It takes `path`'s name when the block ends and is removed when the block raises.
    """
    if is_remote(path):
        raise DataError("atomic writes are for local paths", where=path, fix="write to a local folder and copy it")
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_path(target.parent)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a small local text file (UTF-8) whole or not at all."""
    with atomic_write(path, "w") as file:
        file.write(text)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a local JSON file whole or not at all, indented and with its keys as given."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def sync_path(path: Path) -> None:
    """Make a file's content, or a folder's entries (a rename is one), survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
