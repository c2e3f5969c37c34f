"""Approximate neighbours by usearch, in the metric of the model's comparator.

Letters: `n` rows, `D` embedding dim.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from tml.common.errors import ConfigError

if TYPE_CHECKING:
    from tml.projects.twhin.serving import TwhinModelView
    from tml.projects.twhin.serving_table import Id, Neighbor

_METRICS = {"dot": "ip", "cosine": "cos", "l2": "l2sq"}

# So many times k candidates are found and scored again exactly.
_OVERSAMPLING = 4


class AnnIndex:
    """Finds rows of one table: right-hand sides of a relation, or similar nodes. Found rows are scored again exactly.

    Args:
        model: the model.
        table: whose rows are found.
        expansion: candidates looked at while building and searching.

    Raises:
        ConfigError: usearch is not installed, or there is no such table.
    """

    def __init__(self, model: TwhinModelView, table: str, expansion: int) -> None:
        try:
            from usearch.index import Index
        except ImportError as error:
            raise ConfigError(
                "usearch is not installed", fix="pip install usearch, or use neighbors(), which is exact"
            ) from error
        self._model, self._table = model, model.table(table)
        self._index: Any = Index(
            ndim=model.info.dim,
            metric=_METRICS[model.info.comparator],
            dtype="f32",
            expansion_add=expansion,
            expansion_search=expansion,
        )
        self._index.add(np.arange(len(self._table)), np.ascontiguousarray(self._table.array))

    def neighbors(
        self, table: str, id: Id | NDArray[np.float32], relation: str | None = None, k: int = 10
    ) -> list[Neighbor]:
        """As `TwhinModelView.neighbors` for a query on the left-hand side (or for relation None), approximately.

        Raises:
            ConfigError: the query ranks another table than the index's.
            UnknownIdError: naming the nearest known ids.
        """
        model = self._model
        ranked, score = model.ranking(table, relation, None if relation is None else "lhs")
        if ranked != self._table.name:
            raise ConfigError("the index is over another table", value=ranked, limit=self._table.name)
        own = None if isinstance(id, np.ndarray) else id
        query = torch.from_numpy(model.vectors(table, id[None] if isinstance(id, np.ndarray) else [id]))
        found = self._index.search(self._moved(query, relation), _OVERSAMPLING * k + 1).keys.astype(np.int64)
        if ranked == table and own is not None:
            found = found[found != self._table.rows([own])[0]]
        scores = score(query, torch.from_numpy(self._table.array[found]))[0].numpy()
        order = np.argsort(-scores, kind="stable")[:k]
        names = self._table.vocabulary.ids(found[order]).tolist()
        return list(zip(names, scores[order].tolist(), strict=True))

    def _moved(self, query: torch.Tensor, relation: str | None) -> NDArray[np.float32]:
        """Every comparator compares the moved left-hand side with right-hand sides as they are."""
        if relation is None:
            return query[0].numpy()
        index, _ = self._model.relation(relation)
        return self._model.scorer.operator(index).apply(query, self._model.scorer.weight[[index]])[0].numpy()
