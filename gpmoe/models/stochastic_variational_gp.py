"""A Gaussian process for any likelihood, learned through inducing points from a few rows at a time.

| symbol | name in code | shape |
|---|---|---|
| X, y | `X`, `y` | (*batch, n, d), (*batch, n) |
| inducing points | `inducing_points`, Z | (*batch, p, d) |
| L L' = K(Z, Z) + nugget, u = m(Z) + L v | `L` | (*batch, p, p) |
| q(v) = N(μ, S) by its natural parameters S⁻¹μ and -½S⁻¹ | `variational_distribution` | (*batch, p), (*batch, p, p) |

    log p(y) >= Σ_i E_q[log p(y_i | f(x_i))] - KL(q(v) || N(0, I))

and n/b times the sum over b random rows is an unbiased estimate of the first term.
"""

import torch
from gpytorch.constraints import GreaterThan
from gpytorch.distributions import Distribution, MultivariateNormal
from gpytorch.kernels import Kernel
from gpytorch.likelihoods import FixedNoiseGaussianLikelihood, GaussianLikelihood, Likelihood
from gpytorch.means import ConstantMean, Mean
from gpytorch.variational import NaturalVariationalDistribution
from linear_operator.operators import DiagLinearOperator
from torch import Tensor
from torch.nn import Parameter

from gpmoe.errors import InputError
from gpmoe.kernels.dimension_scaled import dimension_scaled_matern
from gpmoe.linalg.cross_covariance import cross_covariance
from gpmoe.linalg.inducing_factor import inducing_factor
from gpmoe.linalg.natural_gaussian import moments
from gpmoe.linalg.projection import project
from gpmoe.models.exact_gp import expect_data
from gpmoe.models.inducing_model import InducingModel, Whitened, expect_inducing_points


