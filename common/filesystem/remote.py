"""Files behind a URL, through fsspec. Import this module lazily: fsspec and its protocols take a while to load."""

from __future__ import annotations

import io
from typing import IO, Any

import fsspec

from tml.common.errors import DataError
from tml.common.filesystem.retry import Retry, with_retry


def filesystem_of(url: str) -> tuple[Any, str]:
    """fsspec's filesystem for a URL, and the path inside it.

    Raises:
        DataError: the protocol is unknown or its package is not installed.
    """
    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        protocol = url.split("://", 1)[0]
        raise DataError(
            f"reading {protocol}:// needs a package that is not installed", where=url, value=str(error),
            fix="install what the message names beside tml",
        ) from None  # fmt: skip
    except ValueError as error:
        raise DataError("unknown protocol", where=url, value=str(error), limit="a protocol that fsspec knows") from None


def open_for_reading(url: str, encoding: str | None, retry: Retry) -> IO[Any]:
    """The whole of a remote file, in memory; `encoding` None gives bytes."""
    content = with_retry(lambda: _read_whole(url), what=f"read {url}", retry=retry)
    return io.BytesIO(content) if encoding is None else io.StringIO(content.decode(encoding))


def open_for_writing(url: str, mode: str, encoding: str | None) -> IO[Any]:
    """A remote file to write; object stores show it only when it is closed."""
    filesystem, path = filesystem_of(url)
    return filesystem.open(path, mode, encoding=encoding) if encoding else filesystem.open(path, mode)


def _read_whole(url: str) -> bytes:
    filesystem, path = filesystem_of(url)
    try:
        expected = filesystem.info(path).get("size")
        with filesystem.open(path, "rb") as file:
            content = bytes(file.read())
    except FileNotFoundError:
        raise DataError("no such remote file", where=url, fix="check the path and the bucket") from None
    # Some stores end a broken transfer like a complete one.
    if expected is not None and len(content) != expected:
        raise EOFError(f"{len(content)} of {expected} bytes came")
    return content
