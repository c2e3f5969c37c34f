"""Products of features. dot: DLRM (arXiv 1906.00091). cross: DCN-v2's low-rank cross layers (arXiv 2008.13535).

Letters: `B` rows, `F` embeddings of an example, `D` embedding dim, `X` columns of the input.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tml.projects.light_ranker.config import InteractionConfig


class DotInteraction(nn.Module):
    """Dot products of every two embeddings; the numbers take part as one embedding more, through a linear layer.

    Args:
        num_embeddings: `F`.
        embedding_dim: `D`.
        num_numbers: columns of the dense input, 0 for none.
    """

    pairs: Tensor

    def __init__(self, num_embeddings: int, embedding_dim: int, num_numbers: int) -> None:
        super().__init__()
        self.project = nn.Linear(num_numbers, embedding_dim) if num_numbers else None
        total = num_embeddings + (self.project is not None)
        left, right = torch.tril_indices(total, total, offset=-1)
        self.register_buffer("pairs", left * total + right, persistent=False)
        self.num_columns = len(left)

    def forward(self, embeddings: Tensor, numbers: Tensor) -> Tensor:
        """`[B, num_columns]` from embeddings `[B, F, D]` and numbers `[B, num_numbers]`."""
        if self.project is not None:
            embeddings = torch.cat([embeddings, self.project(numbers).unsqueeze(1).to(embeddings.dtype)], dim=1)
        products = embeddings @ embeddings.transpose(1, 2)
        return products.flatten(1)[:, self.pairs]


class CrossInteraction(nn.Module):
    """Cross layers: `x <- x0 * (U V x + b) + x`, `U V` of a low rank.

    Args:
        num_columns: `X`.
        num_layers: cross layers.
        rank: of `U V`.
    """

    def __init__(self, num_columns: int, num_layers: int, rank: int) -> None:
        super().__init__()
        self.down = nn.ModuleList(nn.Linear(num_columns, rank, bias=False) for _ in range(num_layers))
        self.up = nn.ModuleList(nn.Linear(rank, num_columns) for _ in range(num_layers))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, X]` from `[B, X]`."""
        first = x
        for down, up in zip(self.down, self.up, strict=True):
            x = first * up(down(x)) + x
        return x


def build_interaction(
    config: InteractionConfig | None, num_embeddings: int, embedding_dim: int, num_numbers: int, num_columns: int
) -> DotInteraction | CrossInteraction | None:
    """The interaction that the config names.

    Args:
        config: the `model.mlp.interaction` section.
        num_embeddings: embeddings of `embedding_dim` values an example has.
        embedding_dim: their length.
        num_numbers: columns of the dense input.
        num_columns: columns of the whole input of the hidden layers.
    """
    if config is None:
        return None
    if config.kind == "dot":
        return DotInteraction(num_embeddings, embedding_dim, num_numbers)
    return CrossInteraction(num_columns, config.num_layers or 2, config.rank or 64)
