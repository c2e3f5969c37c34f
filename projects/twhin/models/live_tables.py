"""The embeddings of a model in training, as an evaluation reads them.

Letters: `n` rows of a table, `K` ids, `D` embedding dim.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tml.common.device import gather_numbers
from tml.common.modules.embedding_tables import LocalTables, ShardedTables, keyed_ids
from tml.common.modules.sharding import ShardedModel
from tml.projects.twhin.evaluation.sources import DictSource, EmbeddingSource
from tml.projects.twhin.models.model import TwhinHead, TwhinModel

# Rows of a sharded table that travel at a time.
_GATHER_ROWS = 65_536


def embedding_source(model: nn.Module, device: torch.device) -> EmbeddingSource:
    """The live tables of a `TwhinModel` or of a `ShardedModel` around one."""
    inner = unwrapped(model)
    if isinstance(inner.tables, LocalTables):
        layout, weights = inner.tables.layout, inner.tables.weights()
        return DictSource(
            {
                name: weights[layout.group_index[name]].narrow(0, layout.offset[name], table.num_embeddings)
                for name, table in layout.tables.items()
            }
        )
    assert isinstance(inner.tables, ShardedTables)
    return ShardedSource(inner.tables, device)


def unwrapped(model: nn.Module) -> TwhinModel:
    """The `TwhinModel` itself."""
    inner = model.module if isinstance(model, ShardedModel) else model
    assert isinstance(inner, TwhinModel)
    return inner


def head_of(model: nn.Module) -> TwhinHead:
    """The model's head."""
    return unwrapped(model).head


class ShardedSource:
    """Tables that lie in shards on all ranks; every look-up is collective.

    Args:
        tables: after sharding.
        device: where rows are wanted.
    """

    def __init__(self, tables: ShardedTables, device: torch.device) -> None:
        self._tables, self._layout, self._device = tables, tables.layout, device

    def num_rows(self, table: str) -> int:
        """Rows of a table."""
        return self._layout.tables[table].num_embeddings

    def full(self, table: str) -> Tensor:
        """The whole table `[n, D]`, float32, on every rank."""
        ids = torch.arange(self.num_rows(table))
        return torch.cat([self.rows(table, block) for block in ids.split(_GATHER_ROWS)])

    @torch.no_grad()
    def rows(self, table: str, ids: Tensor) -> Tensor:
        """Rows `[K, D]`, float32, of this rank's `ids`; ranks may ask for different numbers."""
        # Gloo needs equal parts, so ranks with fewer ids ask for row 0 as well.
        longest = int(max(gather_numbers([len(ids)]))[0])
        padded = torch.zeros(max(longest, 1), dtype=torch.int64)
        padded[: len(ids)] = ids + self._layout.offset[table]
        groups = torch.full_like(padded, self._layout.group_index[table])
        rows: Tensor = self._tables(keyed_ids(self._layout, padded, groups).to(self._device))
        return rows[: len(ids)].float()
