"""A small network whose outputs are the inputs of a kernel.

    φ(x) = W_L h_{L-1} + b_L,   h_l = act(W_l h_{l-1} + b_l),   h_0 = x

| symbol | name in code | shape |
|---|---|---|
| W_l √fan_in / s and b_l / s, of unit variance under the prior | `weights[l]`, `biases[l]` | (out, in), (out,) |
| s | `weight_scale` | |

Parameters are kept in units of their prior's standard deviation, so that a step of an optimiser is as long in each
layer, and their log prior, without which a deep kernel fits any small set, is a sum of squares.

Source: MacKay (1992), A practical Bayesian framework for backpropagation networks; Ober, Rasmussen and van der Wilk
(2021), The Promises and Pitfalls of Deep Kernel Learning, sec. 4, for why the marginal likelihood alone overfits.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import gpytorch
import torch
from gpytorch.priors import NormalPrior
from torch import Tensor

from gpmoe.errors import InputError, ShapeError

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "gelu": torch.nn.functional.gelu,
    "silu": torch.nn.functional.silu,
}


class FeatureNetwork(gpytorch.Module):
    """A multilayer perceptron under a Gaussian prior on its weights, which every GPyTorch objective adds.

    Weights of the last layer and the lengthscales of the kernel on the features do the same: let that kernel have a
    prior on its lengthscales, as `kernels.dimension_scaled_matern` has, or the fit slides along their ratio for ever.

    Args:
        widths: inputs, units of each hidden layer, features; at least the two ends.
        activation: of the hidden layers, one of `ACTIVATIONS`.
        weight_scale: s; under the prior a feature's standard deviation is about s for inputs of unit variance.
        seed: of the start, which is a draw from the prior.

    Attributes:
        n_inputs, n_features: the ends of `widths`.

    Raises:
        InputError: for an unknown activation, fewer than two widths, or one below 1.

    Example:
        >>> network = FeatureNetwork([3, 16, 2])
        >>> network(torch.zeros(5, 3, dtype=torch.float64)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self, widths: Sequence[int], *, activation: str = "tanh", weight_scale: float = 1.0, seed: int = 0
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise InputError(f"`activation` must be one of {', '.join(map(repr, ACTIVATIONS))}; got {activation!r}.")
        if len(widths) < 2 or min(widths) < 1:
            raise InputError(f"`widths` must be two or more numbers of at least 1; got {list(widths)}.")
        if not 0 < weight_scale < math.inf:
            raise InputError(f"`weight_scale` must be positive and finite; got {weight_scale}.")
        self.widths, self.activation, self.weight_scale, self.seed = tuple(widths), activation, weight_scale, seed
        generator = torch.Generator().manual_seed(seed)
        draw = [
            torch.randn(after, before + 1, dtype=torch.float64, generator=generator)
            for before, after in itertools.pairwise(widths)
        ]
        self.weights = torch.nn.ParameterList([part[:, :-1].clone() for part in draw])
        self.biases = torch.nn.ParameterList([part[:, -1].clone() for part in draw])
        self.register_prior("weights_prior", standard_normal(), _flat)

    @property
    def n_inputs(self) -> int:
        """Columns of X."""
        return self.widths[0]

    @property
    def n_features(self) -> int:
        """Columns of φ(X)."""
        return self.widths[-1]

    def forward(self, X: Tensor, modulate: Callable[[int, Tensor], Tensor] | None = None) -> Tensor:
        """Features.

        Args:
            X: ``(*batch, n, d)``.
            modulate: what is done to the units of a hidden layer, counted from 0, before their activation,
                ``(*batch, n, units)``; nothing if None.

        Returns:
            φ(X), ``(*batch, n, features)``.

        Raises:
            ShapeError: if X has another number of columns.
        """
        if X.shape[-1] != self.n_inputs:
            raise ShapeError(f"`X` must have shape (*batch, n, {self.n_inputs}); got {tuple(X.shape)}.")
        h, last = X, len(self.weights) - 1
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            scale = self.weight_scale / math.sqrt(weight.shape[-1])
            h = torch.nn.functional.linear(h, scale * weight, self.weight_scale * bias)
            if layer < last:
                h = ACTIVATIONS[self.activation](h if modulate is None else modulate(layer, h))
        return h

    def description(self) -> dict[str, Any]:
        """The arguments that make such a network, as JSON-able data."""
        return {
            "widths": list(self.widths),
            "activation": self.activation,
            "weight_scale": self.weight_scale,
            "seed": self.seed,
        }

    @classmethod
    def from_description(cls, description: dict[str, Any]) -> "FeatureNetwork":
        """The inverse of `description`, before its tensors are set."""
        return cls(**{name: description[name] for name in ("widths", "activation", "weight_scale", "seed")})


def standard_normal(stddev: float = 1.0) -> NormalPrior:
    """N(0, stddev²) in float64, for each entry of a tensor."""
    zero = torch.zeros((), dtype=torch.float64)
    return NormalPrior(zero, zero + stddev)


def _flat(network: FeatureNetwork) -> Tensor:
    """All parameters in one vector."""
    return torch.cat([parameter.reshape(-1) for parameter in network.parameters()])
