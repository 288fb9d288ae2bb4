"""Moments of a Gaussian from its natural parameters, whose backward gives natural gradients.

| symbol | name in code | shape |
|---|---|---|
| θ = S⁻¹ μ | `natural_vec` | (*batch, p) |
| Θ = -½ S⁻¹ | `natural_mat` | (*batch, p, p) |
| expectation parameters μ, S + μμ' | | |

As in GPyTorch's `NaturalVariationalDistribution`, what arrives in the natural parameters as their gradient is the
gradient for the expectation parameters, which is the natural gradient; `gpytorch.optim.NGD` then does a plain step.
GPyTorch makes μ and a factor of S, through two factorisations and several products; μ, S and log|S| need one.

Source: Salimbeni, Eleftheriadis and Hensman (2018), Natural Gradients in Practice, sec. 3 and app. A.
"""

from typing import Any

import torch
from torch import Tensor

from gpmoe.errors import NotPositiveDefiniteError
from gpmoe.linalg import lapack


def moments(natural_vec: Tensor, natural_mat: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, covariance and its log-determinant.

    Args:
        natural_vec: ``(*batch, p)``.
        natural_mat: ``(*batch, p, p)``.

    Returns:
        ``(*batch, p)``, ``(*batch, p, p)`` and ``(*batch,)``.

    Raises:
        NotPositiveDefiniteError: if -Θ is not positive definite, as after too long a step.
    """
    mean, covariance, log_det = _Moments.apply(natural_vec, natural_mat)
    return mean, covariance, log_det


class _Moments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, natural_vec: Tensor, natural_mat: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        L = (-2.0 * natural_mat).contiguous()
        if lapack.cholesky_(L) or not bool(L.isfinite().all()):
            raise NotPositiveDefiniteError(
                f"the precision of q(u), of shape {tuple(L.shape)}, is not positive definite any more. Usual causes: "
                "a natural gradient step that is too long (lower `natural_step`); a likelihood that is not log-concave."
            )
        log_det = -2.0 * lapack.diagonal(L).log().sum(-1)
        lapack.inverse_from_cholesky_(L)
        covariance = L.tril() + L.tril(-1).mT
        mean = (covariance @ natural_vec.unsqueeze(-1)).squeeze(-1)
        ctx.save_for_backward(mean, natural_mat)
        return mean, covariance, log_det

    @staticmethod
    def backward(ctx: Any, d_mean: Tensor, d_covariance: Tensor, d_log_det: Tensor) -> tuple[Tensor, Tensor]:
        mean, natural_mat = ctx.saved_tensors
        d_covariance = 0.5 * (d_covariance + d_covariance.mT) - 2.0 * d_log_det[..., None, None] * natural_mat
        return d_mean - 2.0 * (d_covariance @ mean.unsqueeze(-1)).squeeze(-1), d_covariance
