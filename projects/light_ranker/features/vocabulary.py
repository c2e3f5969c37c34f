"""Vocabularies: the values of an id feature that have a row of their own; counted out of core, kept as parquet.

`vocab/<feature>.parquet` holds value (int64 or string), index (int64: the row in the feature's table, 2, 3, ... in the
order of the file) and count (int64: in the training rows), by descending count and then by value, so that the order
of the input makes no difference.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tml.common.errors import DataError
from tml.common.filesystem import open_file
from tml.common.id_index import IdIndex, string_buffers
from tml.projects.light_ranker.features.kinds import PretrainedConfig, VocabularyConfig
from tml.projects.light_ranker.features.raw_columns import Ids, ValueType
from tml.projects.light_ranker.features.spec import FIRST_KNOWN, UNKNOWN

if TYPE_CHECKING:
    import duckdb  # serving does without

COUNTS_SCHEMA = pa.schema(
    [("feature", pa.int32()), ("number", pa.int64()), ("text", pa.large_string()), ("count", pa.int64())]
)
_BATCH_ROWS = 1 << 17
_DENSE_AT_LEAST = 1 << 16  # integers in a range up to this long, or ...
_DENSE_FACTOR = 4  # ... this many times as long as the vocabulary, are looked up in an array


class Vocabulary:
    """The known values of one feature.

    Args:
        values: int64 or string [n], without nulls; value `i` belongs to row `i + 2`.
        where: the file they come from, for messages.

    Raises:
        DataError: a value is null or occurs twice.
    """

    def __init__(self, values: pa.Array, where: str) -> None:
        self.is_integer = pa.types.is_integer(values.type)
        self._values = values.cast(pa.int64() if self.is_integer else pa.large_string())
        if self._values.null_count:
            raise _damaged(where, "a value is null")
        self._index = IdIndex(self._values)
        if twice := self._index.first_duplicate():
            raise _damaged(where, f"value {self._values[twice[0]].as_py()!r} occurs twice")
        self._first, self._dense = self._dense_rows()
        self._beyond = np.uint64(0 if self._dense is None else len(self._dense) - 1)

    @classmethod
    def load(cls, path: str | Path) -> Vocabulary:
        """Reads a vocabulary file.

        Raises:
            DataError: it is missing, damaged, lacks a column, or was reordered.
        """
        with open_file(path) as file:
            try:
                table = pq.read_table(file, columns=["value", "index"])
            except (pa.ArrowException, OSError) as error:
                raise _damaged(str(path), str(error)) from None
        index = table.column("index").to_numpy()
        if not np.array_equal(index, np.arange(FIRST_KNOWN, FIRST_KNOWN + len(index))):
            raise _damaged(str(path), f"the index is not {FIRST_KNOWN}, {FIRST_KNOWN + 1}, ...")
        return cls(_one(table.column("value")), str(path))

    def __len__(self) -> int:
        return len(self._values)

    @property
    def num_rows(self) -> int:
        """Rows of the feature's table: missing, unknown and the known values."""
        return len(self) + FIRST_KNOWN

    @property
    def value_type(self) -> ValueType:
        """The type of the values."""
        return "int" if self.is_integer else "string"

    def hash(self) -> str:
        """A digest of the values in their order, in hex."""
        digest = hashlib.sha256(self.value_type.encode())
        for start in range(0, len(self), _BATCH_ROWS):
            part = self._values.slice(start, _BATCH_ROWS)
            if self.is_integer:
                digest.update(part.to_numpy().astype("<i8").tobytes())
                continue
            offsets, data = string_buffers(part)
            digest.update(np.diff(offsets).astype("<i8").tobytes() + data[offsets[0] : offsets[-1]].tobytes())
        return digest.hexdigest()

    def rows(self, ids: Ids) -> np.ndarray:
        """The row of each id, 1 for unknown ones: int64 [n]."""
        if self._dense is not None:
            assert isinstance(ids.values, np.ndarray)
            # Below the first value the unsigned difference is huge: one comparison finds both ends.
            place = ids.values.view(np.uint64) - self._first
            return self._dense[np.minimum(place, self._beyond)]
        found = self._index.find(pa.array(ids.values) if isinstance(ids.values, np.ndarray) else ids.values)
        return np.where(found < 0, UNKNOWN, found + FIRST_KNOWN)

    def _dense_rows(self) -> tuple[np.uint64, np.ndarray | None]:
        """The first value, and the row of it and each number after it; the last stands for all others."""
        if not self.is_integer or not len(self):
            return np.uint64(0), None
        values = self._values.to_numpy()
        first, last = int(values.min()), int(values.max())
        if last - first >= max(_DENSE_AT_LEAST, _DENSE_FACTOR * len(values)):
            return np.uint64(0), None
        rows = np.full(last - first + 2, UNKNOWN, np.int64)
        rows[values - first] = np.arange(FIRST_KNOWN, FIRST_KNOWN + len(values))
        return np.uint64(first % 2**64), rows


