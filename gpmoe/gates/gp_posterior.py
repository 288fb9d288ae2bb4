"""The posterior of latent functions of a gate, given Gaussian pseudo-observations of them.

| symbol | name in code | shape |
|---|---|---|
| C = K(X, X) + diag(noise), its lower factor | `L` | (n, n) |
| C⁻¹ (z - m), of one function or of several that share C | `alpha` | (n,) or (n, j) |
"""

from typing import NamedTuple

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from gpmoe.linalg import lapack
from gpmoe.linalg.factorisation import cholesky_with_jitter_
from gpmoe.linalg.stationary import dense_covariance, fill_covariance


class GPPosterior(NamedTuple):
    """What predictions need; made by `condition`."""

    X: Tensor
    L: Tensor
    alpha: Tensor

    def moments(self, kernel: Kernel, X: Tensor) -> tuple[Tensor, Tensor]:
        """Mean beyond the prior's, ``(m,)`` or ``(m, j)``, and variance, ``(m,)``, at X ``(m, d)``.

        Differentiable in X if it wants a gradient.
        """
        if X.requires_grad and torch.is_grad_enabled():
            K = dense_covariance(kernel, X, self.X)
            V = torch.linalg.solve_triangular(self.L, K.mT, upper=False)
            prior = dense_covariance(kernel, X, X).diagonal()
            return K @ self.alpha, (prior - V.square().sum(0)).clamp_min(1e-12)
        with torch.no_grad():
            K = X.new_empty(len(X), len(self.X))
            fill_covariance(kernel, X, self.X, K)
            mean = K @ self.alpha
            V = lapack.solve_triangular(self.L, K.mT, overwrite=True)
            return mean, (kernel(X, diag=True) - V.square().sum(0)).clamp_min(1e-12)


def condition(kernel: Kernel, X: Tensor, z: Tensor, noise: Tensor) -> GPPosterior:
    """Condition a GP of zero mean on z ``(n,)`` or ``(n, j)`` at X ``(n, d)`` with noise variances ``(n,)``."""
    L = factor(kernel, X, noise)
    return GPPosterior(X, L, solve(L, z))


def factor(kernel: Kernel, X: Tensor, noise: Tensor) -> Tensor:
    """The lower Cholesky factor of K(X, X) + diag(noise), ``(n, n)``."""
    L = X.new_empty(len(X), len(X))

    def fill(C: Tensor) -> None:
        fill_covariance(kernel, X, None, C)
        lapack.diagonal(C).add_(noise)

    cholesky_with_jitter_(fill, L)
    return L


def solve(L: Tensor, z: Tensor) -> Tensor:
    """(LL')⁻¹ z for z ``(n,)`` or ``(n, j)``."""
    return lapack.cholesky_solve(L, z) if z.dim() == 1 else torch.cholesky_solve(z, L)
