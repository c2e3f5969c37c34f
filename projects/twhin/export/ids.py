"""The ids of a table, read in step with its rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tml.common.errors import DataError
from tml.projects.twhin.data.vocab import VocabularyHash

_ROWS_AT_A_TIME = 65_536


class IdStream:
    """The ids of a table in the order of their index, a few at a time.

    Args:
        path: the vocabulary's file; None makes the index itself the id.
        table: the table's name, for messages.

    Attributes:
        type: Arrow type of the ids: string or int64.
        num_taken: ids given out so far.

    Raises:
        DataError: there is no such file.
    """

    def __init__(self, path: Path | None, table: str) -> None:
        self.path, self.table, self.num_taken = path, table, 0
        self.type, self._batches = pa.int64(), iter(())
        if path is not None:
            self.type, self._batches = _open(path)
        self._waiting = pa.chunked_array([], self.type)
        self._digest = VocabularyHash()

    def take(self, count: int) -> pa.Array:
        """The next `count` ids.

        Raises:
            DataError: there are fewer, or they are not in the order of the index.
        """
        if self.path is None:
            ids = pa.array(np.arange(self.num_taken, self.num_taken + count))
        else:
            while len(self._waiting) < count and self._read():
                pass
            ids = pa.concat_arrays(self._waiting.slice(0, count).chunks or [pa.array([], self.type)])
            self._waiting = self._waiting.slice(count)
        self.num_taken += len(ids)
        if len(ids) < count:
            raise self._length_error(f"more than the {self.num_taken} ids of the vocabulary")
        self._digest.update(ids)
        return ids

    def finish(self, expected_hash: str | None = None) -> str:
        """The digest of all ids.

        Args:
            expected_hash: digest of the vocabulary the model was trained with; None compares nothing.

        Raises:
            DataError: ids are left, or the digests differ.
        """
        if len(self._waiting) or self._read():
            raise self._length_error(f"only {self.num_taken}, and the vocabulary has more ids")
        found = self._digest.hexdigest()
        if expected_hash is not None and found != expected_hash:
            raise DataError(
                "this is not the vocabulary the model was trained with",
                where=self.path,
                value=found,
                limit=expected_hash,
                fix="give the vocabulary of the training run: another order of ids would name the rows wrongly",
            )
        return found

    def _read(self) -> bool:
        batch = next(self._batches, None)
        if batch is None:
            return False
        first = self.num_taken + len(self._waiting)
        if not np.array_equal(batch.column("index").to_numpy(), np.arange(first, first + len(batch))):
            raise DataError(
                "index of a vocabulary is not contiguous",
                where=f"{self.path}, after row {first}",
                limit="0, 1, 2, ...",
                fix="convert the data again; rows must not be moved or removed",
            )
        self._waiting = pa.chunked_array([*self._waiting.chunks, batch.column("id").cast(self.type)], self.type)
        return True

    def _length_error(self, value: str) -> DataError:
        return DataError(
            "a table and its vocabulary differ in length",
            where=f"table {self.table!r}, {self.path}",
            value=f"rows of the table: {value}",
            limit="one row per id",
            fix="export with the vocabulary the model was trained with",
        )


def _open(path: Path) -> tuple[pa.DataType, Iterator[pa.RecordBatch]]:
    if not path.is_file():
        raise DataError("vocabulary missing", where=path, fix="give the folder that `tml convert` wrote: --vocab-dir")
    file = pq.ParquetFile(path)
    is_integer = pa.types.is_integer(file.schema_arrow.field("id").type)
    return pa.int64() if is_integer else pa.string(), file.iter_batches(_ROWS_AT_A_TIME, columns=["id", "index"])
