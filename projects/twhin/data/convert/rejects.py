"""Rows that cannot be converted: stop at the first of them, or count them and keep examples."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tml.common.errors import DataError

MAX_EXAMPLES = 1_000  # kept per input file; the counts are of all
MAX_SHOWN = 5  # in an error
MAX_CONTENT = 200  # characters of a bad row that are shown

# The faults by code. Code 0 is a good row.
FAULTS = (
    "",
    "blank line",
    "not valid UTF-8",
    "too few columns",
    "too many columns",
    "carriage return inside a line",
    "misplaced quote",
    "empty id",
    "empty relation",
    "unknown relation",
    "id without a table prefix",
    "id is not an integer",
    "time cannot be read",
    "null",
)
CODES = {name: code for code, name in enumerate(FAULTS)}

HINTS = {
    "too few columns": "fill the missing column in, or check --delimiter",
    "too many columns": "remove the delimiter from within the name, or check --delimiter",
    "misplaced quote": "quote the whole value and double the quotes inside it, or pass --no-quoting",
    "unknown relation": "declare it with --relation NAME=LHS_TABLE:RHS_TABLE",
    "id without a table prefix": "write ids as TABLE:ID with the separator given to --typed-ids",
    "id is not an integer": "pass --id-type string",
    "not valid UTF-8": "convert the file to UTF-8",
}


@dataclass
class Rejects:
    """The bad rows of one input file.

    Args:
        path: the file, for messages.
        unit: what its rows are called: `line` (from 1) or `row` (from 0).
        fail: raise on the first bad rows instead of counting them.
        limits: what would have been right, per fault, where the fault's name does not say it.
    """

    path: str
    unit: str
    fail: bool
    limits: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    examples: list[dict[str, Any]] = field(default_factory=list)

    def add(self, faults: np.ndarray, places: np.ndarray, content: Callable[[int], str]) -> None:
        """Takes the faults of a chunk.

        Args:
            faults: int8 [n], codes into `FAULTS`; 0 is fine.
            places: int64 [n], line or row numbers.
            content: gives the text of the i-th row.

        Raises:
            DataError: there is a bad row and `fail` is set.
        """
        bad = np.flatnonzero(faults)
        if not len(bad):
            return
        if self.fail:
            raise self._error(faults, places, content, bad)
        for code, count in zip(*np.unique(faults[bad], return_counts=True), strict=True):
            self.counts[FAULTS[code]] = self.counts.get(FAULTS[code], 0) + int(count)
        for i in bad[: MAX_EXAMPLES - len(self.examples)]:
            self.examples.append(self._example(faults, places, content, i))

    def _example(self, faults: np.ndarray, places: np.ndarray, content: Callable[[int], str], i: int) -> dict[str, Any]:
        return {
            "file": self.path,
            self.unit: int(places[i]),
            "fault": FAULTS[faults[i]],
            "content": content(i)[:MAX_CONTENT],
        }

    def _error(
        self, faults: np.ndarray, places: np.ndarray, content: Callable[[int], str], bad: np.ndarray
    ) -> DataError:
        first = FAULTS[faults[bad[0]]]
        shown = [f"{self.unit} {places[i]}: {FAULTS[faults[i]]}: {content(i)[:80]!r}" for i in bad[1:MAX_SHOWN]]
        more = f"; more nearby: {'; '.join(shown)}" if shown else ""
        advice = HINTS.get(first, "mend the row")
        return DataError(
            first,
            where=f"{self.path}, {self.unit} {places[bad[0]]}{more}",
            value=content(bad[0])[:MAX_CONTENT],
            limit=self.limits.get(first),
            fix=f"{advice}; --on-error skip leaves such rows out and counts them",
        )

    def as_lines(self) -> str:
        """The examples as JSON lines."""
        return "".join(json.dumps(example, ensure_ascii=False) + "\n" for example in self.examples)
