"""Vocabularies: which row of a table belongs to which id, both ways, for string and integer ids.

A vocabulary file is parquet with the columns `id` (string or int64), `index` (int64, 0 to n-1 in the order of the rows)
and `count` (int64, edge ends in train). Unknown ids are errors or are marked, and are never mapped to another id's row.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterable, Sequence
from functools import cached_property
from os import PathLike
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tml.common.errors import DataError, UnknownIdError
from tml.common.id_index import IdIndex, string_buffers

UNKNOWN = -1
_MAX_CANDIDATES = 2_000  # ids that are compared letter by letter in a search for the nearest
_MAX_NAMED = 5  # unknown ids named in an error

Ids: TypeAlias = Any  # a sequence of str or int, an array of NumPy or an (also chunked) array of Arrow


class Vocabulary:
    """The ids of one table.

    Args:
        ids: all ids in the order of their index; strings or integers.
        name: the table's name, for messages.
        where: the file they come from, for messages.

    Raises:
        DataError: an id is null or occurs twice, or ids are neither strings nor integers.
    """

    def __init__(self, ids: Ids, *, name: str = "table", where: str | None = None) -> None:
        self.name, self.where = name, where or f"vocabulary of {name!r}"
        self._ids = _as_arrow(ids, self.where)
        if self._ids.null_count:
            row = pc.index(pc.is_null(self._ids), True).as_py()
            raise DataError("null id in a vocabulary", where=f"{self.where}, row {row}", fix="convert the data again")
        self._index = IdIndex(self._ids)
        twice = self._index.first_duplicate()
        if twice is not None:
            raise DataError(
                "id occurs twice in a vocabulary",
                where=f"{self.where}, rows {twice[0]} and {twice[1]}",
                value=self._ids[twice[0]].as_py(),
                limit="one index per id",
                fix="convert the data again",
            )

    @classmethod
    def from_parquet(cls, path: str | PathLike[str], *, name: str | None = None) -> Vocabulary:
        """Reads a vocabulary file; the table's name defaults to the file's.

        Raises:
            DataError: the file cannot be read, lacks a column, its index is not 0, 1, 2, ..., or an id occurs twice.
        """
        where = str(path)
        columns = _read_columns(where, ("id", "index"))
        _check_index(columns["index"], where)
        return cls(
            columns["id"],
            name=name or where.replace("\\", "/").rsplit("/", 1)[-1].removesuffix(".parquet"),
            where=where,
        )

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, value: object) -> bool:
        return bool(self.index([value], unknown="skip")[0] != UNKNOWN)

    @property
    def is_integer(self) -> bool:
        """Whether ids are integers rather than strings."""
        return pa.types.is_integer(self._ids.type)

    @cached_property
    def hash(self) -> str:
        """A digest of the ids in their order, in hex; the layout of the file makes no difference."""
        digest = VocabularyHash()
        for start in range(0, len(self._ids), 1 << 20):
            digest.update(self._ids.slice(start, 1 << 20))
        return digest.hexdigest()

    def index(self, ids: Ids, *, unknown: Literal["error", "skip"] = "error") -> np.ndarray:
        """Looks ids up.

        Args:
            ids: n ids; the text of an integer and an integer mean the same id, as on a command line.
            unknown: `error`, or `skip` to give `UNKNOWN` (-1) for unknown ids.

        Returns:
            int64 [n].

        Raises:
            UnknownIdError: an id is unknown; names the nearest known ones.
        """
        queries, valid = self._as_queries(ids)
        found = np.where(valid, self._index.find(queries), UNKNOWN)
        if unknown == "error" and (found == UNKNOWN).any():
            raise self._unknown(ids, np.flatnonzero(found == UNKNOWN))
        return found

    def ids(self, indexes: Sequence[int] | np.ndarray) -> np.ndarray:
        """The ids at indexes (integers [n]): int64 [n], or an object array of str.

        Raises:
            DataError: an index is not in the table.
        """
        wanted = np.asarray(indexes, np.int64)
        outside = (wanted < 0) | (wanted >= len(self))
        if outside.any():
            raise DataError(
                "index outside the table",
                where=f"table {self.name!r}",
                value=int(wanted[outside][0]),
                limit=f"0 <= index < {len(self)}",
            )
        return self._ids.take(pa.array(wanted.reshape(-1))).to_numpy(zero_copy_only=False).reshape(wanted.shape)

    def to_arrow(self) -> pa.Array:
        """All ids in the order of their index: int64 or large_string."""
        return self._ids

    def nearest(self, value: object, k: int = 3) -> list[Any]:
        """Known ids that look like `value`, the likeliest first; for suggestions in messages.

        Among integers these are the nearest numbers. Among strings, a few thousand ids with the same beginning, end or
        letters in another case are compared letter by letter.
        """
        if not len(self):
            return []
        if self.is_integer:
            number = _as_int(value)
            return [] if number is None else self._index.nearest_integers(number, k)
        return self._nearest_strings(str(value), k)

    def _nearest_strings(self, text: str, k: int) -> list[str]:
        candidates: dict[str, None] = {}
        lowered = pc.utf8_lower(self._ids) if len(self) <= 1_000_000 else self._ids
        self._collect(candidates, pc.equal(lowered, pa.scalar(text.lower(), lowered.type)), text)
        if len(text) > 1:
            self._collect(candidates, pc.match_substring(self._ids, text), text)
        for length in _shorter(len(text)):
            self._collect(candidates, pc.starts_with(self._ids, text[:length]), text)
            self._collect(candidates, pc.ends_with(self._ids, text[-length:]), text)
            if len(candidates) >= _MAX_CANDIDATES:
                break
        by_lower: dict[str, list[str]] = {}
        for candidate in candidates:
            by_lower.setdefault(candidate.lower(), []).append(candidate)
        near = difflib.get_close_matches(text.lower(), list(by_lower), n=k, cutoff=0.5)
        return [candidate for lower in near for candidate in by_lower[lower]][:k]

    def _collect(self, candidates: dict[str, None], mask: pa.Array, text: str) -> None:
        places = np.flatnonzero(mask.to_numpy(zero_copy_only=False))
        if len(places) > _MAX_CANDIDATES:
            lengths = pc.utf8_length(self._ids.take(pa.array(places))).to_numpy()
            places = places[np.argsort(np.abs(lengths - len(text)), kind="stable")[:_MAX_CANDIDATES]]
        candidates.update(dict.fromkeys(self._ids.take(pa.array(places)).to_pylist()))

    def _as_queries(self, ids: Ids) -> tuple[pa.Array, np.ndarray]:
        """The ids in the vocabulary's own type, and which of them have a value of that type (bool [n])."""
        if isinstance(ids, str | bytes):
            raise TypeError("index() takes a sequence of ids, not one id")
        given = ids if isinstance(ids, pa.Array | pa.ChunkedArray) else None
        if given is not None and _kind(given.type) == _kind(self._ids.type):
            array = _as_arrow(given, self.where)
        else:
            array = self._convert(given.to_pylist() if given is not None else list(ids))
        valid = pc.is_valid(array).to_numpy(zero_copy_only=False)
        return pc.fill_null(array, 0 if self.is_integer else ""), valid

    def _convert(self, values: Iterable[Any]) -> pa.Array:
        if self.is_integer:
            return pa.array([_as_int(value) for value in values], pa.int64())
        return pa.array([_as_text(value) for value in values], pa.large_string())

    def _unknown(self, ids: Ids, places: np.ndarray) -> UnknownIdError:
        values = [_plain(ids[int(i)]) for i in places[:_MAX_NAMED]]
        near = self.nearest(values[0])
        shown = ", ".join(map(repr, near))
        return UnknownIdError(
            "unknown id" if len(places) == 1 else f"{len(places)} unknown ids",
            where=f"table {self.name!r}",
            value=values[0] if len(places) == 1 else values,
            limit=f"one of the {len(self)} ids of the table; nearest: {shown}"
            if near
            else f"one of the {len(self)} ids of the table",
            fix=f"did you mean {near[0]!r}?"
            if near
            else f"ids look like {self.ids(range(min(2, len(self)))).tolist()}",
        )


