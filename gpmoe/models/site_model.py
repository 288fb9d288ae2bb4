"""What GPs share whose posterior has a Gaussian factor for each training point, found anew for each hyperparameter."""

from abc import abstractmethod

import torch
from gpytorch.kernels import Kernel
from gpytorch.means import Mean
from torch import Tensor

from gpmoe.distributions import Predictive
from gpmoe.linalg.gaussian_sites import SitePosterior
from gpmoe.linalg.stationary import dense_covariance
from gpmoe.models.expert import Components
from gpmoe.models.gaussian_model import LearnableModel, expect_inputs


class SiteModel(LearnableModel):
    """A GP with a variational posterior q(f) that is conjugate given its factors, an `Expert` of one data set.

    A subclass finds q, and says what the bound and the density of an observation are.
    """

    weights: Tensor | None
    covar_module: Kernel
    mean_module: Mean

    @abstractmethod
    def evidence(self) -> Tensor:
        """See `Expert`."""

    @abstractmethod
    def components(self, X: Tensor, *, include_noise: bool = True) -> Components:
        """See `Expert`."""

    @abstractmethod
    def sites(self) -> dict[str, Tensor]:
        """What q is, beside the parameters, ``(n,)`` each."""

    @abstractmethod
    def restore_sites(self, sites: dict[str, Tensor]) -> None:
        """Take q as it is, to the last bit, from a model with these data and parameters.

        Raises:
            ShapeError: if there isn't one factor for each training point.
        """

    @abstractmethod
    def _latent_posterior(self) -> SitePosterior:
        """q(f) at the present parameters."""

    @property
    def batch_shape(self) -> torch.Size:
        """Empty: one data set."""
        return torch.Size()

    def fit_step(self) -> None:
        """Nothing: q is at its optimum whenever the bound is asked for."""

    def log_marginal_likelihood(self) -> Tensor:
        """The variational bound of log p(y | X) at the best q; differentiable once, nats."""
        return self.evidence()

    def jitter_needed(self) -> float:
        """Zero: factors are of identity plus covariance."""
        return 0.0

    def marginals(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of q(f) at ``(m, d)`` points, ``(m,)``; not differentiable."""
        expect_inputs(X, self.X)
        with torch.no_grad():
            return marginals_of(self._latent_posterior(), self.covar_module, self.mean_module, X, self.X)

    def latent(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """See `GaussianModel.latent`: under q(f)."""
        expect_inputs(X, self.X)
        K_new = dense_covariance(self.covar_module, X, self.X)
        mean, covariance = self._latent_posterior().joint(K_new, dense_covariance(self.covar_module, X, X))
        return self.mean_module(X) + mean, covariance

    def predictive(self, X: Tensor, *, include_noise: bool = True) -> Predictive:
        """p(y | data) or p(f | data) at X ``(m, d)``."""
        weights, means, variances = self.components(X, include_noise=include_noise)
        return Predictive.mixture(weights.numpy(), means.numpy(), variances.numpy())

    def _r(self) -> Tensor:
        return torch.ones_like(self.y) if self.weights is None else self.weights

    def _flat_parameters(self) -> Tensor:
        return torch.cat([parameter.detach().reshape(-1) for parameter in self.parameters()])


def marginals_of(
    q: SitePosterior, kernel: Kernel, prior_mean: Mean, X: Tensor, X_seen: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and variance at X ``(m, d)``, ``(m,)`` each, of a process with posterior q at its training points."""
    mean, variance = q.marginals(dense_covariance(kernel, X, X_seen), kernel(X, diag=True))
    return prior_mean(X) + mean, variance
