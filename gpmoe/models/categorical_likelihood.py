"""The softmax likelihood of one of C classes, by fixed points instead of random draws.

| symbol | name in code | shape |
|---|---|---|
| latent functions f_c, independent given x | `latent`, batch (C,), event (b,) | |
| standard normal points ε_s | `points` | (S, C) |

    E log p(y | f) ≈ 1/S Σ_s log softmax(μ + σ ε_s)_y,   p(y) ≈ 1/S Σ_s softmax(μ + σ ε_s)_y
"""

import torch
from gpytorch.distributions import MultivariateNormal
from gpytorch.likelihoods import Likelihood
from torch import Tensor
from torch.distributions import Categorical

from gpmoe.errors import InputError

_POINTS = 32  # and as many on the other side of zero


class CategoricalLikelihood(Likelihood):
    """p(y = c | f) = exp(f_c) / Σ_j exp(f_j), integrated over f by 64 quasi-random points, the same for every row.

    GPyTorch's `SoftmaxLikelihood` draws new points from the global generator each time, so a fit by it can't be
    repeated.

    Args:
        n_classes: C, at least 2.

    Raises:
        InputError: if there are fewer than two classes.

    Source: points by Owen-scrambled Sobol sequences, Owen (1998), mirrored at zero so that odd moments vanish.

    Example:
        >>> likelihood = CategoricalLikelihood(3)
        >>> latent = MultivariateNormal(torch.zeros(3, 2), torch.eye(2).expand(3, 2, 2))
        >>> likelihood(latent).probs.sum(-1)
        tensor([1., 1.])
    """

    points: Tensor

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        if n_classes < 2:
            raise InputError(f"`n_classes` must be at least 2; got {n_classes}.")
        self.n_classes = n_classes
        uniform = torch.quasirandom.SobolEngine(n_classes, scramble=True, seed=0).draw(_POINTS, dtype=torch.float64)
        normal = torch.special.ndtri(uniform.clamp(1e-6, 1 - 1e-6))
        self.register_buffer("points", torch.cat([normal, -normal]), persistent=False)

    def forward(self, function_samples: Tensor, *args: object, **kwargs: object) -> Categorical:
        """The classes' distribution given latent values ``(*sample, C, b)``."""
        return Categorical(logits=function_samples.mT)

    def expected_log_prob(self, observations: Tensor, latent: MultivariateNormal, *args: object) -> Tensor:
        """E log p(y | f) for class indices ``(b,)`` and a latent of batch ``(C,)``, ``(b,)``, nats."""
        return self._log_probs_of(observations, latent).mean(0)

    def log_marginal(self, observations: Tensor, latent: MultivariateNormal, *args: object) -> Tensor:
        """log p(y) for class indices ``(b,)``, ``(b,)``, nats."""
        log_probs = self._log_probs_of(observations, latent)
        return torch.logsumexp(log_probs, 0) - torch.tensor(float(len(log_probs)), dtype=log_probs.dtype).log()

    def marginal(self, latent: MultivariateNormal, *args: object, **kwargs: object) -> Categorical:
        """p(y = c) at each point, a `Categorical` of batch ``(b,)``."""
        return Categorical(probs=torch.softmax(self._logits(latent), -1).mean(0))

    def _log_probs_of(self, observations: Tensor, latent: MultivariateNormal) -> Tensor:
        """``(S, b)``."""
        logits = self._logits(latent)
        index = observations.long().expand(logits.shape[:-1]).unsqueeze(-1)
        return torch.log_softmax(logits, -1).gather(-1, index).squeeze(-1)

    def _logits(self, latent: MultivariateNormal) -> Tensor:
        """``(S, b, C)``."""
        return latent.mean.mT + latent.variance.sqrt().mT * self.points.to(latent.mean).unsqueeze(-2)
