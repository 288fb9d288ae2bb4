"""The collapsed lower bound on a Gaussian process's evidence through inducing points, with its analytic gradient.

| symbol | name in code | shape |
|---|---|---|
| y - m(X), noise variances | `residual`, `noise` | (n,) |
| L L' = K(Z, Z) + nugget | `L` | (p, p) |
| A = L⁻¹ K(Z, X) diag(noise)^-½ | `A`, a block of columns at a time | (p, n) |
| S = A A', B = I + S = L_B L_B' | `S`, `B`, `L_B` | (p, p) |
| c = A diag(noise)^-½ (y - m), β = B⁻¹ c | `c`, `beta` | (p,) |
| b = L⁻' β: the posterior mean is m(x) + k(x, Z) b | `weights` | (p,) |

    log p(y) >= -½ [n log 2π + Σ log noise + log|B| + Σ (y - m)²/noise - c'β] + ½ tr S - ½ Σ k(x_i, x_i)/noise_i

With M = I - B⁻¹ - ββ' the gradient is, for Q = K(X, Z) (L L')⁻¹ K(Z, X),

    dF/dK(Z, X) = L⁻' M A diag(noise)^-½ + b ((y - m)/noise)',   dF/dK(Z, Z) = -½ L⁻' (B + B⁻¹ - 2I + ββ') L⁻¹

so that no autograd passes through a factor, and two passes over blocks of columns, O(n p²) each, are all there is; no
n x n and no p x n matrix is stored. Gradients are computed with the value; differentiating twice is not supported.

Source: Titsias (2009), Variational Learning of Inducing Variables in Sparse Gaussian Processes, eq. 9; the stable form
is that of Matthews et al. (2017), GPflow, and of its notes on SGPR.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from gpmoe.errors import DifferentiationError
from gpmoe.linalg import lapack
from gpmoe.linalg.cross_covariance import cross_covariance
from gpmoe.linalg.inducing_factor import inducing_factor
from gpmoe.linalg.likelihood import learnable_tensors

_BLOCK = 2**20  # entries of a block of K(Z, X): 8 MB in float64


def collapsed_bound(kernel: Kernel, X: Tensor, Z: Tensor, residual: Tensor, noise: Tensor) -> Tensor:
    """Titsias' lower bound on log N(residual | 0, K(X, X) + diag(noise)), differentiable once.

    Args:
        kernel: any GPyTorch kernel without batch dimensions.
        X: ``(n, d)``.
        Z: inducing points, ``(p, d)``.
        residual: targets less their mean, ``(n,)``.
        noise: noise variance of each point, ``(n,)``.

    Returns:
        A scalar, nats; gradients reach the kernel's parameters, X, Z, residual and noise.

    Raises:
        NotPositiveDefiniteError, NonFiniteError: see `cholesky_with_jitter_`.
    """
    prior_variance = kernel(X, diag=True)
    explained: Tensor = _Explained.apply(X, Z, residual, noise, kernel, *learnable_tensors(kernel))
    return explained - 0.5 * (prior_variance / noise).sum()


@dataclass(frozen=True)
class SparsePosterior:
    """q(u): what predictions need; see the table above.

    Attributes:
        L, L_B: ``(p, p)``.
        beta: ``(p,)``.
        c, S: ``(p,)`` and ``(p, p)``.
        jitter: what was added to the diagonal of K(Z, Z) beyond the nugget.
    """

    L: Tensor
    L_B: Tensor
    beta: Tensor
    c: Tensor
    S: Tensor
    jitter: float

    @property
    def covariance(self) -> Tensor:
        """B⁻¹, ``(p, p)``."""
        inverse = self.L_B.clone()
        lapack.inverse_from_cholesky_(inverse)
        return inverse.tril() + inverse.tril(-1).mT

    @property
    def weights(self) -> Tensor:
        """b, ``(p,)``."""
        return lapack.solve_triangular(self.L, self.beta.unsqueeze(-1), transpose=True).squeeze(-1)


def sparse_posterior(kernel: Kernel, X: Tensor, Z: Tensor, residual: Tensor, noise: Tensor) -> SparsePosterior:
    """The best q(u) given the data, without gradients; arguments as in `collapsed_bound`."""
    with torch.no_grad():
        L, jitter = inducing_factor(kernel, Z)
        S, c = torch.zeros_like(L), torch.zeros_like(L[0])
        root = noise.rsqrt()
        for columns in _column_blocks(len(X), len(Z)):
            A = _whitened(kernel, L, X[columns], Z, root[columns])
            S += lapack.rank_k(A)
            c += A @ (residual[columns] * root[columns])
        L_B = S.clone()
        lapack.diagonal(L_B).add_(1.0)
        lapack.cholesky_(L_B)
        return SparsePosterior(L, L_B.tril_(), lapack.cholesky_solve(L_B, c), c, S, jitter)


def _whitened(kernel: Kernel, L: Tensor, X: Tensor, Z: Tensor, root: Tensor) -> Tensor:
    """A block of A."""
    return lapack.solve_triangular(L, cross_covariance(kernel, Z, X) * root, overwrite=True)


def _column_blocks(n: int, p: int) -> Iterator[slice]:
    size = max(p, _BLOCK // p)
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


class _Explained(torch.autograd.Function):
    """The bound without its term in k(x, x)."""

    @staticmethod
    def forward(
        ctx: Any, X: Tensor, Z: Tensor, residual: Tensor, noise: Tensor, kernel: Kernel, *parameters: Tensor
    ) -> Tensor:
        q = sparse_posterior(kernel, X, Z, residual, noise)
        log_det = 2 * lapack.diagonal(q.L_B).log().sum()
        fit = (residual.square() / noise).sum() - q.c @ q.beta
        value = -0.5 * (len(X) * math.log(2 * math.pi) + noise.log().sum() + log_det + fit - lapack.diagonal(q.S).sum())
        if any(ctx.needs_input_grad):
            ctx.gradients = _gradients(q, X, Z, residual, noise, kernel, parameters, for_X=ctx.needs_input_grad[0])
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise DifferentiationError("the bound can be differentiated once; leave out create_graph=True.")
        return tuple(None if g is None else grad * g for g in ctx.gradients)


def _gradients(
    q: SparsePosterior,
    X: Tensor,
    Z: Tensor,
    residual: Tensor,
    noise: Tensor,
    kernel: Kernel,
    parameters: tuple[Tensor, ...],
    *,
    for_X: bool,
) -> tuple[Tensor | None, ...]:
    """Gradients for X, Z, residual, noise, the kernel (None) and the parameters."""
    b = q.weights
    B_inverse, precision = q.covariance, noise.reciprocal()
    identity, outer = torch.eye(len(Z)).to(Z), torch.outer(q.beta, q.beta)
    left = lapack.solve_triangular(q.L, identity - B_inverse - outer, transpose=True)
    Z, X = Z.detach().requires_grad_(), X.detach().requires_grad_(for_X)
    wanted = [Z, X, *parameters] if for_X else [Z, *parameters]
    total = [torch.zeros_like(tensor) for tensor in wanted]

    with torch.enable_grad():
        K_zz = cross_covariance(kernel, Z, Z)
    _pull_back(K_zz, _inducing_gradient(q, B_inverse, outer), wanted, total)
    d_residual, d_noise = torch.empty_like(residual), torch.empty_like(noise)
    for columns in _column_blocks(len(X), len(Z)):
        s, r = precision[columns], residual[columns]
        with torch.enable_grad():
            K = cross_covariance(kernel, Z, X[columns])
        A = lapack.solve_triangular(q.L, K.detach())
        T = left @ A
        fitted = b @ K.detach()
        d_residual[columns] = s * (fitted - r)
        d_noise[columns] = s * (s * (r * (0.5 * r - fitted) - 0.5 * (K.detach() * T).sum(0)) - 0.5)
        _pull_back(K, torch.addr(T, b, r).mul_(s), wanted, total)
    dZ, *rest = total
    dX = rest.pop(0) if for_X else None
    return dX, dZ, d_residual, d_noise, None, *rest


def _inducing_gradient(q: SparsePosterior, B_inverse: Tensor, outer: Tensor) -> Tensor:
    """dF/dK(Z, Z)."""
    middle = q.S + B_inverse + outer
    lapack.diagonal(middle).sub_(1.0)
    half = lapack.solve_triangular(q.L, middle, transpose=True)
    return -0.5 * lapack.solve_triangular(q.L, half.mT, transpose=True)


def _pull_back(K: Tensor, weight: Tensor, wanted: list[Tensor], total: list[Tensor]) -> None:
    """Add the gradient of sum(weight * K) for each tensor wanted to its total."""
    if not K.requires_grad:
        return
    for sum_, piece in zip(total, torch.autograd.grad(K, wanted, weight, allow_unused=True), strict=True):
        if piece is not None:
            sum_ += piece
