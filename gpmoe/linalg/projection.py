"""What a Gaussian of whitened inducing variables adds to a prior at other points, differentiable.

| symbol | name in code | shape |
|---|---|---|
| q(v) = N(μ, S) | `mu`, `S` | (*batch, p), (*batch, p, p) |
| V = L⁻¹ K | `V` | (*batch, p, b) |
| W = (S - I) V | `W` | (*batch, p, b) |

    mean = V'μ,   variance = diag(V'(S - I)V) = column sums of V ∘ W

Backward needs V and W, and for L the p x p products alone: with dS = V diag(dv) V' and dμ = V dm,
dL = -tril(L⁻'(μ dμ' + 2 (S - I) dS)).
"""

from typing import Any

import torch
from torch import Tensor

from gpmoe.errors import DifferentiationError
from gpmoe.linalg import lapack


def project(L: Tensor, K: Tensor, mu: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance that q(v) adds to the prior's; differentiable once.

    Args:
        L: lower Cholesky factor of the inducing points' covariance, ``(*batch, p, p)``.
        K: their covariance with the other points, ``(*batch, p, b)``.
        mu: ``(*batch, p)``.
        S: symmetric, ``(*batch, p, p)``.

    Returns:
        ``(*batch, b)`` each.
    """
    mean, variance = _Project.apply(L, K, mu, S)
    return mean, variance


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, L: Tensor, K: Tensor, mu: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
        V = lapack.solve_triangular(L, K)
        W = S @ V - V
        ctx.save_for_backward(L, mu, S, V, W)
        return (mu.unsqueeze(-2) @ V).squeeze(-2), (V * W).sum(-2)

    @staticmethod
    def backward(ctx: Any, d_mean: Tensor, d_variance: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if torch.is_grad_enabled():
            raise DifferentiationError("a projection can be differentiated once; leave out create_graph=True.")
        L, mu, S, V, W = ctx.saved_tensors
        d_mu = (V @ d_mean.unsqueeze(-1)).squeeze(-1)
        dS = (V * d_variance.unsqueeze(-2)) @ V.mT
        dV = W.mul(2.0 * d_variance.unsqueeze(-2)).add_(mu.unsqueeze(-1) * d_mean.unsqueeze(-2))
        dK = lapack.solve_triangular(L, dV, transpose=True, overwrite=True)
        through_L = 2.0 * (S @ dS - dS) + mu.unsqueeze(-1) * d_mu.unsqueeze(-2)
        dL = lapack.solve_triangular(L, through_L, transpose=True, overwrite=True).tril().neg_()
        return dL, dK, d_mu, dS
