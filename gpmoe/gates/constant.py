"""A gate that does not look at the input."""

import math
from typing import Any

import gpytorch
import torch
from torch import Tensor


class ConstantGate(gpytorch.Module):
    """Mixing proportions π that are the same everywhere, under a Dirichlet(1 + 1/k) prior.

    Args:
        n_experts: k.

    Example:
        >>> gate = ConstantGate(2)
        >>> gate.fit_step(torch.zeros(3, 1), torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
        >>> gate.log_probs(torch.zeros(1, 1)).exp()
        tensor([[0.6250, 0.3750]])
    """

    logits: Tensor

    def __init__(self, n_experts: int) -> None:
        super().__init__()
        self.n_experts = n_experts
        self.register_buffer("logits", torch.zeros(n_experts, dtype=torch.float64))

    def fit_step(self, X: Tensor, responsibilities: Tensor) -> None:
        """Set the proportions to their posterior mode."""
        counts = responsibilities.sum(0) + 1 / self.n_experts
        self.logits = (counts / counts.sum()).log()

    def expected_log_probs(self, X: Tensor) -> Tensor:
        """The log proportions, ``(n, k)``."""
        return self.log_probs(X)

    def bound(self, X: Tensor, responsibilities: Tensor) -> Tensor:
        """See `Gate`."""
        return (responsibilities * self.log_probs(X)).sum() + self.log_prior()

    def log_prior(self) -> Tensor:
        """Of the proportions, without its normaliser."""
        return torch.log_softmax(self.logits, -1).sum() / self.n_experts

    def log_probs(self, X: Tensor) -> Tensor:
        """The log proportions at each row, ``(*batch, m, k)``."""
        return torch.log_softmax(self.logits, -1).expand(*X.shape[:-1], self.n_experts)

    def log_occam_factor(self, X: Tensor) -> Tensor:
        """-½ (k - 1) log n, as in the Bayesian information criterion."""
        return X.new_tensor(-0.5 * (self.n_experts - 1) * math.log(len(X)))

    def description(self) -> dict[str, Any]:
        """See `Gate`."""
        return {"n_experts": self.n_experts}

    @classmethod
    def from_description(cls, description: dict[str, Any]) -> "ConstantGate":
        """See `Gate`."""
        return cls(int(description["n_experts"]))
