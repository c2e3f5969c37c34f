"""What the evaluation asks for embeddings and for scores.

Letters: `n` rows of a table, `K` ids, `D` embedding dim, `C` queries, `N` candidates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from tml.common.errors import ConfigError
from tml.projects.twhin.models.operators import Operator
from tml.projects.twhin.models.relations import RelationSpec


class EmbeddingSource(Protocol):
    """Embeddings by table name. With several ranks, `full` and `rows` are called by all of them in the same order."""

    def num_rows(self, table: str) -> int:
        """Rows of a table."""
        ...

    def full(self, table: str) -> Tensor:
        """The whole table `[n, D]`, float32, on the device where scores are computed."""
        ...

    def rows(self, table: str, ids: Tensor) -> Tensor:
        """Rows `[K, D]` of `ids`, int64 `[K]` on the CPU; every rank asks for its own, possibly none."""
        ...


class Scorer(Protocol):
    """What ranks candidates: `RelationScorer`, or a baseline."""

    @property
    def relations(self) -> Sequence[RelationSpec]:
        """The relations, in the order of their indices."""
        ...

    def operator(self, relation: int) -> Operator:
        """The operator of a relation index; relations of one operator are scored together."""
        ...

    def rhs_scores(self, operator: Operator, rel: Tensor, lhs: Tensor, candidates: Tensor) -> Tensor:
        """Scores `[C, N]` of `candidates [N, D]` as right-hand sides of `lhs [C, D]` under `rel [C]`."""
        ...

    def lhs_scores(self, operator: Operator, rel: Tensor, rhs: Tensor, candidates: Tensor) -> Tensor:
        """Scores `[C, N]` of `candidates [N, D]` as left-hand sides of `rhs [C, D]` under `rel [C]`."""
        ...


class DictSource:
    """Embeddings that lie whole in this process.

    Args:
        tables: `[n, D]` per table, of any float type.
    """

    def __init__(self, tables: Mapping[str, Tensor]) -> None:
        self._tables = dict(tables)

    def num_rows(self, table: str) -> int:
        """Rows of a table."""
        return len(self._table(table))

    def full(self, table: str) -> Tensor:
        """The whole table `[n, D]`, float32."""
        return self._table(table).detach().float()

    def rows(self, table: str, ids: Tensor) -> Tensor:
        """Rows `[K, D]`, float32."""
        weight = self._table(table).detach()
        return weight[ids.to(weight.device)].float()

    def _table(self, name: str) -> Tensor:
        if name not in self._tables:
            raise ConfigError("unknown table", value=name, limit=", ".join(sorted(self._tables)))
        return self._tables[name]


class IdSource:
    """Every node's "embedding" is its own id, int64 `[n, 1]`: for baselines that score by node rather than by vector.

    Args:
        num_rows: rows of each table.
    """

    def __init__(self, num_rows: Mapping[str, int]) -> None:
        self._num_rows = dict(num_rows)

    def num_rows(self, table: str) -> int:
        """Rows of a table."""
        return self._num_rows[table]

    def full(self, table: str) -> Tensor:
        """All ids of a table."""
        return torch.arange(self._num_rows[table]).unsqueeze(1)

    def rows(self, table: str, ids: Tensor) -> Tensor:
        """The ids themselves."""
        return ids.unsqueeze(1)
