"""A gate whose temperature follows a schedule: dense first, then sparse."""

from typing import Any

import gpytorch
import torch
from torch import Tensor

from gpmoe.errors import InputError
from gpmoe.gates.softmax import SoftmaxGate


class AnnealedGate(gpytorch.Module):
    """Softmax of linear logits over a temperature that falls from step to step, and is not learned.

    π(x) = softmax(ℓ(x) / τ_t) with τ_t = max(final, start · rate^t) after t fit steps. While τ is high every expert
    sees every point; as it falls they part. At the end, with final = 1, this is `SoftmaxGate`; a final below 1 makes
    boundaries sharper than the fit alone.

    Args:
        n_experts: k.
        n_features: d.
        start: τ_0.
        final: what τ falls to.
        rate: factor of τ from one fit step to the next, between 0 and 1.
        precision: of the Gaussian prior on the weights, see `SoftmaxGate`.

    Raises:
        InputError: unless 0 < final <= start and 0 < rate < 1.

    Source: Nie et al. (2022), EvoMoE: dense-to-sparse gates, sec. 3.2, without its noise.

    Example:
        >>> X = torch.linspace(-1, 1, 8, dtype=torch.float64).unsqueeze(-1)
        >>> gate, r = AnnealedGate(2, 1), torch.cat([X < 0, X >= 0], -1).double()
        >>> soft = gate.log_probs(X)
        >>> for _ in range(20):
        ...     gate.fit_step(X, r)
        >>> gate.temperature, gate.log_probs(X)[[0, -1]].argmax(-1).tolist()
        (1.0, [0, 1])
    """

    steps: Tensor

    def __init__(
        self,
        n_experts: int,
        n_features: int,
        start: float = 8.0,
        final: float = 1.0,
        rate: float = 0.8,
        precision: float = 0.01,
    ) -> None:
        super().__init__()
        if not 0 < final <= start or not 0 < rate < 1:
            raise InputError(
                "`start`, `final` and `rate` must obey 0 < final <= start and 0 < rate < 1; "
                f"got {start}, {final}, {rate}."
            )
        self.n_experts = n_experts
        self.start, self.final, self.rate = start, final, rate
        self.dense = SoftmaxGate(n_experts, n_features, precision)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @property
    def temperature(self) -> float:
        """τ after the fit steps so far."""
        return max(self.final, self.start * self.rate ** int(self.steps))

    def fit_step(self, X: Tensor, responsibilities: Tensor) -> None:
        """Fit ℓ at temperature 1, then lower the temperature that it is divided by."""
        self.dense.fit_step(X, responsibilities)
        self.steps = self.steps + 1

    def log_probs(self, X: Tensor) -> Tensor:
        """log π_k(x), ``(*batch, m, k)``."""
        return torch.log_softmax(self.dense.log_probs(X) / self.temperature, -1)

    def expected_log_probs(self, X: Tensor) -> Tensor:
        """log π, ``(n, k)``."""
        return self.log_probs(X)

    def bound(self, X: Tensor, responsibilities: Tensor) -> Tensor:
        """See `Gate`; it may fall where the temperature does."""
        return (responsibilities * self.log_probs(X)).sum() + self.log_prior()

    def log_prior(self) -> Tensor:
        """See `Gate`."""
        return self.dense.log_prior()

    def log_occam_factor(self, X: Tensor) -> Tensor:
        """See `SoftmaxGate`."""
        return self.dense.log_occam_factor(X)

    def description(self) -> dict[str, Any]:
        """See `Gate`."""
        schedule = {"start": self.start, "final": self.final, "rate": self.rate}
        return {**self.dense.description(), **schedule}

    @classmethod
    def from_description(cls, description: dict[str, Any]) -> "AnnealedGate":
        """See `Gate`."""
        names = ("n_experts", "n_features", "start", "final", "rate", "precision")
        return cls(**{name: description[name] for name in names})
