"""What a step of a TwHIN run does, for `tml plan`.

Letters: `B` edges of a rank, `S` chunks, `C` edges in a chunk, `N` candidates of a chunk and side, `R` relations, `D`
embedding dim.

Three products of `2 S C N D` operations a side: scores, and their derivatives by queries and by candidates. The passes
below were counted from the operations of the head on tensors without data: how often values as large as the scores
`[S, C, N]`, the endpoints `[S, C, D]` and the candidates `[S, N, D]` of a side are read or written, both sides
together, where every operation goes through memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tml.common.batch import Cursor
from tml.common.modules.table_layout import TableLayout
from tml.common.reader import ParquetReader
from tml.core.planning.workload import (
    DenseParameters,
    HeadWork,
    HostWork,
    Workload,
    batch_bytes,
    dense_states,
    matmul_type,
    overlaps_ids,
)
from tml.projects.twhin.config import ModelConfig, TwhinConfig
from tml.projects.twhin.data.chunks import ChunkAssembler, ChunkedEdges, ChunkShape
from tml.projects.twhin.data.dataset import EDGE_COLUMNS, chunk_shape, edge_files, num_blocks
from tml.projects.twhin.data.edges import EdgeArrays, EdgeSchema
from tml.projects.twhin.models.build import edge_schema
from tml.projects.twhin.tables import table_layout


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
# Rows of whole vectors of so many floats have a compiled head on a processor.
_VECTOR = 16
# On a processor torch's operations work on parts that fit the last cache, which is so much cheaper than memory.
_LAST_CACHE = 0.4
# Look-up, its backward, the relations' optimizer, metrics and checks.
_OPERATIONS_AROUND = 60
_OPERATIONS_OF_SHARDING = 150

# Seconds of one core: of an edge, of a looked-up row and of a pair that is compared; and to decode an edge. From the
# probe of the machine that docs/planning.md describes.
_EDGE_S, _ROW_S, _PAIR_S, _DECODE_S = 100e-9, 5e-9, 0.6e-9, 60e-9
# lhs, rel, rhs as int64.
_EDGE_BYTES = 24
# A batch of so many edges shows what a larger one costs.
_SAMPLE_EDGES = 1 << 15


def count_examples(config: TwhinConfig) -> int:
    """Edges of an epoch.

    Raises:
        DataError: the data is not here.
    """
    data = config.train_data
    files = edge_files(data.data_root)
    return ParquetReader(files, EDGE_COLUMNS, global_batch_size=1, offset=data.offset, limit=data.limit).num_rows


def build_workload(config: TwhinConfig, num_ranks: int, device_type: str, global_batch: int | None = None) -> Workload:
    """A step of a run.

    Args:
        config: the whole config.
        num_ranks: all ranks.
        device_type: `torch.device.type` of their devices.
        global_batch: edges of a step on all ranks, instead of the config's.

    Raises:
        ConfigError: the batch cannot be shared among the ranks, or the kernels lack an optimizer.
    """
    data = config.train_data
    edges = data.batch_size(num_ranks) if global_batch is None else global_batch
    blocks = num_blocks(data, edges, num_ranks)
    layout, shape = table_layout(config.model, device_type), chunk_shape(data)
    sample = _Sample(config, layout, num_ranks, edges // blocks, blocks // num_ranks)
    accumulated = config.training.gradient_accumulation
    scale = sample.scale * accumulated
    chunks = round(len(sample.batch.rel) * scale)
    num_ids = chunks * 2 * shape.num_nodes_of_side
    of_rank = edges * accumulated // num_ranks
    pairs = 2 * chunks * shape.size * shape.num_candidates
    is_compiled = _is_compiled(config, device_type)
    shared = _shared_candidates(config.model, shape, sample.batch) if is_compiled else 0.0
    return Workload(
        project="twhin",
        unit="edges",
        num_ranks=num_ranks,
        global_batch=edges * accumulated,
        layout=layout,
        num_ids=num_ids,
        head=_head(config.model, shape, chunks, _Kind(is_compiled, shared, num_ranks > 1 or device_type != "cpu")),
        dense=(_relations(config.model),),
        host=HostWork(
            batch_bytes=scale * batch_bytes(sample.batch),
            make_seconds=of_rank * _EDGE_S + num_ids * _ROW_S + pairs * _PAIR_S,
            decode_seconds=edges * accumulated * _DECODE_S,
            window_bytes=float(data.shuffle_window_rows * _EDGE_BYTES),
            make=sample.make,
            made_share=1 / scale,
        ),
        matmul=matmul_type(config.runtime),
        num_prefetch_batches=config.runtime.num_prefetch_batches,
        overlaps_ids=overlaps_ids(config.runtime, num_ranks, device_type),
        checkpoint_copies=int(config.training.checkpoint_async),
    )


@dataclass(frozen=True)
class _Kind:
    """Which head it is: compiled for a processor, with a share of candidates' scores made once; tables sharded."""

    is_compiled: bool
    shared_candidates: float
    is_sharded: bool


