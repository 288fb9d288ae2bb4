"""A Gaussian process whose noise variance is a Gaussian process as well, by variational inference.

    y = f(x) + ε,  f ~ GP(m, k_f),  ε ~ N(0, exp(g(x))),  g ~ GP(μ0, k_g),  q(f) q(g) in place of the posterior

| symbol | name in code | shape |
|---|---|---|
| r, how many observations a point stands for | `weights` | (n,) |
| m_n, v_n of q(g_n) | `log_noise.mean` + μ0, `log_noise.variance` | (n,) |
| R = 1 / E[exp(-g)] = exp(m - v/2) | `noise` | (n,) |
| s = E[(y - f)²] | `square` | (n,) |
| natural parameters of q(g)'s factors | `precision` Λ, `linear` b | (n,) |

q(f) is the posterior of a GP that sees point n with noise R_n/r_n, and at the optimum Λ = r s / (2R) and
b = Λ (m - μ0) + Λ - r/2, which is also a step of natural gradient ascent of size one. Steps are halved until the
bound rises. At that optimum the bound moves with hyperparameters as two exact Gaussian likelihoods do: that of y with
noise R/r, and that of the factors' targets (b/Λ + μ0) with noise 1/Λ.

Source: Lázaro-Gredilla and Titsias (2011), Variational Heteroscedastic Gaussian Process Regression, sec. 3; natural
gradients: Khan and Lin (2017), Conjugate-Computation Variational Inference, eq. 13.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gpytorch.constraints import GreaterThan
from gpytorch.kernels import Kernel
from gpytorch.likelihoods import FixedNoiseGaussianLikelihood
from gpytorch.means import ConstantMean, Mean
from torch import Tensor

from gpmoe.kernels.description import build_kernel, describe_kernel
from gpmoe.kernels.dimension_scaled import dimension_scaled_matern
from gpmoe.linalg.factorisation import Workspace
from gpmoe.linalg.gaussian_sites import SitePosterior, site_posterior
from gpmoe.linalg.likelihood import gaussian_log_likelihood
from gpmoe.linalg.stationary import dense_covariance
from gpmoe.models.exact_gp import expect_one_data_set
from gpmoe.models.expert import Components, expect_sites, left_out
from gpmoe.models.gaussian_model import expect_inputs
from gpmoe.models.site_model import SiteModel, marginals_of

_ITERATIONS = 200
_TOLERANCE = 1e-9  # of the bound's size, by which an iteration must raise it to go on
_LEAST_NOISE = 1e-6  # exp(μ0): without it repeated rows, which fit exactly, would drive all noise to zero
_NODES = 15  # of Gauss-Hermite quadrature over the log noise variance
_LEAST_PRECISION = 1e-30  # of a factor: what it divides stays finite
_LARGEST_LOG = 50.0  # of a noise variance or its inverse: bounds what a wild guess of hyperparameters can do


@dataclass(frozen=True)
class _State:
    """q(f) and q(g), the parameters they belong to, and the bound."""

    parameters: Tensor
    precision: Tensor
    linear: Tensor
    latent: SitePosterior
    log_noise: SitePosterior
    noise: Tensor
    square: Tensor
    bound: float


class HeteroscedasticGP(SiteModel):
    """A GP with input-dependent noise: log noise variance is a GP too. Fitted by `inference.fit`; an `Expert` as well.

    Args:
        X: inputs of about unit variance, ``(n, d)``.
        y: targets, ``(n,)``.
        kernel: of f; any GPyTorch kernel, the default of `ExactGP` if None.
        noise_kernel: of the log noise variance g; as `kernel` if None.
        mean: of f; a learned constant if None.
        weights: how many observations each point stands for, ``(n,)``; one each if None.

    Attributes:
        covar_module, mean_module: kernel and mean of f.
        noise_covar_module, noise_mean_module: those of g.

    Raises:
        ShapeError, DtypeError, NonFiniteError: if X and y don't fit each other.

    Example:
        >>> import torch
        >>> X = torch.linspace(-1, 1, 60, dtype=torch.float64).unsqueeze(-1)
        >>> alternating = torch.ones(60, dtype=torch.float64).cumsum(0).remainder(2) - 0.5
        >>> gp = HeteroscedasticGP(X, X.squeeze(-1).exp() * alternating)  # noise grows with x
        >>> noise = gp.noise_variance(X)
        >>> bool(noise[-1] > noise[0])
        True
    """

    _start: tuple[Tensor, Tensor]  # Λ and b that the search for q begins with

    def __init__(
        self,
        X: Tensor,
        y: Tensor,
        *,
        kernel: Kernel | None = None,
        noise_kernel: Kernel | None = None,
        mean: Mean | None = None,
        weights: Tensor | None = None,
    ) -> None:
        super().__init__()
        d = X.shape[-1]
        for name in ("X", "y", "weights"):
            self.register_buffer(name, None)
        self.covar_module = (dimension_scaled_matern(d) if kernel is None else kernel).to(X)
        self.mean_module = (ConstantMean() if mean is None else mean).to(X)
        self.noise_covar_module = (dimension_scaled_matern(d) if noise_kernel is None else noise_kernel).to(X)
        floor = torch.tensor(math.log(_LEAST_NOISE), dtype=torch.float64)
        self.noise_mean_module = ConstantMean(constant_constraint=GreaterThan(floor)).to(X)
        self.noise_mean_module.initialize(constant=math.log(0.1))
        self.workspace, self._noise_workspace = Workspace(), Workspace()
        self._state: _State | None = None
        self.set_data(X, y, weights)

    def set_data(self, X: Tensor, y: Tensor, weights: Tensor | None = None) -> None:
        """See `Expert`; q(g) starts from what the present q says about the new points."""
        expect_one_data_set(X, y, weights, before=self.X)
        r = torch.ones_like(y) if weights is None else weights
        if self.X is None:
            self._start = 0.5 * r, torch.zeros_like(y)
        else:
            self._start = self._factors(X, y, r)
        self.X, self.y, self.weights, self._state = X, y, weights, None
        self.likelihood = FixedNoiseGaussianLikelihood(torch.full_like(y, 0.1))  # BoTorch asks for one; see `posterior`

    def evidence(self) -> Tensor:
        """See `Expert`."""
        state = self._solved()
        r, centre = self._r(), self.noise_mean_module(self.X)
        targets = state.linear / state.precision + centre.detach()
        moving = gaussian_log_likelihood(
            self.covar_module, self.X, self.y - self.mean_module(self.X), state.noise / r, workspace=self.workspace
        ) + gaussian_log_likelihood(
            self.noise_covar_module, self.X, targets - centre, 1 / state.precision, workspace=self._noise_workspace
        )
        return state.bound + (moving - moving.detach())

    def log_noise(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of q(g), the log noise variance, at ``(m, d)`` points, ``(m,)``; not differentiable."""
        expect_inputs(X, self.X)
        with torch.no_grad():
            return marginals_of(self._solved().log_noise, self.noise_covar_module, self.noise_mean_module, X, self.X)

    def noise_variance(self, X: Tensor) -> Tensor:
        """E[exp(g)] at X ``(*batch, q, d)``, ``(*batch, q)``."""
        mean, variance = self.log_noise(X.detach().reshape(-1, X.shape[-1]))
        return (mean + 0.5 * variance).clamp_max(_LARGEST_LOG).exp().reshape(X.shape[:-1])

    def new_noise(self) -> Tensor:
        """E[exp(g)], the mean over training points, ``(1,)``."""
        return self.noise_variance(self.X).mean().reshape(1)

    def expected_log_likelihood(self, X: Tensor, y: Tensor) -> Tensor:
        """See `Expert`."""
        (mean, variance), (log_noise, spread) = self.marginals(X), self.log_noise(X)
        square = (y - mean).square() + variance
        return -0.5 * (math.log(2 * math.pi) + log_noise + square * _inverse_noise(log_noise, spread))

    def components(self, X: Tensor, *, include_noise: bool = True) -> Components:
        """See `Expert`: one Gaussian for each node of a quadrature over the noise variance."""
        return _over_noise(*self.marginals(X), *self.log_noise(X), include_noise=include_noise)

    def components_left_out(self, X: Tensor, y: Tensor, weights: Tensor) -> Components:
        """See `Expert`; the point's factors are left out of q(f) and q(g)."""
        (mean, variance), (log_noise, spread) = self.marginals(X), self.log_noise(X)
        inverse = _inverse_noise(log_noise, spread)
        precision = 0.5 * weights * ((y - mean).square() + variance) * inverse
        targets = log_noise + 1 - 0.5 * weights / precision.clamp_min(_LEAST_PRECISION)
        without = left_out(y, mean, variance, weights * inverse)
        return _over_noise(*without, *left_out(targets, log_noise, spread, precision), include_noise=True)

    def description(self) -> dict[str, Any]:
        """The arguments that make such an expert of given data, for a file."""
        return {
            "kernel": describe_kernel(self.covar_module),
            "noise_kernel": describe_kernel(self.noise_covar_module),
        }

    @classmethod
    def from_description(cls, description: dict[str, Any], X: Tensor, y: Tensor) -> "HeteroscedasticGP":
        """The inverse of `description`; parameters and `sites` are set after it."""
        kernel, noise_kernel = (build_kernel(description[name]) for name in ("kernel", "noise_kernel"))
        return cls(X, y, kernel=kernel, noise_kernel=noise_kernel)

    def sites(self) -> dict[str, Tensor]:
        """Natural parameters of q(g)'s factors, ``(n,)`` each: what q is, beside the parameters."""
        state = self._solved()
        return {"precision": state.precision, "linear": state.linear}

    def restore_sites(self, sites: dict[str, Tensor]) -> None:
        """See `SiteModel`."""
        expect_sites(sites, ("precision", "linear"), self.y)
        with torch.no_grad():
            self._state = self._states(self._flat_parameters())(sites["precision"], sites["linear"])

    def __getstate__(self) -> dict[str, object]:
        """Copies and pickles find q again when needed, from where it was."""
        start = self._start if self._state is None else (self._state.precision, self._state.linear)
        return {**self.__dict__, "_state": None, "_start": start}

    def _factors(self, X: Tensor, y: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        """Λ and b at points that q(f) and q(g) are known for."""
        (mean, variance), (log_noise, spread) = self.marginals(X), self.log_noise(X)
        square = (y - mean).square() + variance
        return _natural_step(square, _inverse_noise(log_noise, spread), log_noise - self._centre(X), r)

    def _centre(self, X: Tensor) -> Tensor:
        """μ0."""
        centre: Tensor = self.noise_mean_module(X).detach()
        return centre

    def _latent_posterior(self) -> SitePosterior:
        return self._solved().latent

    def _solved(self) -> _State:
        """q at the present parameters, found once for them."""
        with torch.no_grad():
            parameters = self._flat_parameters()
            if self._state is None or not torch.equal(self._state.parameters, parameters):
                start = self._start if self._state is None else (self._state.precision, self._state.linear)
                self._state = self._solve(parameters, start)
            return self._state

    def _states(self, parameters: Tensor) -> Callable[[Tensor, Tensor], _State]:
        """q(g) of given Λ and b, with q(f) at its optimum."""
        K_f = dense_covariance(self.covar_module, self.X, self.X)
        K_g = dense_covariance(self.noise_covar_module, self.X, self.X)
        residual, r = self.y - self.mean_module(self.X), self._r()

        def at(precision: Tensor, linear: Tensor) -> _State:
            log_noise = site_posterior(K_g, precision, linear)
            mean = self._centre(self.X) + log_noise.mean
            inverse = _inverse_noise(mean, log_noise.variance)
            seen = r * inverse
            latent = site_posterior(K_f, seen, seen * residual)
            fit = -latent.half_log_det - 0.5 * float(residual @ latent.alpha)
            bound = fit - 0.5 * float((r * (math.log(2 * math.pi) + mean)).sum()) - log_noise.divergence
            square = (latent.alpha / seen).square() + latent.variance  # y - E[f] = alpha / seen, to all its digits
            return _State(parameters, precision, linear, latent, log_noise, 1 / inverse, square, bound)

        return at

    def _solve(self, parameters: Tensor, start: tuple[Tensor, Tensor]) -> _State:
        """Natural gradient ascent over q(g)."""
        at, r = self._states(parameters), self._r()
        state = at(*start)
        for _ in range(_ITERATIONS):
            goal = _natural_step(state.square, 1 / state.noise, state.log_noise.mean, r)
            step, new = 1.0, at(*goal)
            while not new.bound >= state.bound and step > 1e-3:
                step *= 0.5
                pairs = zip((state.precision, state.linear), goal, strict=True)
                new = at(*(torch.lerp(old, end, step) for old, end in pairs))
            if not new.bound >= state.bound:
                break
            state, gained = new, new.bound - state.bound
            if gained < _TOLERANCE * max(1.0, abs(state.bound)):
                break
        return state


def _inverse_noise(mean: Tensor, variance: Tensor) -> Tensor:
    """E[exp(-g)] = 1/R."""
    return (0.5 * variance - mean).clamp(-_LARGEST_LOG, _LARGEST_LOG).exp()


def _natural_step(square: Tensor, inverse: Tensor, mean: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """Λ and b of a natural gradient step of size one, from s, 1/R and the mean of g less μ0."""
    precision = (0.5 * r * square * inverse).clamp_min(_LEAST_PRECISION)
    return precision, precision * (mean + 1) - 0.5 * r


def _over_noise(
    mean: Tensor, variance: Tensor, log_noise: Tensor, spread: Tensor, *, include_noise: bool
) -> Components:
    """Gaussians for each node of a Gauss-Hermite rule over g ~ N(log_noise, spread); one if noise stays out."""
    if not include_noise:
        return torch.ones_like(mean).unsqueeze(-1), mean.unsqueeze(-1), variance.unsqueeze(-1)
    nodes, weights = (torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(_NODES))
    g = log_noise.unsqueeze(-1) + spread.sqrt().unsqueeze(-1) * nodes
    variances = variance.unsqueeze(-1) + g.clamp_max(_LARGEST_LOG).exp()
    return (weights / weights.sum()).expand_as(g), mean.unsqueeze(-1).expand_as(g), variances
