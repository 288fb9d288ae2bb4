"""Where a fit of several tasks starts: kernels of several scales, and how tasks correlate row by row."""

import math

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from gpmoe.errors import InputError
from gpmoe.kernels.coregionalisation import Coregionalisation, FreeCoregionalisation
from gpmoe.kernels.dimension_scaled import dimension_scaled_matern


def default_kernels(d: int, n_components: int) -> list[Kernel]:
    """Matérn-5/2 for inputs of unit variance, each starting four times shorter than the one before.

    Raises:
        InputError: for less than one component.
    """
    if n_components < 1:
        raise InputError(f"`n_components` must be at least 1; got {n_components}.")
    kernels: list[Kernel] = [dimension_scaled_matern(d).base_kernel for _ in range(n_components)]
    for q, kernel in enumerate(kernels):
        kernel.lengthscale = math.sqrt(d) / 4**q
    return kernels


def pairwise_correlation(Y: Tensor) -> Tensor:
    """Correlations of tasks over the rows that both have, made positive semidefinite: where a fit starts.

    Args:
        Y: ``(n, T)``, NaN where missing.

    Returns:
        ``(T, T)`` of unit diagonal; 0 for pairs with fewer than three rows in common.
    """
    T = Y.shape[1]
    R = torch.eye(T, dtype=Y.dtype, device=Y.device)
    for i in range(T):
        for j in range(i):
            both = Y[:, [i, j]]
            both = both[~both.isnan().any(1)]
            both = both - both.mean(0)
            spread = both.square().sum(0)
            if len(both) > 2 and bool((spread > 0).all()):
                R[i, j] = R[j, i] = (both[:, 0] @ both[:, 1]) / spread.prod().sqrt()
    values, vectors = torch.linalg.eigh(R)
    R = (vectors * values.clamp_min(1e-3)) @ vectors.mT
    scale = R.diagonal().rsqrt()
    return R * scale * scale.unsqueeze(-1)


def free_coregionalisations(Y: Tensor, components: int, rank: int) -> list[Coregionalisation]:
    """A coregionalisation for each component, which together start at the correlation of tasks in Y ``(n, T)``."""
    parts: list[Coregionalisation] = [FreeCoregionalisation(Y.shape[1], rank=rank) for _ in range(components)]
    correlation = pairwise_correlation(Y) / components
    for part in parts:
        part.start_at(correlation)
    return parts
