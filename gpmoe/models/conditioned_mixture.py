"""A mixture of GP experts given further observations, as look-ahead acquisition functions need it.

| symbol | name in code | shape |
|---|---|---|
| (x', y'), the further observations | `X`, `Y` | (*batch, q, d), (*samples, *batch, q, 1) |
| r', probability that expert k made each | `responsibilities` | (*samples, *batch, q, k) |
"""

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from gpmoe.errors import InputError
from gpmoe.models.gaussian_model import ConditionedGP, GaussianModel, expect_inputs
from gpmoe.models.mixture_model import MixtureModel
from gpmoe.shapes import expect_finite, expect_floating, expect_shape

_LEAST_RESPONSIBILITY = 1e-12  # a point of no weight keeps a noise variance that float64 can factorise


class IsMixture(Protocol):
    """What `ConditionedMixture` asks of the model that it conditions."""

    X: Tensor

    @property
    def all_experts(self) -> Sequence[GaussianModel]:
        """The k experts."""

    def gate_probs(self, X: Tensor) -> Tensor:
        """π_k(x), ``(*batch, m, k)``."""


class ConditionedMixture(MixtureModel):
    """A mixture of GP experts given q further observations; gate and hyperparameters stay as they are.

    One step of variational EM at the new points: by the predictive density,

        r'_k ∝ π_k(x') N(y'; μ_k(x'), v_k(x') + σ_k²),

    and expert k is conditioned on y' with noise variance σ_k²/r'_k. Exact for one expert.

    Args:
        base: the mixture, or one that was conditioned before.
        X: ``(*batch, q, d)``.
        Y: ``(*samples, *batch, q, 1)``.
        noise: noise variances, of Y's shape; each expert's own if None.

    Attributes:
        responsibilities: r', ``(*samples, *batch, q, k)``, differentiable in X and Y.

    Raises:
        ShapeError, DtypeError, NonFiniteError: if X and Y don't fit each other or the mixture.
        InputError: for an expert that is no `GaussianModel`.

    Example:
        >>> from gpmoe.models import MixtureOfExperts
        >>> X = torch.linspace(-1, 1, 20, dtype=torch.float64).unsqueeze(-1)
        >>> moe = MixtureOfExperts(X, X.abs().squeeze(-1), n_experts=2, noise=1e-4)
        >>> later = ConditionedMixture(moe, X[-1:] + 2, X.new_ones(1, 1))
        >>> round(later.posterior(X[-1:] + 2).mean.item(), 2)
        1.0
    """

    def __init__(self, base: IsMixture, X: Tensor, Y: Tensor, noise: Tensor | None = None) -> None:
        super().__init__()
        expect_inputs(X, base.X)
        expect_floating("Y", Y, like=X)
        expect_finite("Y", Y)
        expect_shape("Y", Y, last=(X.shape[-2], 1))
        for expert in base.all_experts:
            if not isinstance(expert, GaussianModel):
                raise InputError(f"experts must be Gaussian processes to be conditioned; got {type(expert).__name__}.")
        self.base = base
        self.X = X
        each = [expert.noise_variance(X) if noise is None else noise.squeeze(-1) for expert in base.all_experts]
        self.responsibilities = _membership(base, X, Y.squeeze(-1), each)
        weights = self.responsibilities.clamp_min(_LEAST_RESPONSIBILITY)
        noises = [(variance / weights[..., k]).unsqueeze(-1) for k, variance in enumerate(each)]
        pairs = zip(base.all_experts, noises, strict=True)
        self.experts = torch.nn.ModuleList([ConditionedGP(expert, X, Y, own) for expert, own in pairs])

    @property
    def all_experts(self) -> list[GaussianModel]:
        """The experts, as what they are."""
        return list(self.experts)  # type: ignore[arg-type]

    @property
    def batch_shape(self) -> torch.Size:
        """``(*samples, *batch)``."""
        return self.all_experts[0].batch_shape

    def gate_probs(self, X: Tensor) -> Tensor:
        """π_k(x), ``(*batch, m, k)``: those of the base model."""
        return self.base.gate_probs(X)


def _membership(model: IsMixture, X: Tensor, y: Tensor, noises: Sequence[Tensor]) -> Tensor:
    """Probability that expert k made each new observation, ``(*samples, *batch, q, k)``, differentiable."""
    terms = []
    for expert, noise in zip(model.all_experts, noises, strict=True):
        mean, covariance = expert.latent(X)
        variance = covariance.diagonal(dim1=-2, dim2=-1) + noise
        terms.append(-0.5 * ((2 * math.pi * variance).log() + (y - mean).square() / variance))
    return torch.softmax(torch.stack(terms, -1) + model.gate_probs(X).log(), -1)
