"""What a sample of a table's rows says about each column."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tml.projects.light_ranker.features.raw_columns import as_array, is_list, is_text, parse_number

Kind = Literal["int", "float", "bool", "text", "time", "ids", "vector", "empty", "other"]

_SEPARATORS = ("|", ";", " ")
_ROWS_FOR_SEPARATOR = 1_000


@dataclass(frozen=True)
class Profile:
    """One column.

    Args:
        name, kind: of the column; `ids` are lists, or text that holds them; `vector` lists of numbers of one length.
        null_share: share of missing values.
        num_distinct: different values, or items of lists, in the sample.
        numbers: float64, the values that are there, if they are numbers or booleans.
        length: of vectors; of lists the length that 95 % do not exceed.
        separator: between the ids of a text.
        examples: a few values.
        is_integer_text: every value, or item of a list, is text that is just how a whole number is written.
    """

    name: str
    kind: Kind
    null_share: float
    num_distinct: int
    numbers: np.ndarray
    length: int = 0
    separator: str | None = None
    examples: tuple[str, ...] = ()
    is_integer_text: bool = False

    @property
    def words(self) -> str:
        """The name as words with underscores between them: `requestId`, `Request ID` and `request-id` are one."""
        return re.sub(r"[^0-9A-Za-z.]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", self.name)).strip("_").lower()

    @property
    def is_binary(self) -> bool:
        """Whether the values are 0 and 1, or false and true."""
        return self.num_distinct == 2 and self.kind in ("int", "float", "bool") and set(self.numbers) == {0.0, 1.0}


def profile_column(name: str, raw: pa.Array) -> Profile:
    """Profiles a column of sampled rows."""
    array = as_array(raw, f"column {name!r}")
    nulls = array.null_count + (int(pc.sum(pc.is_nan(array)).as_py() or 0) if pa.types.is_floating(array.type) else 0)
    null_share = nulls / max(1, len(array))
    present = array.drop_null()
    if not len(present) or null_share == 1:
        return Profile(name, "empty", 1.0, 0, np.empty(0))
    if is_list(array.type):
        return _list_profile(name, present, null_share, None)
    if is_text(array.type):
        return _text_profile(name, present, null_share)
    if pa.types.is_temporal(array.type):
        return Profile(
            name, "time", null_share, pc.count_distinct(present).as_py(), np.empty(0), examples=_shown(present)
        )
    if not (pa.types.is_integer(array.type) or pa.types.is_floating(array.type) or pa.types.is_boolean(array.type)):
        return Profile(name, "other", null_share, 0, np.empty(0), examples=(str(array.type),))
    return _number_profile(name, present, null_share)


def _number_profile(name: str, present: pa.Array, null_share: float) -> Profile:
    kind: Kind = "bool" if pa.types.is_boolean(present.type) else "int"
    numbers = (present.cast(pa.int8()) if kind == "bool" else present).cast(pa.float64(), safe=False).to_numpy()
    numbers = numbers[~np.isnan(numbers)]
    if pa.types.is_floating(present.type) and (numbers != np.floor(numbers)).any():
        kind = "float"
    return Profile(name, kind, null_share, len(np.unique(numbers)), numbers, examples=_shown(present))


def _text_profile(name: str, present: pa.Array, null_share: float) -> Profile:
    """Text files know no types: text that reads as numbers throughout is taken for numbers."""
    head = present.slice(0, _ROWS_FOR_SEPARATOR).to_pylist()
    if all(parse_number(text) is not None for text in head):
        try:
            numbers = _number_profile(name, present.cast(pa.float64()), null_share)
            return replace(numbers, is_integer_text=_is_integer_text(present))
        except pa.ArrowInvalid:
            pass
    if _is_time(present):
        return Profile(
            name, "time", null_share, pc.count_distinct(present).as_py(), np.empty(0), examples=_shown(present)
        )
    for separator in _SEPARATORS:
        share = np.mean([separator in text for text in head])
        items = {item for text in head for item in text.split(separator)}
        num_items = sum(text.count(separator) + 1 for text in head)
        # Names have spaces too: their words are then no fewer than the names, as those of tags are.
        most = min(0.5 * num_items, len(set(head))) if separator == " " else 0.5 * num_items
        if share > 0.2 and len(items) < most:
            lists = pc.split_pattern(present, pattern=separator)
            found = _list_profile(name, lists, null_share, separator)
            return replace(found, is_integer_text=_is_integer_text(lists.flatten()))
    return Profile(name, "text", null_share, pc.count_distinct(present).as_py(), np.empty(0), examples=_shown(present))


def _is_time(texts: pa.Array) -> bool:
    """Whether every text is a date, or a date and a time, as ISO 8601 writes them."""
    for zone in (None, "UTC"):
        try:
            texts.cast(pa.timestamp("us", zone))
            return True
        except pa.ArrowInvalid:
            pass
    return False


def _list_profile(name: str, present: pa.Array, null_share: float, separator: str | None) -> Profile:
    lengths = pc.list_value_length(present).to_numpy(zero_copy_only=False)
    items = present.flatten()
    if pa.types.is_floating(items.type):
        return Profile(name, "vector", null_share, 0, np.empty(0), length=int(lengths.max()))
    distinct = pc.count_distinct(items).as_py()
    length = max(1, int(np.quantile(lengths, 0.95, method="higher")))
    return Profile(name, "ids", null_share, distinct, np.empty(0), length, separator, _shown(items))


def _is_integer_text(texts: pa.Array) -> bool:
    """Whether text and number are one to one: 7 is, 007 and +7 are not, as they would become the same id as 7."""
    return bool(pc.all(pc.match_substring_regex(texts, r"^(0|-?[1-9][0-9]{0,17})$")).as_py())


def _shown(values: pa.Array) -> tuple[str, ...]:
    return tuple(str(value)[:20] for value in values.unique().slice(0, 3).to_pylist())


def constant_within(groups: pa.Array, column: pa.Array, share: float = 0.99) -> bool:
    """Whether a column has one value in (nearly) every group that has several rows.

    Args:
        groups, column: arrays of one length.
        share: of the groups.
    """
    codes = groups.dictionary_encode().indices.fill_null(-1).to_numpy()
    texts = column.cast(pa.string()) if not is_list(column.type) else pa.array([str(v) for v in column.to_pylist()])
    values = texts.dictionary_encode().indices.fill_null(-1).to_numpy(zero_copy_only=False)
    sizes = np.bincount(codes - codes.min())
    pairs = np.unique(np.stack([codes - codes.min(), values]), axis=1)[0]
    several = sizes > 1
    kinds = np.bincount(pairs, minlength=len(sizes))[several]
    return bool(len(kinds)) and float(np.mean(kinds == 1)) >= share


def tells_sides(groups: pa.Array, num_groups: int = 10, share: float = 0.5) -> bool:
    """Whether a column has enough groups of several rows for `constant_within` to mean something.

    Args:
        groups: a value for each row, null for a row of no group.
        num_groups: at least as many groups of several rows.
        share: of the rows, that at least lie in such groups.
    """
    codes = groups.drop_null().dictionary_encode().indices.to_numpy(zero_copy_only=False)
    sizes = np.bincount(codes)
    several = sizes[sizes > 1]
    return len(several) >= num_groups and int(several.sum()) >= share * len(groups)


def follows(event: np.ndarray, column: np.ndarray) -> bool:
    """Whether a number is never above zero without the event, and often with it: then it is known only afterwards.

    Args:
        event: bool [B].
        column: float64 [B], NaN where missing.
    """
    above = np.nan_to_num(column) > 0
    return bool(event.any() and (~event).any() and not above[~event].any() and above[event].mean() > 0.05)


def numbers_of(columns: Mapping[str, pa.Array], name: str) -> np.ndarray | None:
    """A column as float64 with NaN where missing, or None if it holds no numbers."""
    array = columns[name]
    try:
        array = array.cast(pa.int8()) if pa.types.is_boolean(array.type) else array
        return array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None
