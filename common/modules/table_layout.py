"""Layout: which named tables share one physical table, and at which row each begins.

Tables of equal dim, data type and optimizer become one physical table (a group): a look-up then needs no empty bags
and no reordering. The user's names, sizes and optimizers stay per table.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

DataType = Literal["fp32", "fp16"]
FusedKind = Literal["sgd", "adagrad", "rowwise_adagrad", "adam"]


@dataclass(frozen=True)
class FusedOptimizerSpec:
    """An optimizer that the table kernel applies during backward.

    Args:
        kind: which rule; `adam` only on a GPU.
        learning_rate: the rate before the first step; a schedule sets it from then on.
        eps: added to the root of the second moment.
        betas: Adam's decay rates.
        weight_decay: L2 weight decay of the rows a batch touches.
        schedule_key: tables whose schedules differ get different keys, hence different groups.
    """

    kind: FusedKind
    learning_rate: float
    eps: float = 1e-8
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    schedule_key: str = ""


@dataclass(frozen=True)
class TableSpec:
    """A named table: `num_embeddings` rows of `embedding_dim` values, drawn from a normal distribution of std
    `init_scale`."""

    name: str
    num_embeddings: int
    embedding_dim: int
    optimizer: FusedOptimizerSpec
    data_type: DataType = "fp32"
    init_scale: float = 1e-3


@dataclass(frozen=True)
class TableGroup:
    """One physical table: the named tables one after the other."""

    name: str
    tables: tuple[TableSpec, ...]

    @property
    def num_rows(self) -> int:
        """Rows of all tables together."""
        return sum(table.num_embeddings for table in self.tables)

    @property
    def embedding_dim(self) -> int:
        """Columns."""
        return self.tables[0].embedding_dim

    @property
    def data_type(self) -> DataType:
        """The type the rows are kept in."""
        return self.tables[0].data_type

    @property
    def optimizer(self) -> FusedOptimizerSpec:
        """The fused optimizer of every row."""
        return self.tables[0].optimizer


class TableLayout:
    """Maps (table, id) to (group, physical row).

    Attributes:
        groups: the physical tables, in order of first appearance.
        group_index: table name -> index into `groups`.
        offset: table name -> first row in its group.
    """

    def __init__(self, tables: Iterable[TableSpec]) -> None:
        self.tables = {table.name: table for table in tables}
        by_key: dict[tuple[int, str, FusedOptimizerSpec], list[TableSpec]] = {}
        for table in self.tables.values():
            by_key.setdefault((table.embedding_dim, table.data_type, table.optimizer), []).append(table)
        self.groups = tuple(
            TableGroup("+".join(table.name for table in members), tuple(members)) for members in by_key.values()
        )
        self.group_index: dict[str, int] = {}
        self.offset: dict[str, int] = {}
        for index, group in enumerate(self.groups):
            row = 0
            for table in group.tables:
                self.group_index[table.name], self.offset[table.name] = index, row
                row += table.num_embeddings

    def to_dict(self) -> dict[str, dict[str, int | str]]:
        """What a reader of a checkpoint needs to find a table: `{table: {group, offset, num_embeddings}}`."""
        return {
            name: {
                "group": self.groups[self.group_index[name]].name,
                "offset": self.offset[name],
                "num_embeddings": table.num_embeddings,
            }
            for name, table in self.tables.items()
        }
