"""A gate whose temperature can be learned.

    π(x) = softmax((σ(B'x) + b) / τ),     σ = tanh, GELU or sigmoid, elementwise

With a linear gate, σ(z) = z, (B, b, τ) and (cB, cb, cτ) give the same probabilities for every c: the Fisher information
is singular and τ can't be estimated. A nonlinear σ breaks the tie.

| symbol | name in code | shape |
|---|---|---|
| B | `slopes` | (d, k) |
| b | `offsets` | (k,) |
| τ | `temperature` | () |

Source: Nguyen, Akbarian and Ho (2024), Is temperature sample efficient for softmax Gaussian mixture of experts?
"""

from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import gelu

from gpmoe.errors import InputError
from gpmoe.gates.parametric_gate import ParametricGate

Activation = Literal["tanh", "gelu", "sigmoid"]


class ActivationGate(ParametricGate):
    """Dense gate on activated scores, with a learned temperature.

    Priors: N(0, 1/λ) on slopes and offsets, and N(0, 1) on log τ.

    Args:
        n_experts: k.
        n_features: d, of inputs of about unit variance.
        activation: σ.
        precision: λ.
        seed: of the slopes' start, since equal slopes never part.

    Raises:
        InputError: for another activation; a linear one with the reason.

    Example:
        >>> X = torch.linspace(-1, 1, 20, dtype=torch.float64).unsqueeze(-1)
        >>> gate = ActivationGate(2, 1)
        >>> gate.fit_step(X, torch.cat([X < 0, X >= 0], -1).double())
        >>> gate.log_probs(X)[[0, -1]].argmax(-1).tolist()
        [0, 1]
    """

    def __init__(
        self,
        n_experts: int,
        n_features: int,
        activation: Activation = "tanh",
        precision: float = 0.01,
        seed: int = 0,
    ) -> None:
        super().__init__(n_experts)
        if activation not in get_args(Activation):
            reason = ""
            if activation in ("linear", "identity", None):
                reason = (
                    " A linear gate has no temperature to learn: scaling slopes, offsets and temperature together "
                    "changes nothing, so their Fisher information is singular. For a schedule of temperatures take "
                    "AnnealedGate."
                )
            raise InputError(f"`activation` must be one of {get_args(Activation)}; got {activation!r}.{reason}")
        self.activation, self.precision, self.seed = activation, precision, seed
        generator = torch.Generator().manual_seed(seed)
        draw = 0.1 * torch.randn(n_features, n_experts, dtype=torch.float64, generator=generator)
        self.slopes = torch.nn.Parameter(draw)
        self.offsets = torch.nn.Parameter(torch.zeros(n_experts, dtype=torch.float64))
        self.log_temperature = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    @property
    def temperature(self) -> Tensor:
        """τ, ``()``."""
        return self.log_temperature.exp()

    def logits(self, X: Tensor) -> Tensor:
        """See `ParametricGate`."""
        score = X @ self.slopes
        if self.activation == "tanh":
            score = torch.tanh(score)
        elif self.activation == "gelu":
            score = gelu(score)
        else:
            score = torch.sigmoid(score)
        return (score + self.offsets) / self.temperature

    def log_prior(self) -> Tensor:
        """See `Gate`."""
        weights = self.slopes.square().sum() + self.offsets.square().sum()
        return -0.5 * self.precision * weights - 0.5 * self.log_temperature.square()

    def description(self) -> dict[str, Any]:
        """See `Gate`."""
        return {
            "n_experts": self.n_experts,
            "n_features": len(self.slopes),
            "activation": self.activation,
            "precision": self.precision,
            "seed": self.seed,
        }

    @classmethod
    def from_description(cls, description: dict[str, Any]) -> "ActivationGate":
        """See `Gate`."""
        names = ("n_experts", "n_features", "activation", "precision", "seed")
        return cls(**{name: description[name] for name in names})
