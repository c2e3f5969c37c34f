"""What a step of a light ranker's run does, for `tml plan`.

Letters: `B` rows of a rank, `T` table slots, `F` embeddings of an example, `D` embedding dim, `X` columns of the first
layer's input, `K` ids of a row of a `lolly_lr` model.

A layer of `i` inputs and `o` outputs costs three products of `2 B i o` operations: its outputs, and their derivatives
by inputs and by weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

from tml.core.planning.cluster import Cluster
from tml.core.planning.workload import (
    DenseParameters,
    HeadWork,
    HostWork,
    Workload,
    dense_states,
    head_run,
    matmul_type,
    operations_around,
    overlaps_ids,
)
from tml.projects.light_ranker.config import LightRankerConfig, LollyLrConfig, MlpConfig
from tml.projects.light_ranker.data.dataset import Share, open_reader
from tml.projects.light_ranker.features.spec import FeatureSpec
from tml.projects.light_ranker.models.pretrained import read_pretrained
from tml.projects.light_ranker.models.tables import MlpSlots
from tml.projects.light_ranker.optimizer import FINE_TUNING
from tml.projects.light_ranker.sample_step import sample_head

# Reads and writes of a value of the first layer's input, and of a hidden unit, forward and backward.
_INPUT_PASSES, _UNIT_PASSES = 7, 11
# The same of an id's weight in a `lolly_lr` model, with its place.
_LOLLY_ID_BYTES = 48
_OPERATIONS_OF_LAYER, _OPERATIONS_AROUND = 9, 120
# A batch of so many rows shows what a larger one costs.
_SAMPLE_ROWS = 1 << 14

# Seconds of one core: of a row, and of a value of it, to check and arrange; and to decode a value. From the probe of
# the machine that docs/planning.md describes.
_ROW_S, _VALUE_S, _DECODE_S = 80e-9, 20e-9, 12e-9


def count_examples(config: LightRankerConfig) -> int:
    """Rows of an epoch.

    Raises:
        DataError: the data is not here.
    """
    spec = FeatureSpec.load(config.features_dir)
    return round(open_reader(config.train_data, spec, Share(1)).num_rows * config.train_data.keep_rate)


def build_workload(config: LightRankerConfig, cluster: Cluster, global_batch: int | None = None) -> Workload:
    """A step of a run.

    Args:
        config: the whole config.
        cluster: the machines.
        global_batch: rows of a step on all ranks, instead of the config's.

    Raises:
        ConfigError: the kernels lack an optimizer.
        DataError: `features_dir` has no features, or pretrained embeddings cannot be read.
    """
    data, spec, num_ranks = config.train_data, FeatureSpec.load(config.features_dir), cluster.num_ranks
    batch = data.batch_size(num_ranks) if global_batch is None else global_batch
    batch *= config.training.gradient_accumulation
    # Every rank is padded to the same number of rows.
    of_rank = -(-batch // num_ranks)
    if config.model.mlp is not None:
        slots = MlpSlots(spec, config.model.mlp, cluster.device_type)
        watches = config.loss.watch_time_label is not None and config.model.mlp.heads == "separate"
        model = _mlp(config.model.mlp, slots, of_rank, 2 if watches else 1)
        run = head_run(config.runtime, partial(sample_head, config, slots, min(of_rank, _SAMPLE_ROWS)))
        head = replace(model.head, run=run, run_share=min(of_rank, _SAMPLE_ROWS) / of_rank)
    else:
        assert config.model.lolly_lr is not None
        slots = None
        model = _lolly(config.model.lolly_lr, spec, of_rank, sparse=num_ranks == 1)
        head = model.head
    num_values = len(spec.columns())
    return Workload(
        project="light_ranker",
        unit="rows",
        num_ranks=num_ranks,
        global_batch=batch,
        layout=slots.layout if slots else None,
        num_ids=of_rank * slots.num_table_slots if slots and slots.layout else 0,
        head=head,
        dense=model.dense,
        frozen_bytes=model.frozen_bytes,
        host=HostWork(
            batch_bytes=float(of_rank * _batch_row_bytes(spec)),
            make_seconds=of_rank * (_ROW_S + num_values * _VALUE_S),
            decode_seconds=batch * num_values * _DECODE_S,
            window_bytes=float(data.shuffle_window_rows * _encoded_row_bytes(spec)),
        ),
        matmul=matmul_type(config.runtime, cluster),
        num_operations=operations_around(_OPERATIONS_AROUND, cluster),
        num_prefetch_batches=config.runtime.num_prefetch_batches,
        overlaps_ids=overlaps_ids(config.runtime, cluster),
        checkpoint_copies=int(config.training.checkpoint_async),
    )


@dataclass(frozen=True)
class _Model:
    head: HeadWork
    dense: tuple[DenseParameters, ...]
    frozen_bytes: float = 0.0


def _mlp(config: MlpConfig, slots: MlpSlots, num_rows: int, num_heads: int) -> _Model:
    pretrained = {feature: read_pretrained(feature).shape for feature in slots.pretrained}
    num_embeddings, dim = len(slots.own) + len(slots.binned), config.embedding_dim
    numbers = sum(2 * feature.keep_value + feature.num_pieces for feature in slots.spec.continuous)
    numbers += slots.spec.num_vector_values
    width = num_embeddings * dim + numbers + sum(shape[1] for shape in pretrained.values())
    products, interacting, width = _interaction(config, num_embeddings, numbers, width, num_heads)
    sizes = [width, *config.hidden_sizes, num_heads]
    products += sum(inputs * outputs for inputs, outputs in pairwise(sizes))
    numel = interacting + sum((inputs + 1) * outputs for inputs, outputs in pairwise(sizes))
    units = sum(config.hidden_sizes)
    values = 4.0 * num_rows * (_INPUT_PASSES * width + _UNIT_PASSES * units)
    tuned = config.pretrained_optimizer or FINE_TUNING
    trainable = sum(shape.numel() for feature, shape in pretrained.items() if feature.trainable)
    dense = [DenseParameters(numel, dense_states(config.dense_optimizer))]
    if trainable:
        dense.append(DenseParameters(trainable, dense_states(tuned)))
    return _Model(
        HeadWork(
            flops=6.0 * num_rows * products,
            memory_bytes=values,
            cached_bytes=values,
            num_scores=0.0,
            num_operations=_OPERATIONS_OF_LAYER * len(sizes),
            activation_bytes=4.0 * num_rows * (2 * width + 3 * units),
        ),
        tuple(dense),
        4.0 * sum(shape.numel() for feature, shape in pretrained.items() if not feature.trainable),
    )


def _interaction(
    config: MlpConfig, num_embeddings: int, numbers: int, width: int, num_heads: int
) -> tuple[float, int, int]:
    """Multiplications of a row in a forward product, parameters, and the width of the first layer's input with it."""
    section, dim = config.interaction, config.embedding_dim
    if section is None:
        return 0.0, 0, width
    if section.kind == "dot":
        vectors = num_embeddings + (numbers > 0)
        pairs = vectors * (vectors - 1) // 2
        return float(vectors**2 * dim + numbers * dim), (numbers + 1) * dim if numbers else 0, width + pairs
    if section.kind == "fwfm":
        # One product forward and one backward, of three that are counted.
        return (num_embeddings * dim) ** 2 * 2 / 3, num_embeddings * (num_embeddings - 1) // 2 + num_heads, width
    layers, rank = section.num_layers or 2, min(section.rank or 64, width)
    return 2.0 * layers * width * rank, layers * (2 * width * rank + width), width


