"""Nested kriging: the best linear combination of experts' means, with the covariances between experts in it.

| symbol | name in code | shape |
|---|---|---|
| w_i = C_i⁻¹ k_i(x), expert i's weights for its own targets | `weights` | (n_i, q) |
| means μ_i = w_i'y_i, and their covariance with f(x) | `means`, `told` | (q, M) |
| covariance of the means: w_i'K_ij w_j, w_i'C_i w_i | `between` | (q, M, M) |

    mean told' between⁻¹ means,     variance k(x, x) - told' between⁻¹ told

O(n²) a new point for n rows in all: for small test sets.

Source: Rullière, Durrande, Bachoc and Chevalier (2018), Nested Kriging predictions for datasets with a large number of
observations, prop. 1-2.
"""

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from gpmoe.linalg import lapack
from gpmoe.linalg.stationary import fill_covariance
from gpmoe.models.expert_moments import factor

_BLOCK = 2**23  # entries of all experts' weights at a time
_JITTER = 1e-10  # of the experts' correlations: those of two that say the same are 1


def nested_kriging(
    kernel: Kernel, X: Tensor, residual: Tensor, noise: Tensor, offsets: Tensor, X_new: Tensor
) -> tuple[Tensor, Tensor]:
    """Posterior mean, less the prior mean, and variance of the latent function.

    Args:
        kernel: any GPyTorch kernel without batch dimensions.
        X: rows of all experts, one after another, ``(n, d)``.
        residual: targets less the prior mean, ``(n,)``.
        noise: noise variance, ``()``.
        offsets: ``(M + 1,)``.
        X_new: ``(q, d)``.

    Returns:
        ``(q,)`` each. Not differentiable.
    """
    size = max(1, _BLOCK // len(X))
    with torch.no_grad():
        factors = [factor(part, kernel, noise) for part in X.split(offsets.diff().tolist())]
        parts = [_block(kernel, X, residual, offsets, factors, points) for points in X_new.split(size)]
    mean, variance = (torch.cat(part) for part in zip(*parts, strict=True))
    return mean, variance


def _block(
    kernel: Kernel, X: Tensor, residual: Tensor, offsets: Tensor, factors: list[Tensor], X_new: Tensor
) -> tuple[Tensor, Tensor]:
    bounds = list(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True))
    K_new, weights = X.new_empty(len(X), len(X_new)), X.new_empty(len(X), len(X_new))
    fill_covariance(kernel, X, X_new, K_new)
    for (start, stop), L in zip(bounds, factors, strict=True):
        half = lapack.solve_triangular(L, K_new[start:stop])
        weights[start:stop] = lapack.solve_triangular(L, half, transpose=True)
    means = torch.stack([(weights[a:b] * residual[a:b, None]).sum(0) for a, b in bounds], -1)
    told = torch.stack([(weights[a:b] * K_new[a:b]).sum(0) for a, b in bounds], -1)
    between = torch.diag_embed(told)
    for i, (start, stop) in enumerate(bounds[:-1]):
        K = X.new_empty(stop - start, len(X) - stop)
        fill_covariance(kernel, X[start:stop], X[stop:], K)
        for j, (a, b) in enumerate(bounds[i + 1 :], i + 1):
            product = (weights[start:stop] * (K[:, a - stop : b - stop] @ weights[a:b])).sum(0)
            between[:, i, j] = between[:, j, i] = product
    prior = kernel(X_new, diag=True)
    return _combine(means, told, between, prior)


def _combine(means: Tensor, told: Tensor, between: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
    """Solve in correlations, since an expert far away has next to no variance."""
    tiny = torch.finfo(told.dtype).tiny
    scale = told.clamp_min(tiny).sqrt()
    correlations = between / scale.unsqueeze(-1) / scale.unsqueeze(-2)
    correlations = torch.where(correlations.isfinite(), correlations.clamp(-1.0, 1.0), 0.0)
    lapack.diagonal(correlations).fill_(1.0 + _JITTER)
    L, info = torch.linalg.cholesky_ex(correlations)
    if bool(info.any()):
        lapack.diagonal(correlations).fill_(1.0 + 1e4 * _JITTER)
        L = torch.linalg.cholesky(correlations)
    right = torch.stack([scale, means / scale], -1)
    half = torch.linalg.solve_triangular(L, right, upper=False)
    mean = (half[..., 0] * half[..., 1]).sum(-1)
    return mean, torch.maximum(prior - half[..., 0].square().sum(-1), torch.finfo(told.dtype).eps * prior)
