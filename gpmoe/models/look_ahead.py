"""What a mixture needs for acquisition functions that look ahead: conditioning on further or imagined observations."""

from typing import TYPE_CHECKING, Any, cast

from botorch.models.model import Model
from botorch.sampling.base import MCSampler
from torch import Tensor

from gpmoe.errors import InputError

if TYPE_CHECKING:
    from gpmoe.models.conditioned_mixture import ConditionedMixture, IsMixture


class LookAhead(Model):
    """Gives a mixture of GP experts `condition_on_observations` and `fantasize`, as BoTorch calls them."""

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
