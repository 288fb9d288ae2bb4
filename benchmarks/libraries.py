"""The same Gaussian process, of zero mean, in gpmoe, GPyTorch and scikit-learn."""

from contextlib import ExitStack
from typing import Any

import gpytorch
import numpy as np
import scipy.linalg
import torch
from gpytorch.constraints import GreaterThan
from gpytorch.distributions import MultivariateNormal
from gpytorch.kernels import Kernel, MaternKernel, ScaleKernel
from gpytorch.likelihoods import GaussianLikelihood
from gpytorch.means import ZeroMean
from numpy.typing import NDArray
from sklearn.gaussian_process import kernels as sk
from torch import Tensor

Array = NDArray[np.float64]
SMALLEST_NOISE = 1e-6  # variance; the same bound for every library


def matern_data(n: int, d: int, seed: int = 0) -> tuple[Array, Array]:
    """Standard normal inputs ``(n, d)`` and a smooth function of them with noise ``(n,)``."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d))
    return X, np.sin(X @ rng.standard_normal(d)) + 0.3 * rng.standard_normal(n)


def matern_kernel(d: int, lengthscale: float = 1.5) -> Kernel:
    """Matérn-5/2 with a lengthscale for each of d inputs and outputscale 1, float64, no priors."""
    kernel = ScaleKernel(MaternKernel(nu=2.5, ard_num_dims=d)).double()
    kernel.base_kernel.lengthscale = lengthscale
    kernel.outputscale = 1.0
    return kernel


def sklearn_matern(d: int, lengthscale: float = 1.5, noise: float = 0.1) -> sk.Kernel:
    """The same kernel with its noise; hyperparameters in the order outputscale, lengthscales, noise."""
    wide = (1e-5, 1e5)
    matern = sk.Matern(np.full(d, lengthscale), wide, nu=2.5)
    return sk.ConstantKernel(1.0, wide) * matern + sk.WhiteKernel(noise, (SMALLEST_NOISE, 1e5))


def noise_model(noise: float) -> GaussianLikelihood:
    """A learnable noise variance."""
    likelihood = GaussianLikelihood(noise_constraint=GreaterThan(SMALLEST_NOISE)).double()
    likelihood.noise = noise
    return likelihood


class PlainGP(gpytorch.models.ExactGP):  # type: ignore[misc]
    """GPyTorch's exact GP as its tutorials write it."""

    def __init__(self, X: Tensor, y: Tensor, kernel: Kernel, likelihood: GaussianLikelihood) -> None:
        super().__init__(X, y, likelihood)
        self.mean_module = ZeroMean()
        self.covar_module = kernel

    def forward(self, X: Tensor) -> MultivariateNormal:
        return MultivariateNormal(self.mean_module(X), self.covar_module(X))

    def transform_inputs(self, X: Tensor) -> Tensor:
        """BoTorch's L-BFGS-B driver asks for it; nothing is transformed."""
        return X


def gpytorch_cholesky() -> ExitStack:
    """GPyTorch's settings for exact algebra at every n."""
    stack = ExitStack()
    stack.enter_context(gpytorch.settings.max_cholesky_size(10**9))
    stack.enter_context(gpytorch.settings.fast_computations(False, False, False))
    return stack


def gpytorch_model(X: Array, y: Array, kernel: Kernel, noise: float) -> PlainGP:
    return PlainGP(torch.from_numpy(X), torch.from_numpy(y), kernel, noise_model(noise))


def gpmoe_model(X: Array, y: Array, kernel: Kernel, noise: float) -> Any:
    """gpmoe's model with the kernel and a learnable noise variance."""
    from gpmoe.models import ExactGP

    Xt, yt = torch.from_numpy(X), torch.from_numpy(y)
    return ExactGP(Xt, yt, kernel=kernel, noise=noise_model(noise), mean=ZeroMean())


def kernel_and_likelihood(gp: Any) -> tuple[Kernel, GaussianLikelihood]:
    """The parts of a GPyTorch or gpmoe model that hold hyperparameters."""
    return gp.covar_module, gp.likelihood


def log_gradient(gp: Any) -> list[float]:
    """Gradient by the logarithm of outputscale, lengthscales and noise, from the raw parameters' `.grad`."""
    kernel, likelihood = kernel_and_likelihood(gp)
    noise = likelihood.noise_covar
    gradient: list[float] = []
    for raw, constraint in (
        (kernel.raw_outputscale, kernel.raw_outputscale_constraint),
        (kernel.base_kernel.raw_lengthscale, kernel.base_kernel.raw_lengthscale_constraint),
        (noise.raw_noise, noise.raw_noise_constraint),
    ):
        value = constraint.transform(raw)
        (slope,) = torch.autograd.grad(value.sum(), raw)
        gradient += (raw.grad * value / slope).detach().reshape(-1).tolist()
    return gradient


def dense_log_marginal_likelihood(C: Array, y: Array) -> float:
    """log N(y | 0, C) in nats: one Cholesky of the whole covariance, noise included."""
    L = np.linalg.cholesky(C)
    white = scipy.linalg.solve_triangular(L, y, lower=True)
    return float(-0.5 * white @ white - np.log(np.diag(L)).sum() - 0.5 * y.size * np.log(2 * np.pi))


def torch_covariance(gp: Any, X: Array) -> Any:
    """Covariance of noisy observations under a GPyTorch or gpmoe model, ``(n, n)``."""
    kernel, likelihood = kernel_and_likelihood(gp)
    with torch.no_grad():
        K = kernel(torch.from_numpy(X)).to_dense().numpy()
        return K + likelihood.noise.item() * np.eye(len(X))
