"""A linear map of each step: the last layer of a network, or a network of its own."""

import math

import torch
from torch import Tensor

from gpmoe.features.causal_network import checked_series, masked


class LinearHead(torch.nn.Module):
    """A `CausalNetwork` without memory, float64 until it is cast.

    Args:
        n_inputs, n_outputs: channels.
        seed: of the start.

    Example:
        >>> head = LinearHead(8, 1)
        >>> head(torch.zeros(2, 5, 8, dtype=torch.float64)).shape
        torch.Size([2, 5, 1])
    """

    def __init__(self, n_inputs: int, n_outputs: int, *, seed: int = 0) -> None:
        super().__init__()
        self.n_inputs, self.n_outputs = n_inputs, n_outputs
        self.linear = seeded_linear(n_inputs, n_outputs, torch.Generator().manual_seed(seed))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """See `CausalNetwork`."""
        return masked(self.linear(checked_series(x, mask, self.n_inputs, self.linear.bias)), mask)

    @torch.no_grad()
    def forward_step(self, x: Tensor, state: None) -> tuple[Tensor, None]:
        """See `CausalNetwork`."""
        return self.linear(x), None

    def clean_state(self, batch: int) -> None:
        """See `CausalNetwork`: nothing."""
        return None


def seeded_linear(n_inputs: int, n_outputs: int, generator: torch.Generator) -> torch.nn.Linear:
    """A linear layer, uniform in ±1/√n_inputs as torch's are, drawn by a generator."""
    layer = torch.nn.utils.skip_init(torch.nn.Linear, n_inputs, n_outputs, dtype=torch.float64)
    draw_uniform(layer, 1 / math.sqrt(n_inputs), generator)
    return layer


def draw_uniform(module: torch.nn.Module, bound: float, generator: torch.Generator) -> None:
    """Set all parameters to uniform numbers in ±bound."""
    for parameter in module.parameters():
        draw = torch.rand(parameter.shape, dtype=torch.float64, generator=generator)
        parameter.data.copy_((2 * draw - 1) * bound)