def _head(model: ModelConfig, shape: ChunkShape, chunks: int, kind: _Kind) -> HeadWork:
    dim = model.embeddings.tables[0].embedding_dim
    per_operator = [relation.operator for relation in model.relations]
    # Relations are taken to be equally frequent: the dearest operator counts with its share of them.
    passes = _OF_LOSS[model.loss] + _OF_COMPARATOR[model.comparator]
    if model.regularization is not None:
        passes += _OF_REGULARIZER[model.regularization.kind]
    ends = passes.ends + sum(_OF_OPERATOR[name].ends for name in per_operator) / len(per_operator)
    names = set(per_operator)
    operations = sum(passes.operations + _OF_OPERATOR[name].operations for name in names)
    score_bytes = 4.0 * chunks * shape.size * shape.num_candidates
    end_bytes = 4.0 * chunks * shape.size * dim
    candidate_bytes = 4.0 * chunks * shape.num_candidates * dim
    of_scores, of_ends, of_candidates = _PEAK_OF_COMPARATOR[model.comparator]
    of_ends += max(_PEAK_OF_OPERATOR[name] for name in names)
    memory_bytes = passes.scores * score_bytes + ends * end_bytes + passes.candidates * candidate_bytes
    # Compiled for a processor, rows are read and their gradient is written (which reads it first), no more.
    row_bytes = 3 * 4.0 * chunks * 2 * shape.num_nodes_of_side * dim
    return HeadWork(
        flops=(_num_products(model) - 3.0 * kind.shared_candidates)
        * 2.0
        * chunks
        * shape.size
        * shape.num_candidates
        * dim,
        memory_bytes=memory_bytes,
        cached_bytes=row_bytes if kind.is_compiled else row_bytes + _LAST_CACHE * memory_bytes,
        num_scores=2.0 * chunks * shape.size * shape.num_candidates if kind.is_compiled else 0.0,
        num_operations=operations + _OPERATIONS_AROUND + (_OPERATIONS_OF_SHARDING if kind.is_sharded else 0),
        activation_bytes=of_scores * score_bytes + of_ends * end_bytes + of_candidates * candidate_bytes,
        product=(min(chunks, 256), shape.size, dim, shape.num_candidates),
    )


def _is_compiled(config: TwhinConfig, device_type: str) -> bool:
    """Whether the head of a rank is the compiled one of a processor, as `TwhinHead` decides it for small chunks."""
    model, dim = config.model, config.model.embeddings.tables[0].embedding_dim
    plain = model.comparator == "dot" and not config.runtime.enable_amp
    return device_type == "cpu" and plain and dim % _VECTOR == 0


def _num_products(model: ModelConfig) -> float:
    """Products of a step's two sides, by the mean over relations: three a side; where norms of moved candidates are
    needed, three more of the left-hand side."""
    if model.comparator == "dot" or model.reciprocal_relations:
        return 6.0
    moving = sum(relation.operator != "identity" for relation in model.relations)
    return 6.0 + 3.0 * moving / len(model.relations)


def _shared_candidates(model: ModelConfig, shape: ChunkShape, batch: ChunkedEdges) -> float:
    """The share of a chunk's candidates whose scores the compiled head makes once for both sides: the endpoints, in
    chunks of one relation."""
    if model.reciprocal_relations or shape.num_in_batch < shape.size:
        return 0.0
    of_one_relation = float((batch.rel == batch.rel[:, :1]).all(1).float().mean())
    return of_one_relation * shape.num_in_batch / shape.num_candidates


def _relations(model: ModelConfig) -> DenseParameters:
    rows = len(model.relations) * (2 if model.reciprocal_relations else 1)
    return DenseParameters(rows * model.embeddings.tables[0].embedding_dim, dense_states(model.translation_optimizer))


class _Sample:
    """One rank's batch of uniformly drawn edges, cut as a run's are.

    Attributes:
        batch: made of some blocks, or of a part of one.
        scale: batches of a run are so many times as large.
    """

    def __init__(
        self, config: TwhinConfig, layout: TableLayout, num_ranks: int, block_size: int, blocks_of_rank: int
    ) -> None:
        schema = edge_schema(config.model)
        size = min(block_size, _SAMPLE_EDGES)
        count = max(1, min(blocks_of_rank, _SAMPLE_EDGES // size))
        self.scale = block_size * blocks_of_rank / (size * count)
        self._assembler = ChunkAssembler(
            schema, layout, chunk_shape(config.train_data), config.runtime.seed, pad=num_ranks > 1
        )
        generator = np.random.default_rng(config.runtime.seed)
        self._blocks = [(number, _random_edges(schema, generator, size)) for number in range(count)]
        self._size = size
        self.batch = self.make()

    def make(self) -> ChunkedEdges:
        """Cut the batch."""
        num_examples = self._size * len(self._blocks)
        return self._assembler.assemble(self._blocks, self._size, num_examples, Cursor())


def _random_edges(schema: EdgeSchema, generator: np.random.Generator, size: int) -> EdgeArrays:
    rel = generator.integers(len(schema.relations), size=size)
    ends = {}
    for side in ("lhs", "rhs"):
        limits = np.array([schema.num_embeddings[getattr(relation, side)] for relation in schema.relations])
        ends[side] = generator.integers(limits[rel])
    return EdgeArrays(ends["lhs"], rel, ends["rhs"])
