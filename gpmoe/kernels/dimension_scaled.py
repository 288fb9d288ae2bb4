"""The default kernels, whose priors let lengthscales grow with the number of inputs."""

import math
from functools import partial

import torch
from gpytorch.constraints import Positive
from gpytorch.kernels import Kernel, MaternKernel, ScaleKernel
from gpytorch.priors import GammaPrior, LogNormalPrior


def dimension_scaled_matern(d: int, *, nu: float = 2.5) -> Kernel:
    """Matérn kernel with a lengthscale per input, for inputs of about unit variance.

    Distances between random points grow like √d, so the prior for each lengthscale is log-normal with its median at
    e·√d and a scale of √3, wide enough to let an input drop out. The outputscale's prior is weak: Gamma(2, 1).

    Args:
        d: number of inputs.
        nu: smoothness, 0.5, 1.5 or 2.5.

    Source: Hvarfner, Hellsten and Nardi (2024), Vanilla Bayesian Optimization Performs Great in High Dimensions, sec. 4
        (there for the unit cube).
    """
    return _matern(d, nu, 1.0, math.sqrt(3.0))


def expert_matern(d: int, *, nu: float = 2.5) -> Kernel:
    """As `dimension_scaled_matern`, for one of several experts.

    An expert sees part of the data, which alone says little about its lengthscales: their prior is narrower, with
    median √e·√d and scale ½.

    Args:
        d: number of inputs.
        nu: smoothness, 0.5, 1.5 or 2.5.
    """
    return _matern(d, nu, 0.5, 0.5)


def _matern(d: int, nu: float, log_median: float, spread: float) -> Kernel:
    """Scaled Matérn kernel with log-normal lengthscales about exp(log_median) √d."""
    exact = partial(torch.tensor, dtype=torch.float64)  # GPyTorch would round numbers to float32
    prior = LogNormalPrior(exact(log_median + 0.5 * math.log(d)), exact(spread), validate_args=False)
    matern = MaternKernel(nu=nu, ard_num_dims=d, lengthscale_prior=prior, lengthscale_constraint=Positive())
    matern.lengthscale = math.sqrt(d)
    kernel = ScaleKernel(matern, outputscale_prior=GammaPrior(exact(2.0), exact(1.0), validate_args=False))
    kernel.outputscale = 1.0
    return kernel
