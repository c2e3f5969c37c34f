"""What embedding tables need: bytes of a row and of what its optimizer remembers, and where the rows lie."""

from __future__ import annotations

from collections.abc import Iterable

from tml.common.modules.table_layout import TableGroup, TableLayout

_VALUE_BYTES = {"fp32": 4, "fp16": 2}


def row_bytes(group: TableGroup) -> int:
    """A row as its table keeps it."""
    return group.embedding_dim * _VALUE_BYTES[group.data_type]


def state_bytes(group: TableGroup) -> int:
    """What the fused optimizer remembers of a row, in float32."""
    values = {"sgd": 0, "rowwise_adagrad": 1, "adagrad": group.embedding_dim, "adam": 2 * group.embedding_dim}
    return 4 * values[group.optimizer.kind]


def rows_of_rank(group: TableGroup, num_ranks: int) -> int:
    """Rows of the largest row-wise shard."""
    return -(-group.num_rows // num_ranks)


def groups_of(layout: TableLayout | None) -> tuple[TableGroup, ...]:
    """The physical tables, none for a model without tables."""
    return layout.groups if layout is not None else ()


def table_bytes(groups: Iterable[TableGroup]) -> int:
    """Weights and optimizer states on all ranks together."""
    return sum(group.num_rows * (row_bytes(group) + state_bytes(group)) for group in groups)


def mean_row_bytes(layout: TableLayout | None) -> tuple[float, float]:
    """Bytes of a row and of its state, means over the rows of all tables; zeros without tables."""
    groups = groups_of(layout)
    num_rows = max(1, sum(group.num_rows for group in groups))
    weights = sum(group.num_rows * row_bytes(group) for group in groups)
    return weights / num_rows, (table_bytes(groups) - weights) / num_rows
