"""A gate linear in the input.

| symbol | name in code | shape |
|---|---|---|
| A = [1, X] | `A` | (n, d + 1) |
| W | `weights` | (d + 1, k) |
| π = softmax(A W) | `log_probs` | (n, k) |
| prior W ~ N(0, 1/λ) | `precision` | λ |
"""

import math
from typing import Any

import gpytorch
import torch
from torch import Tensor

from gpmoe.errors import InputError
from gpmoe.linalg import lapack


class SoftmaxGate(gpytorch.Module):
    """Multinomial logistic regression: π_k(x) ∝ exp(w_k'[1, x]), with a Gaussian prior on the weights.

    The prior's standard deviation, 10 for inputs of unit variance, lets experts change over within a tenth of a
    standard deviation of an input, but not in a step.

    Args:
        n_experts: k.
        n_features: d.
        precision: of the prior, λ.

    Raises:
        InputError: for a precision that is not positive and finite.

    Source: Jordan and Jacobs (1994), Hierarchical Mixtures of Experts, sec. 3; the Newton step is Bishop (2006), eq.
        4.109-4.110.

    Example:
        >>> X = torch.linspace(-1, 1, 8, dtype=torch.float64).unsqueeze(-1)
        >>> gate = SoftmaxGate(2, 1)
        >>> gate.fit_step(X, torch.cat([X < 0, X >= 0], -1).double())
        >>> gate.log_probs(X[:1]).argmax().item()
        0
    """

    weights: Tensor

    def __init__(self, n_experts: int, n_features: int, precision: float = 0.01) -> None:
        super().__init__()
        if not 0 < precision < math.inf:
            raise InputError(f"`precision` of the prior on the weights must be positive and finite; got {precision}.")
        self.n_experts = n_experts
        self.precision = precision
        self.register_buffer("weights", torch.zeros(n_features + 1, n_experts, dtype=torch.float64))

    def fit_step(self, X: Tensor, responsibilities: Tensor) -> None:
        """Newton's method with step halving to the posterior mode of the weights; a row counts as its sum does."""
        A = _with_one(X)
        value = self._objective(self.weights, A, responsibilities)
        for _ in range(50):
            step = self._newton_step(A, responsibilities)
            size = 1.0
            trial = self.weights + step
            new = self._objective(trial, A, responsibilities)
            while new < value and size > 1e-6:
                size /= 2
                trial = self.weights + size * step
                new = self._objective(trial, A, responsibilities)
            if new < value:
                return
            self.weights, gained, value = trial, float(new - value), new
            if gained < 1e-10 * max(1.0, abs(float(value))):
                return

    def _objective(self, weights: Tensor, A: Tensor, responsibilities: Tensor) -> Tensor:
        log_likelihood = (responsibilities * torch.log_softmax(A @ weights, -1)).sum()
        return log_likelihood + self._log_prior_of(weights)

    def _log_prior_of(self, weights: Tensor) -> Tensor:
        return -0.5 * self.precision * weights.square().sum()

    def _newton_step(self, A: Tensor, responsibilities: Tensor) -> Tensor:
        """H⁻¹ g."""
        mass = responsibilities.sum(-1, keepdim=True)
        probs = torch.softmax(A @ self.weights, -1)
        gradient = A.mT @ (responsibilities - mass * probs) - self.precision * self.weights
        return torch.linalg.solve(self._hessian(A, mass), gradient.reshape(-1)).reshape(self.weights.shape)

    def _hessian(self, A: Tensor, mass: Tensor) -> Tensor:
        """H of the negative objective, ``((d + 1) k, (d + 1) k)``, for rows that count `mass` times, ``(n, 1)``."""
        size = self.weights.numel()
        probs = torch.softmax(A @ self.weights, -1)
        curvature = mass.unsqueeze(-1) * (torch.diag_embed(probs) - probs.unsqueeze(-1) * probs.unsqueeze(-2))
        weighted = curvature.permute(1, 2, 0).unsqueeze(-1) * A  # (k, k, n, d + 1)
        H = (A.mT @ weighted).permute(2, 0, 3, 1).reshape(size, size)
        lapack.diagonal(H).add_(self.precision)
        return H

    def expected_log_probs(self, X: Tensor) -> Tensor:
        """log π at the point estimate, ``(n, k)``."""
        return self.log_probs(X)

    def bound(self, X: Tensor, responsibilities: Tensor) -> Tensor:
        """See `Gate`; the prior without its normaliser, which `log_occam_factor` holds."""
        return self._objective(self.weights, _with_one(X), responsibilities)

    def log_prior(self) -> Tensor:
        """Of the weights, without its normaliser."""
        return self._log_prior_of(self.weights)

    def log_occam_factor(self, X: Tensor) -> Tensor:
        """-½ log|H/λ|, Laplace's approximation of what the weights' posterior is narrower than their prior."""
        _, log_det = torch.linalg.slogdet(self._hessian(_with_one(X), torch.ones_like(X[:, :1])) / self.precision)
        return -0.5 * log_det

    def log_probs(self, X: Tensor) -> Tensor:
        """log π_k(x), ``(*batch, m, k)``."""
        return torch.log_softmax(_with_one(X) @ self.weights, -1)

    def description(self) -> dict[str, Any]:
        """See `Gate`."""
        features = self.weights.shape[0] - 1
        return {"n_experts": self.n_experts, "n_features": features, "precision": self.precision}

    @classmethod
    def from_description(cls, description: dict[str, Any]) -> "SoftmaxGate":
        """See `Gate`."""
        return cls(int(description["n_experts"]), int(description["n_features"]), float(description["precision"]))


def _with_one(X: Tensor) -> Tensor:
    return torch.cat([torch.ones_like(X[..., :1]), X], -1)
