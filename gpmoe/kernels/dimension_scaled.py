"""The default kernel, whose prior lets lengthscales grow with the number of inputs."""

import math

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
    prior = LogNormalPrior(1.0 + 0.5 * math.log(d), math.sqrt(3.0))
    matern = MaternKernel(nu=nu, ard_num_dims=d, lengthscale_prior=prior, lengthscale_constraint=Positive())
    matern.lengthscale = math.sqrt(d)
    kernel = ScaleKernel(matern, outputscale_prior=GammaPrior(2.0, 1.0))
    kernel.outputscale = 1.0
    return kernel
