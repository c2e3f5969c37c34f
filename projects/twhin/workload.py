"""What a step of a TwHIN run does, for `tml plan`.

Letters: `B` edges of a rank, `S` chunks, `W` nodes of a chunk, `D` embedding dim.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from tml.common.batch import Cursor
from tml.common.modules.table_layout import TableLayout
from tml.common.reader import ParquetReader
from tml.core.planning.cluster import Cluster
from tml.core.planning.workload import (
    DenseParameters,
    HostWork,
    Workload,
    batch_bytes,
    dense_states,
    head_run,
    matmul_type,
    operations_around,
    overlaps_ids,
)
from tml.projects.twhin.config import ModelConfig, TwhinConfig
from tml.projects.twhin.data.chunks import ChunkAssembler, ChunkedEdges
from tml.projects.twhin.data.dataset import EDGE_COLUMNS, chunk_shape, edge_files, num_blocks
from tml.projects.twhin.data.edges import EdgeArrays, EdgeSchema
from tml.projects.twhin.head_work import count_head_work
from tml.projects.twhin.models.build import build_head, edge_schema
from tml.projects.twhin.tables import table_layout

# Look-up, its backward, the relations' optimizer, metrics and checks.
_OPERATIONS_AROUND = 60

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


def build_workload(config: TwhinConfig, cluster: Cluster, global_batch: int | None = None) -> Workload:
    """A step of a run.

    Args:
        config: the whole config.
        cluster: the machines.
        global_batch: edges of a step on all ranks, instead of the config's.

    Raises:
        ConfigError: the batch cannot be shared among the ranks, or the kernels lack an optimizer.
    """
    data, num_ranks = config.train_data, cluster.num_ranks
    edges = data.batch_size(num_ranks) if global_batch is None else global_batch
    blocks = num_blocks(data, edges, num_ranks)
    layout, shape = table_layout(config.model, cluster.device_type), chunk_shape(data)
    sample = _Sample(config, layout, num_ranks, edges // blocks, blocks // num_ranks)
    accumulated = config.training.gradient_accumulation
    scale = sample.scale * accumulated
    chunks = round(len(sample.batch.rel) * scale)
    num_ids = chunks * 2 * shape.num_nodes_of_side
    of_rank = edges * accumulated // num_ranks
    pairs = 2 * chunks * shape.size * shape.num_candidates
    return Workload(
        project="twhin",
        unit="edges",
        num_ranks=num_ranks,
        global_batch=edges * accumulated,
        layout=layout,
        num_ids=num_ids,
        head=replace(
            count_head_work(config, cluster, sample.batch, chunks),
            run=head_run(config.runtime, partial(sample.head, config)),
            run_share=1 / scale,
        ),
        dense=(_relations(config.model),),
        host=HostWork(
            batch_bytes=scale * batch_bytes(sample.batch),
            make_seconds=of_rank * _EDGE_S + num_ids * _ROW_S + pairs * _PAIR_S,
            decode_seconds=edges * accumulated * _DECODE_S,
            window_bytes=float(data.shuffle_window_rows * _EDGE_BYTES),
            make=sample.make,
            made_share=1 / scale,
        ),
        matmul=matmul_type(config.runtime, cluster),
        num_operations=operations_around(_OPERATIONS_AROUND, cluster),
        num_prefetch_batches=config.runtime.num_prefetch_batches,
        overlaps_ids=overlaps_ids(config.runtime, cluster),
        checkpoint_copies=int(config.training.checkpoint_async),
    )


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

    def head(self, config: TwhinConfig) -> tuple[Callable[[], Tensor], list[Tensor]]:
        """The loss of the batch with random rows, and what it is derived by."""
        head = build_head(config.model, config.train_data)
        dim = config.model.embeddings.tables[0].embedding_dim
        rows = (torch.randn(len(self.batch.nodes.values()), dim) / dim**0.5).requires_grad_()
        return lambda: head(rows, self.batch)[0], [rows, head.scorer.weight]


def _random_edges(schema: EdgeSchema, generator: np.random.Generator, size: int) -> EdgeArrays:
    rel = generator.integers(len(schema.relations), size=size)
    ends = {}
    for side in ("lhs", "rhs"):
        limits = np.array([schema.num_embeddings[getattr(relation, side)] for relation in schema.relations])
        ends[side] = generator.integers(limits[rel])
    return EdgeArrays(ends["lhs"], rel, ends["rhs"])
