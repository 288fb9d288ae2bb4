"""What gates with parameters share: probabilities from logits, and an M-step by their gradient."""

import math
from abc import abstractmethod
from typing import Any

import gpytorch
import torch
from torch import Tensor

from gpmoe.linalg.minimise_parameters import minimise_parameters

_STEPS = 30  # of L-BFGS in each fit step, which starts where the last one ended


class ParametricGate(gpytorch.Module):
    """A gate at a point estimate of its parameters, π(x) = softmax(ℓ(x)).

    A subclass gives the logits ℓ on parameters in float64, and the log prior of those.

    Args:
        n_experts: k.
    """

    def __init__(self, n_experts: int) -> None:
        super().__init__()
        self.n_experts = n_experts

    @abstractmethod
    def logits(self, X: Tensor) -> Tensor:
        """ℓ(x) for X ``(*batch, m, d)``, ``(*batch, m, k)``, differentiable."""

    @abstractmethod
    def log_prior(self) -> Tensor:
        """See `Gate`: of the parameters, without its normaliser."""

    @abstractmethod
    def description(self) -> dict[str, Any]:
        """See `Gate`."""

    def fit_step(self, X: Tensor, responsibilities: Tensor) -> None:
        """Some steps of L-BFGS up the bound."""
        minimise_parameters(list(self.parameters()), lambda: -self.bound(X, responsibilities), steps=_STEPS)

    def log_probs(self, X: Tensor) -> Tensor:
        """log π_k(x), ``(*batch, m, k)``."""
        return torch.log_softmax(self.logits(X), -1)

    def expected_log_probs(self, X: Tensor) -> Tensor:
        """log π at the point estimate, ``(n, k)``."""
        return self.log_probs(X)

    def bound(self, X: Tensor, responsibilities: Tensor) -> Tensor:
        """See `Gate`; differentiable in the parameters."""
        log_probs = self.log_probs(X)
        finite = torch.where(responsibilities > 0, log_probs, 0.0)  # a sparse gate's -inf times zero is zero
        return (responsibilities * finite).sum() + self.log_prior()

    def log_occam_factor(self, X: Tensor) -> Tensor:
        """-½ p log n for p parameters, as in the Bayesian information criterion; k logits count as k - 1."""
        free = sum(parameter.numel() for parameter in self.parameters()) * (self.n_experts - 1) / self.n_experts
        return X.new_tensor(-0.5 * free * math.log(len(X)))

    @classmethod
    @abstractmethod
    def from_description(cls, description: dict[str, Any]) -> Any:
        """See `Gate`."""
