"""Block files written, whole or not at all."""

from __future__ import annotations

from types import TracebackType
from typing import IO, Self

from tml.common.errors import ConfigError, DataError
from tml.projects.light_ranker.records.block_format import (
    CLASS_NAME,
    MAX_BLOCK_BYTES,
    MAX_CLASS_NAME_BYTES,
    RECORDS_PER_BLOCK,
    block_of,
)
from tml.projects.light_ranker.records.block_streams import Compression, open_output


class BlockWriter:
    """Writes a block file; use it as a context.

    Records are gathered in memory and written block by block. The last block, full or not, is written when the context
    ends. A local file appears whole or, when the context ends in an error, not at all.

    Args:
        path: local path or URL.
        compression: "auto" goes by the name: gzip for `.gz`, none for names without a compression's suffix.
        class_name: of the records, at most 1022 bytes.
        records_per_block: the original's default is 100.

    Raises:
        ConfigError: a setting is out of range, or the name asks for a compression that cannot be written.
        DataError: a block grows beyond what readers take.
    """

    def __init__(
        self,
        path: str,
        compression: Compression = "auto",
        class_name: str = CLASS_NAME,
        records_per_block: int = RECORDS_PER_BLOCK,
    ) -> None:
        if len(class_name.encode()) > MAX_CLASS_NAME_BYTES or records_per_block < 1:
            raise ConfigError(
                "block writer's settings are out of range", where=path, value=(class_name, records_per_block),
                limit=f"a class name of at most {MAX_CLASS_NAME_BYTES} bytes, at least 1 record to a block",
            )  # fmt: skip
        self.path, self.num_records = path, 0
        self._class_name, self._records_per_block = class_name, records_per_block
        self._pending: list[bytes] = []
        self._output = open_output(path, compression)
        self._file: IO[bytes]

    def __enter__(self) -> Self:
        self._file = self._output.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.flush()
        except BaseException as failure:
            self._output.__exit__(type(failure), failure, failure.__traceback__)
            raise
        self._output.__exit__(kind, error, trace)

    def write(self, record: bytes) -> None:
        """Adds a record, as bytes."""
        self._pending.append(record)
        self.num_records += 1
        if len(self._pending) >= self._records_per_block:
            self.flush()

    def flush(self) -> None:
        """Writes the block at hand, though it may not be full."""
        if not self._pending:
            return
        block = block_of(self._pending, self._class_name)
        if len(block) > MAX_BLOCK_BYTES:
            raise DataError(
                "block is too long", where=f"{self.path}, before record {self.num_records:,}",
                value=f"{len(block):,} bytes", limit=f"{MAX_BLOCK_BYTES:,} bytes", fix="put fewer records into a block",
            )  # fmt: skip
        self._file.write(block)
        self._pending = []
