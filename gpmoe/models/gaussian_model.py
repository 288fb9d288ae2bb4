"""What every model with a Gaussian latent function shares: BoTorch posteriors and conditioning on new data."""

from abc import abstractmethod
from typing import Any

import gpytorch
import torch
from botorch.acquisition.objective import PosteriorTransform
from botorch.models.model import FantasizeMixin, Model
from botorch.posteriors.gpytorch import GPyTorchPosterior
from gpytorch.distributions import MultivariateNormal
from gpytorch.likelihoods import Likelihood
from linear_operator.operators import DenseLinearOperator
from torch import Tensor

from gpmoe.errors import InputError, ShapeError
from gpmoe.linalg.factorisation import not_positive_definite
from gpmoe.shapes import expect_finite, expect_floating, expect_shape


class ExactCovariance(DenseLinearOperator):
    """A dense covariance whose root is its Cholesky factor at every size, whatever the global settings are."""

    def _choose_root_method(self) -> str:
        return "cholesky"


class GaussianModel(gpytorch.Module, Model, FantasizeMixin):
    """A BoTorch model of one output whose latent function has a joint Gaussian posterior."""

    likelihood: Likelihood

    @abstractmethod
    def latent(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Joint posterior of the latent function.

        Args:
            X: ``(*batch, q, d)``.

        Returns:
            Mean ``(*batch, q)`` and covariance ``(*batch, q, q)``, differentiable in X.
        """

    @property
    @abstractmethod
    def train_inputs(self) -> tuple[Tensor]:
        """The training inputs, under the name that BoTorch uses."""

    @abstractmethod
    def new_noise(self) -> Tensor:
        """Noise variance of an observation yet to be made, ``(*batch, 1)``."""

    def noise_variance(self, X: Tensor) -> Tensor:
        """Noise variance at X ``(*batch, q, d)``; broadcasts to ``(*batch, q)``. Here the same everywhere."""
        return self.new_noise()

    @property
    def num_outputs(self) -> int:
        """One."""
        return 1

    def posterior(  # type: ignore[override]  # the two upstream bases differ
        self,
        X: Tensor,
        output_indices: list[int] | None = None,
        observation_noise: bool | Tensor = False,
        posterior_transform: PosteriorTransform | None = None,
    ) -> GPyTorchPosterior:
        """Joint posterior at new inputs, in the form BoTorch's acquisition functions take.

        Args:
            X: ``(*batch, q, d)``.
            output_indices: None or [0]; there is one output.
            observation_noise: True for p(y | data), or a noise variance ``(*batch, q or 1, 1)``; False for p(f | data).
            posterior_transform: applied to the result.

        Returns:
            A posterior whose mean is ``(*batch, q, 1)``.

        Raises:
            ShapeError, DtypeError: if X does not fit the training inputs.
        """
        if output_indices not in (None, [0]):
            raise InputError(
                f"`output_indices` must be None or [0], since the model has one output; got {output_indices}."
            )
        mean, covariance = self.latent(X)
        noise: Tensor | None
        if isinstance(observation_noise, Tensor):
            noise = observation_noise.squeeze(-1)
        else:
            noise = self.noise_variance(X) if observation_noise else None
        if noise is not None:
            covariance = covariance + torch.diag_embed(noise.expand(mean.shape))
        posterior = GPyTorchPosterior(MultivariateNormal(mean, ExactCovariance(covariance)))
        return posterior if posterior_transform is None else posterior_transform(posterior)

    def condition_on_observations(
        self, X: Tensor, Y: Tensor, noise: Tensor | None = None, **kwargs: Any
    ) -> "ConditionedGP":
        """The same model given further observations; hyperparameters stay as they are.

        Args:
            X: ``(*batch, q, d)``.
            Y: ``(*samples, *batch, q, 1)``.
            noise: noise variances, of Y's shape; the model's own at X if None.
            **kwargs: BoTorch's protocol passes some; they are not used.

        Returns:
            A model of batch shape ``(*samples, *batch)``, differentiable in X and Y.
        """
        return ConditionedGP(self, X, Y, noise)


class LearnableModel(GaussianModel):
    """A Gaussian model whose hyperparameters `inference.fit` can learn.

    A subclass keeps its data as X ``(*batch, n, d)`` and y ``(*batch, n)``.
    """

    X: Tensor
    y: Tensor

    @property
    def train_inputs(self) -> tuple[Tensor]:
        """X, under the name that BoTorch uses."""
        return (self.X,)

    @property
    def train_targets(self) -> Tensor:
        """y, under the name that BoTorch uses."""
        return self.y

    @abstractmethod
    def jitter_needed(self) -> float:
        """What a covariance needs on its diagonal to have a factor, at the present parameters; 0 as a rule."""

    @property
    def solved_by(self) -> str:
        """How linear systems are solved where the model itself decides, for reports; empty where a solver is passed."""
        return ""


class ConditionedGP(GaussianModel):
    """A Gaussian model given q further observations: exact, by conditioning the joint posterior on them.

    Costs one joint posterior of the base model and one q x q factorisation a prediction.

    Example:
        >>> import torch
        >>> from gpmoe.models import ExactGP
        >>> X = torch.linspace(0, 1, 5, dtype=torch.float64).unsqueeze(-1)
        >>> gp = ExactGP(X, X.squeeze(-1), noise=1e-6)
        >>> later = gp.condition_on_observations(X[:1] + 2, X.new_ones(1, 1))
        >>> round(later.posterior(X[:1] + 2).mean.item(), 3)
        1.0
    """

    def __init__(self, base: GaussianModel, X: Tensor, Y: Tensor, noise: Tensor | None = None) -> None:
        super().__init__()
        expect_inputs(X, base.train_inputs[0])
        expect_floating("Y", Y, like=X)
        expect_finite("Y", Y)
        expect_shape("Y", Y, last=(X.shape[-2], 1))
        self.base = base
        self.likelihood = base.likelihood
        self.X = X
        self.Y = Y.squeeze(-1)
        self.noise = base.noise_variance(X) if noise is None else noise.squeeze(-1)

    @property
    def train_inputs(self) -> tuple[Tensor]:
        """Those of the base model."""
        return self.base.train_inputs

    @property
    def batch_shape(self) -> torch.Size:
        """Broadcast batch shape of the new inputs and targets."""
        return torch.broadcast_shapes(self.X.shape[:-2], self.Y.shape[:-1], self.base.batch_shape)

    def new_noise(self) -> Tensor:
        """That of the base model."""
        return self.base.new_noise()

    def noise_variance(self, X: Tensor) -> Tensor:
        """That of the base model."""
        return self.base.noise_variance(X)

    def latent(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """See `GaussianModel.latent`: the base posterior given the further observations."""
        q = self.X.shape[-2]
        batch = torch.broadcast_shapes(self.X.shape[:-2], X.shape[:-2])
        both = torch.cat([self.X.expand(*batch, *self.X.shape[-2:]), X.expand(*batch, *X.shape[-2:])], dim=-2)
        mean, covariance = self.base.latent(both)
        noise = self.noise.expand(torch.broadcast_shapes(self.noise.shape, mean[..., :q].shape))
        observed = covariance[..., :q, :q] + torch.diag_embed(noise)
        L, info = torch.linalg.cholesky_ex(observed)
        if bool(info.any()):
            raise not_positive_definite(observed, 0.0)
        V = torch.linalg.solve_triangular(L, covariance[..., :q, q:], upper=False)
        half = torch.linalg.solve_triangular(L, (self.Y - mean[..., :q]).unsqueeze(-1), upper=False)
        new_mean = mean[..., q:] + (V.mT @ half).squeeze(-1)
        new_covariance = covariance[..., q:, q:] - V.mT @ V
        return new_mean, new_covariance.expand(*new_mean.shape, new_mean.shape[-1])


def expect_inputs(X: Tensor, like: Tensor) -> None:
    """Check new inputs against the training inputs.

    Raises:
        ShapeError, DtypeError, NonFiniteError: naming what came and what was wanted.
    """
    if X.dim() < 2 or X.shape[-1] != like.shape[-1]:
        raise ShapeError(f"`X` must have shape (*batch, q, d) with d={like.shape[-1]}; got {tuple(X.shape)}.")
    expect_floating("X", X, like=like)
    expect_finite("X", X)
