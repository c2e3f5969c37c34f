"""What a row means: the tables and ids of its ends, its relation, and its split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tml.common.errors import DataError
from tml.projects.twhin.data.convert.columns import Chunk
from tml.projects.twhin.data.convert.options import RELATIONS_FILE, TABLE_NAME, ConvertOptions, RelationType
from tml.projects.twhin.data.convert.rejects import CODES

TRAIN, VALID, TEST = 0, 1, 2
SPLITS = ("train", "valid", "test")


@dataclass
class Signatures:
    """Numbers the typed relations of one file as they are met."""

    codes: dict[RelationType, int] = field(default_factory=dict)

    def code(self, relation: RelationType) -> int:
        """The relation's number in this file."""
        return self.codes.setdefault(relation, len(self.codes))


@dataclass(frozen=True)
class Rows:
    """Interpreted rows, the good ones only.

    Args:
        lhs, rhs: strings or int64, without table prefixes.
        relation: int32 [n], codes of the file's `Signatures`.
        split: int8 [n], places in `SPLITS`.
        places: int64 [n], line or row numbers.
    """

    lhs: pa.Array
    rhs: pa.Array
    relation: np.ndarray
    split: np.ndarray
    places: np.ndarray


Report = Callable[[np.ndarray, np.ndarray, Callable[[int], str]], None]


class Interpreter:
    """Turns the chunks of one file into rows.

    Args:
        only_relation: the relation of all rows, for a file without a relation column.
        split: the split of all rows where there is no time column.
        report: takes the faults of a chunk, as `Rejects.add`.
    """

    def __init__(self, options: ConvertOptions, only_relation: str | None, split: int, report: Report) -> None:
        self.options, self.only_relation, self.split, self.report = options, only_relation, split, report
        self.signatures = Signatures()
        for relation in options.relations:
            self.signatures.code(relation)

    def __call__(self, chunk: Chunk) -> Rows:
        """Interprets a chunk; rows that mean nothing are reported and left out."""
        faults = np.zeros(len(chunk.lhs), np.int8)
        lhs, lhs_table = self._end(chunk.lhs, faults)
        rhs, rhs_table = self._end(chunk.rhs, faults)
        relation = self._relation(chunk.rel, lhs_table, rhs_table, faults)
        split = self._split(chunk.time, faults)
        if not faults.any():
            return Rows(self._typed(lhs), self._typed(rhs), relation, split, chunk.places)
        self.report(faults, chunk.places, chunk.content)
        good = np.flatnonzero(faults == 0)
        lhs, rhs = lhs.take(pa.array(good)), rhs.take(pa.array(good))
        return Rows(self._typed(lhs), self._typed(rhs), relation[good], split[good], chunk.places[good])

    def _end(self, ids: pa.Array, faults: np.ndarray) -> tuple[pa.Array, pa.DictionaryArray | None]:
        tables = None
        if self.options.typed_ids:
            ids, tables = _split_prefix(ids, self.options.typed_ids, faults)
        if pa.types.is_string(ids.type):
            _mark(faults, _mask(pc.equal(pc.binary_length(ids), 0)), "empty id")
            if self.options.id_type == "int":
                _mark(faults, ~_is_int64(ids), "id is not an integer")
        return ids, tables

    def _typed(self, ids: pa.Array) -> pa.Array:
        wanted = {"int": pa.int64(), "string": pa.string(), "auto": ids.type}[self.options.id_type]
        return ids.cast(wanted)

    def _relation(
        self,
        names: pa.Array | None,
        lhs_table: pa.DictionaryArray | None,
        rhs_table: pa.DictionaryArray | None,
        faults: np.ndarray,
    ) -> np.ndarray:
        if names is None:
            names = pa.repeat(pa.scalar(self.only_relation), len(faults))
        if self.options.relations:
            return self._declared(names, faults)
        _mark(faults, _mask(pc.equal(pc.binary_length(names), 0)), "empty relation")
        encoded = names.dictionary_encode()
        single = self.options.single_table
        if lhs_table is None or rhs_table is None:
            found = [
                self.signatures.code(RelationType(n, single or "", single or ""))
                for n in encoded.dictionary.to_pylist()
            ]
            return np.array(found, np.int32)[encoded.indices.to_numpy()]
        return self._combined(encoded, lhs_table, rhs_table, faults)

    def _declared(self, names: pa.Array, faults: np.ndarray) -> np.ndarray:
        known = pa.array([relation.name for relation in self.options.relations], pa.string())
        codes = pc.fill_null(pc.index_in(names, value_set=known), -1).to_numpy()
        _mark(faults, codes < 0, "unknown relation")
        return codes

    def _combined(
        self, names: pa.DictionaryArray, lhs: pa.DictionaryArray, rhs: pa.DictionaryArray, faults: np.ndarray
    ) -> np.ndarray:
        good = np.flatnonzero(faults == 0)
        codes = np.zeros(len(faults), np.int32)
        parts = [array.indices.to_numpy().astype(np.int64)[good] for array in (names, lhs, rhs)]
        _, one_of_each, inverse = np.unique(
            (parts[0] * len(lhs.dictionary) + parts[1]) * len(rhs.dictionary) + parts[2],
            return_index=True,
            return_inverse=True,
        )
        found = [
            self.signatures.code(
                RelationType(
                    *(
                        array.dictionary[int(part[i])].as_py()
                        for array, part in zip((names, lhs, rhs), parts, strict=True)
                    )
                )
            )
            for i in one_of_each
        ]
        codes[good] = np.array(found, np.int32)[inverse] if found else 0
        return codes

    def _split(self, time: pa.Array | None, faults: np.ndarray) -> np.ndarray:
        if time is None:
            return np.full(len(faults), self.split, np.int8)
        test_from = str(self.options.test_from)
        is_test = _at_or_after(time, test_from, faults)
        valid_from = self.options.valid_from
        is_valid = _at_or_after(time, valid_from, faults) if valid_from is not None else is_test
        return np.where(is_test, TEST, np.where(is_valid, VALID, TRAIN)).astype(np.int8)


