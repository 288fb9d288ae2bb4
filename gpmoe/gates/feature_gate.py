"""A gate on the output of a feature extractor."""

from typing import Any

import gpytorch
import torch
from torch import Tensor

from gpmoe.errors import UnsupportedKernelError
from gpmoe.gates.gate import Gate


class FeatureGate(gpytorch.Module):
    """Any gate, on features φ(x) instead of inputs.

    `fit_step` fits the gate and leaves the extractor as it is; an engine that follows gradients trains both.

    Args:
        extractor: a module from ``(*batch, n, d)`` to ``(*batch, n, features)``.
        gate: of as many features.

    Example:
        >>> from gpmoe.gates import SoftmaxGate
        >>> gate = FeatureGate(torch.nn.Softplus(), SoftmaxGate(2, 1))
        >>> gate.log_probs(torch.zeros(3, 1, dtype=torch.float64)).shape
        torch.Size([3, 2])
    """

    gate: Gate

    def __init__(self, extractor: torch.nn.Module, gate: Gate) -> None:
        super().__init__()
        self.extractor = extractor
        self.gate = gate
        self.n_experts = gate.n_experts

    def fit_step(self, X: Tensor, responsibilities: Tensor) -> None:
        """See `Gate`; of the gate alone."""
        with torch.no_grad():
            features = self.extractor(X)
        self.gate.fit_step(features, responsibilities)

    def expected_log_probs(self, X: Tensor) -> Tensor:
        """See `Gate`."""
        return self.gate.expected_log_probs(self.extractor(X))

    def bound(self, X: Tensor, responsibilities: Tensor) -> Tensor:
        """See `Gate`."""
        return self.gate.bound(self.extractor(X), responsibilities)

    def log_prior(self) -> Tensor:
        """See `Gate`: of the gate. A prior on the extractor's weights counts with the priors of all modules."""
        return self.gate.log_prior()

    def log_occam_factor(self, X: Tensor) -> Tensor:
        """See `Gate`."""
        return self.gate.log_occam_factor(self.extractor(X))

    def log_probs(self, X: Tensor) -> Tensor:
        """See `Gate`."""
        return self.gate.log_probs(self.extractor(X))

    def description(self) -> dict[str, Any]:
        """Refuses: an extractor is code.

        Raises:
            UnsupportedKernelError: always.
        """
        raise UnsupportedKernelError(
            "a gate on a feature extractor can't be written to a file: the extractor is code. Make the gate again, and "
            "load its `state_dict`."
        )

    @classmethod
    def from_description(cls, description: dict[str, Any]) -> "FeatureGate":
        """Refuses, as `description` does."""
        raise UnsupportedKernelError("a gate on a feature extractor can't be read from a file: the extractor is code.")
