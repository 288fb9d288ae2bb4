"""What the sparse models share: predictions from a Gaussian q(v) of whitened inducing variables.

| symbol | name in code | shape |
|---|---|---|
| inducing points | `inducing_points`, Z | (*batch, p, d) |
| L L' = K(Z, Z) + nugget | `L` | (*batch, p, p) |
| u = m(Z) + L v, q(v) = N(μ, S) | `mean`, `covariance` | (*batch, p), (*batch, p, p) |
| V = L⁻¹ K(Z, X_new) | `V` | (*batch, p, m) |

    q(f_new) = N(m(X_new) + V'μ,  K(X_new, X_new) + V'(S - I)V)
"""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from gpytorch.kernels import Kernel
from gpytorch.means import Mean
from torch import Tensor
from torch.nn import Parameter

from gpmoe.errors import InputError, ShapeError
from gpmoe.linalg import lapack
from gpmoe.linalg.cross_covariance import cross_covariance
from gpmoe.linalg.stationary import dense_covariance
from gpmoe.models.exact_gp import evaluating
from gpmoe.models.gaussian_model import LearnableModel, expect_inputs
from gpmoe.shapes import expect_finite, expect_floating

_BLOCK = 2**20  # entries of a block of K(Z, X_new): 8 MB in float64


@dataclass(frozen=True)
class Whitened:
    """q(v) with its factor, see the table above, and what was added to the diagonal of K(Z, Z) beyond the nugget."""

    L: Tensor
    mean: Tensor
    covariance: Tensor
    jitter: float


class InducingModel(LearnableModel):
    """A Gaussian process that knows its data through the values at a few inducing points."""

    X: Tensor
    y: Tensor
    inducing_points: Parameter
    mean_module: Mean
    covar_module: Kernel
    _factor: tuple[Tensor, Whitened] | None

    @abstractmethod
    def _whiten(self) -> Whitened:
        """q(v) at the present parameters."""

    @abstractmethod
    def elbo(self) -> Tensor:
        """The lower bound on log p(y | X), ``(*batch,)``, nats."""

    def __getstate__(self) -> dict[str, object]:
        """Copies and pickles leave the factor behind; it is computed again when needed."""
        return {**self.__dict__, "_factor": None}

    def factor(self) -> Whitened:
        """q(v) at the present parameters, computed once for them."""
        now = torch.cat([tensor.detach().reshape(-1).to(self.X) for tensor in self._determinants()])
        if self._factor is None or not torch.equal(self._factor[0], now):
            with torch.no_grad(), evaluating(self):
                self._factor = now, self._whiten()
        return self._factor[1]

    def _determinants(self) -> list[Tensor]:
        """What q(v) depends on."""
        return [*self.parameters(), *self.buffers()]

    def log_marginal_likelihood(self) -> Tensor:
        """Refused: a model with inducing points has a bound of it.

        Raises:
            InputError: always.
        """
        raise InputError(
            f"{type(self).__name__} has no marginal likelihood but a bound of it: pass the objective, `fit(gp, elbo)` "
            "with `gpmoe.inference.elbo`."
        )

    def jitter_needed(self) -> float:
        """See `LearnableModel.jitter_needed`; of the inducing points' covariance."""
        return self.factor().jitter

    @property
    def solved_by(self) -> str:
        """The approximation in words, for reports."""
        return f"Cholesky() of {self.inducing_points.shape[-2]} inducing points by {lapack.provider()}"

    def latent(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """See `GaussianModel.latent`."""
        expect_inputs(X, self.X)
        q = self.factor()
        with evaluating(self):
            K_new = dense_covariance(self.covar_module, self.inducing_points.detach(), X)
            V = torch.linalg.solve_triangular(q.L, K_new, upper=False)
            mean = self.mean_module(X) + (V.mT @ q.mean.unsqueeze(-1)).squeeze(-1)
            covariance = dense_covariance(self.covar_module, X, X) + V.mT @ (q.covariance @ V - V)
        return mean.expand(covariance.shape[:-1]), 0.5 * (covariance + covariance.mT)

    def marginals(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean and variance of the latent function at each new point, in bounded memory.

        Args:
            X: ``(m, d)``; any number of points.

        Returns:
            Mean and variance, ``(*batch, m)`` each. Not differentiable.
        """
        expect_inputs(X, self.X)
        q = self.factor()
        Z = self.inducing_points.detach()
        rows = max(32, _BLOCK // q.mean.numel())
        means, variances = [], []
        with torch.no_grad(), evaluating(self):
            for x in X.split(rows, dim=-2) if len(X) else [X]:
                V = lapack.solve_triangular(q.L, cross_covariance(self.covar_module, Z, x), overwrite=True)
                prior = self.covar_module(x, diag=True)
                variance = prior + (V * (q.covariance @ V - V)).sum(-2)
                variances.append(torch.maximum(variance, prior * torch.finfo(x.dtype).eps))
                means.append(self.mean_module(x) + (q.mean.unsqueeze(-2) @ V).squeeze(-2))
        return torch.cat(means, -1), torch.cat(variances, -1)


def expect_inducing_points(Z: Tensor, X: Tensor) -> None:
    """Check inducing points against the training inputs.

    Raises:
        ShapeError, DtypeError, NonFiniteError: naming what came and what was wanted.
    """
    if Z.dim() < 2 or Z.shape[-1] != X.shape[-1] or Z.shape[-2] == 0:
        raise ShapeError(
            f"`Z` must have shape (*batch, p, d) with p > 0 and d={X.shape[-1]}, as `X` has; got {tuple(Z.shape)}."
        )
    expect_floating("Z", Z, like=X)
    expect_finite("Z", Z)