def _split_prefix(ids: pa.Array, separator: str, faults: np.ndarray) -> tuple[pa.Array, pa.DictionaryArray]:
    """`user:17` becomes `17` and `user`; only the first separator counts, so ids may hold it too."""
    if not pa.types.is_string(ids.type):
        raise DataError(
            "ids with table prefixes must be strings",
            value=str(ids.type),
            limit="string",
            fix="pass --relation instead",
        )
    has_prefix = _mask(pc.greater(pc.find_substring(ids, separator), 0))
    _mark(faults, ~has_prefix, "id without a table prefix")
    # Rows without the separator get one, so that every row splits in two and the halves stay aligned.
    whole = ids if has_prefix.all() else pc.if_else(pa.array(has_prefix), ids, pa.scalar(f"x{separator}x"))
    halves = pc.list_flatten(pc.split_pattern(whole, separator, max_splits=1))
    tables = halves.take(pa.array(np.arange(0, len(halves), 2))).dictionary_encode()
    fits = [bool(TABLE_NAME.fullmatch(name)) and name != RELATIONS_FILE for name in tables.dictionary.to_pylist()]
    if not all(fits):
        _mark(faults, ~np.array(fits)[tables.indices.to_numpy()], "id without a table prefix")
    return halves.take(pa.array(np.arange(1, len(halves), 2))), tables


def _is_int64(ids: pa.Array) -> np.ndarray:
    """Which strings are the one way to write an int64, without plus sign or leading zeros, so that ids map back."""
    fits = _mask(pc.match_substring_regex(ids, r"^(0|-?[1-9][0-9]{0,18})$"))
    digits = pc.utf8_ltrim(ids, "-")
    longest = _mask(pc.equal(pc.binary_length(digits), 19))
    if longest.any():
        fits &= ~(longest & _mask(pc.greater(digits, str(2**63 - 1))))
    return fits


def _at_or_after(time: pa.Array, bound: str, faults: np.ndarray) -> np.ndarray:
    """Compares times as numbers where the bound is one, as dates in a column of dates, else as text (ISO 8601)."""
    number = _number(bound)
    kind = time.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        _mark(faults, _mask(pc.equal(pc.binary_length(time), 0)), "time cannot be read")
        if number is None:
            return _mask(pc.greater_equal(time, pa.scalar(bound, kind)))
        readable = _mask(pc.match_substring_regex(time, r"^-?[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]+)?$"))
        _mark(faults, ~readable, "time cannot be read")
        time = pc.if_else(pa.array(readable), time, pa.scalar("0", kind)).cast(pa.float64())
        return _mask(pc.greater_equal(time, float(number)))
    try:
        limit = pa.scalar(number if number is not None else bound)
        if pa.types.is_temporal(kind):
            limit = pa.scalar(bound).cast(kind)
        return _mask(pc.greater_equal(time, limit))
    except (pa.ArrowException, TypeError) as error:
        raise DataError(
            "times cannot be compared",
            where=f"--valid-from / --test-from against a column of {kind}",
            value=bound,
            limit="a number for a numeric column, a date for a column of dates",
            fix=str(error),
        ) from error


def _number(text: str) -> int | float | None:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return None


def _mask(values: pa.Array) -> np.ndarray:
    return values.to_numpy(zero_copy_only=False).astype(bool, copy=False)


def _mark(faults: np.ndarray, where: np.ndarray, fault: str) -> None:
    if where.any():
        faults[where & (faults == 0)] = CODES[fault]
