"""What the heads' outputs mean: calibrated probabilities and seconds.

Letters: `N` candidates, `K` points of a calibration.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tml.common.modules.calibrators import Isotonic

# exp(80) seconds is far beyond any watch time and still a float32.
_MOST_LOG_SECONDS = 80.0


class GraphIsotonic(nn.Module):
    """`Isotonic` in few operators: two rounds of comparisons, each with about sqrt(K) points, then one look-up.

    Args:
        isotonic: the fitted calibration.
    """

    pivots: Tensor
    blocks: Tensor
    lines: Tensor

    def __init__(self, isotonic: Isotonic) -> None:
        super().__init__()
        xs, ys = isotonic.xs.double(), isotonic.ys.double()
        self.size = max(math.isqrt(len(xs)), 1)
        num_blocks = -(-len(xs) // self.size)
        padded = torch.full((num_blocks * self.size + self.size,), torch.inf, dtype=torch.float64)
        padded[: len(xs)] = xs
        # Of a value above every pivot, the look-up goes to a last block, of infinite points.
        self.register_buffer("blocks", padded.view(-1, self.size).float())
        self.register_buffer("pivots", self.blocks[:-1, -1].clone())
        self.register_buffer("lines", _lines(xs, ys).float())

    def forward(self, predictions: Tensor) -> Tensor:
        """Calibrated probabilities `[N]`."""
        x = predictions.unsqueeze(1)
        block = (self.pivots < x).to(torch.float32).sum(1).to(torch.int64)
        inside = (nn.functional.embedding(block, self.blocks) < x).to(torch.float32).sum(1).to(torch.int64)
        start, value, slope = nn.functional.embedding(block * self.size + inside, self.lines).unbind(1)
        return (value + (predictions - start) * slope).clamp(0.0, 1.0)


class Seconds(nn.Module):
    """The watch-time head's output `[N]` as seconds.

    Args:
        is_log: it is `log(1 + seconds)`.
    """

    def __init__(self, is_log: bool) -> None:
        super().__init__()
        self.is_log = is_log

    def forward(self, prediction: Tensor) -> Tensor:
        """Seconds, 0 where the head says less."""
        return torch.exp(prediction.clamp(0.0, _MOST_LOG_SECONDS)) - 1.0 if self.is_log else prediction.clamp_min(0.0)


def _lines(xs: Tensor, ys: Tensor) -> Tensor:
    """`(start, value, slope)` `[K + 1, 3]` by the number of points below the prediction."""
    left = torch.cat([xs[:1], xs]), torch.cat([ys[:1], ys])
    right = torch.cat([xs, xs[-1:]]), torch.cat([ys, ys[-1:]])
    width = right[0] - left[0]
    slope = torch.where(width > 0, (right[1] - left[1]) / torch.where(width > 0, width, 1.0), 0.0)
    return torch.stack([left[0], left[1], slope], dim=1)