def count_ids(feature: int, ids: Ids) -> pa.Table:
    """How often each id occurs in a batch, for `write_vocabulary`: a table of `COUNTS_SCHEMA`.

    Args:
        feature: its number.
        ids: missing and foreign ones are not counted.
    """
    left_out = [mask for mask in (ids.missing, ids.foreign) if mask is not None]
    values = pa.array(ids.values) if isinstance(ids.values, np.ndarray) else ids.values
    if left_out:
        values = values.filter(pa.array(~np.logical_or.reduce(left_out)))
    counted = pc.value_counts(values)
    distinct, counts = counted.field("values"), counted.field("counts")
    numbers = pa.types.is_integer(distinct.type)
    columns = {
        "feature": pa.array(np.full(len(distinct), feature, np.int32)),
        "number": distinct if numbers else pa.nulls(len(distinct), pa.int64()),
        "text": pa.nulls(len(distinct), pa.large_string()) if numbers else distinct,
        "count": counts,
    }
    return pa.table(columns, schema=COUNTS_SCHEMA)


def write_vocabulary(
    db: duckdb.DuckDBPyConnection,
    counts: list[str],
    feature: int,
    kind: ValueType,
    limits: VocabularyConfig,
    target: Path,
) -> dict[str, Any]:
    """Adds the counts of one feature up and writes its vocabulary file.

    Args:
        db: a database that may use the disk.
        counts: parquet files of `COUNTS_SCHEMA`.
        feature: the feature's number in them.
        kind: type of its values.
        limits: least count and largest size.
        target: the file to write.

    Returns:
        `size`: known values, `left_out`: values that are too rare or too many, `type`, and no `embedding`.
    """
    column, value = ("number", pa.int64()) if kind == "int" else ("text", pa.string())
    counted = (
        f"SELECT {column} AS value, sum(count)::BIGINT AS total FROM read_parquet($files) WHERE feature = $feature"
    )
    names = {"files": counts, "feature": feature}
    [(distinct,)] = db.execute(f"SELECT count(*) FROM ({counted} GROUP BY value)", names).fetchall()
    reader = db.sql(
        f"{counted} GROUP BY value HAVING total >= $least ORDER BY total DESC, value LIMIT $most",
        params={**names, "least": limits.min_count, "most": limits.max_size or 2**62},
    ).to_arrow_reader(_BATCH_ROWS)
    batches = ((batch.column("value").cast(value), batch.column("total")) for batch in reader)
    size = _write(target, value, batches)
    return {"size": size, "left_out": distinct - size, "type": kind, "embedding": None}


def copy_pretrained(config: PretrainedConfig, target: Path) -> tuple[int, ValueType, str]:
    """Writes the vocabulary of a pretrained table: its ids in their order, with counts of 0.

    Returns:
        number of ids, their type, and the table as `<folder>#<table>`.

    Raises:
        DataError: there is no such table, or its file is damaged.
    """
    folder = Path(config.folder).expanduser().resolve()
    source = folder / "embeddings" / f"{config.table}.parquet"
    if not source.is_file():
        tables = sorted(path.stem for path in source.parent.glob("*.parquet"))
        raise DataError(
            "no such pretrained table", where=str(source), value=config.table,
            limit=f"one of {', '.join(tables)}" if tables else "a folder that `tml twhin export` wrote",
            fix="check folder and table of the feature's `pretrained`",
        )  # fmt: skip
    try:
        file = pq.ParquetFile(source)
        kind = pa.int64() if pa.types.is_integer(file.schema_arrow.field("id").type) else pa.string()
        batches = (batch.column("id").cast(kind) for batch in file.iter_batches(_BATCH_ROWS, columns=["id"]))
        size = _write(target, kind, ((ids, pa.array(np.zeros(len(ids), np.int64))) for ids in batches))
    except (pa.ArrowException, OSError, KeyError) as error:
        raise DataError(
            "a pretrained table cannot be read", where=str(source), value=str(error), fix="export it again"
        ) from None
    return size, "int" if pa.types.is_integer(kind) else "string", f"{folder}#{config.table}"


def _write(target: Path, kind: pa.DataType, batches: Iterator[tuple[pa.Array, pa.Array]]) -> int:
    schema = pa.schema([("value", kind), ("index", pa.int64()), ("count", pa.int64())])
    target.parent.mkdir(parents=True, exist_ok=True)
    part, row = target.with_name(target.name + ".part"), FIRST_KNOWN
    with pq.ParquetWriter(part, schema, compression="zstd", use_dictionary=False) as writer:
        for values, counts in batches:
            index = np.arange(row, row + len(values))
            writer.write_table(pa.table([values, pa.array(index), counts], schema=schema))
            row += len(values)
    part.replace(target)
    return row - FIRST_KNOWN


def load_vocabularies(folder: Path, expected: Mapping[str, str]) -> dict[str, Vocabulary]:
    """The vocabularies of a folder, by feature.

    Args:
        folder: holds `<feature>.parquet`.
        expected: feature -> digest.

    Raises:
        DataError: a file is missing or damaged, or not the one the data was encoded with.
    """
    vocabularies = {name: Vocabulary.load(folder / f"{name}.parquet") for name in expected}
    for name, vocabulary in vocabularies.items():
        if vocabulary.hash() != expected[name]:
            raise DataError(
                "not the vocabulary that the data was encoded with", where=str(folder / f"{name}.parquet"),
                value=vocabulary.hash(), limit=expected[name], fix="put the folder back as `prepare` wrote it",
            )  # fmt: skip
    return vocabularies


def _one(column: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def _damaged(where: str, why: str) -> DataError:
    return DataError("a vocabulary is damaged", where=where, value=why, fix="prepare the data again")