class StochasticVariationalGP(InducingModel):
    """A Gaussian process whose posterior is carried by p inducing points, fitted by minibatches.

    ``fit_stochastic(gp, seed=0)`` maximises the bound. q(v) starts at the prior.

    Args:
        X: inputs, ``(*batch, n, d)``, float64 or float32.
        y: targets, ``(*batch, n)``.
        Z: inducing points, ``(*batch, p, d)``; see `greedy_inducing_points`.
        kernel, mean: as for `ExactGP`.
        likelihood: any GPyTorch likelihood of one latent function, Gaussian with a learned noise variance (at least
            1e-6) if None. With batch dimensions, of their shape or of none.
        weights: how many observations each point stands for, ``(*batch, n)``, positive: its log likelihood counts so
            many times. None for one each.

    Attributes:
        covar_module, mean_module, likelihood: the GPyTorch parts, as they were passed in.
        inducing_points: a parameter, ``(*batch, p, d)``.
        variational_distribution: holds q(v).

    Raises:
        ShapeError, DtypeError, NonFiniteError: if X, y, Z and weights don't fit each other.

    Source: Hensman, Matthews and Ghahramani (2015), Scalable Variational Gaussian Process Classification, sec. 3;
        Salimbeni, Eleftheriadis and Hensman (2018), Natural Gradients in Practice.

    Example:
        >>> import torch
        >>> from gpytorch.likelihoods import BernoulliLikelihood
        >>> from gpmoe.inference.fit_stochastic import fit_stochastic
        >>> from gpmoe.models.stochastic_variational_gp import StochasticVariationalGP
        >>> X = torch.linspace(-2, 2, 60, dtype=torch.float64).unsqueeze(-1)
        >>> gp = StochasticVariationalGP(X, (X[:, 0] > 0).double(), X[::6], likelihood=BernoulliLikelihood())
        >>> report = fit_stochastic(gp, epochs=30, batch_size=30, seed=0)
        >>> (gp.predictive(X[[0, -1]]).mean > 0.5).tolist()
        [False, True]
    """

    weights: Tensor | None

    def __init__(
        self,
        X: Tensor,
        y: Tensor,
        Z: Tensor,
        *,
        kernel: Kernel | None = None,
        mean: Mean | None = None,
        likelihood: Likelihood | None = None,
        weights: Tensor | None = None,
    ) -> None:
        super().__init__()
        expect_data(X, y, weights)
        expect_inducing_points(Z, X)
        self.register_buffer("X", X)
        self.register_buffer("y", y)
        self.register_buffer("weights", weights)
        self.covar_module = (dimension_scaled_matern(X.shape[-1]) if kernel is None else kernel).to(X)
        self.mean_module = (ConstantMean() if mean is None else mean).to(X)
        self._batch_shape = torch.broadcast_shapes(
            y.shape[:-1], X.shape[:-2], Z.shape[:-2], self.covar_module.batch_shape
        )
        if isinstance(likelihood, FixedNoiseGaussianLikelihood):
            raise InputError(
                "`likelihood` with a noise variance for each row can't be cut into minibatches; give a "
                "GaussianLikelihood of their mean, and mean / variance as `weights`."
            )
        self.likelihood = (_gaussian(self._batch_shape) if likelihood is None else likelihood).to(X)
        self.inducing_points = Parameter(Z.detach().expand(*self._batch_shape, *Z.shape[-2:]).clone())
        self.variational_distribution = NaturalVariationalDistribution(Z.shape[-2], self._batch_shape).to(X)
        self._factor = None

    @property
    def batch_shape(self) -> torch.Size:
        """``(*batch,)``."""
        return self._batch_shape

    def new_noise(self) -> Tensor:
        """Noise variance of a new observation, ``(*batch, 1)``.

        Raises:
            InputError: if the likelihood is not Gaussian.
        """
        if not isinstance(self.likelihood, GaussianLikelihood):
            raise InputError(
                f"a {type(self.likelihood).__name__} has no noise variance; `predictive` gives the distribution of "
                "observations, and `posterior(X)` that of the latent function."
            )
        noise: Tensor = self.likelihood.noise
        return noise

    def elbo(self, rows: Tensor | None = None) -> Tensor:
        """The lower bound on log p(y | X), or an unbiased estimate of it.

        Args:
            rows: indices ``(b,)`` of the rows to use; all if None.

        Returns:
            ``(*batch,)``, nats. Gradients that arrive in the parameters of q(v) are natural gradients.
        """
        X, y, w = self.X, self.y, self.weights
        if rows is not None:
            X, y, w = X[..., rows, :], y[..., rows], None if w is None else w[..., rows]
        mean, variance, divergence = self.bound_terms(X)
        latent = MultivariateNormal(mean, DiagLinearOperator(variance))
        log_likelihood = self.likelihood.expected_log_prob(y, latent)
        log_likelihood = log_likelihood if w is None else w * log_likelihood
        return log_likelihood.sum(-1) * (self.y.shape[-1] / y.shape[-1]) - divergence

    def bound_terms(self, X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What bounds are made of, differentiable once.

        Args:
            X: ``(b, d)``.

        Returns:
            Mean and variance of q(f) at each row, ``(*batch, b)``, and KL(q(v) || N(0, I)), ``(*batch,)``. Gradients
            that arrive in the parameters of q(v) are natural gradients.
        """
        mu, S, log_det = self._moments()
        mean, variance = self._project(X, mu, S)
        trace = S.diagonal(dim1=-2, dim2=-1).sum(-1)
        return mean, variance, 0.5 * (trace + mu.square().sum(-1) - mu.shape[-1] - log_det)

    def predictive(self, X: Tensor) -> Distribution:
        """The distribution of an observation at each new point, as the likelihood gives it.

        Args:
            X: ``(m, d)``; any number of points.

        Returns:
            A distribution of batch or event shape ``(*batch, m)``. Not differentiable.
        """
        mean, variance = self.marginals(X)
        with torch.no_grad():
            return self.likelihood(MultivariateNormal(mean, DiagLinearOperator(variance)))

    def natural_parameters(self) -> list[Parameter]:
        """Those of q(v)."""
        return list(self.variational_distribution.parameters())

    def _determinants(self) -> list[Tensor]:
        """All but the data, which q(v) meets only in a fit."""
        data = {"X", "y", "weights"}
        return [*self.parameters(), *(buffer for name, buffer in self.named_buffers() if name not in data)]

    def _moments(self) -> tuple[Tensor, Tensor, Tensor]:
        q = self.variational_distribution
        return moments(q.natural_vec, q.natural_mat)

    def _project(self, X: Tensor, mu: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of q(f) at each row of X."""
        L, _ = inducing_factor(self.covar_module, self.inducing_points)
        K = cross_covariance(self.covar_module, self.inducing_points, X)
        mean, variance = project(L, K, mu, S)
        return self.mean_module(X) + mean, self.covar_module(X, diag=True) + variance

    def _whiten(self) -> Whitened:
        L, jitter = inducing_factor(self.covar_module, self.inducing_points)
        mu, S, _ = self._moments()
        return Whitened(L, mu, S, jitter)


def _gaussian(batch_shape: torch.Size) -> GaussianLikelihood:
    likelihood = GaussianLikelihood(noise_constraint=GreaterThan(1e-6), batch_shape=batch_shape)
    likelihood.noise = 0.1
    return likelihood
