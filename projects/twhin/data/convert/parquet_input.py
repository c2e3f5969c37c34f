"""Reads parquet edge files chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tml.common.errors import DataError
from tml.projects.twhin.data.convert.columns import Chunk, resolve_roles
from tml.projects.twhin.data.convert.options import ConvertOptions
from tml.projects.twhin.data.convert.rejects import CODES, Rejects

CHUNK_ROWS = 1 << 20


def read_parquet(path: str, options: ConvertOptions, has_relation: bool, rejects: Rejects) -> Iterator[Chunk]:
    """Yields the rows of a file that have no nulls; ids are strings or int64.

    Raises:
        DataError: the file cannot be read, a column is missing or of a kind that cannot be an id, or a row is bad and
            `rejects` is strict.
    """
    try:
        with pq.ParquetFile(path) as file:
            yield from _read(file, path, options, has_relation, rejects)
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            "parquet file cannot be read",
            where=path,
            value=str(error),
            fix="check that the file is whole; write it again",
        ) from error


def _read(
    file: pq.ParquetFile, path: str, options: ConvertOptions, has_relation: bool, rejects: Rejects
) -> Iterator[Chunk]:
    names = file.schema_arrow.names
    roles = resolve_roles(names, len(names), options, has_relation, path)
    first_row = 0
    for batch in file.iter_batches(CHUNK_ROWS, columns=[names[p] for p in roles.positions()]):
        arrays = {role: _take(batch, names, getattr(roles, role)) for role in ("lhs", "rhs", "rel", "time")}
        for role in ("lhs", "rhs", "rel"):
            arrays[role] = _plain(arrays[role], path, role)
        yield from _without_nulls(arrays, first_row, rejects)
        first_row += batch.num_rows


def _take(batch: pa.RecordBatch, names: list[str], position: int | None) -> pa.Array | None:
    return None if position is None else batch.column(names[position])


def _plain(array: pa.Array | None, path: str, role: str) -> pa.Array | None:
    """Strings or int64; relations always as strings."""
    if array is None:
        return None
    kind = array.type
    if pa.types.is_dictionary(kind):
        array, kind = array.dictionary_decode(), kind.value_type
    if pa.types.is_integer(kind):
        return array.cast(pa.string() if role == "rel" else pa.int64())
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        array = array.cast(pa.string())
        array.validate(full=True)  # parquet readers take bytes that are no UTF-8 on trust
        return array
    raise DataError(
        "column cannot hold ids",
        where=f"{path}, column for {role}",
        value=str(array.type),
        limit="strings or integers",
        fix="cast the column, or name another one with --columns",
    )


def _without_nulls(arrays: dict[str, pa.Array | None], first_row: int, rejects: Rejects) -> Iterator[Chunk]:
    present = {role: array for role, array in arrays.items() if array is not None}
    num_rows = len(present["lhs"])
    places = first_row + np.arange(num_rows, dtype=np.int64)
    good = np.ones(num_rows, bool)
    for array in present.values():
        if array.null_count:
            good &= pc.is_valid(array).to_numpy(zero_copy_only=False)

    def content(row: int) -> str:
        return str({role: array[row].as_py() for role, array in present.items()})

    if good.all():
        yield _chunk(arrays, places, content)
        return
    rejects.add(np.where(good, 0, CODES["null"]).astype(np.int8), places, content)
    kept = np.flatnonzero(good)
    taken = {role: None if array is None else array.take(pa.array(kept)) for role, array in arrays.items()}
    if len(kept):
        yield _chunk(taken, places[kept], lambda i: content(int(kept[i])))


def _chunk(arrays: dict[str, pa.Array | None], places: np.ndarray, content: object) -> Chunk:
    return Chunk(arrays["lhs"], arrays["rhs"], arrays["rel"], arrays["time"], places, content)  # type: ignore[arg-type]
