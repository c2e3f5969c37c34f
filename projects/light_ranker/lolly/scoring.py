"""Lolly scores of files: tables with a column for each feature, and debug lines."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from tml.common.errors import DataError
from tml.common.filesystem import open_file
from tml.projects.light_ranker.features.config import TextConfig
from tml.projects.light_ranker.features.tables import Table
from tml.projects.light_ranker.lolly.debug import DebugLine, parse_debug_line, score_debug_line
from tml.projects.light_ranker.lolly.model import LollyModel


def score_table(model: LollyModel, path: str) -> Iterator[np.ndarray]:
    """Logits of a table's rows in pieces, float64 [n] each; features without a column count as absent.

    Raises:
        DataError: the file cannot be read, has no feature of the model, or holds a value that is no number.
        NoBucketError: no bucket holds a value.
    """
    table = Table(path, TextConfig())
    names = [name for name in model.feature_names() if name in set(table.schema().names)]
    if not names:
        raise DataError(
            "table has no feature of the lolly model", where=path, value=table.schema().names,
            limit=f"some of {', '.join(list(model.feature_names())[:5])}, ...",
        )  # fmt: skip
    for first_row, piece in table.batches(names):
        columns = {name: _numbers(piece.column(name), f"{path}, column {name}", first_row) for name in names}
        yield model.score_columns(columns, piece.num_rows)


def score_debug_lines(model: LollyModel, path: str) -> Iterator[tuple[DebugLine, float]]:
    """The examples of a file of debug lines, and the text model's logit of each.

    Raises:
        DataError: a line cannot be read, or there is none. NoBucketError: no bucket holds a value.
    """
    found = False
    with open_file(path, "r") as file:
        for number, text in enumerate(file, start=1):
            if "[[" in text:
                found = True
                line = parse_debug_line(text, where=f"{path}, line {number}")
                yield line, score_debug_line(line, model)
    if not found:
        raise DataError("no debug line in the file", where=path, limit="[[logit]][[lolly logit]][[ids]][[values]]")


def _numbers(column: pa.ChunkedArray, where: str, first_row: int) -> np.ndarray:
    """A column as bool, or as float64 with NaN where there is no value."""
    if pa.types.is_boolean(column.type):
        return column.fill_null(False).to_numpy()
    try:
        return column.cast(pa.float64()).to_numpy()
    except pa.ArrowInvalid as error:
        raise DataError(
            "value is no number", where=f"{where}, rows from {first_row}", value=str(error), limit="numbers, or nothing"
        ) from None
