"""The few file operations the project needs, on local paths and on URLs (`gs://`, `s3://`, `hdfs://`, ...).

Local paths go straight to the operating system. Everything else goes through fsspec, which is imported on first
use, as are the packages of each protocol (gcsfs, s3fs, ...). Remote operations are tried again when they fail in a
way that may pass.
"""

from __future__ import annotations

import difflib
import glob
import os
import re
import shutil
from pathlib import Path
from typing import IO, Any

from tml.common.errors import DataError
from tml.common.filesystem.retry import Retry, with_retry

PathLike = str | os.PathLike[str]

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_LOCAL_SCHEMES = {"file", "local"}
_NEAR = 0.7  # the suffix alone, as in edges.parquet for clicks.parquet, is not enough


def is_remote(path: PathLike) -> bool:
    """Whether `path` is a URL that the operating system cannot open."""
    match = _SCHEME.match(os.fspath(path))
    return match is not None and match[1].lower() not in _LOCAL_SCHEMES


def open_file(path: PathLike, mode: str = "rb", retry: Retry | None = None) -> IO[Any]:
    """Open a file. Text modes are UTF-8.

    A remote file opened for reading is read whole, and tried again from its start when that fails, so that no part
    of a broken read is ever used; keep that to files that fit in memory.

    Args:
        path: local path or URL.
        mode: as in the built-in `open`.
        retry: how often and how patiently to try a remote read.

    Raises:
        DataError: a file to read does not exist (with the nearest names), or a remote read failed for good.
    """
    encoding = None if "b" in mode else "utf-8"
    if not is_remote(path):
        try:
            return open(_local(path), mode, encoding=encoding)
        except FileNotFoundError:
            if "r" not in mode:
                raise
            raise _missing(path) from None
    from tml.common.filesystem import remote

    if "r" not in mode:
        return remote.open_for_writing(os.fspath(path), mode, encoding)
    return remote.open_for_reading(os.fspath(path), encoding, retry or Retry())


def exists(path: PathLike) -> bool:
    """Whether a file or folder is there."""
    if not is_remote(path):
        return os.path.exists(_local(path))
    return bool(_remote_call(path, "exists"))


def list_dir(path: PathLike) -> list[str]:
    """The full paths of what lies in a folder, sorted.

    Raises:
        DataError: there is no such folder.
    """
    try:
        if not is_remote(path):
            folder = _local(path)
            return sorted(os.path.join(folder, name) for name in os.listdir(folder))
        return sorted(_with_scheme(path, name) for name in _remote_call(path, "ls", detail=False))
    except (FileNotFoundError, NotADirectoryError):
        raise _missing(path) from None


def glob_files(pattern: PathLike) -> list[str]:
    """The files that match a pattern (`*`, `?`, `[ab]`, `**`), sorted by name; a folder stands for every file in it.

    Raises:
        DataError: nothing matches; names the pattern and the nearest names there are.
    """
    if is_remote(pattern):
        found = [_with_scheme(pattern, name) for name in _remote_call(pattern, "glob")]
    else:
        local = _local(pattern)
        local = os.path.join(local, "*") if os.path.isdir(local) else local
        found = [path for path in glob.glob(local, recursive=True) if os.path.isfile(path)]
    if not found:
        raise _missing(pattern, what="no file matches")
    return sorted(found)


def make_dirs(path: PathLike) -> None:
    """Make a folder and those above it; fine when it is there, and without effect on object stores."""
    if is_remote(path):
        _remote_call(path, "makedirs", exist_ok=True)
    else:
        os.makedirs(_local(path), exist_ok=True)


def remove_tree(path: PathLike) -> None:
    """Remove a file, or a folder with all that is in it; fine when it is gone."""
    if is_remote(path):
        if exists(path):
            _remote_call(path, "rm", recursive=True)
        return
    local = _local(path)
    if os.path.isdir(local) and not os.path.islink(local):
        shutil.rmtree(local)
    else:
        Path(local).unlink(missing_ok=True)


def _local(path: PathLike) -> str:
    text = os.fspath(path)
    match = _SCHEME.match(text)
    return text[match.end() :] if match else os.path.expanduser(text)


def _remote_call(path: PathLike, method: str, **options: Any) -> Any:
    from tml.common.filesystem import remote

    filesystem, inner = remote.filesystem_of(os.fspath(path))
    return with_retry(lambda: getattr(filesystem, method)(inner, **options), what=f"{method} {path}", retry=Retry())


def _with_scheme(pattern: PathLike, name: str) -> str:
    match = _SCHEME.match(os.fspath(pattern))
    return name if match is None or _SCHEME.match(name) else match[0] + name


def _missing(path: PathLike, what: str = "no such file or folder") -> DataError:
    near = _nearest_names(path)
    return DataError(
        what, where=os.fspath(path), limit="an existing path",
        fix=f"nearest names there: {', '.join(near)}" if near else "check the path",
    )  # fmt: skip


def _nearest_names(path: PathLike) -> list[str]:
    """Up to five names like that of a path that is not there, from the deepest folder above it that is."""
    if is_remote(path):
        return []
    missing = Path(_local(path))
    while not missing.parent.is_dir() and missing.parent != missing:
        missing = missing.parent
    try:
        names = sorted(os.listdir(missing.parent))
    except OSError:
        return []
    likeness = {name: _likeness(missing.name, name) for name in names}
    near = sorted((name for name in names if likeness[name] >= _NEAR), key=lambda name: -likeness[name])
    return [str(missing.parent / name) for name in near[:5]]


def _likeness(name: str, other: str) -> float:
    """Of two names, from 0 to 1; of `clicks.csv` and `clicks.parquet` it is that of what stands before the suffix."""
    stems = (Path(name).stem, Path(other).stem)
    return max(difflib.SequenceMatcher(None, *pair).ratio() for pair in ((name, other), stems))
