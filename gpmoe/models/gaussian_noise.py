"""Observation noise of one variance, learned or given."""

import math

import torch
from gpytorch.constraints import GreaterThan
from gpytorch.likelihoods import GaussianLikelihood
from torch import Tensor

from gpmoe.errors import InputError

LEAST_SHARED_NOISE = 1e-4  # of experts in a mixture: keeps one of several from collapsing on a few points


def gaussian_noise(
    noise: float | None, batch: tuple[int, ...] = (), *, least_noise: float = 1e-6
) -> GaussianLikelihood:
    """The likelihood of a noise variance: learned from 0.1 and not below the least if None, else fixed; ``(*batch,)``.

    Raises:
        InputError: if the variance is not positive and finite.
    """
    constraint = GreaterThan(least_noise if noise is None else 0.0)
    likelihood = GaussianLikelihood(noise_constraint=constraint, batch_shape=torch.Size(batch)).double()
    if noise is not None and not 0 < noise < math.inf:
        raise InputError(f"`noise` is a variance and must be positive and finite; got {noise}.")
    exact = torch.tensor(0.1 if noise is None else noise, dtype=torch.float64)  # GPyTorch would round it to float32
    likelihood.noise = exact
    return likelihood.requires_grad_(noise is None)


def task_noise(noise: float | Tensor | None, T: int) -> GaussianLikelihood:
    """The likelihood of T noise variances, one a task: learned if None, else fixed at one number or ``(T,)``.

    Raises:
        InputError: if a variance is not positive and finite, or there is another number of them.
    """
    if noise is None:
        return gaussian_noise(None, (T,))
    variances = torch.as_tensor(noise, dtype=torch.float64)
    if variances.shape not in ((), (T,)) or not bool(((variances > 0) & variances.isfinite()).all()):
        raise InputError(
            f"`noise` is a variance, positive and finite, one or one for each of {T} tasks; got shape "
            f"{tuple(variances.shape)}, minimum {float(variances.min())}."
        )
    likelihood = gaussian_noise(1.0, (T,))
    likelihood.noise = variances.expand(T).reshape(T, 1)
    return likelihood
