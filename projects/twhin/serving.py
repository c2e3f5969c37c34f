"""An exported model that answers by original id, from its folder alone.

    model = load_model("exported")
    model.get_user_embedding("u17")                             # float32 [D]
    model.neighbors("user", "u17", "fav", k=10)                 # [(tweet id, score), ...]
    model.predict_relation("u17", "t4", "fav", probability=True)

Letters: `Q` queries, `n` rows of a table, `D` embedding dim.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tml.common.errors import ConfigError, DataError
from tml.projects.twhin import model_folder
from tml.projects.twhin.model_folder import ModelInfo
from tml.projects.twhin.models.relations import RelationScorer, RelationSpec
from tml.projects.twhin.models.scores import Side, compare_matrix
from tml.projects.twhin.serving_table import Id, Neighbor, ServedTable

if TYPE_CHECKING:
    from tml.projects.twhin.ann_index import AnnIndex

Embedding = NDArray[np.float32]

_QUERIES_AT_A_TIME = 256


def load_model(folder: str | os.PathLike[str], *, verify: bool = False) -> TwhinModelView:
    """Open an exported model. Tables are read on first use, or mapped if they were exported for that.

    Args:
        folder: written by `tml twhin export`.
        verify: compare every file with its checksum first.

    Raises:
        DataError: this is no model folder, or a file is missing, cut off or (with `verify`) changed.
    """
    path = Path(folder)
    info = model_folder.read_model_info(path)
    if verify:
        model_folder.verify(path, info)
    return TwhinModelView(path, info, model_folder.read_scorer(path, info))


class TwhinModelView:
    """A read-only model: embeddings, scores and neighbours by original id.

    Ids are strings or integers as in the training data; the text of an integer stands for it. Wherever a node is asked
    for, its embedding `[D]` (numpy array, tensor or list of floats) will do as well.

    Attributes:
        info: comparator, relations, tables.
        scorer: the model's own scores.
    """

    def __init__(self, folder: Path, info: ModelInfo, scorer: RelationScorer) -> None:
        self.folder, self.info, self.scorer = folder, info, scorer
        self._tables: dict[str, ServedTable] = {}

    @property
    def table_names(self) -> list[str]:
        """The tables."""
        return list(self.info.tables)

    @property
    def relation_names(self) -> list[str]:
        """The relations, in the order of their indices."""
        return [relation.name for relation in self.info.relations]

    @property
    def card(self) -> dict[str, Any]:
        """The model card: config, metrics, data, versions, score formula."""
        return json.loads((self.folder / model_folder.CARD_NAME).read_text(encoding="utf-8"))

    def table(self, name: str) -> ServedTable:
        """Ids and rows of a table.

        Raises:
            ConfigError: there is no such table; names those there are.
        """
        if name not in self.info.tables:
            raise ConfigError(
                "unknown table", where=self.folder, value=name, limit=f"one of {', '.join(self.table_names)}"
            )
        if name not in self._tables:
            self._tables[name] = ServedTable(self.folder, name, self.info)
        return self._tables[name]

    def get_embedding(self, table: str, ids: Sequence[Id] | NDArray[Any]) -> Embedding:
        """Embeddings of several ids.

        Returns:
            float32 `[n, D]`, in the order of `ids`.

        Raises:
            UnknownIdError: naming the nearest known ids.
            ConfigError: there is no such table.
        """
        return self.table(table).embeddings(ids)

    def get_user_embedding(self, user_id: Id) -> Embedding:
        """Embedding `[D]` of one id of table `user`; errors as in `get_embedding`."""
        return self.get_embedding("user", [user_id])[0]

    def get_tweet_embedding(self, tweet_id: Id) -> Embedding:
        """Embedding `[D]` of one id of table `tweet`; errors as in `get_embedding`."""
        return self.get_embedding("tweet", [tweet_id])[0]

    def relation(self, name: str | None) -> tuple[int, RelationSpec]:
        """A relation and its index; None stands for the only one.

        Raises:
            ConfigError: there is no such relation, or None and there are several; names those there are.
        """
        names = self.relation_names
        if name is None and len(names) == 1:
            name = names[0]
        if name not in names:
            what = "a relation is needed" if name is None else "unknown relation"
            raise ConfigError(what, where=self.folder, value=name, limit=f"one of {', '.join(names)}")
        index = names.index(name)
        return index, self.info.relations[index]

    def predict_relation(
        self, lhs: Id | Embedding, rhs: Id | Embedding, relation: str | None = None, *, probability: bool = False
    ) -> float:
        """The model's score of one edge; higher is likelier.

        Args:
            lhs: id or embedding of the left-hand side.
            rhs: id or embedding of the right-hand side.
            relation: its name; may be left out if there is only one.
            probability: give sigmoid(score); a calibrated probability only as far as the logistic loss makes it one.

        Raises:
            UnknownIdError, ConfigError: as for the other methods.
        """
        score = self.score_edges(_one(lhs), _one(rhs), relation)[0]
        return float(1 / (1 + np.exp(-np.float64(score)))) if probability else float(score)

    def score_edges(
        self, lhs: Sequence[Id] | Embedding, rhs: Sequence[Id] | Embedding, relation: str | None = None
    ) -> Embedding:
        """Scores `[n]` of edges between `n` left-hand and `n` right-hand sides, given by ids or embeddings `[n, D]`.

        A single node on one side goes with every node of the other.
        """
        index, spec = self.relation(relation)
        left, right = self._vectors(spec.lhs, lhs), self._vectors(spec.rhs, rhs)
        if len(left) != len(right) and 1 not in (len(left), len(right)):
            raise DataError("both sides need the same number of nodes", value=f"{len(left)} and {len(right)}")
        left, right = torch.broadcast_tensors(left, right)
        rel = torch.full((len(left),), index)
        return self.scorer.pair_scores(self.scorer.operator(index), rel, left, right).numpy()

    def neighbors(
        self,
        table: str,
        id: Id | Embedding,
        relation: str | None = None,
        k: int = 10,
        *,
        side: Side | None = None,
        exclude: Collection[Id] = (),
    ) -> list[Neighbor]:
        """The best-scored nodes of the other end of a relation, or the most similar ones of the same table.

        Args:
            table: the query's table.
            id: the query, an id or an embedding.
            relation: ranks by the model's score of an edge under it; None ranks the query's own table by comparing
                embeddings as they are.
            k: at most so many.
            side: which end of the relation the query is; needed only to ask backwards when both ends have one table
                ("lhs" is taken then).
            exclude: ids not to return. The query itself is never returned.

        Returns:
            `(id, score)`, best first; exact, over all rows.

        Raises:
            UnknownIdError, ConfigError: naming what there is.
        """
        return self.neighbors_batch(table, _one(id), relation, k, side=side, exclude=exclude)[0]

    def neighbors_batch(
        self,
        table: str,
        ids: Sequence[Id] | Embedding,
        relation: str | None = None,
        k: int = 10,
        *,
        side: Side | None = None,
        exclude: Collection[Id] = (),
    ) -> list[list[Neighbor]]:
        """`neighbors` of several ids, or embeddings `[Q, D]`, in one pass over the candidates for every 256."""
        if k < 1:
            raise ConfigError("k is too small", value=k, limit="k >= 1")
        candidate_name, score = self.ranking(table, relation, side)
        candidates = self.table(candidate_name)
        queries = self._vectors(table, ids)
        own = np.full(len(queries), -1)
        if candidate_name == table and not _is_embedding(ids):
            own = candidates.rows(ids)
        left_out = np.unique(candidates.vocabulary.index(list(exclude), unknown="skip"))
        found: list[list[Neighbor]] = []
        for start in range(0, len(queries), _QUERIES_AT_A_TIME):
            part = slice(start, start + _QUERIES_AT_A_TIME)
            found += candidates.best(partial(score, queries[part]), own[part], left_out[left_out >= 0], k)
        return found

    def ranking(
        self, table: str, relation: str | None, side: Side | None = None
    ) -> tuple[str, Callable[[Tensor, Tensor], Tensor]]:
        """Which table a query ranks, and the score `(queries [Q, D], candidates [N, D]) -> [Q, N]`."""
        self.table(table)
        if relation is None:
            return table, lambda queries, rows: compare_matrix(self.info.comparator, queries, rows)
        index, spec = self.relation(relation)
        ends = {end: getattr(spec, end) for end in ("lhs", "rhs")}
        chosen = side or ("lhs" if table == spec.lhs else "rhs")
        if ends.get(chosen) != table:
            raise ConfigError(
                "the query's table is not at this end of the relation",
                where=f"relation {spec.name!r}",
                value=f"table {table!r}, side {side!r}",
                limit=f"lhs {spec.lhs!r} or rhs {spec.rhs!r}",
            )
        scores = self.scorer.rhs_scores if chosen == "lhs" else self.scorer.lhs_scores
        operator = self.scorer.operator(index)
        candidates = spec.rhs if chosen == "lhs" else spec.lhs
        return candidates, lambda queries, rows: scores(operator, torch.full((len(queries),), index), queries, rows)

    def build_index(self, table: str, *, expansion: int = 128) -> AnnIndex:
        """An approximate index over a table, in the metric of the model's comparator; needs usearch.

        Args:
            table: whose rows are found.
            expansion: candidates looked at while building and searching; more is slower and finds more.
        """
        from tml.projects.twhin.ann_index import AnnIndex

        return AnnIndex(self, table, expansion)

    def vectors(self, table: str, nodes: Sequence[Id] | Embedding) -> Embedding:
        """Embeddings `[n, D]` of ids, or the given embeddings themselves, checked."""
        return self._vectors(table, nodes).numpy()

    def _vectors(self, table: str, nodes: Sequence[Id] | Embedding) -> Tensor:
        if not _is_embedding(nodes):
            return torch.from_numpy(self.get_embedding(table, nodes))
        vectors = torch.as_tensor(nodes if isinstance(nodes, Tensor) else np.asarray(nodes), dtype=torch.float32)
        if vectors.dim() != 2 or vectors.shape[1] != self.info.dim:
            raise DataError(
                "an embedding has the wrong shape", value=list(vectors.shape), limit=f"[n, {self.info.dim}]"
            )
        return vectors


def _one(node: Any) -> Any:
    """One id or embedding as a batch of one."""
    return node[None] if isinstance(node, np.ndarray | Tensor) and node.ndim == 1 else [node]


def _is_embedding(nodes: Any) -> bool:
    """Whether nodes are given as embeddings: an array of floats, or a list of vectors."""
    if isinstance(nodes, Tensor):
        return nodes.is_floating_point()
    if isinstance(nodes, np.ndarray):
        return nodes.dtype.kind == "f"
    return len(nodes) > 0 and isinstance(nodes[0], list | tuple | np.ndarray | Tensor)
