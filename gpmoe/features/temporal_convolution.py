"""Temporal convolutional network: residual blocks of dilated causal convolutions.

    h^(0) = x,   h^(i+1) = relu(F_i(h^(i)) + R_i h^(i)),   F_i = [dropout relu conv]²,   dilation 2^i

R_i is the identity, or a linear map where channels differ. Nothing is normed over time or over a batch, so that a score
depends on its own series' past alone.

Source: Bai, Kolter and Koltun (2018), An Empirical Evaluation of Generic Convolutional and Recurrent Networks for
Sequence Modeling, sec. 3.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from gpmoe.errors import InputError
from gpmoe.features.causal_convolution import CausalConvolution
from gpmoe.features.causal_network import checked_series, masked
from gpmoe.features.linear_head import seeded_linear


@dataclass
class ConvolutionState:
    """What a stream of series needs of its past.

    Attributes:
        rings: for each convolution the inputs that it looks back to, ``(span, batch, channels)``; zeros in a series'
            place make it a new one.
        step: steps seen.
    """

    rings: list[Tensor]
    step: int


class TemporalConvolution(torch.nn.Module):
    """A `CausalNetwork` of residual blocks, float64 until it is cast.

    Args:
        n_inputs: channels of x.
        n_outputs: channels of every block.
        n_blocks: block i has dilation 2^i; the network looks back `receptive_field` steps.
        kernel_size: taps of each convolution.
        dropout: share of channels that training drops, each for a whole series, by torch's global generator; none is
            dropped in evaluation mode and in `forward_step`.
        seed: of the start.

    Raises:
        InputError: for sizes below 1 or a dropout outside [0, 1).

    Example:
        >>> network = TemporalConvolution(3, 8, n_blocks=2).eval()
        >>> x = torch.ones(1, 5, 3, dtype=torch.float64)
        >>> state = network.clean_state(1)
        >>> for t in range(5):
        ...     output, state = network.forward_step(x[:, t], state)
        >>> torch.allclose(output, network(x)[:, -1])
        True
    """

    def __init__(
        self,
        n_inputs: int,
        n_outputs: int,
        *,
        n_blocks: int = 4,
        kernel_size: int = 3,
        dropout: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if min(n_inputs, n_outputs, n_blocks, kernel_size) < 1:
            raise InputError(
                f"`n_inputs`, `n_outputs`, `n_blocks` and `kernel_size` must be at least 1; got {n_inputs}, "
                f"{n_outputs}, {n_blocks}, {kernel_size}."
            )
        if not 0 <= dropout < 1:
            raise InputError(f"`dropout` must be in [0, 1); got {dropout}.")
        self.n_inputs, self.n_outputs, self.dropout = n_inputs, n_outputs, dropout
        generator = torch.Generator().manual_seed(seed)
        self.convolutions = torch.nn.ModuleList(
            CausalConvolution(n_inputs if i + j == 0 else n_outputs, n_outputs, kernel_size, 2**i, generator)
            for i in range(n_blocks)
            for j in range(2)
        )
        self.shortcut = seeded_linear(n_inputs, n_outputs, generator) if n_inputs != n_outputs else torch.nn.Identity()

    @property
    def receptive_field(self) -> int:
        """Steps that an output depends on, its own included."""
        return 1 + sum(layer.span for layer in self._layers())

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """See `CausalNetwork`."""
        layers = self._layers()
        h = checked_series(x, mask, self.n_inputs, layers[0].bias).transpose(0, 1).contiguous()
        for first, second in zip(layers[::2], layers[1::2], strict=True):
            shortcut = self.shortcut(h) if first is layers[0] else h
            h = self._dropped(second(self._dropped(first(h))))
            h = (h + shortcut).relu_()
        return masked(h.transpose(0, 1), mask)

    @torch.no_grad()
    def forward_step(self, x: Tensor, state: ConvolutionState) -> tuple[Tensor, ConvolutionState]:
        """See `CausalNetwork`; the state is changed in place."""
        h, layers = x, self._layers()
        for i in range(0, len(layers), 2):
            shortcut = self.shortcut(h) if i == 0 else h
            for layer, ring in zip(layers[i : i + 2], state.rings[i : i + 2], strict=True):
                h = layer.step(h, ring, state.step)
            h = h.add_(shortcut).relu_()
        state.step += 1
        return h, state

    def clean_state(self, batch: int) -> ConvolutionState:
        """See `CausalNetwork`."""
        return ConvolutionState(
            [layer.bias.new_zeros(layer.span, batch, layer.n_inputs, requires_grad=False) for layer in self._layers()],
            0,
        )

    def _layers(self) -> list[CausalConvolution]:
        return list(self.convolutions)  # type: ignore[arg-type]

    def _dropped(self, h: Tensor) -> Tensor:
        """Whole channels of a series dropped, others made larger for it."""
        if not self.training or self.dropout == 0:
            return h
        return h * torch.nn.functional.dropout(h.new_ones(h.shape[1:]), self.dropout)
