"""Masks: which candidates of a chunk are positives, and so must not count as negatives.

Letters: `S` chunks, `C` edges in a chunk, `N` candidates, `M` edges that share a pair with another edge of their chunk.
"""

from __future__ import annotations

import torch
from torch import Tensor


def positives_mask(own: Tensor, candidates: Tensor, candidate_valid: Tensor, shared: Tensor) -> Tensor:
    """Candidates that are padding, the edge's own node, or the node of another edge with the same query.

    For the right-hand side the query is (lhs, rel): all `t` with (lhs, rel, t) in the chunk are positives of each of
    these edges.

    Args:
        own: int64 `[S, C]`, each edge's node on this side.
        candidates: int64 `[S, N]`, in the same table as `own`.
        candidate_valid: bool `[S, N]`, false for padding.
        shared: int64 `[M, 2]`, flat slot and group of the edges whose query is not unique in their chunk.

    Returns:
        bool `[S, C, N]`, true where a candidate must be ignored.
    """
    mask = own.unsqueeze(2) == candidates.unsqueeze(1)
    if len(shared):
        flat = mask.view(-1, mask.shape[2])
        slots, groups = shared.unbind(1)
        hits = torch.zeros(len(shared), flat.shape[1], device=flat.device)
        hits.index_add_(0, groups, flat[slots].float())
        flat[slots] = hits[groups] > 0
    return mask.logical_or_(candidate_valid.logical_not().unsqueeze(1))
