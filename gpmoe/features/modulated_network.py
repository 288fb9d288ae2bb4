"""Feature-wise linear modulation: experts share a network, and each scales and shifts its hidden units.

    h_l = act(γ_l ∘ (W_l h_{l-1} + b_l) + β_l)

| symbol | name in code | shape |
|---|---|---|
| γ_l - 1, β_l | `gains[l]`, `shifts[l]` | (units,) |

Source: Perez, Strub, de Vries, Dumoulin and Courville (2018), FiLM: Visual Reasoning with a General Conditioning Layer,
eq. 1-2, with the expert as what the modulation is conditioned on.
"""

import math
from typing import Any

import gpytorch
import torch
from torch import Tensor

from gpmoe.errors import InputError
from gpmoe.features.feature_network import FeatureNetwork, centred_normal


class ModulatedNetwork(gpytorch.Module):
    """One expert's view of a shared network.

    It starts as the network itself; a Gaussian prior holds it there until the data want another view.

    Args:
        body: the network, whose parameters are shared by all that are made with it.
        spread: standard deviation of γ about one and of β about zero under the prior.

    Raises:
        InputError: for a spread that is not positive and finite.

    Example:
        >>> body = FeatureNetwork(1)
        >>> first, second = ModulatedNetwork(body), ModulatedNetwork(body)
        >>> first.body is second.body
        True
    """

    def __init__(self, body: FeatureNetwork, *, spread: float = 0.5) -> None:
        super().__init__()
        if not 0 < spread < math.inf:
            raise InputError(f"`spread` must be positive and finite; got {spread}.")
        self.body, self.spread = body, spread
        self.gains = torch.nn.ParameterList([torch.zeros(units, dtype=torch.float64) for units in body.hidden])
        self.shifts = torch.nn.ParameterList([torch.zeros(units, dtype=torch.float64) for units in body.hidden])
        self.register_prior("modulation_prior", centred_normal(spread), _own)

    @property
    def n_features(self) -> int:
        """Columns of φ(X): as many as X has."""
        return self.body.n_features

    def forward(self, X: Tensor) -> Tensor:
        """φ(X) of X ``(*batch, n, d)``, ``(*batch, n, d)``."""
        features: Tensor = self.body(X, self._modulate)
        return features

    def description(self) -> dict[str, Any]:
        """The arguments that make such a network, as JSON-able data."""
        return {"body": self.body.description(), "spread": self.spread}

    @classmethod
    def from_description(cls, description: dict[str, Any]) -> "ModulatedNetwork":
        """The inverse of `description`, with a body of its own, before tensors are set."""
        return cls(FeatureNetwork.from_description(description["body"]), spread=description["spread"])

    def _modulate(self, layer: int, h: Tensor) -> Tensor:
        return torch.addcmul(self.shifts[layer], 1 + self.gains[layer], h)


def _own(network: ModulatedNetwork) -> Tensor:
    """γ - 1 and β of all layers in one vector."""
    return torch.cat([*network.gains, *network.shifts])