class RelationVocabulary:
    """The relations in the order of their index, with their tables.

    Args:
        names, lhs, rhs: per relation its name and the tables of its two ends.

    Raises:
        DataError: two relations have one name.
    """

    def __init__(
        self, names: Sequence[str], lhs: Sequence[str], rhs: Sequence[str], *, where: str | None = None
    ) -> None:
        self.names, self.lhs, self.rhs = list(names), list(lhs), list(rhs)
        self._vocabulary = Vocabulary(pa.array(self.names, pa.large_string()), name="relations", where=where)

    @classmethod
    def from_parquet(cls, path: str | PathLike[str]) -> RelationVocabulary:
        """Reads `vocab/relations.parquet` (id, index, lhs, rhs, ...).

        Raises:
            DataError: as for `Vocabulary.from_parquet`.
        """
        columns = _read_columns(str(path), ("id", "index", "lhs", "rhs"))
        _check_index(columns["index"], str(path))
        return cls(*(columns[name].to_pylist() for name in ("id", "lhs", "rhs")), where=str(path))

    def __len__(self) -> int:
        return len(self.names)

    @property
    def hash(self) -> str:
        """A digest of the names in their order, in hex."""
        return self._vocabulary.hash

    def index(self, names: Sequence[str]) -> np.ndarray:
        """int64 [n]: the relations' indexes. Raises UnknownIdError for an unknown one."""
        return self._vocabulary.index(names)


