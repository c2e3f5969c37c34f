"""The input files of a preparation, and the rows that are taken from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from tml.common.errors import DataError
from tml.projects.light_ranker.features.config import FeatureConfig
from tml.projects.light_ranker.features.prepare_options import PrepareOptions
from tml.projects.light_ranker.features.rows import SPLITS, RowBatch, RowSelection
from tml.projects.light_ranker.features.tables import Table


class Inputs:
    """The files of all splits.

    Args:
        options: name the files and the shares of rows.
        config: says how text is read, and which rows are left out.

    Attributes:
        paths: all files, in order.
        split_of_file: path -> index into `SPLITS`, as the files were given.

    Raises:
        DataError: a file is missing or in two splits.
    """

    def __init__(self, options: PrepareOptions, config: FeatureConfig) -> None:
        self._files = options.find_files()
        self.split_of_file = {path: SPLITS.index(split) for split in self._files for path in self._files[split]}
        self.paths = list(self.split_of_file)
        skips = config.bad_values.rows == "skip"
        self._tables = {path: Table(path, config.text, skips) for path in self.paths}
        rates = {split: options.keep_rate if split == "train" else 1.0 for split in SPLITS}
        self._selections = [RowSelection(config, rates[split], options.seed) for split in SPLITS]
        self._fingerprints = self._current()

    @property
    def fingerprints(self) -> dict[str, list[dict[str, Any]]]:
        """Split -> what the files were when this was made."""
        return self._fingerprints

    def check_unchanged(self) -> None:
        """Raises DataError if a file is not what it was."""
        for split, before in self._fingerprints.items():
            for old, new in zip(before, self._current()[split], strict=True):
                if old != new:
                    fix = "run the preparation again"
                    raise DataError("an input file changed while it was read", where=old["path"], fix=fix)

    def schema(self, path: str) -> pa.Schema:
        """Columns of a file."""
        return self._tables[path].schema()

    def rows(self, path: str, columns: Sequence[str], counts: Counter[str] | None = None) -> Iterator[RowBatch]:
        """The rows of a file that are taken, in batches; adds what was left out to `counts`."""
        selection = self._selections[self.split_of_file[path]]
        return selection.read(self._tables[path], columns, Counter() if counts is None else counts)

    def _current(self) -> dict[str, list[dict[str, Any]]]:
        return {split: [self._tables[path].fingerprint() for path in paths] for split, paths in self._files.items()}
