"""A joint covariance of several points from experts that each know some of them.

| symbol | name in code | shape |
|---|---|---|
| combined variance at each point | `variance` | (q,) |
| share of each answering expert in a point, rows sum to one | `shares` | (q, k) |
| posterior covariance by expert i | `covariances[i]` | (q, q) |

    Σ_ab = Σ_i s_ia s_ib Cov_i(a, b),     s_ia² = share_ia variance_a / Cov_i(a, a)

Positive semi-definite, with the combined variances on its diagonal: points to which the same experts contribute are
correlated as those say, points that share none are independent.
"""

import numpy as np
import torch
from gpytorch.kernels import Kernel
from numpy.typing import NDArray
from torch import Tensor

from gpmoe.linalg.cross_covariance import cross_covariance
from gpmoe.linalg.stationary import dense_covariance
from gpmoe.models.expert_moments import factor


def lent_covariance(variance: Tensor, shares: Tensor, experts: NDArray[np.int64], covariances: list[Tensor]) -> Tensor:
    """Σ of the formula above, ``(q, q)``.

    Args:
        variance, shares: see above.
        experts: who answers at each point, ``(q, k)``.
        covariances: of all who do, in the order of their numbers.
    """
    tiny = torch.finfo(variance.dtype).tiny
    total = torch.zeros_like(covariances[0])
    for expert, covariance in zip(np.unique(experts), covariances, strict=True):
        share = (shares * torch.from_numpy(experts == expert)).sum(-1)
        own = covariance.diagonal().clamp_min(tiny)
        scale = (share * variance / own).clamp_min(tiny).sqrt()
        total = total + scale.unsqueeze(-1) * covariance * scale
    return 0.5 * (total + total.mT)


def posterior_covariance(X: Tensor, kernel: Kernel, noise: Tensor, X_new: Tensor) -> Tensor:
    """One expert's joint posterior covariance at ``(q, d)`` points, ``(q, q)``."""
    L = factor(X, kernel, noise)
    V = torch.linalg.solve_triangular(L, cross_covariance(kernel, X_new, X).mT, upper=False)
    return dense_covariance(kernel, X_new, X_new) - V.mT @ V
