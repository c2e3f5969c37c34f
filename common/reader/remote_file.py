"""A remote object as a file that is read by ranges, so that a row group costs its own bytes alone."""

from __future__ import annotations

import io

from tml.common.filesystem.remote import filesystem_of
from tml.common.filesystem.retry import Retry, with_retry


class RemoteFile(io.RawIOBase):
    """Read-only and seekable. Every range is fetched whole or, after the last try, not at all.

    Args:
        url: `gs://...`, `s3://...` or anything else fsspec knows.
        retry: how often and how patiently to try each range.

    Raises:
        DataError: a request failed for good.
        FileNotFoundError: there is no such object.
    """

    def __init__(self, url: str, retry: Retry | None = None) -> None:
        super().__init__()
        self._url = url
        self._retry = retry or Retry()
        self._filesystem, self._path = filesystem_of(url)
        self._size = int(with_retry(lambda: self._filesystem.info(self._path)["size"], self._what, self._retry))
        self._position = 0

    @property
    def _what(self) -> str:
        return f"read {self._url}"

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """Byte at which the next read begins."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves to a byte, as `io.IOBase.seek`."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Fills the buffer from the current position as far as the object goes; returns the number of bytes."""
        stop = min(self._position + len(buffer), self._size)
        num_bytes = max(stop - self._position, 0)
        if num_bytes:
            buffer[:num_bytes] = with_retry(lambda: self._fetch(self._position, stop), self._what, self._retry)
            self._position = stop
        return num_bytes

    def _fetch(self, start: int, stop: int) -> bytes:
        content = bytes(self._filesystem.cat_file(self._path, start=start, end=stop))
        if len(content) != stop - start:
            raise EOFError(f"{len(content)} of {stop - start} bytes came")
        return content
