"""What the head of a TwHIN step does, for `tml plan`: operations, bytes, scores.

Letters: `S` chunks, `C` edges in a chunk, `N` candidates of a chunk and side, `D` embedding dim.

Three products of `2 S C N D` operations a side: scores, and their derivatives by queries and by candidates. The
compiled head of a processor keeps all between rows and their gradient in a core's cache. For torch's operations, the
passes below were counted from the operations of the head on tensors without data: how often values as large as the
scores `[S, C, N]`, the endpoints `[S, C, D]` and the candidates `[S, N, D]` of a side are read or written, both sides
together, where every operation goes through memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tml.core.planning.cluster import Cluster
from tml.core.planning.workload import HeadWork
from tml.projects.twhin.config import ModelConfig, TwhinConfig
from tml.projects.twhin.data.chunks import ChunkedEdges, ChunkShape
from tml.projects.twhin.data.dataset import chunk_shape
from tml.projects.twhin.models.chunk_kernel import HeadCase, max_shared_relations


@dataclass(frozen=True)
class _Passes:
    """Reads and writes of values as large as the scores, endpoints and candidates of a side; and operations."""

    scores: float = 0.0
    ends: float = 0.0
    candidates: float = 0.0
    operations: int = 0

    def __add__(self, other: _Passes) -> _Passes:
        return _Passes(
            self.scores + other.scores,
            self.ends + other.ends,
            self.candidates + other.candidates,
            self.operations + other.operations,
        )


_OF_LOSS = {"softmax": _Passes(25), "logistic": _Passes(29, 16, operations=10), "ranking": _Passes(32)}
_OF_COMPARATOR = {"dot": _Passes(0, 20, 13, 77), "l2": _Passes(73, 140, 49, 197), "cosine": _Passes(61, 198, 62, 273)}
_OF_OPERATOR = {
    "identity": _Passes(),
    "translation": _Passes(0, 4, 0, 3),
    "diagonal": _Passes(0, 22, 0, 9),
    "complex_diagonal": _Passes(0, 72, 0, 50),
}
_OF_REGULARIZER = {"l2": _Passes(0, 40, 0, 60), "n3": _Passes(0, 150, 0, 131)}
# What lies in memory at once, in the same units.
_PEAK_OF_COMPARATOR = {"dot": (1.1, 2.0, 1.1), "l2": (7.5, 7.0, 3.7), "cosine": (8.3, 8.5, 4.0)}
_PEAK_OF_OPERATOR = {"identity": 0.0, "translation": 0.6, "diagonal": 5.0, "complex_diagonal": 6.6}
# On a processor torch's operations work on parts that fit the last cache, which is so much cheaper than memory.
_LAST_CACHE = 0.4
# Of a compiled head's call, for each operator.
_OPERATIONS_OF_CALL = 12


def count_head_work(config: TwhinConfig, cluster: Cluster, batch: ChunkedEdges, num_chunks: int) -> HeadWork:
    """The head's work in a step of a rank.

    Args:
        config: the whole config.
        cluster: the machines.
        batch: a sample of the chunks.
        num_chunks: of the step.
    """
    shape = chunk_shape(config.train_data)
    if _is_compiled(config, cluster, num_chunks):
        return _compiled(config.model, shape, batch, num_chunks)
    return _by_operations(config.model, shape, num_chunks)


def _is_compiled(config: TwhinConfig, cluster: Cluster, num_chunks: int) -> bool:
    """Whether the machines' processors run the compiled head; they are taken to have a compiler."""
    case = HeadCase(
        cluster.device_type,
        torch.float32,
        config.runtime.enable_amp,
        config.model.comparator,
        chunk_shape(config.train_data),
        config.model.embeddings.tables[0].embedding_dim,
        num_chunks // len({relation.operator for relation in config.model.relations}),
        cluster.threads_per_rank,
    )
    return case.suits_kernel


def _compiled(model: ModelConfig, shape: ChunkShape, batch: ChunkedEdges, num_chunks: int) -> HeadWork:
    dim = model.embeddings.tables[0].embedding_dim
    num_scores = 2.0 * num_chunks * shape.size * shape.num_candidates
    products = _num_products(model) - 3.0 * _shared_candidates(model, shape, batch)
    # Rows are read and their gradient is written (which reads it first), no more.
    row_bytes = 3 * 4.0 * num_chunks * 2 * shape.num_nodes_of_side * dim
    return HeadWork(
        flops=products * num_scores * dim,
        memory_bytes=row_bytes,
        cached_bytes=row_bytes,
        num_scores=num_scores,
        num_operations=_OPERATIONS_OF_CALL * len({relation.operator for relation in model.relations}),
        activation_bytes=0.0,
    )


def _by_operations(model: ModelConfig, shape: ChunkShape, num_chunks: int) -> HeadWork:
    dim = model.embeddings.tables[0].embedding_dim
    per_operator = [relation.operator for relation in model.relations]
    # Relations are taken to be equally frequent: the dearest operator counts with its share of them.
    passes = _OF_LOSS[model.loss] + _OF_COMPARATOR[model.comparator]
    if model.regularization is not None:
        passes += _OF_REGULARIZER[model.regularization.kind]
    ends = passes.ends + sum(_OF_OPERATOR[name].ends for name in per_operator) / len(per_operator)
    names = set(per_operator)
    score_bytes = 4.0 * num_chunks * shape.size * shape.num_candidates
    end_bytes = 4.0 * num_chunks * shape.size * dim
    candidate_bytes = 4.0 * num_chunks * shape.num_candidates * dim
    row_bytes = 3 * 4.0 * num_chunks * 2 * shape.num_nodes_of_side * dim
    memory_bytes = passes.scores * score_bytes + ends * end_bytes + passes.candidates * candidate_bytes
    of_scores, of_ends, of_candidates = _PEAK_OF_COMPARATOR[model.comparator]
    of_ends += max(_PEAK_OF_OPERATOR[name] for name in names)
    return HeadWork(
        flops=_num_products(model) * 2.0 * num_chunks * shape.size * shape.num_candidates * dim,
        memory_bytes=memory_bytes,
        cached_bytes=row_bytes + _LAST_CACHE * memory_bytes,
        num_scores=0.0,
        num_operations=sum(passes.operations + _OF_OPERATOR[name].operations for name in names),
        activation_bytes=of_scores * score_bytes + of_ends * end_bytes + of_candidates * candidate_bytes,
    )


def _num_products(model: ModelConfig) -> float:
    """Products of a step's two sides, by the mean over relations: three a side; where norms of moved candidates are
    needed, three more of the left-hand side."""
    if model.comparator == "dot" or model.reciprocal_relations:
        return 6.0
    moving = sum(relation.operator != "identity" for relation in model.relations)
    return 6.0 + 3.0 * moving / len(model.relations)


def _shared_candidates(model: ModelConfig, shape: ChunkShape, batch: ChunkedEdges) -> float:
    """The mean share of a chunk's candidates whose scores the compiled head makes once for both sides: endpoints."""
    ordered = batch.rel.sort(dim=1).values
    num_relations = 1 + (ordered[:, 1:] != ordered[:, :-1]).sum(1)
    most = torch.tensor([max_shared_relations(name, shape, model.reciprocal_relations) for name in batch.operators])
    return (num_relations <= most).double().mean().item() * shape.num_in_batch / shape.num_candidates
