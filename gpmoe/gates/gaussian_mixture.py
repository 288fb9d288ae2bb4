"""A generative gate: which expert a row comes from, by where its inputs lie.

    π_k(x) = p(k) N(x; m_k, S_k) / sum_j p(j) N(x; m_j, S_j)

The model is of inputs and targets together, so the M-step is closed form. The prior of the gate's parameters θ given
the inputs is p(θ | X) ∝ p(θ) prod_n p(x_n | θ); with it the bound of the joint model is the conditional one,

    sum_nk r_nk log p(k) N(x_n; m_k, S_k) + log p(θ) = sum_nk r_nk log π_k(x_n) + log p(θ | X) + constant

| symbol | name in code | shape |
|---|---|---|
| p(k) | `log_weights` | (k,) |
| N(x; m_k, S_k) | `inputs` | |
"""

import math
from typing import Any

import gpytorch
import torch
from torch import Tensor

from gpmoe.gates.gaussian_inputs import Covariance, GaussianInputs


class GaussianMixtureGate(gpytorch.Module):
    """A Gaussian of the inputs for each expert, at the posterior mode; inputs may be missing.

    A missing input is NaN and is integrated out, in the fit and in prediction. Experts get a mode of Dirichlet(1 + 1/k)
    for p(k) and a weak prior for their Gaussians (see `GaussianInputs`), for inputs of about unit variance.

    Args:
        n_experts: k.
        n_features: d.
        covariance: "full", or "diagonal" for many inputs or few rows.

    Raises:
        InputError: for another kind of covariance.

    Source: Xu, Jordan and Hinton (1995), An alternative model for mixtures of experts.

    Example:
        >>> X = torch.linspace(-1, 1, 8, dtype=torch.float64).unsqueeze(-1)
        >>> gate = GaussianMixtureGate(2, 1)
        >>> gate.fit_step(X, torch.cat([X < 0, X >= 0], -1).double())
        >>> gate.log_probs(torch.tensor([[0.9], [torch.nan]])).exp().round(decimals=2)
        tensor([[0.0000, 1.0000],
                [0.5000, 0.5000]], dtype=torch.float64)
    """

    log_weights: Tensor

    def __init__(self, n_experts: int, n_features: int, covariance: Covariance = "full") -> None:
        super().__init__()
        self.n_experts = n_experts
        self.inputs = GaussianInputs(n_experts, n_features, covariance)
        self.register_buffer("log_weights", torch.full((n_experts,), -math.log(n_experts), dtype=torch.float64))
        self.register_buffer("log_density_of_inputs", torch.zeros((), dtype=torch.float64))

    def fit_step(self, X: Tensor, responsibilities: Tensor) -> None:
        """Set weights and Gaussians to their posterior mode; where X has NaN, one step of EM towards it."""
        counts = responsibilities.sum(0) + 1 / self.n_experts
        self.log_weights = (counts / counts.sum()).log()
        self.inputs.fit_step(X, responsibilities)
        self.log_density_of_inputs = torch.logsumexp(self._joint(X), -1).sum()

    def expected_log_probs(self, X: Tensor) -> Tensor:
        """log π at the point estimate, ``(n, k)``."""
        return self.log_probs(X)

    def log_prior(self) -> Tensor:
        """log p(θ | X) of the rows of the last `fit_step`, up to its normaliser; a scalar, nats."""
        return self._log_prior_of_parameters() + self.log_density_of_inputs

    def bound(self, X: Tensor, responsibilities: Tensor) -> Tensor:
        """See `Gate`: sum_nk r_nk log p(k) N(x_n; m_k, S_k) + log p(θ)."""
        return (responsibilities * self._joint(X)).sum() + self._log_prior_of_parameters()

    def log_occam_factor(self, X: Tensor) -> Tensor:
        """Takes the density of the inputs back out, and adds -½ (k - 1) p log n for p parameters of an expert.

        What is left, sum r log π - ½ (k - 1) p log n, is of targets given inputs, as the other gates' evidence is.
        """
        free = (self.n_experts - 1) * (1 + self.inputs.n_parameters)
        of_inputs = torch.logsumexp(self._joint(X), -1).sum() + self._log_prior_of_parameters()
        return -of_inputs - 0.5 * free * math.log(len(X))

    def log_probs(self, X: Tensor) -> Tensor:
        """log π_k(x), ``(*batch, m, k)``; a row of NaN gets the weights p(k)."""
        return torch.log_softmax(self._joint(X), -1)

    def description(self) -> dict[str, Any]:
        """The arguments that make such a gate."""
        d = self.inputs.mean.shape[-1]
        return {"n_experts": self.n_experts, "n_features": d, "covariance": self.inputs.kind}

    @classmethod
    def from_description(cls, description: dict[str, Any]) -> "GaussianMixtureGate":
        """The inverse of `description`."""
        return cls(int(description["n_experts"]), int(description["n_features"]), description["covariance"])

    def _joint(self, X: Tensor) -> Tensor:
        return self.log_weights + self.inputs.log_density(X)

    def _log_prior_of_parameters(self) -> Tensor:
        return self.log_weights.sum() / self.n_experts + self.inputs.log_prior()
