"""Gaussian process regression through inducing points, with the best q(u) in closed form.

| symbol | name in code | shape |
|---|---|---|
| X, y | `X`, `y` | (n, d), (n,) |
| inducing points | `inducing_points` | (p, d) |
"""

import torch
from gpytorch.kernels import Kernel
from gpytorch.likelihoods import FixedNoiseGaussianLikelihood, GaussianLikelihood
from gpytorch.means import ConstantMean, Mean
from torch import Tensor
from torch.nn import Parameter

from gpmoe.errors import ShapeError
from gpmoe.kernels.dimension_scaled import dimension_scaled_matern
from gpmoe.linalg.collapsed_bound import collapsed_bound, sparse_posterior
from gpmoe.models.exact_gp import Noise, expect_data, make_likelihood
from gpmoe.models.inducing_model import InducingModel, Whitened, expect_inducing_points


class SparseGP(InducingModel):
    """A Gaussian process with Gaussian noise whose data pass through p inducing points, by the collapsed bound.

    Costs O(n p²) time and O(n d + p²) memory a step, for any number of rows. ``fit(gp, elbo)`` maximises the bound over
    hyperparameters and inducing points; ``gp.inducing_points.requires_grad_(False)`` keeps the latter.

    Args:
        X: inputs, ``(n, d)``, float64 or float32.
        y: targets, ``(n,)``.
        Z: inducing points, ``(p, d)``; see `greedy_inducing_points`. With ``Z = X`` the model is the exact one.
        kernel, mean, noise: as for `ExactGP`.

    Attributes:
        covar_module, mean_module, likelihood: the GPyTorch parts, as they were passed in.
        inducing_points: a parameter, ``(p, d)``.

    Raises:
        ShapeError, DtypeError, NonFiniteError: if X, y and Z don't fit each other.

    Source: Titsias (2009), Variational Learning of Inducing Variables in Sparse Gaussian Processes.

    Example:
        >>> import torch
        >>> from gpmoe.models.sparse_gp import SparseGP
        >>> X = torch.linspace(0, 6, 300, dtype=torch.float64).unsqueeze(-1)
        >>> gp = SparseGP(X, X.sin().squeeze(-1), X[::20], noise=1e-3)
        >>> posterior = gp.posterior(X[:1] + 0.1)
        >>> bool((posterior.mean - (X[:1] + 0.1).sin()).abs() < 0.01)
        True
    """

    likelihood: GaussianLikelihood | FixedNoiseGaussianLikelihood

    def __init__(
        self,
        X: Tensor,
        y: Tensor,
        Z: Tensor,
        *,
        kernel: Kernel | None = None,
        mean: Mean | None = None,
        noise: Noise = None,
    ) -> None:
        super().__init__()
        expect_data(X, y, None)
        expect_inducing_points(Z, X)
        kernel = dimension_scaled_matern(X.shape[-1]) if kernel is None else kernel
        if X.dim() > 2 or y.dim() > 1 or Z.dim() > 2 or kernel.batch_shape:
            raise ShapeError(
                f"`SparseGP` takes no batch dimensions; got X {tuple(X.shape)}, y {tuple(y.shape)}, Z {tuple(Z.shape)} "
                f"and a kernel of batch shape {tuple(kernel.batch_shape)}. `StochasticVariationalGP` takes them."
            )
        self.register_buffer("X", X)
        self.register_buffer("y", y)
        self.inducing_points = Parameter(Z.detach().clone())
        self.covar_module = kernel.to(X)
        self.mean_module = (ConstantMean() if mean is None else mean).to(X)
        self.likelihood = make_likelihood(noise, y).to(X)
        self._factor = None

    @property
    def batch_shape(self) -> torch.Size:
        """Empty."""
        return torch.Size()

    def noise(self) -> Tensor:
        """Noise variance of each training point, ``(n,)``."""
        noise: Tensor = self.likelihood.noise
        return noise.expand(self.y.shape)

    def new_noise(self) -> Tensor:
        """Noise variance of a new observation, ``(1,)``: the mean over the training points where they differ."""
        noise: Tensor = self.likelihood.noise
        return noise.mean(-1, keepdim=True)

    def elbo(self) -> Tensor:
        """The collapsed lower bound on log p(y | X), a scalar in nats, differentiable once."""
        residual = self.y - self.mean_module(self.X)
        return collapsed_bound(self.covar_module, self.X, self.inducing_points, residual, self.noise())

    def _determinants(self) -> list[Tensor]:
        return [*super()._determinants(), self.likelihood.noise]  # fixed noise is no parameter and no buffer

    def _whiten(self) -> Whitened:
        residual = (self.y - self.mean_module(self.X)).expand(self.y.shape)
        q = sparse_posterior(self.covar_module, self.X, self.inducing_points, residual, self.noise())
        return Whitened(q.L, q.beta, q.covariance, q.jitter)
