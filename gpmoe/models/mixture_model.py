"""What mixtures of GP experts give BoTorch: a posterior, and conditioning on further or imagined observations."""

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, cast

import torch
from botorch.acquisition.objective import PosteriorTransform
from botorch.models.model import Model
from botorch.sampling.base import MCSampler
from torch import Tensor

from gpmoe.errors import InputError
from gpmoe.models.gaussian_model import expect_inputs
from gpmoe.models.mixture_posterior import MixturePosterior

if TYPE_CHECKING:
    from gpmoe.models.conditioned_mixture import ConditionedMixture, IsMixture


class MixtureModel(Model):
    """A BoTorch model of one output that is a mixture of GP experts."""

    X: Tensor

    @property
    @abstractmethod
    def all_experts(self) -> list[Any]:
        """The experts: each an `Expert`, and what else its kind is."""

    @abstractmethod
    def gate_probs(self, X: Tensor) -> Tensor:
        """π_k(x), ``(*batch, m, k)``."""

    @property
    def num_outputs(self) -> int:
        """One."""
        return 1

    def posterior(
        self,
        X: Tensor,
        output_indices: list[int] | None = None,
        observation_noise: bool | Tensor = False,
        posterior_transform: PosteriorTransform | None = None,
    ) -> MixturePosterior:
        """Joint posterior at new inputs ``(*batch, q, d)``, in the form BoTorch's Monte Carlo acquisitions take.

        The latent function takes expert k at point i with probability π_k(x_i), independently between points. Noise
        is Gaussian of the expert's variance.

        Raises:
            InputError: for a noise tensor or a transform; a mixture is not Gaussian, so neither has a closed form. Or
                for noise where a likelihood is not Gaussian.
        """
        special = posterior_transform is not None or isinstance(observation_noise, Tensor)
        if output_indices not in (None, [0]) or special:
            raise InputError(
                "a mixture's posterior takes neither transforms nor noise tensors; use a Monte Carlo objective."
            )
        expect_inputs(X, self.X)
        joint = [expert.latent(X) for expert in self.all_experts]
        mean = torch.stack([mean for mean, _ in joint], -2)
        covariance = torch.stack([covariance for _, covariance in joint], -3)
        if observation_noise:
            noise = [expert.noise_variance(X).expand(mean[..., 0, :].shape) for expert in self.all_experts]
            covariance = covariance + torch.diag_embed(torch.stack(noise, -2))
        return MixturePosterior(self.gate_probs(X).expand(mean.mT.shape), mean, covariance)

    def condition_on_observations(
        self, X: Tensor, Y: Tensor, noise: Tensor | None = None, **kwargs: Any
    ) -> "ConditionedMixture":
        """The mixture given further observations; see `ConditionedMixture`.

        Args:
            X: ``(*batch, q, d)``.
            Y: ``(*samples, *batch, q, 1)``.
            noise: noise variances, of Y's shape; each expert's own if None.
            **kwargs: BoTorch's protocol passes some; they are not used.
        """
        from gpmoe.models.conditioned_mixture import ConditionedMixture

        return ConditionedMixture(cast("IsMixture", self), X, Y, noise)

    def fantasize(
        self, X: Tensor, sampler: MCSampler, observation_noise: Tensor | None = None, **kwargs: Any
    ) -> "ConditionedMixture":
        """The mixture given observations that it imagines itself, one model for each sample.

        Args:
            X: ``(*batch, q, d)``.
            sampler: draws the observations.
            observation_noise: must be None: an imagined observation has the noise of the expert that makes it.
            **kwargs: BoTorch's protocol passes some; they are not used.

        Raises:
            InputError: for a noise tensor.
        """
        if observation_noise is not None:
            raise InputError("`observation_noise` must be None: each expert has its own noise variance.")
        posterior = self.posterior(X, observation_noise=True)
        return self.condition_on_observations(X, sampler(posterior))
