"""Deep Gradient Compression (Lin et al., arXiv 1712.01887): the largest parts of a gradient now, the rest later.

Per rank and parameter, with gradient `g`, momentum `m`, velocity `u` and residual `v`:

    g <- g scaled down to clip_norm / sqrt(ranks)     local clipping
    u <- m u + g,  v <- v + u                         momentum correction (equation 4)
    send the parts of v with the largest |v|, and set v and u to 0 there      (momentum factor masking)

The exchanged gradient is the mean over ranks of what each has sent. What is not sent stays in `v`: nothing of the
gradient is lost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed._shard.metadata import ShardMetadata
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor

from tml.common.device import rank, world_size
from tml.core.config.gradients import CompressionConfig


@dataclass
class _Memory:
    """What a rank remembers of a parameter, each `[parts, values of a part]`, live."""

    residual: Tensor
    velocity: Tensor | None


class GradientCompression:
    """What of its gradients this rank sends now, and its memory of the rest.

    Args:
        config: what is sent.
        parameters: by the name under which a checkpoint keeps their memory; others are sent whole.
    """

    def __init__(self, config: CompressionConfig, parameters: Mapping[str, nn.Parameter]) -> None:
        self._config = config
        self._step = 0
        self._memories = {parameter: self._memory(parameter) for parameter in parameters.values()}
        self._by_rank = {
            f"{name}.{kind}": tensor
            for name, parameter in parameters.items()
            for kind, tensor in vars(self._memories[parameter]).items()
            if tensor is not None and config.accumulate
        }
        self._checkpointed = {f"compression.{name}": _of_all_ranks(tensor) for name, tensor in self._by_rank.items()}

    def begin(self, step: int) -> None:
        """Say which step comes next: the number of completed ones."""
        self._step = step

    @property
    def density(self) -> float:
        """Share of a parameter that the next step sends."""
        decay, density = self._config.density_decay, self._config.density
        if decay is None:
            return density
        return max(density, decay.initial_density * decay.rate ** (self._step // decay.every_n))

    def parts(self, tensor: Tensor) -> Tensor:
        """A view of a parameter's shape as `[parts, values of a part]`."""
        if self._config.unit == "element":
            return tensor.view(-1, 1)
        return tensor.view(len(tensor), -1) if tensor.dim() >= 2 else tensor.view(1, -1)

    @torch.no_grad()
    def take(self, parameter: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Add a gradient to the memory, and take out of it what this step sends.

        Args:
            parameter: whose gradient it is.
            gradient: this rank's own, dense.

        Returns:
            Indices of parts, int32 `[k]`, and their values `[k, values of a part]`; k is the same on all ranks.
        """
        memory = self._memories.get(parameter)  # type: ignore[call-overload]
        if memory is None:
            parts = self.parts(gradient).clone()
            return torch.arange(len(parts), dtype=torch.int32, device=parts.device), parts
        self._add(memory, self.parts(gradient))
        num_sent = max(1, int(self.density * len(memory.residual)))
        chosen = memory.residual.abs().sum(1).topk(num_sent, sorted=False).indices
        values = memory.residual[chosen]
        for kept in (memory.residual, memory.velocity):
            if kept is not None:
                kept[chosen] = 0
        return chosen.to(torch.int32), values

    def checkpoint_tensors(self) -> dict[str, Any]:
        """The memories of all ranks, `[ranks, ...]`, live; a rank holds its own."""
        return self._checkpointed

    @torch.no_grad()
    def take_over(self, memories: Mapping[str, Tensor]) -> None:
        """Go on from the memories of another number of ranks: each rank gets their mean, so that their effect is kept.

        Args:
            memories: by the names of `checkpoint_tensors`, `[former ranks, ...]`.
        """
        for name, tensor in self._by_rank.items():
            tensor.copy_(memories[f"compression.{name}"].mean(0))

    def _memory(self, parameter: nn.Parameter) -> _Memory:
        parts = self.parts(torch.zeros_like(parameter, requires_grad=False))
        return _Memory(parts, torch.zeros_like(parts) if self._config.momentum > 0 else None)

    def _add(self, memory: _Memory, gradient: Tensor) -> None:
        if self._config.clip_norm is not None:
            limit = self._config.clip_norm / math.sqrt(world_size())
            gradient = gradient * (limit / gradient.norm().clamp(min=limit))
        if not self._config.accumulate:
            memory.residual.copy_(gradient)
        elif memory.velocity is None:
            memory.residual.add_(gradient)
        else:
            memory.velocity.mul_(self._config.momentum).add_(gradient)
            memory.residual.add_(memory.velocity)


def _of_all_ranks(mine: Tensor) -> Tensor:
    """A view of this rank's tensor as its row of one of all ranks; all ranks call it together."""
    if world_size() == 1:
        return mine[None]
    place = ShardMetadata(
        shard_offsets=[rank(), *(0 for _ in mine.shape)],
        shard_sizes=[1, *mine.shape],
        placement=f"rank:{rank()}/{mine.device}",
    )
    whole: Tensor = ShardedTensor._init_from_local_shards([Shard(mine[None], place)], world_size(), *mine.shape)
    return whole
