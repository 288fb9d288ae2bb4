"""A Gaussian process given a Gaussian factor for each point, in a form that is stable at any precision, zero included.

    q(u) ∝ N(u; 0, K) prod_n exp(b_n u_n - ½ Λ_n u_n²)

| symbol | name in code | shape |
|---|---|---|
| Λ, precision of the factors | `precision` | (n,) |
| b | `linear` | (n,) |
| L L' = I + Λ^½ K Λ^½ | `L` | (n, n) |
| mean and variance of q(u_n) | `mean`, `variance` | (n,) |
| α = K⁻¹ mean = b - Λ mean | `alpha` | (n,) |

Source: Rasmussen and Williams (2006), sec. 3.4.3 and alg. 3.1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from gpmoe.linalg.factorisation import not_positive_definite

_SHARP = 1e-4  # square root of the precision from which a factor is taken by its target


@dataclass(frozen=True)
class SitePosterior:
    """q(u), from `site_posterior`.

    Attributes:
        root: Λ^½, ``(n,)``.
        L: ``(n, n)``.
        alpha: ``(n,)``.
        mean, variance: ``(n,)``.
        half_log_det: ½ log det(I + Λ^½ K Λ^½); the integral of what q is proportional to is exp(½ b'mean) over its exp.
        divergence: KL(q || N(0, K)), nats.
    """

    root: Tensor
    L: Tensor
    alpha: Tensor
    mean: Tensor
    variance: Tensor
    half_log_det: float
    divergence: float

    def marginals(self, K_new: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance at new points, ``(m,)``, from their covariances ``(m, n)`` and prior variances ``(m,)``."""
        V = torch.linalg.solve_triangular(self.L, self.root.unsqueeze(-1) * K_new.mT, upper=False)
        variance = torch.maximum(prior - V.square().sum(-2), prior * torch.finfo(prior.dtype).eps)
        return (K_new @ self.alpha.unsqueeze(-1)).squeeze(-1), variance

    def joint(self, K_new: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
        """Mean ``(*batch, q)`` and covariance at new points, from ``(*batch, q, n)`` and ``(*batch, q, q)``."""
        V = torch.linalg.solve_triangular(self.L, self.root.unsqueeze(-1) * K_new.mT, upper=False)
        return (K_new @ self.alpha.unsqueeze(-1)).squeeze(-1), prior - V.mT @ V


def site_posterior(K: Tensor, precision: Tensor, linear: Tensor) -> SitePosterior:
    """q(u) from the prior covariance ``(n, n)`` and the factors' natural parameters ``(n,)``; not differentiable.

    Raises:
        NotPositiveDefiniteError: if I + Λ^½ K Λ^½ has no factor, because something in it is not finite.
    """
    root = precision.sqrt()
    B = root.unsqueeze(-1) * K * root
    B.diagonal().add_(1.0)
    L, info = torch.linalg.cholesky_ex(B)
    if bool(info.any()) or not bool(L.diagonal().sum().isfinite()):
        raise not_positive_definite(B, 0.0)
    V = torch.linalg.solve_triangular(L, root.unsqueeze(-1) * K, upper=False)
    prior = K.diagonal()
    variance = torch.maximum(prior - V.square().sum(0), prior * torch.finfo(K.dtype).eps)
    alpha = _alpha(K, L, root, linear)
    mean = K @ alpha
    half_log_det = float(L.diagonal().log().sum())
    divergence = half_log_det + 0.5 * float(alpha @ mean) - 0.5 * float((precision * variance).sum())
    return SitePosterior(root, L, alpha, mean, variance, half_log_det, divergence)


def _alpha(K: Tensor, L: Tensor, root: Tensor, linear: Tensor) -> Tensor:
    """K⁻¹ mean, ``(n,)``; as b - Λ mean it would lose all digits where Λ is large.

    Factors of some precision have a target t = b/Λ and (K + Λ⁻¹)⁻¹ = Λ^½ (LL')⁻¹ Λ^½; the others keep their b.
    """
    sharp = root > _SHARP
    targets = torch.where(sharp, linear / root.where(sharp, torch.ones_like(root)).square(), 0.0)
    rest = torch.where(sharp, 0.0, linear)
    moved = (root * (targets - K @ rest)).unsqueeze(-1)
    return rest + root * torch.cholesky_solve(moved, L).squeeze(-1)
