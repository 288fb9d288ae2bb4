"""A gated recurrent network with the interface of causal networks.

Source: Cho, van Merriënboer, Gulcehre, Bahdanau, Bougares, Schwenk and Bengio (2014), Learning Phrase Representations
using RNN Encoder-Decoder, sec. 2.3.
"""

import math

import torch
from torch import Tensor

from gpmoe.features.causal_network import checked_series, masked
from gpmoe.features.linear_head import draw_uniform


class GatedRecurrence(torch.nn.Module):
    """`torch.nn.GRU` as a `CausalNetwork`, float64 until it is cast.

    Args:
        n_inputs: channels of x.
        n_outputs: hidden units.
        n_layers: layers, one upon another.
        seed: of the start.

    Example:
        >>> network = GatedRecurrence(3, 8)
        >>> network(torch.zeros(2, 5, 3, dtype=torch.float64)).shape
        torch.Size([2, 5, 8])
    """

    def __init__(self, n_inputs: int, n_outputs: int, *, n_layers: int = 1, seed: int = 0) -> None:
        super().__init__()
        self.n_inputs, self.n_outputs = n_inputs, n_outputs
        made = torch.nn.GRU(n_inputs, n_outputs, n_layers, batch_first=True, dtype=torch.float64, device="meta")
        self.gru = made.to_empty(device="cpu")  # a start of its own would draw from the global generator
        draw_uniform(self.gru, 1 / math.sqrt(n_outputs), torch.Generator().manual_seed(seed))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """See `CausalNetwork`."""
        return masked(self.gru(checked_series(x, mask, self.n_inputs, self.gru.all_weights[0][0]))[0], mask)

    @torch.no_grad()
    def forward_step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """See `CausalNetwork`."""
        output, state = self.gru(x.unsqueeze(1), state)
        return output.squeeze(1), state

    def clean_state(self, batch: int) -> Tensor:
        """See `CausalNetwork`: hidden units, ``(layers, batch, n_outputs)``."""
        return self.gru.all_weights[0][0].new_zeros(self.gru.num_layers, batch, self.n_outputs)
