"""Observation noise of one variance, learned or given."""

import math

import torch
from gpytorch.constraints import GreaterThan
from gpytorch.likelihoods import GaussianLikelihood

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