class VocabularyHash:
    """The digest of a vocabulary, taken piece by piece; how ids are cut into pieces makes no difference."""

    def __init__(self) -> None:
        self._kind, self._content, self._lengths = b"", hashlib.sha256(), hashlib.sha256()

    def update(self, ids: pa.Array) -> None:
        """Takes the next ids, strings or integers."""
        if pa.types.is_integer(ids.type):
            self._kind = b"int"
            self._content.update(ids.cast(pa.int64()).to_numpy(zero_copy_only=False).astype("<i8").tobytes())
            return
        self._kind = b"str"
        offsets, data = string_buffers(ids.cast(pa.large_string()))
        self._content.update(data[offsets[0] : offsets[-1]].tobytes())
        self._lengths.update(np.diff(offsets).astype("<i8").tobytes())

    def hexdigest(self) -> str:
        """The digest of all ids so far, in hex."""
        return hashlib.sha256(self._kind + self._lengths.digest() + self._content.digest()).hexdigest()


def _read_columns(path: str, names: Sequence[str]) -> dict[str, pa.ChunkedArray]:
    try:
        present = pq.read_schema(path).names
        missing = [name for name in names if name not in present]
        if missing:
            raise DataError(
                "column missing in a vocabulary", where=path, value=missing, limit=f"columns {', '.join(names)}"
            )
        table = pq.read_table(path, columns=list(names), partitioning=None)
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            "vocabulary cannot be read", where=path, value=str(error), fix="convert the data again"
        ) from error
    return {name: table.column(name) for name in names}


def _check_index(column: pa.ChunkedArray, where: str) -> None:
    index = column.to_numpy()
    wrong = np.flatnonzero(index != np.arange(len(index)))
    if len(wrong):
        row = int(wrong[0])
        raise DataError(
            "index of a vocabulary is not contiguous",
            where=f"{where}, row {row}",
            value=_plain(index[row]),
            limit=f"{row}: the index is the row's number",
            fix="convert the data again; rows must not be moved or removed",
        )


def _as_arrow(ids: Ids, where: str) -> pa.Array:
    array = ids if isinstance(ids, pa.Array | pa.ChunkedArray) else pa.array(ids)
    kind = _kind(array.type)
    if kind is None and len(array):
        raise DataError("ids are neither strings nor integers", where=where, value=str(array.type))
    array = array.cast(pa.int64() if kind == "int" else pa.large_string())
    return (
        pa.concat_arrays(array.chunks) if isinstance(array, pa.ChunkedArray) and array.num_chunks else _unchunked(array)
    )


def _unchunked(array: pa.Array | pa.ChunkedArray) -> pa.Array:
    return pa.array([], array.type) if isinstance(array, pa.ChunkedArray) else array


def _kind(kind: pa.DataType) -> str | None:
    if pa.types.is_integer(kind):
        return "int"
    return (
        "str" if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind) else None
    )


def _as_int(value: object) -> int | None:
    if isinstance(value, bool | float):
        return None
    try:
        number = int(value)  # type: ignore[call-overload]
    except (TypeError, ValueError):
        return None
    # Only the one canonical text of a number is its id: '007' is not 7.
    fits = -(2**63) <= number < 2**63 and (not isinstance(value, str) or str(number) == value)
    return number if fits else None


def _as_text(value: object) -> str | None:
    if isinstance(value, str):
        return str(value)
    return str(int(value)) if isinstance(value, int | np.integer) and not isinstance(value, bool) else None


def _plain(value: Any) -> Any:
    return value.as_py() if isinstance(value, pa.Scalar) else value.item() if isinstance(value, np.generic) else value


def _shorter(length: int) -> list[int]:
    """Lengths of beginnings and ends to look for: nearly all of the text first, then ever less."""
    lengths = [shorter for shorter in range(length - 1, length - 4, -1) if shorter > 1]
    while length > 4:
        length //= 2
        lengths.append(length)
    return lengths
