"""A Gaussian process with Student-t noise, a scale mixture of Gaussians, by conjugate variational inference.

    y_n = f(x_n) + ε_n,  ε_n ~ N(0, σ²/λ_n),  λ_n ~ Gamma(ν/2, rate ν/2),  q(f) prod_n q(λ_n) in place of the posterior

| symbol | name in code | shape |
|---|---|---|
| r, how many observations a point stands for | `weights` | (n,) |
| c_n = E[λ_n] under q(λ_n) = Gamma(a, rate a/c_n), a = (ν + 1)/2 | `certainty` | (n,) |
| s_n = E[(y_n - f_n)²] | `square` | (n,) |

q(f) is the posterior of a GP that sees point n with noise σ²/(r_n c_n), and the best c_n is (ν + 1)/(ν + s_n/σ²). There
the expected log likelihood of a point is the Student-t log density with s_n for the squared residual.

Source: Tipping and Lawrence (2005), Variational inference for Student-t models, sec. 3; prior of ν: Juárez and Steel
(2010), Model-based clustering of non-Gaussian panel data, sec. 2.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gpytorch
import torch
from gpytorch.constraints import GreaterThan, Positive
from gpytorch.kernels import Kernel
from gpytorch.likelihoods import GaussianLikelihood
from gpytorch.means import ConstantMean, Mean
from gpytorch.priors import GammaPrior
from scipy.special import roots_genlaguerre
from torch import Tensor

from gpmoe.kernels.description import build_kernel, describe_kernel
from gpmoe.kernels.dimension_scaled import dimension_scaled_matern
from gpmoe.linalg.factorisation import Workspace
from gpmoe.linalg.gaussian_sites import SitePosterior, site_posterior
from gpmoe.linalg.likelihood import gaussian_log_likelihood
from gpmoe.linalg.stationary import dense_covariance
from gpmoe.models.exact_gp import expect_one_data_set
from gpmoe.models.expert import Components, expect_sites, left_out
from gpmoe.models.site_model import SiteModel

_ITERATIONS = 100
_TOLERANCE = 1e-9  # largest change of c at which its updates stop
_NODES = 24  # of Gauss-Laguerre quadrature over λ
_NEARLY_GAUSSIAN = 80.0  # ν/2 beyond which the quadrature's weights leave the range of doubles


@dataclass(frozen=True)
class _State:
    """q, and the parameters it belongs to."""

    parameters: Tensor
    certainty: Tensor
    latent: SitePosterior


class StudentTGP(SiteModel):
    """A GP whose noise has heavy tails, so that outliers don't bend it. Fitted by `inference.fit`; an `Expert` as well.

    Args:
        X: inputs of about unit variance, ``(n, d)``.
        y: targets, ``(n,)``.
        kernel: any GPyTorch kernel, the default of `ExactGP` if None.
        mean: a learned constant if None.
        least_noise: what the squared scale of the noise doesn't go below.
        weights: how many observations each point stands for, ``(n,)``; one each if None.

    Attributes:
        covar_module, mean_module: kernel and mean.
        likelihood: holds the squared scale σ² of the noise.
        degrees_of_freedom: ν, learned, above 2, with prior Gamma(2, 0.1).

    Raises:
        ShapeError, DtypeError, NonFiniteError: if X and y don't fit each other.

    Example:
        >>> import torch
        >>> from gpmoe.inference import fit
        >>> X = torch.linspace(-2, 2, 40, dtype=torch.float64).unsqueeze(-1)
        >>> y = X.squeeze(-1).sin()
        >>> y[20] = 30.0
        >>> gp = StudentTGP(X, y)
        >>> report = fit(gp)
        >>> bool((gp.marginals(X)[0] - X.squeeze(-1).sin()).abs().max() < 0.1)
        True
    """

    likelihood: GaussianLikelihood
    _start: Tensor  # c that the search for q begins with

    def __init__(
        self,
        X: Tensor,
        y: Tensor,
        *,
        kernel: Kernel | None = None,
        mean: Mean | None = None,
        least_noise: float = 1e-4,
        weights: Tensor | None = None,
    ) -> None:
        super().__init__()
        for name in ("X", "y", "weights"):
            self.register_buffer(name, None)
        self.covar_module = (dimension_scaled_matern(X.shape[-1]) if kernel is None else kernel).to(X)
        self.mean_module = (ConstantMean() if mean is None else mean).to(X)
        self.likelihood = GaussianLikelihood(noise_constraint=GreaterThan(least_noise)).to(X)
        self.likelihood.noise = X.new_tensor([max(0.1, 2 * least_noise)])
        self.tails = _Tails().to(X)
        self.workspace = Workspace()
        self._state: _State | None = None
        self.set_data(X, y, weights)

    @property
    def degrees_of_freedom(self) -> Tensor:
        """ν, ``()``."""
        return 2 + self.tails.excess.squeeze()

    def set_data(self, X: Tensor, y: Tensor, weights: Tensor | None = None) -> None:
        """See `Expert`; q(λ) starts from what the present q(f) says about the new points."""
        expect_one_data_set(X, y, weights, before=self.X)
        self._start = torch.ones_like(y) if self.X is None else self._certainty(self._square(X, y))
        self.X, self.y, self.weights, self._state = X, y, weights, None

    def evidence(self) -> Tensor:
        """See `Expert`; its gradient is the one at fixed q, since q is at its optimum."""
        c, r = self._solved().certainty, self._r()
        noise, nu = self.likelihood.noise, self.degrees_of_freedom
        a = 0.5 * (nu + 1)
        residual = self.y - self.mean_module(self.X)
        seen = noise / (r * c)
        gaussian = gaussian_log_likelihood(self.covar_module, self.X, residual, seen, workspace=self.workspace)
        density = 0.5 * (2 * math.pi * seen).log().sum() - 0.5 * (r * (2 * math.pi * noise).log()).sum()
        constant = 0.5 * nu * (0.5 * nu).log() - (0.5 * nu).lgamma() + a.lgamma() - a * a.log() + a
        return gaussian + density + (r * (constant + a * c.log() - 0.5 * nu * c)).sum()

    def expected_log_likelihood(self, X: Tensor, y: Tensor) -> Tensor:
        """See `Expert`: the Student-t log density with E[(y - f)²] for the squared residual."""
        with torch.no_grad():
            noise, nu = self.likelihood.noise, self.degrees_of_freedom
            constant = (0.5 * (nu + 1)).lgamma() - (0.5 * nu).lgamma() - 0.5 * (math.pi * nu * noise).log()
            return constant - 0.5 * (nu + 1) * (self._square(X, y) / (nu * noise)).log1p()

    def components(self, X: Tensor, *, include_noise: bool = True) -> Components:
        """See `Expert`: one Gaussian for each node of a quadrature over λ."""
        return self._over_scales(*self.marginals(X), include_noise=include_noise)

    def components_left_out(self, X: Tensor, y: Tensor, weights: Tensor) -> Components:
        """See `Expert`."""
        mean, variance = self.marginals(X)
        precision = weights * self._certainty((y - mean).square() + variance) / self.likelihood.noise.detach()
        return self._over_scales(*left_out(y, mean, variance, precision), include_noise=True)

    def new_noise(self) -> Tensor:
        """Variance of the noise, σ² ν / (ν - 2), ``(1,)``."""
        nu = self.degrees_of_freedom
        return self.likelihood.noise * nu / (nu - 2)

    def noise_variance(self, X: Tensor) -> Tensor:
        """See `Expert`: the same everywhere."""
        return self.new_noise().detach()

    def description(self) -> dict[str, Any]:
        """The arguments that make such an expert of given data, for a file."""
        floor = float(self.likelihood.noise_covar.raw_noise_constraint.lower_bound)
        return {"kernel": describe_kernel(self.covar_module), "least_noise": floor}

    @classmethod
    def from_description(cls, description: dict[str, Any], X: Tensor, y: Tensor) -> "StudentTGP":
        """The inverse of `description`; parameters and `sites` are set after it."""
        floor = torch.tensor(float(description["least_noise"]), dtype=torch.float64)  # as it was, to the last bit
        gp = cls(X, y, kernel=build_kernel(description["kernel"]))
        gp.likelihood.noise_covar.register_constraint("raw_noise", GreaterThan(floor))
        return gp

    def sites(self) -> dict[str, Tensor]:
        """c, ``(n,)``: what q is, beside the parameters."""
        return {"certainty": self._solved().certainty}

    def restore_sites(self, sites: dict[str, Tensor]) -> None:
        """See `SiteModel`."""
        expect_sites(sites, ("certainty",), self.y)
        with torch.no_grad():
            self._state = self._states(self._flat_parameters())(sites["certainty"])

    def __getstate__(self) -> dict[str, object]:
        """Copies and pickles find q again when needed, from where it was."""
        start = self._start if self._state is None else self._state.certainty
        return {**self.__dict__, "_state": None, "_start": start}

    def _square(self, X: Tensor, y: Tensor) -> Tensor:
        mean, variance = self.marginals(X)
        return (y - mean).square() + variance

    def _certainty(self, square: Tensor) -> Tensor:
        """The best c for s."""
        nu = self.degrees_of_freedom.detach()
        return (nu + 1) / (nu + square / self.likelihood.noise.detach())

    def _latent_posterior(self) -> SitePosterior:
        return self._solved().latent

    def _solved(self) -> _State:
        """q at the present parameters, found once for them by coordinate ascent."""
        with torch.no_grad():
            parameters = self._flat_parameters()
            if self._state is None or not torch.equal(self._state.parameters, parameters):
                start = self._start if self._state is None else self._state.certainty
                self._state = self._solve(parameters, start)
            return self._state

    def _solve(self, parameters: Tensor, certainty: Tensor) -> _State:
        at, residual = self._states(parameters), self.y - self.mean_module(self.X)
        state = at(certainty)
        for _ in range(_ITERATIONS):
            new = self._certainty((residual - state.latent.mean).square() + state.latent.variance)
            if float((new - state.certainty).abs().max()) < _TOLERANCE:
                break
            state = at(new)
        return state

    def _states(self, parameters: Tensor) -> Callable[[Tensor], _State]:
        """q(f) at its optimum for given c."""
        K = dense_covariance(self.covar_module, self.X, self.X)
        residual, scale = self.y - self.mean_module(self.X), self._r() / self.likelihood.noise

        def at(certainty: Tensor) -> _State:
            precision = scale * certainty
            return _State(parameters, certainty, site_posterior(K, precision, precision * residual))

        return at

    def _over_scales(self, mean: Tensor, variance: Tensor, *, include_noise: bool) -> Components:
        if not include_noise:
            return torch.ones_like(mean).unsqueeze(-1), mean.unsqueeze(-1), variance.unsqueeze(-1)
        half = min(0.5 * float(self.degrees_of_freedom.detach()), _NEARLY_GAUSSIAN)
        nodes, weights = roots_genlaguerre(_NODES, half - 1)
        noise = float(self.likelihood.noise.detach()) * half / torch.from_numpy(nodes)
        variances = variance.unsqueeze(-1) + noise
        share = torch.from_numpy(weights / weights.sum())
        return share.expand_as(variances), mean.unsqueeze(-1).expand_as(variances), variances


class _Tails(gpytorch.Module):
    """ν - 2, positive, with its prior on ν about as Gamma(2, 0.1)."""

    def __init__(self) -> None:
        super().__init__()
        self.register_parameter("raw_excess", torch.nn.Parameter(torch.zeros(1)))
        self.register_constraint("raw_excess", Positive())
        self.initialize(raw_excess=self.raw_excess_constraint.inverse_transform(torch.full((1,), 4.0)))
        self.register_prior("excess_prior", GammaPrior(2.0, 0.1), _excess)

    @property
    def excess(self) -> Tensor:
        """ν - 2, ``(1,)``."""
        excess: Tensor = self.raw_excess_constraint.transform(self.raw_excess)
        return excess


def _excess(tails: _Tails) -> Tensor:
    return tails.excess
