"""From the scores of some chunks to their loss and its derivatives, one side at a time.

Letters: `S` chunks, `C` edges, `N` candidates, `D` embedding dim.

Nothing here is an autograd function. A side's loss comes with its derivatives by the tensors it was made from, which
are parts of a graph; the head hands them to autograd for what lies above: operators, relations, rows. Scores are the
largest tensor of a batch, so where they are dot products they are made, used and overwritten here, unseen by autograd.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tml.common.profiling import phase
from tml.projects.twhin.models.losses import LOSSES, MASKED_SCORE, SHIFT_INVARIANT

# Tensors of a graph, each with the derivative of the loss by it. A tensor may appear twice: derivatives add up.
Derivatives = list[tuple[Tensor, Tensor]]


class SideLoss:
    """The weighted sum of the losses of edges against the candidates of one side.

    Args:
        name: of `LOSSES`.
        margin: of the loss.
    """

    def __init__(self, name: str, margin: float) -> None:
        self._edge_loss, self._margin = LOSSES[name], margin
        self.needs_bias = name not in SHIFT_INVARIANT

    def of_scores(
        self, positive: Tensor, negative: Tensor, masked: Tensor, weight: Tensor
    ) -> tuple[Tensor, Derivatives]:
        """Start from scores.

        Args:
            positive: scores of the edges, `[S, C]`.
            negative: scores of the candidates, `[S, C, N]`.
            masked: int64 `[P]`, flat places in `[S, C, N]` that hold no negative.
            weight: `[S, C]`.

        Returns:
            The loss (a detached scalar) and its derivatives by both.
        """
        # A copy: the graph above may need the scores for its own derivatives.
        loss, by_positive, by_negative = self._of(positive.detach(), negative.detach().clone(), masked, weight)
        return loss, [(positive, by_positive), (negative, by_negative)]

    def of_dots(
        self,
        queries: Tensor,
        candidates: Tensor,
        by_candidates: Tensor,
        own: Tensor | None,
        masked: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Derivatives]:
        """Start from the two sides of a dot product: the scores are `queries . candidates + bias`.

        Args:
            queries: `[S, C, D]`, part of a graph.
            candidates: `[S, N, D]`.
            by_candidates: of the shape of `candidates`; becomes the derivative by them.
            own: the ends of the edges themselves, `[S, C, D]`, which give the positive scores; None where they are the
                first `C` candidates: the product then holds the positive scores already, on its diagonal.
            masked: as in `of_scores`. An edge's own end is always masked.
            weight: `[S, C]`.
            bias: `[S, C]`, part of every score of an edge, its positive one too. May be left out unless `needs_bias`.

        Returns:
            The loss, the positive scores `[S, C]` (both detached), and the derivatives by queries, own ends and bias.
        """
        inputs, queries, candidates = queries, queries.detach(), candidates.detach()
        with phase("scores"):
            score = _product(queries, candidates.transpose(1, 2))
        diagonal = score[:, :, : queries.shape[1]].diagonal(dim1=1, dim2=2)
        positive = diagonal.clone() if own is None else (queries * own.detach()).sum(-1)
        if bias is not None:
            score += bias.detach().unsqueeze(-1)
            positive += bias.detach()
        loss, by_positive, by_score = self._of(positive, score, masked, weight)
        derivatives: Derivatives = []
        if bias is not None:
            derivatives.append((bias, by_score.sum(-1) + by_positive))
        if own is None:
            diagonal.copy_(by_positive)
        else:
            spread = by_positive.unsqueeze(-1)
            derivatives += [(own, spread * queries), (inputs, spread * own.detach())]
        with phase("backward"):
            derivatives.append((inputs, _product(by_score, candidates)))
            _product_into(by_candidates, by_score.transpose(1, 2), queries)
        return loss, positive, derivatives

    def _of(self, positive: Tensor, score: Tensor, masked: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Loss and derivatives by both; the latter one takes the place of `score`, in which it is zero where masked."""
        with phase("loss"):
            score.view(-1).index_fill_(0, masked, MASKED_SCORE)
            losses, by_positive, by_score = self._edge_loss(positive, score, self._margin)
            return (losses * weight).sum(), by_positive * weight, by_score.mul_(weight.unsqueeze(-1))


def scaled(grad: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Derivatives times the derivative of what follows, a scalar that is one wherever a loss is what is minimised."""
    # On a CPU it is worth a look; on a GPU looking would wait for the device.
    if grad.device.type == "cpu" and grad.item() == 1.0:
        return tensors
    return tuple(tensor * grad for tensor in tensors)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """`bmm`, back in the type of its operands where autocast works in a shorter one."""
    return torch.bmm(left, right).to(left.dtype)


def _product_into(out: Tensor, left: Tensor, right: Tensor) -> None:
    if out.is_contiguous() and not torch.is_autocast_enabled(out.device.type):
        torch.bmm(left, right, out=out)
    else:
        out.copy_(torch.bmm(left, right))
