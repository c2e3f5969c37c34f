"""Block files read as a stream; what is damaged is an error or a counted skip."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from tml.common.errors import DataError
from tml.projects.light_ranker.records.block_format import HEADER_BYTES, MARKER, MAX_BLOCK_BYTES, parse_payload
from tml.projects.light_ranker.records.block_streams import ByteStream, Compression, open_stream
from tml.projects.light_ranker.records.columns import OnError

_CHUNK_BYTES = 1 << 20


@dataclass
class BlockCounts:
    """What readers have met.

    Args:
        blocks, records: read.
        bad_blocks: blocks that could not be read and were skipped, with an unknown number of records.
        skipped_bytes: bytes (uncompressed) that belong to no block that was read.
        broken_files: files whose compressed stream is cut off or damaged, read as far as it goes.
    """

    blocks: int = 0
    records: int = 0
    bad_blocks: int = 0
    skipped_bytes: int = 0
    broken_files: int = 0

    def as_dict(self) -> dict[str, int]:
        """By name."""
        return asdict(self)


class BlockReader:
    """Reads a block file as a stream: iterating gives each block's records, as bytes.

    Args:
        path: local path or URL.
        on_error: "skip" passes over what is damaged, to the next marker, and counts it.
        compression: "auto" looks at the file's first bytes.
        counts: where to count; a reader's own when None.
        max_block_bytes: a longer payload is taken for damage.

    Attributes:
        class_name: of the records of the block read last.

    Raises:
        DataError: while iterating, when the file is missing, cut off or damaged; names the byte.
    """

    def __init__(
        self,
        path: str,
        on_error: OnError = "fail",
        compression: Compression = "auto",
        counts: BlockCounts | None = None,
        max_block_bytes: int = MAX_BLOCK_BYTES,
    ) -> None:
        self.path, self.counts, self.class_name = path, counts if counts is not None else BlockCounts(), ""
        self._skips = on_error == "skip"
        self._compression, self._max_block_bytes = compression, max_block_bytes

    def __iter__(self) -> Iterator[list[bytes]]:
        with open_stream(self.path, self._compression) as stream:
            window = _Window(stream, self._skips)
            while self._find_marker(window):
                try:
                    records, num_bytes = self._read_block(window)
                except DataError:
                    if not self._skips:
                        raise
                    # A wrong length would carry us over good blocks: look for the next one right behind the marker.
                    self.counts.bad_blocks += 1
                    self._skip(window, len(MARKER))
                    continue
                window.drop(num_bytes)
                self.counts.blocks += 1
                self.counts.records += len(records)
                yield records
            self.counts.broken_files += window.is_broken

    def _find_marker(self, window: _Window) -> bool:
        """Moves to the next marker; False at the end of the file."""
        while window.fill(len(MARKER)) or window.data:
            place = window.data.find(MARKER)
            if place == 0:
                return True
            if not self._skips:
                raise self._fault(
                    window, "bytes belong to no block", bytes(window.data[:16]).hex(" "), "the marker of a block"
                )
            size = len(window.data)
            none_begins_before = size - len(MARKER) + 1 if size >= len(MARKER) else size
            self._skip(window, place if place > 0 else none_begins_before)
        return False

    def _read_block(self, window: _Window) -> tuple[list[bytes], int]:
        """The records of the block at the window's start, and the block's bytes."""
        if not window.fill(HEADER_BYTES):
            raise self._fault(window, "block is cut off", f"{len(window.data)} bytes", f"a header of {HEADER_BYTES}")
        (length,) = struct.unpack_from("<i", window.data, len(MARKER))
        if not 0 < length <= self._max_block_bytes:
            limit = f"1 to {self._max_block_bytes:,} bytes"
            raise self._fault(window, "length of a block is impossible", length, limit)
        end = HEADER_BYTES + length
        if not window.fill(end):
            found = f"{len(window.data) - HEADER_BYTES:,} bytes"
            raise self._fault(window, "block is cut off", found, f"{length:,} by its header")
        with memoryview(window.data) as whole, whole[HEADER_BYTES:end] as payload:
            try:
                self.class_name, records = parse_payload(payload)
            except ValueError as error:
                raise self._fault(window, "block is damaged", str(error)) from None
        return records, end

    def _skip(self, window: _Window, num_bytes: int) -> None:
        window.drop(num_bytes)
        self.counts.skipped_bytes += num_bytes

    def _fault(self, window: _Window, what: str, value: object, limit: object = None) -> DataError:
        return DataError(
            what, where=f"{self.path}, byte {window.offset:,}", value=value, limit=limit,
            fix="copy the file again, or skip bad blocks",
        )  # fmt: skip


class _Window:
    """The part of a stream that is being looked at."""

    def __init__(self, stream: ByteStream, ends_at_damage: bool) -> None:
        self.data = bytearray()
        self.offset = 0  # of the window in the uncompressed file
        self.is_broken = False
        self._stream, self._ends_at_damage = stream, ends_at_damage

    def fill(self, num_bytes: int) -> bool:
        """Reads until the window holds `num_bytes`; False if the file ends before."""
        while len(self.data) < num_bytes and not self.is_broken:
            try:
                chunk = self._stream.read(_CHUNK_BYTES)
            except DataError:
                if not self._ends_at_damage:
                    raise
                self.is_broken = True
                break
            if not chunk:
                break
            self.data += chunk
        return len(self.data) >= num_bytes

    def drop(self, num_bytes: int) -> None:
        """Moves on."""
        del self.data[:num_bytes]
        self.offset += num_bytes
