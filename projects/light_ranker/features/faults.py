"""Rows that break a rule: an error at the first of them, or left out and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np

from tml.common.errors import DataError


class RowFaults:
    """What is wrong with the rows of a batch.

    Args:
        num_rows: of the batch.
        source: where the rows come from, such as a file.
        row_numbers: int64 [num_rows], the rows' numbers in the source; 0, 1, 2, ... if None.
        may_skip: whether there is a way to leave rows out; without one, `skip` means `error`.

    Attributes:
        counts: rows left out by reason; a row counts for its first reason only.
    """

    def __init__(
        self, num_rows: int, source: str, row_numbers: np.ndarray | None = None, may_skip: bool = False
    ) -> None:
        self._num_rows, self._source, self._row_numbers, self._may_skip = num_rows, source, row_numbers, may_skip
        self._bad: np.ndarray | None = None
        self.counts: Counter[str] = Counter()

    @property
    def good(self) -> np.ndarray | None:
        """bool [num_rows]: rows to keep; None if that is all of them."""
        return None if self._bad is None else ~self._bad

    def where(self, column: str, row: int | None = None) -> str:
        """Names a place in the source."""
        if row is None:
            return f"{self._source}, {column}"
        number = row if self._row_numbers is None else int(self._row_numbers[row])
        return f"{self._source}, row {number}, {column}"

    def report(
        self,
        wrong: np.ndarray,
        action: str,
        what: str,
        column: str,
        value: Callable[[int], object],
        *,
        limit: str,
        fix: str,
        setting: str,
    ) -> None:
        """Tells of rows that break a rule; call it only if there are any.

        Args:
            wrong: bool [num_rows].
            action: `error`, or `skip` to leave the rows out.
            what: the rule, as an error's first words and as the reason in the counts.
            column: feature or label, and its column.
            value: the value of a row.
            limit: what is allowed.
            fix: how to mend the data.
            setting: the setting of `bad_values` that may leave such rows out.

        Raises:
            DataError: for `error`, naming the first such row.
        """
        if action == "skip" and self._may_skip:
            new = wrong if self._bad is None else wrong & ~self._bad
            self.counts[what] += int(np.count_nonzero(new))
            self._bad = wrong.copy() if self._bad is None else self._bad | wrong
            return
        row = int(wrong.argmax())
        hint = f"; or set bad_values.{setting} in features.yaml to leave such rows out" if self._may_skip else ""
        raise DataError(what, where=self.where(column, row), value=value(row), limit=limit, fix=fix + hint)
