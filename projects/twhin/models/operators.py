"""Operators: how a relation moves a left-hand-side embedding before it is compared.

Letters: `...` any leading shape, `D` embedding dim. Every operator is affine in the embedding, so that besides
`apply` it has

- an adjoint, which moves the operator to the other side of a dot product: scoring `N` corrupted left-hand sides
  against one edge then costs one matrix product, though each of the `N` would have to be moved;
- a norm form, which writes the squared norm of a moved embedding as products, for the cosine and l2 comparators.

`complex_diagonal` reads an embedding as `D / 2` complex numbers: real parts first, then imaginary parts.
Sources: TransE (Bordes 2013), DistMult (arXiv 1412.6575), ComplEx (arXiv 1606.06357), TwHIN (arXiv 2202.05387).
"""

from __future__ import annotations

import torch
from torch import Tensor

NormForm = tuple[Tensor | None, Tensor | None, Tensor | None]


class Operator:
    """The identity `op(x) = x`, and the interface of the others.

    `params` is the relation's row of parameters, `[..., D]`, already gathered to the edges.
    """

    name = "identity"
    has_params = False

    def init_params(self, params: Tensor) -> None:
        """Fill `[R, D]` in place so that the operator starts as the identity."""
        params.zero_()

    def apply(self, x: Tensor, params: Tensor) -> Tensor:
        """Move embeddings `x [..., D]`: `op(x) [..., D]`."""
        return x

    def adjoint(self, y: Tensor, params: Tensor) -> Tensor:
        """`q [..., D]` with `op(x) . y = x . q + b` for every x, where `b` is the bias below."""
        return y

    def adjoint_bias(self, y: Tensor, params: Tensor) -> Tensor | None:
        """`b [...]`, or None for zeros."""
        return None

    def norm_form(self, params: Tensor) -> NormForm:
        """`(s, l, c)` with `|op(x)|^2 = x^2 . s + x . l + c`; None stands for ones, zeros and zero."""
        return None, None, None

    def factors(self, params: Tensor) -> Tensor:
        """Moduli of the parameters, for N3 regularisation: `[..., D]`, or `[..., D / 2]` for complex ones."""
        return params.abs()


class Translation(Operator):
    """`op(x) = x + t` (TransE, TwHIN)."""

    name = "translation"
    has_params = True

    def apply(self, x: Tensor, params: Tensor) -> Tensor:
        """`x + t`."""
        return x + params

    def adjoint_bias(self, y: Tensor, params: Tensor) -> Tensor | None:
        """`(x + t) . y = x . y + t . y`."""
        return (params * y).sum(-1)

    def norm_form(self, params: Tensor) -> NormForm:
        """`|x + t|^2 = |x|^2 + 2 x . t + |t|^2`."""
        return None, 2 * params, params.square().sum(-1)


class Diagonal(Operator):
    """`op(x) = d * x`, elementwise (DistMult under the dot comparator)."""

    name = "diagonal"
    has_params = True

    def init_params(self, params: Tensor) -> None:
        """Ones."""
        params.fill_(1.0)

    def apply(self, x: Tensor, params: Tensor) -> Tensor:
        """`d * x`."""
        return x * params

    def adjoint(self, y: Tensor, params: Tensor) -> Tensor:
        """`(d * x) . y = x . (d * y)`."""
        return y * params

    def norm_form(self, params: Tensor) -> NormForm:
        """`|d * x|^2 = x^2 . d^2`."""
        return params.square(), None, None


class ComplexDiagonal(Operator):
    """`op(x) = c * x` over complex numbers (ComplEx under the dot comparator). `D` must be even."""

    name = "complex_diagonal"
    has_params = True

    def init_params(self, params: Tensor) -> None:
        """Real parts one, imaginary parts zero."""
        half = params.shape[-1] // 2
        params[..., :half] = 1.0
        params[..., half:] = 0.0

    def apply(self, x: Tensor, params: Tensor) -> Tensor:
        """`c * x`."""
        x_re, x_im = x.chunk(2, dim=-1)
        c_re, c_im = params.chunk(2, dim=-1)
        return torch.cat([x_re * c_re - x_im * c_im, x_re * c_im + x_im * c_re], dim=-1)

    def adjoint(self, y: Tensor, params: Tensor) -> Tensor:
        """The adjoint of a complex product is the product with the conjugate."""
        y_re, y_im = y.chunk(2, dim=-1)
        c_re, c_im = params.chunk(2, dim=-1)
        return torch.cat([y_re * c_re + y_im * c_im, y_im * c_re - y_re * c_im], dim=-1)

    def norm_form(self, params: Tensor) -> NormForm:
        """`|c * x|^2 = |c|^2 |x|^2`, per complex number."""
        modulus = self.factors(params).square()
        return torch.cat([modulus, modulus], dim=-1), None, None

    def factors(self, params: Tensor) -> Tensor:
        """Moduli of the complex parameters `[..., D / 2]`."""
        re, im = params.chunk(2, dim=-1)
        # The small constant keeps the gradient of the root finite at zero.
        return (re.square() + im.square() + 1e-20).sqrt()


OPERATORS: dict[str, Operator] = {op.name: op for op in (Operator(), Translation(), Diagonal(), ComplexDiagonal())}
