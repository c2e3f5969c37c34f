"""Products of features, with those among the user's features computed once per request.

Letters: `U` users, one or as many as candidates; `N` candidates; `D` embedding dim; `Fu`, `Fc` embeddings of the sides.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tml.common.modules.dense_blocks import CrossNetwork
from tml.projects.light_ranker.models.interactions import DotProducts


class SplitDot(nn.Module):
    """The model's products of embeddings in two parts: those among the user's, and all others.

    The projected numbers, of which the candidate has a share, count among the candidate's embeddings.

    Args:
        dot: the model's.
        is_user: for each embedding of an example, whether it is the user's.

    Attributes:
        user_products: which of the model's products come first, from the user alone.
        candidate_products: which come from `candidate`, in its order.
    """

    user_pairs: Tensor
    candidate_pairs: Tensor

    def __init__(self, dot: DotProducts, is_user: list[bool]) -> None:
        super().__init__()
        side = [*is_user, *([False] * (dot.num_vectors - len(is_user)))]
        users = [place for place, user in enumerate(side) if user]
        candidates = [place for place, user in enumerate(side) if not user]
        place_of = {pair: place for place, pair in enumerate(zip(*_pairs(len(side)), strict=True))}
        user_pairs = [(a, b) for a in range(len(users)) for b in range(a)]
        candidate_pairs = [(a, b) for a in range(len(candidates)) for b in range(a)]
        self.user_products = [place_of[users[b], users[a]] for a, b in user_pairs]
        self.candidate_products = [place_of[min(c, u), max(c, u)] for c in candidates for u in users] + [
            place_of[candidates[b], candidates[a]] for a, b in candidate_pairs
        ]
        self.register_buffer("user_pairs", _flat(user_pairs, len(users)))
        self.register_buffer("candidate_pairs", _flat(candidate_pairs, len(candidates)))

    def user(self, embeddings: Tensor) -> Tensor:
        """`[U, Fu (Fu - 1) / 2]` from `[U, Fu, D]`."""
        return (embeddings @ embeddings.transpose(1, 2)).flatten(1).index_select(1, self.user_pairs)

    def candidate(self, user: Tensor | None, candidate: Tensor) -> Tensor:
        """`[N, Fc Fu + Fc (Fc - 1) / 2]` from `[U, Fu, D]` and `[N, Fc, D]`."""
        own = (candidate @ candidate.transpose(1, 2)).flatten(1).index_select(1, self.candidate_pairs)
        if user is None:
            return own
        return torch.cat([(candidate @ user.transpose(1, 2)).flatten(1), own], dim=1)


def reordered_cross(cross: CrossNetwork, columns: list[int]) -> CrossNetwork:
    """The same cross layers for an input whose columns come in another order.

    Args:
        cross: the model's, of low rank.
        columns: the model's column at each new place.
    """
    layers = [_down_and_up(layer) for layer in cross.layers]
    rank = layers[0][0].out_features
    copy = CrossNetwork(len(columns), len(cross.layers), rank)
    with torch.no_grad():
        for new, (down, up) in zip(copy.layers, layers, strict=True):
            new_down, new_up = _down_and_up(new)
            new_down.weight.copy_(down.weight[:, columns])
            new_up.weight.copy_(up.weight[columns])
            new_up.bias.copy_(up.bias[columns])
    return copy


def _down_and_up(layer: nn.Module) -> tuple[nn.Linear, nn.Linear]:
    assert isinstance(layer, nn.Sequential), "a cross layer of full rank"
    down, up = layer
    assert isinstance(down, nn.Linear)
    assert isinstance(up, nn.Linear)
    return down, up


def _pairs(total: int) -> tuple[list[int], list[int]]:
    left, right = torch.triu_indices(total, total, offset=1).tolist()
    return left, right


def _flat(pairs: list[tuple[int, int]], width: int) -> Tensor:
    return torch.tensor([a * width + b for a, b in pairs], dtype=torch.int64)
