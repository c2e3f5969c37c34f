"""How compressed gradients travel: a communication hook of DDP, or of each parameter where there is no DDP.

    register_gradient_compression(model, optimizers, config)       # once, after sharding, before the first step

`train` does this by itself; a project has nothing to call.
"""

# No "from __future__ import annotations" here: DDP looks at the annotations of its hook, and takes no text for them.

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from tml.common.device import world_size
from tml.common.errors import ConfigError
from tml.core.config.gradients import CompressionConfig
from tml.core.optimizers.compression import GradientCompression
from tml.core.optimizers.optimizers import Optimizers

Taken = tuple[Tensor, Tensor]  # indices of parts and their values; see GradientCompression.take


def register_gradient_compression(
    model: nn.Module, optimizers: Optimizers, config: CompressionConfig
) -> GradientCompression:
    """Compress the gradients of all dense parameters from the next backward on; all ranks call it together.

    On one rank without DDP nothing is sent, but parameters are updated as they would be on several ranks. Sparse
    gradients are small as they are and go whole.

    Args:
        model: on its device, sharded or wrapped in DDP if it is to be.
        optimizers: of the dense parameters; plain `torch.optim.SGD` without momentum.
        config: what is sent.

    Raises:
        ConfigError: another optimizer, whose step would not be what the method is made for.
    """
    _require_plain_sgd(optimizers)
    compression = GradientCompression(config, optimizers.named_dense_parameters())
    replicas = [module for module in model.modules() if isinstance(module, DistributedDataParallel)]
    for replica in replicas:
        replica.register_comm_hook(compression, exchange_bucket)
    if not replicas:
        for parameter in optimizers.dense_parameters():
            parameter.register_post_accumulate_grad_hook(_without_ranks(compression))
    return compression


def exchange_bucket(compression: GradientCompression, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """DDP's communication hook: every rank's choice goes to all ranks, and the bucket becomes their mean."""
    buffer = bucket.buffer()
    group = dist.group.WORLD
    assert group is not None
    if buffer.is_sparse:
        return allreduce_hook(group, bucket)
    taken = [compression.take(p, g) for p, g in zip(bucket.parameters(), bucket.gradients(), strict=True)]
    targets = [compression.parts(gradient) for gradient in bucket.gradients()]
    mine = _packed(taken)
    gathered = [torch.empty_like(mine) for _ in range(world_size())]

    def mean_of_ranks(_: Any) -> Tensor:
        buffer.zero_()
        for payload in gathered:
            for target, (indices, values) in zip(targets, _unpacked(payload, taken), strict=True):
                target.index_add_(0, indices, values)
        return buffer.div_(world_size())

    return dist.all_gather(gathered, mine, async_op=True).get_future().then(mean_of_ranks)


def _without_ranks(compression: GradientCompression) -> Callable[[Tensor], None]:
    def replace(parameter: Tensor) -> None:
        if parameter.grad is None or parameter.grad.is_sparse:
            return
        indices, values = compression.take(parameter, parameter.grad)
        compression.parts(parameter.grad.zero_()).index_add_(0, indices, values)

    return replace


def _packed(taken: Sequence[Taken]) -> Tensor:
    """All parameters' indices and values as bytes, so that one collective carries them whatever their dtype."""
    return torch.cat([tensor.contiguous().view(torch.uint8).flatten() for pair in taken for tensor in pair])


def _unpacked(payload: Tensor, like: Sequence[Taken]) -> list[Taken]:
    sizes = [tensor.nbytes for pair in like for tensor in pair]
    pieces = iter(payload.split(sizes))
    # A view of another dtype needs an address that its values divide, which a piece of the payload may not have.
    return [
        (
            next(pieces).clone().view(indices.dtype).view_as(indices),
            next(pieces).clone().view(values.dtype).view_as(values),
        )
        for indices, values in like
    ]


def _require_plain_sgd(optimizers: Optimizers) -> None:
    for name, optimizer in optimizers.dense.items():
        if type(optimizer) is not torch.optim.SGD or any(group["momentum"] for group in optimizer.param_groups):
            raise ConfigError(
                "gradient compression is made for plain gradient descent",
                where=f"training.gradients.compression, optimizer {name}",
                value=type(optimizer).__name__,
                limit="sgd without momentum",
                fix="use sgd; momentum belongs into training.gradients.compression.momentum",
            )
