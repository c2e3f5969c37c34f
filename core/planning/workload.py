"""What one step of a run does, on one of its ranks: the numbers from which a plan is made.

Letters: `B` examples of a rank, `K` ids of a rank's look-up, `D` embedding dim.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tml.common.batch import DataclassBatch
from tml.common.device import autocast, set_float32_matmul
from tml.common.modules.table_layout import TableLayout
from tml.core.config.runtime import RuntimeConfig
from tml.core.optimizers.config import OptimizerConfig
from tml.core.planning.cluster import Cluster
from tml.machines.rates import MatmulType

# Launches of torchrec, in forward and backward.
_OPERATIONS_OF_SHARDING = 150


@dataclass(frozen=True)
class HeadWork:
    """Everything between the looked-up rows and their gradient, forward and backward, on one rank.

    Args:
        flops: of the matrix products; a multiplication and an addition are two.
        memory_bytes: read and written where every operation goes through memory, as on a GPU.
        cached_bytes: the same where intermediate values stay in a cache, as on a CPU.
        num_scores: scores of candidates, each with a loss and a derivative; 0 where loss is per example.
        num_operations: launches from Python.
        activation_bytes: memory of intermediate values at their peak, without rows and their gradient.
        run: does this work on random rows with the program's own head, on this machine's processor, for a probe; None
            if it cannot be had.
        run_share: size of what `run` does, of a rank's step.
    """

    flops: float
    memory_bytes: float
    cached_bytes: float
    num_scores: float
    num_operations: int
    activation_bytes: float
    run: Callable[[], object] | None = None
    run_share: float = 1.0


@dataclass(frozen=True)
class HostWork:
    """Making a batch on the host, on one rank.

    Args:
        batch_bytes: of a batch's tensors.
        make_seconds: of one core, to turn `B` rows into a batch. Measured once; docs/planning.md says where.
        decode_seconds: of one core, to decode the rows of the global batch: every rank decodes whole windows.
        window_bytes: of the rows that the reader holds.
        make: makes a batch from random examples, for a probe; None if it cannot be had without data.
        made_share: size of what `make` makes, of a rank's batch.
    """

    batch_bytes: float
    make_seconds: float
    decode_seconds: float
    window_bytes: float
    make: Callable[[], object] | None = None
    made_share: float = 1.0


@dataclass(frozen=True)
class DenseParameters:
    """Replicated parameters of one optimizer: `numel` float32 values, `num_states` more of each."""

    numel: int
    num_states: int


@dataclass(frozen=True)
class Workload:
    """One step of a run on `num_ranks` ranks.

    Args:
        project: its name.
        unit: what an example is called, in the plural.
        num_ranks: all ranks.
        global_batch: examples of a step on all ranks together.
        layout: the embedding tables; None for a model without any.
        num_ids: `K`.
        head: the rest of the model.
        dense: its parameters.
        frozen_bytes: of replicated values that do not learn.
        host: where batches come from.
        matmul: type of the matrix products.
        num_operations: launches from Python outside the head.
        num_prefetch_batches: the config's; None leaves it to the machine.
        overlaps_ids: whether ids travel while the batch before computes.
        checkpoint_copies: copies of tables and states that a save holds in the host's memory.
    """

    project: str
    unit: str
    num_ranks: int
    global_batch: int
    layout: TableLayout | None
    num_ids: int
    head: HeadWork
    dense: tuple[DenseParameters, ...]
    host: HostWork
    matmul: MatmulType
    num_operations: int
    num_prefetch_batches: int | None
    overlaps_ids: bool
    checkpoint_copies: int
    frozen_bytes: float = 0.0

    @property
    def dense_numel(self) -> int:
        """Replicated values."""
        return sum(part.numel for part in self.dense)

    @property
    def row_bytes(self) -> int:
        """A looked-up row: float32 whatever the table's type, one for each physical table."""
        if self.layout is None:
            return 0
        return 4 * sum(group.embedding_dim for group in self.layout.groups)


def batch_bytes(batch: DataclassBatch) -> int:
    """Bytes of a batch's tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in batch.named_tensors().values())


def dense_states(config: OptimizerConfig) -> int:
    """Values that an optimizer remembers of each of its parameters."""
    kind, section = config.chosen
    if kind == "rmsprop":
        return 1 + (section.momentum > 0) + section.centered
    if kind == "sgd":
        return int(section.momentum > 0)
    return {"momentum": 1, "adagrad": 1, "rowwise_adagrad": 1, "ftrl": 2, "lazy_adam": 2, "adam": 2}[kind]


def matmul_type(runtime: RuntimeConfig, cluster: Cluster) -> MatmulType:
    """The type of matrix products under a config's `runtime` section."""
    if runtime.enable_amp:
        return "bf16"
    # The short mantissas of a processor are bfloat16's.
    shorter: MatmulType = "bf16" if cluster.is_cpu else "tf32"
    return shorter if runtime.enable_tensorfloat32 else "fp32"


def overlaps_ids(runtime: RuntimeConfig, cluster: Cluster) -> bool:
    """Whether ids of the next batch travel while this one computes, as the pipeline decides it."""
    return runtime.pipeline != "plain" and cluster.is_sharded


def operations_around(number: int, cluster: Cluster) -> int:
    """Launches of a step outside its head: `number` of an unsharded model, and those of sharding."""
    return number + (_OPERATIONS_OF_SHARDING if cluster.is_sharded else 0)


def head_run(
    runtime: RuntimeConfig, prepare: Callable[[], tuple[Callable[[], Tensor], Sequence[Tensor]]]
) -> Callable[[], tuple[Tensor | None, ...]]:
    """What a probe calls: a head's forward and backward on this machine's processor, in a run's precision.

    Args:
        runtime: says the precision of matrix products.
        prepare: makes a head and its input, at the first call: a forward that returns the loss, and the rows and
            parameters by which it is derived.
    """
    device, prepared = torch.device("cpu"), functools.cache(prepare)

    def run() -> tuple[Tensor | None, ...]:
        forward, inputs = prepared()
        before = torch.get_float32_matmul_precision()
        set_float32_matmul(device, runtime.enable_tensorfloat32)
        try:
            with autocast(device, runtime.enable_amp):
                loss = forward()
            loss.backward()  # type: ignore[no-untyped-call]
        finally:
            torch.set_float32_matmul_precision(before)
        # As an optimizer does it: each backward has gradients of its own.
        gradients = tuple(tensor.grad for tensor in inputs)
        for tensor in inputs:
            tensor.grad = None
        return gradients

    return run
