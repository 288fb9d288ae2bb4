"""A gate that is a small neural network.

    π(x) = softmax(V tanh(W x + b) + c)

| symbol | name in code | shape |
|---|---|---|
| [W, b] | `hidden` | (width, d + 1) |
| [V, c] | `output` | (k, width + 1) |
"""

import math
from typing import Any

import torch
from torch import Tensor

from gpmoe.gates.parametric_gate import ParametricGate


class NeuralGate(ParametricGate):
    """One hidden layer of tanh units under a Gaussian prior on the weights: boundaries of any shape.

    Args:
        n_experts: k.
        n_features: d, of inputs of about unit variance.
        width: units of the hidden layer.
        precision: of the prior.
        seed: of the hidden layer's start.

    Source: Bishop (2006), sec. 5.1; as a gate, Jacobs, Jordan, Nowlan and Hinton (1991), Adaptive mixtures of local
        experts.

    Example:
        >>> X = torch.linspace(-1, 1, 20, dtype=torch.float64).unsqueeze(-1)
        >>> gate = NeuralGate(2, 1)
        >>> gate.fit_step(X, torch.cat([X.abs() < 0.5, X.abs() >= 0.5], -1).double())
        >>> gate.log_probs(X)[[0, 10, 19]].argmax(-1).tolist()
        [1, 0, 1]
    """

    def __init__(
        self, n_experts: int, n_features: int, width: int = 16, precision: float = 0.01, seed: int = 0
    ) -> None:
        super().__init__(n_experts)
        self.precision, self.seed = precision, seed
        generator = torch.Generator().manual_seed(seed)
        draw = torch.randn(width, n_features + 1, dtype=torch.float64, generator=generator)
        self.hidden = torch.nn.Parameter(draw / math.sqrt(n_features))
        self.output = torch.nn.Parameter(torch.zeros(n_experts, width + 1, dtype=torch.float64))

    def logits(self, X: Tensor) -> Tensor:
        """See `ParametricGate`."""
        features = torch.tanh(X @ self.hidden[:, :-1].mT + self.hidden[:, -1])
        return features @ self.output[:, :-1].mT + self.output[:, -1]

    def log_prior(self) -> Tensor:
        """See `Gate`."""
        return -0.5 * self.precision * (self.hidden.square().sum() + self.output.square().sum())

    def description(self) -> dict[str, Any]:
        """See `Gate`."""
        width, columns = self.hidden.shape
        return {
            "n_experts": self.n_experts,
            "n_features": columns - 1,
            "width": width,
            "precision": self.precision,
            "seed": self.seed,
        }

    @classmethod
    def from_description(cls, description: dict[str, Any]) -> "NeuralGate":
        """See `Gate`."""
        names = ("n_experts", "n_features", "width", "precision", "seed")
        return cls(**{name: description[name] for name in names})
