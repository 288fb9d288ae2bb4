"""A small network that bends the inputs of a kernel.

    φ(x) = x + W_L h_{L-1} + b_L,   h_l = act(W_l h_{l-1} + b_l),   h_0 = x

| symbol | name in code | shape |
|---|---|---|
| W_l √fan_in / s and b_l / s, of unit variance under the prior | `weights[l]`, `biases[l]` | (out, in), (out,) |
| s | `weight_scale` | |

The marginal likelihood alone lets a deep kernel fit any small set, noise and all, and rewards it for that. Two things
hold it: a network of no weights leaves the inputs as they are, and so the plain GP; and weights have a prior, which the
data must outweigh to bend them. Parameters are kept in units of that prior's standard deviation, so that a step of an
optimiser is as long in each layer.

Source: Wilson, Hu, Salakhutdinov and Xing (2016), Deep Kernel Learning, for features in front of a kernel; Ober,
Rasmussen and van der Wilk (2021), The Promises and Pitfalls of Deep Kernel Learning, sec. 4, for why it overfits;
MacKay (1992), A Practical Bayesian Framework for Backpropagation Networks, for the prior.
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
from gpmoe.shapes import expect_floating

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
        n_inputs: d, columns of X, of about unit variance; there are as many features.
        hidden: units of each hidden layer.
        activation: of the hidden layers, one of `ACTIVATIONS`.
        weight_scale: s; larger ones let fewer data bend the inputs further, at ½ all but the clearest leave them.
        seed: of the start, which is a draw from the prior.

    Raises:
        InputError: for an unknown activation, no hidden layer, sizes below 1 or a scale that is not positive.

    Example:
        >>> network = FeatureNetwork(3)
        >>> network(torch.zeros(5, 3, dtype=torch.float64)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        n_inputs: int,
        hidden: Sequence[int] = (16,),
        *,
        activation: str = "tanh",
        weight_scale: float = 0.7,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise InputError(f"`activation` must be one of {', '.join(map(repr, ACTIVATIONS))}; got {activation!r}.")
        if not isinstance(hidden, Sequence):
            raise InputError(f"`hidden` must list the units of each hidden layer, such as (16,); got {hidden!r}.")
        if not hidden or min(n_inputs, *hidden) < 1:
            raise InputError(
                f"`n_inputs` and one or more `hidden` sizes must be at least 1; got {n_inputs} and {list(hidden)}."
            )
        if not 0 < weight_scale < math.inf:
            raise InputError(f"`weight_scale` must be positive and finite; got {weight_scale}.")
        self.n_inputs, self.hidden, self.activation = n_inputs, tuple(hidden), activation
        self.weight_scale, self.seed = weight_scale, seed
        generator = torch.Generator().manual_seed(seed)
        draw = [
            torch.randn(after, before + 1, dtype=torch.float64, generator=generator)
            for before, after in itertools.pairwise([n_inputs, *hidden, n_inputs])
        ]
        self.weights = torch.nn.ParameterList([part[:, :-1].clone() for part in draw])
        self.biases = torch.nn.ParameterList([part[:, -1].clone() for part in draw])
        self.register_prior("weights_prior", centred_normal(), _flat)

    @property
    def n_features(self) -> int:
        """Columns of φ(X): as many as X has."""
        return self.n_inputs

    def forward(self, X: Tensor, modulate: Callable[[int, Tensor], Tensor] | None = None) -> Tensor:
        """Features.

        Args:
            X: ``(*batch, n, d)``.
            modulate: what is done to the units of a hidden layer, counted from 0, before their activation,
                ``(*batch, n, units)``; nothing if None.

        Returns:
            φ(X), ``(*batch, n, d)``.

        Raises:
            ShapeError: if X has another number of columns.
            DtypeError: if X is not of the weights' dtype, float64 until they are moved.
        """
        if X.shape[-1] != self.n_inputs:
            raise ShapeError(f"`X` must have shape (*batch, n, {self.n_inputs}); got {tuple(X.shape)}.")
        expect_floating("X", X, like=self.weights[0])
        h, last = X, len(self.weights) - 1
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            scale = self.weight_scale / math.sqrt(weight.shape[-1])
            h = torch.nn.functional.linear(h, scale * weight, self.weight_scale * bias)
            if layer < last:
                h = ACTIVATIONS[self.activation](h if modulate is None else modulate(layer, h))
        return X + h

    def description(self) -> dict[str, Any]:
        """The arguments that make such a network, as JSON-able data."""
        return {
            "n_inputs": self.n_inputs,
            "hidden": list(self.hidden),
            "activation": self.activation,
            "weight_scale": self.weight_scale,
            "seed": self.seed,
        }

    @classmethod
    def from_description(cls, description: dict[str, Any]) -> "FeatureNetwork":
        """The inverse of `description`, before its tensors are set."""
        names = ("n_inputs", "hidden", "activation", "weight_scale", "seed")
        return cls(**{name: description[name] for name in names})


def centred_normal(stddev: float = 1.0) -> NormalPrior:
    """N(0, stddev²) in float64, for each entry of a tensor."""
    zero = torch.zeros((), dtype=torch.float64)
    return NormalPrior(zero, zero + stddev)


def _flat(network: FeatureNetwork) -> Tensor:
    """All parameters in one vector."""
    return torch.cat([parameter.reshape(-1) for parameter in network.parameters()])
