"""The bytes under block files: local or behind a URL, raw or gzip."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from typing import IO, Literal, Self

from tml.common.errors import ConfigError, DataError
from tml.common.filesystem import atomic_write, is_remote, open_file

Compression = Literal["auto", "none", "gzip"]

_GZIP_MAGIC, _LZO_MAGIC = b"\x1f\x8b", b"\x89LZO"
_OTHER_SUFFIXES = (".lzo", ".bz2", ".xz", ".zst", ".zip", ".lz4", ".snappy", ".br")
_REMOTE_BUFFER_BYTES = 8 << 20  # fetched by one request


class ByteStream:
    """A file that is read from start to end, and named in every error."""

    def __init__(self, path: str, inner: io.BufferedReader | gzip.GzipFile) -> None:
        self._path, self._inner = path, inner

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._inner.close()

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, none only at the end; all that can be read before damage comes before its error."""
        try:
            return self._inner.read1(size)
        except (EOFError, zlib.error, OSError) as error:
            raise DataError(
                "file is cut off or damaged", where=self._path, value=f"{type(error).__name__}: {error}",
                fix="copy the file again, or skip what is damaged",
            ) from error  # fmt: skip


def open_stream(path: str, compression: Compression = "auto") -> ByteStream:
    """A file's uncompressed bytes from its start; a remote file is fetched as it is read.

    Raises:
        DataError: there is no such file, it cannot be read, or it is compressed in a way that is not known here; also
            on every `read`, when the file is cut off or damaged.
        ConfigError: the compression is unknown.
    """
    _check(path, compression)
    source = _source(path)
    start = source.peek(len(_LZO_MAGIC))[: len(_LZO_MAGIC)]
    if start == _LZO_MAGIC:
        source.close()
        raise DataError(
            "lzo files cannot be read", where=path, limit="raw or gzip", fix="run lzop -d on the file first"
        )
    zipped = start[:2] == _GZIP_MAGIC if compression == "auto" else compression == "gzip"
    return ByteStream(path, gzip.GzipFile(fileobj=source, mode="rb") if zipped else source)


def _source(path: str) -> io.BufferedReader:
    try:
        if not is_remote(path):
            return open_file(path, "rb")  # type: ignore[return-value]
        from tml.common.reader.remote_file import RemoteFile

        return io.BufferedReader(RemoteFile(path), _REMOTE_BUFFER_BYTES)
    except OSError as error:
        raise DataError("cannot open file", where=path, value=str(error), limit="a file that can be read") from error


@contextlib.contextmanager
def open_output(path: str, compression: Compression = "auto") -> Iterator[IO[bytes]]:
    """A file to write, compressed on the way; the same content gives the same bytes.

    A local file appears whole or not at all. A remote one is written beside this program first and sent when it is
    whole.

    Raises:
        ConfigError: the compression is unknown, or the name asks for one that cannot be written.
    """
    _check(path, compression)
    suffix = os.path.splitext(path)[1].lower()
    if compression == "auto" and suffix in _OTHER_SUFFIXES:
        raise ConfigError(
            "compression cannot be written", where=path, value=suffix, limit=".gz, or no suffix of a compression",
            fix="change the name, or name the compression",
        )  # fmt: skip
    zipped = suffix == ".gz" if compression == "auto" else compression == "gzip"
    with _whole_file(path) as file:
        if not zipped:
            yield file
            return
        # No name and no time in the header, so that equal records give equal files.
        with gzip.GzipFile("", "wb", fileobj=file, mtime=0) as compressed:
            yield compressed  # type: ignore[misc]


@contextlib.contextmanager
def _whole_file(path: str) -> Iterator[IO[bytes]]:
    if not is_remote(path):
        with atomic_write(path) as file:
            yield file
        return
    with tempfile.TemporaryFile() as file:
        yield file
        file.seek(0)
        with open_file(path, "wb") as target:
            shutil.copyfileobj(file, target)


def _check(path: str, compression: str) -> None:
    if compression not in ("auto", "none", "gzip"):
        raise ConfigError("compression is unknown", where=path, value=compression, limit="auto, none or gzip")
