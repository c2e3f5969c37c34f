"""Edges are checked with file, row, table, value and limit in the message."""

from __future__ import annotations

import numpy as np
import pytest

from tml.common.errors import DataError
from tml.projects.twhin.data.edges import EdgeArrays, EdgeSchema
from tml.projects.twhin.models.relations import RelationSpec

SCHEMA = EdgeSchema(
    [RelationSpec("follow", "user", "user"), RelationSpec("fav", "user", "tweet")], {"user": 10, "tweet": 3}
)


def _edges(*rows: tuple[int, int, int]) -> EdgeArrays:
    return EdgeArrays(*(np.array(column, dtype=np.int64) for column in zip(*rows, strict=True)))


def test_edges_in_range_pass() -> None:
    SCHEMA.check(_edges((0, 0, 9), (9, 1, 2)))


@pytest.mark.parametrize(
    ("row", "column", "value", "limit"),
    [
        ((0, 0, 10), "rhs", "10", "0 <= id < 10 (table 'user')"),
        ((0, 1, 3), "rhs", "3", "0 <= id < 3 (table 'tweet')"),
        ((-1, 1, 0), "lhs", "-1", "0 <= id < 10 (table 'user')"),
        ((0, 2, 0), "rel", "2", "0 <= rel < 2 (follow, fav)"),
        ((0, -1, 0), "rel", "-1", "0 <= rel < 2 (follow, fav)"),
    ],
)
def test_fault_30_an_id_out_of_range_names_file_row_table_value_and_limit(
    row: tuple[int, int, int], column: str, value: str, limit: str
) -> None:
    with pytest.raises(DataError) as caught:
        SCHEMA.check(_edges((0, 0, 0), row), lambda index: f"part-3.parquet, row {100 + index}")
    message = str(caught.value)
    assert f"part-3.parquet, row 101, column {column}" in message
    assert f"value: {value}" in message
    assert limit in message


def test_columns_of_unequal_length_are_refused() -> None:
    with pytest.raises(DataError, match="unequal length"):
        EdgeArrays(np.zeros(2, np.int64), np.zeros(1, np.int64), np.zeros(2, np.int64))


def test_a_column_of_another_type_is_refused() -> None:
    with pytest.raises(DataError, match="column rel"):
        EdgeArrays(np.zeros(2, np.int64), np.zeros(2, np.int32), np.zeros(2, np.int64))  # type: ignore[arg-type]
