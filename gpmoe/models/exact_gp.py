"""Gaussian process regression with exact inference.

| symbol | name in code | shape |
|---|---|---|
| X, y | `X`, `y` | (*batch, n, d), (*batch, n) |
| L L' = K + diag(noise) | `L` | (*batch, n, n) |
| α = (L L')⁻¹ (y - m(X)) | `alpha` | (*batch, n) |
| V = L⁻¹ K(X, X_new) | `V` | (*batch, n, m) |
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import gpytorch
import torch
from gpytorch.kernels import Kernel
from gpytorch.likelihoods import FixedNoiseGaussianLikelihood, GaussianLikelihood
from gpytorch.means import ConstantMean, Mean
from torch import Tensor

from gpmoe.errors import InputError, ShapeError
from gpmoe.kernels.dimension_scaled import dimension_scaled_matern
from gpmoe.linalg import lapack
from gpmoe.linalg.factorisation import Workspace, cholesky_with_jitter_
from gpmoe.linalg.likelihood import gaussian_log_likelihood
from gpmoe.linalg.stationary import dense_covariance, fill_covariance
from gpmoe.models.expert import Components, gaussian_expected_log_likelihood, left_out, one_component
from gpmoe.models.gaussian_model import LearnableModel, expect_inputs
from gpmoe.shapes import expect_finite, expect_floating, expect_shape

_BLOCK = 2**23  # entries of a block of covariances with new points: 64 MB in float64

Noise: TypeAlias = float | Tensor | GaussianLikelihood | FixedNoiseGaussianLikelihood | None


@dataclass(frozen=True)
class Factor:
    """The cached factor, the parameters and data it belongs to, and what was added to the diagonal."""

    L: Tensor
    alpha: Tensor
    parameters: Tensor
    jitter: float


class ExactGP(LearnableModel):
    """A Gaussian process with Gaussian noise: y = f(x) + ε, f ~ GP(m, k), ε ~ N(0, noise).

    Args:
        X: inputs, ``(*batch, n, d)``, float64 or float32.
        y: targets, ``(*batch, n)``.
        kernel: any GPyTorch kernel; Matérn-5/2 with a lengthscale per input and a prior that widens with the
            number of inputs if None, which expects inputs of about unit scale.
        mean: any GPyTorch mean; a learned constant if None.
        noise: the noise variance: None to learn it (at least 1e-6), a number or ``(*batch, n)`` tensor to fix it, or
            a GPyTorch Gaussian likelihood.
        weights: how many observations each point stands for, ``(*batch, n)``, positive: its noise variance is divided
            by its weight. None for one each.

    Attributes:
        covar_module, mean_module, likelihood: the GPyTorch parts, as they were passed in.
        workspace: memory that factorisations reuse.

    Raises:
        ShapeError, DtypeError, NonFiniteError: if X and y don't fit each other.

    Example:
        >>> import torch
        >>> X = torch.linspace(0, 6, 30, dtype=torch.float64).unsqueeze(-1)
        >>> gp = ExactGP(X, X.sin().squeeze(-1), noise=1e-4)
        >>> posterior = gp.posterior(X[:1] + 0.1)
        >>> bool((posterior.mean - (X[:1] + 0.1).sin()).abs() < 0.01)
        True
    """

    X: Tensor
    y: Tensor
    weights: Tensor | None
    likelihood: GaussianLikelihood | FixedNoiseGaussianLikelihood
    mean_module: Mean
    covar_module: Kernel

    def __init__(
        self,
        X: Tensor,
        y: Tensor,
        *,
        kernel: Kernel | None = None,
        mean: Mean | None = None,
        noise: Noise = None,
        weights: Tensor | None = None,
    ) -> None:
        super().__init__()
        expect_data(X, y, weights)
        self.register_buffer("X", X)
        self.register_buffer("y", y)
        self.register_buffer("weights", weights)
        self.covar_module = (dimension_scaled_matern(X.shape[-1]) if kernel is None else kernel).to(X)
        self.mean_module = (ConstantMean() if mean is None else mean).to(X)
        self.likelihood = make_likelihood(noise, y).to(X)
        self._batch_shape = torch.broadcast_shapes(y.shape[:-1], X.shape[:-2], self.covar_module.batch_shape)
        self.workspace = Workspace()
        self._factor: Factor | None = None

    @property
    def batch_shape(self) -> torch.Size:
        """``(*batch,)`` of the training data."""
        return self._batch_shape

    def __getstate__(self) -> dict[str, object]:
        """Copies and pickles leave the factor behind; it is computed again when needed."""
        return {**self.__dict__, "_factor": None}

    def noise(self) -> Tensor:
        """Noise variance of each training point, ``(*batch, n)``."""
        noise: Tensor = self.likelihood.noise
        noise = noise if self.weights is None else noise / self.weights
        return noise.expand(*self._batch_shape, self.y.shape[-1])

    def set_data(self, X: Tensor, y: Tensor, weights: Tensor | None = None) -> None:
        """Replace the training data and weights; hyperparameters stay as they are."""
        expect_data(X, y, weights)
        if (X.shape[:-2], X.shape[-1], y.shape[:-1]) != (self.X.shape[:-2], self.X.shape[-1], self.y.shape[:-1]):
            raise ShapeError(
                f"`X` and `y` must keep their features and batch dimensions, those of {tuple(self.X.shape)} and "
                f"{tuple(self.y.shape)}; got {tuple(X.shape)} and {tuple(y.shape)}."
            )
        self.X, self.y, self.weights, self._factor = X, y, weights, None

    def new_noise(self) -> Tensor:
        """Noise variance of a new observation, ``(*batch, 1)``: the mean over the training points where they differ."""
        noise: Tensor = self.likelihood.noise
        return noise.mean(-1, keepdim=True)

    def log_marginal_likelihood(self) -> Tensor:
        """log p(y | X), exact, differentiable once; ``(*batch,)``, nats."""
        self.forget_factor()
        residual = self.y - self.mean_module(self.X)
        return gaussian_log_likelihood(self.covar_module, self.X, residual, self.noise(), workspace=self.workspace)

    def forget_factor(self) -> None:
        """Drop the cached factor; to be called before its memory, the workspace, is written to."""
        self._factor = None

    def factor(self) -> Factor:
        """The Cholesky factor and weights at the present parameters, computed once for them."""
        parameters = self._parameters_now()
        if self._factor is None or not torch.equal(self._factor.parameters, parameters):
            with torch.no_grad(), evaluating(self):
                self._factor = self._factorise(parameters)
        return self._factor

    def jitter_needed(self) -> float:
        """What the covariance needs on its diagonal to have a factor, at the present parameters; 0 as a rule."""
        return self.factor().jitter

    def _parameters_now(self) -> Tensor:
        everything = [*self.parameters(), *self.buffers(), self.likelihood.noise]
        return torch.cat([tensor.detach().reshape(-1).to(self.X) for tensor in everything])

    def _factorise(self, parameters: Tensor) -> Factor:
        noise = self.noise()
        batched = bool(self.batch_shape)
        n = self.y.shape[-1]
        L = self.X.new_empty(*self.batch_shape, n, n) if batched else self.workspace.matrix(n, like=self.X)

        def fill(C: Tensor) -> None:
            if batched:
                C.copy_(dense_covariance(self.covar_module, self.X, self.X))
            else:
                fill_covariance(self.covar_module, self.X, None, C)
            lapack.diagonal(C).add_(noise)

        jitter = cholesky_with_jitter_(fill, L)
        residual = (self.y - self.mean_module(self.X)).expand(*self.batch_shape, n)
        return Factor(L, lapack.cholesky_solve(L, residual), parameters, jitter)

    def latent(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """See `GaussianModel.latent`."""
        expect_inputs(X, self.X)
        factor = self.factor()
        with evaluating(self):
            K_new = dense_covariance(self.covar_module, X, self.X)
            V = torch.linalg.solve_triangular(factor.L, K_new.mT, upper=False)
            mean = self.mean_module(X) + (K_new @ factor.alpha.unsqueeze(-1)).squeeze(-1)
            covariance = dense_covariance(self.covar_module, X, X) - V.mT @ V
        return mean.expand(covariance.shape[:-1]), covariance

    def marginals(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean and variance of the latent function at each new point, in bounded memory.

        Args:
            X: ``(m, d)``; any number of points.

        Returns:
            Mean and variance, ``(m,)`` each. Not differentiable.
        """
        expect_inputs(X, self.X)
        if self.batch_shape:
            raise ShapeError(f"`marginals` takes models without batch dimensions; got {tuple(self.batch_shape)}.")
        factor = self.factor()
        n, m = self.X.shape[0], X.shape[0]
        rows = max(32, min(m, _BLOCK // n))
        block = X.new_empty(rows, n)
        with torch.no_grad(), evaluating(self):
            mean = self.mean_module(X).clone()
            variance = self.covar_module(X, diag=True).clone()
            prior = variance.clone()
            for start in range(0, m, rows):
                x = X[start : start + rows]
                K_new = block[: len(x)]
                fill_covariance(self.covar_module, x, self.X, K_new)
                mean[start : start + rows] += K_new @ factor.alpha
                V = lapack.solve_triangular(factor.L, K_new.mT, overwrite=True)
                variance[start : start + rows] -= torch.linalg.vector_norm(V, dim=0).square_()
        return mean, torch.maximum(variance, prior * torch.finfo(X.dtype).eps)

    def leave_one_out(self) -> tuple[Tensor, Tensor]:
        """Predictive mean and variance of each y_i given all others, from the one factor.

        Returns:
            Mean and variance, noise included, ``(n,)`` each.

        Source: Rasmussen and Williams (2006), eq. 5.12.
        """
        factor = self.factor()
        inverse = factor.L.clone()
        lapack.inverse_from_cholesky_(inverse)
        variance = 1 / lapack.diagonal(inverse)
        return self.y - factor.alpha * variance, variance

    # What an expert of a mixture does besides; see `Expert`.

    def fit_step(self) -> None:
        """Nothing: an exact GP learns by gradient."""

    def evidence(self) -> Tensor:
        """See `Expert`: that of observations raised to their weights, differentiable once.

        log N(y; m, K + σ² diag(1/r)) + ½ sum_n [(1 - r_n) log 2πσ² - log r_n]
        """
        weights = torch.ones_like(self.y) if self.weights is None else self.weights
        log_noise = (2 * torch.pi * self.likelihood.noise).log()
        return self.log_marginal_likelihood() + 0.5 * ((1 - weights) * log_noise - weights.log()).sum()

    def expected_log_likelihood(self, X: Tensor, y: Tensor) -> Tensor:
        """See `Expert`."""
        return gaussian_expected_log_likelihood(y, *self.marginals(X), self.likelihood.noise.detach())

    def components(self, X: Tensor, *, include_noise: bool = True) -> Components:
        """See `Expert`: one Gaussian."""
        mean, variance = self.marginals(X)
        return one_component(mean, variance + self.new_noise().detach() if include_noise else variance)

    def components_left_out(self, X: Tensor, y: Tensor, weights: Tensor) -> Components:
        """See `Expert`."""
        noise = self.likelihood.noise.detach()
        mean, variance = left_out(y, *self.marginals(X), weights / noise)
        return one_component(mean, variance + noise)


def expect_data(X: Tensor, y: Tensor, weights: Tensor | None) -> None:
    """Check training data of a model.

    Raises:
        ShapeError, DtypeError, NonFiniteError: naming what came and what was wanted.
    """
    expect_floating("X", X)
    expect_floating("y", y, like=X)
    expect_shape("X", X, last=(-1, -1))
    expect_shape("y", y, last=(X.shape[-2],))
    if X.shape[-2] == 0 or X.shape[-1] == 0:
        raise ShapeError(f"`X` must have at least one row and one column; got {tuple(X.shape)}.")
    expect_finite("X", X)
    expect_finite("y", y)
    try:
        torch.broadcast_shapes(X.shape[:-2], y.shape[:-1])
    except RuntimeError:
        text = f"the batch dimensions of `X` and `y` must broadcast; got {tuple(X.shape)} and {tuple(y.shape)}."
        raise ShapeError(text) from None
    if weights is not None:
        expect_floating("weights", weights, like=X)
        expect_finite("weights", weights)
        if weights.shape != y.shape or not bool((weights > 0).all()):
            raise ShapeError(f"`weights` must be positive and have shape {tuple(y.shape)}; got {tuple(weights.shape)}.")


def expect_one_data_set(X: Tensor, y: Tensor, weights: Tensor | None, *, before: Tensor | None) -> None:
    """Check training data of a model of one data set, X ``(n, d)``.

    Args:
        X, y, weights: the data.
        before: inputs that they replace, which had as many columns; None if these are the first.

    Raises:
        ShapeError, DtypeError, NonFiniteError: naming what came and what was wanted.
    """
    expect_data(X, y, weights)
    if X.dim() != 2 or (before is not None and X.shape[-1] != before.shape[-1]):
        wanted = "d" if before is None else before.shape[-1]
        raise ShapeError(f"`X` must have shape (n, {wanted}), without batch dimensions; got {tuple(X.shape)}.")


def make_likelihood(noise: Noise, y: Tensor) -> GaussianLikelihood | FixedNoiseGaussianLikelihood:
    """The likelihood that a model's `noise` argument stands for; see `ExactGP`."""
    if isinstance(noise, (GaussianLikelihood, FixedNoiseGaussianLikelihood)):
        return noise
    if noise is None:
        constraint = gpytorch.constraints.GreaterThan(1e-6)
        likelihood = GaussianLikelihood(noise_constraint=constraint, batch_shape=y.shape[:-1])
        likelihood.noise = 0.1
        return likelihood
    variance = torch.as_tensor(noise, dtype=y.dtype, device=y.device)
    if not bool((variance > 0).all()) or not bool(variance.isfinite().all()):
        raise InputError(
            f"`noise` is a variance and must be positive and finite; got a minimum of {float(variance.min())}."
        )
    if variance.dim() and variance.shape[-1] not in (1, y.shape[-1]):
        raise ShapeError(f"`noise` must be a number or have shape {tuple(y.shape)}; got {tuple(variance.shape)}.")
    likelihood = FixedNoiseGaussianLikelihood(torch.ones_like(y))
    likelihood.noise_covar.noise = variance.expand(y.shape).clone()  # set here, since its constructor rounds up to 1e-6
    return likelihood


@contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode for a block (dropout off), then back."""
    before = [(part, part.training) for part in module.modules()]
    for part, _ in before:
        part.training = False
    try:
        yield
    finally:
        for part, training in before:
            part.training = training