def _lolly(config: LollyLrConfig, spec: FeatureSpec, num_rows: int, sparse: bool) -> _Model:
    ids = num_rows * (spec.num_slots + len(spec.continuous))
    weights = 1 << config.input_size_bits
    touched = min(ids, weights) if sparse else weights
    head = HeadWork(
        flops=0.0,
        memory_bytes=float(_LOLLY_ID_BYTES * ids + 4 * touched),
        cached_bytes=float(_LOLLY_ID_BYTES * ids + 4 * touched),
        num_scores=0.0,
        num_operations=0,
        activation_bytes=16.0 * ids,
    )
    return _Model(head, (DenseParameters(weights + 1, dense_states(config.optimizer)),))


def _encoded_row_bytes(spec: FeatureSpec) -> int:
    """Ids of 32 bits where they fit and int64 groups, float32 for everything else."""
    return sum(kind.bit_width // 8 for kind in spec.columns().values())


def _batch_row_bytes(spec: FeatureSpec) -> int:
    """Ids with the length of their bag, masks, numbers, labels, weight, group, and whether the row is real."""
    mask = 4 * spec.num_slots if any(feature.num_slots > 1 for feature in spec.ids) else 0
    binned = sum(feature.has_bin_ids for feature in spec.continuous)
    ids = 12 * (spec.num_slots + binned)
    return ids + mask + 4 * (len(spec.continuous) + spec.num_vector_values + len(spec.labels)) + 13
