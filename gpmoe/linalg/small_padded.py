"""Many small problems in padded batches of similar size, by torch: for float32, other devices, and without Numba."""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpmoe.linalg import fused
from gpmoe.linalg.small_problems import SmallProblems, check_factors

_LOG_2_PI = math.log(2 * math.pi)
_JITTERS = {torch.float64: (1e-10, 1e-9, 1e-8, 1e-7, 1e-6), torch.float32: (1e-6, 1e-5, 1e-4, 1e-3)}


def padded_likelihoods(parts: tuple[Tensor, ...], problem: SmallProblems) -> Tensor:
    """The likelihood in padded batches, by torch."""
    Z, shape, scale, residual, noise = parts
    value = Z.new_zeros(len(problem.ragged))
    for group in problem.ragged.size_classes():
        index, real = problem.ragged.rows_of(group)
        L = _padded_factor(Z, shape, scale, noise, group, problem)
        half = torch.linalg.solve_triangular(L, (residual[index] * real).unsqueeze(-1), upper=False).squeeze(-1)
        log_det = 2 * L.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        one = -0.5 * (half.square().sum(-1) + log_det + real.sum(-1).to(half) * _LOG_2_PI)
        value = value.index_put((torch.from_numpy(group).to(value.device),), one)
    check_factors(problem.jitter, problem.ragged)
    return value


def padded_posteriors(Z_new: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """The posterior in padded batches, by torch."""
    Z, shape, scale, residual, noise, problem = rest
    mean, variance = torch.zeros_like(Z_new[0]), scale[problem.new.owner]
    for group in problem.ragged.size_classes():
        if not problem.new.sizes[group].any():
            continue
        index, real = problem.ragged.rows_of(group)
        index_new, real_new = problem.new.rows_of(group)
        L = _padded_factor(Z, shape, scale, noise, group, problem)
        K = _padded_covariance(Z.mT[index], Z_new.mT[index_new], shape, scale, group, problem.family) * real.unsqueeze(
            -1
        )
        right = torch.cat([(residual[index] * real).unsqueeze(-1), K], -1)
        half = torch.linalg.solve_triangular(L, right, upper=False)
        means, explained = (half[..., 1:] * half[..., :1]).sum(-2), half[..., 1:].square().sum(-2)
        prior = scale[torch.from_numpy(group).to(scale.device)].unsqueeze(-1)
        variances = (prior - explained).clamp_min(torch.finfo(Z.dtype).eps * float(prior.detach().min()))
        where = (index_new[real_new],)
        mean, variance = mean.index_put(where, means[real_new]), variance.index_put(where, variances[real_new])
    check_factors(problem.jitter, problem.ragged)
    return mean, variance


def _padded_covariance(
    z1: Tensor, z2: Tensor, shape: Tensor, scale: Tensor, group: NDArray[np.int64], family: int
) -> Tensor:
    """``(b, n, m)`` covariances of scaled inputs ``(b, n, d)`` and ``(b, m, d)``."""
    members = torch.from_numpy(group).to(z1.device)
    r2 = (z1.unsqueeze(-2) - z2.unsqueeze(-3)).square().sum(-1)
    r = r2.clamp_min(torch.finfo(r2.dtype).tiny).sqrt()  # no gradient at 0, where there is none to have
    each_shape = shape[members][:, None, None]
    s = math.sqrt({fused.MATERN12: 1, fused.MATERN32: 3, fused.MATERN52: 5}.get(family, 0)) * r
    k = {
        fused.RBF: lambda: (-0.5 * r2).exp(),
        fused.MATERN12: lambda: (-s).exp(),
        fused.MATERN32: lambda: (1 + s) * (-s).exp(),
        fused.MATERN52: lambda: (1 + s + s * s / 3) * (-s).exp(),
        fused.RATIONAL_QUADRATIC: lambda: (-each_shape * (r2 / (2 * each_shape)).log1p()).exp(),
    }[family]()
    return scale[members][:, None, None] * k


def _padded_factor(
    Z: Tensor, shape: Tensor, scale: Tensor, noise: Tensor, group: NDArray[np.int64], problem: SmallProblems
) -> Tensor:
    """Cholesky factors of a group, ``(b, n, n)``, identity where there are no rows."""
    index, real = problem.ragged.rows_of(group)
    z = Z.mT[index]
    both = real.unsqueeze(-1) & real.unsqueeze(-2)
    C = _padded_covariance(z, z, shape, scale, group, problem.family) * both
    C = C + torch.diag_embed(torch.where(real, noise[index], 1.0))
    return factor_padded(C, real, group, problem)


def factor_padded(C: Tensor, real: Tensor, group: NDArray[np.int64], problem: SmallProblems) -> Tensor:
    """Cholesky factors of padded covariances ``(b, n, n)``; jitter, NaN for failure, goes into the problem's."""
    L, info = torch.linalg.cholesky_ex(C)
    diagonal = (C.detach().diagonal(dim1=-2, dim2=-1) * real).sum(-1) / real.sum(-1)
    jitter = torch.zeros_like(diagonal)
    for relative in _JITTERS[C.dtype]:
        if not bool(info.any()):
            break
        jitter = torch.where(info > 0, relative * diagonal, jitter)
        L, info = torch.linalg.cholesky_ex(C + torch.diag_embed(jitter.unsqueeze(-1).expand(real.shape)))
    failed = (info > 0) | ~L.detach().diagonal(dim1=-2, dim2=-1).sum(-1).isfinite()
    problem.jitter[group] = torch.where(failed, torch.nan, jitter).cpu().double().numpy()
    return L
