"""GRU-D: a gated recurrence in which missing inputs decay to their means and hidden units to zero.

    γ = exp(-max(0, W_γ δ + b_γ)),    x̂ = m x + (1 - m) (γ_x x' + (1 - γ_x) x̃),    ĥ = γ_h ∘ h_{t-1}
    z = σ(W_z x̂ + U_z ĥ + V_z m + b_z),   r likewise,   h̃ = tanh(W x̂ + U (r ∘ ĥ) + V m + b),   h = (1 - z) ∘ ĥ + z ∘ h̃

| symbol | name in code | shape |
|---|---|---|
| x, m, δ: value, whether it is measured, time since the measurement before | parts of `x` | (batch, time, channels) |
| x', x̃: last value measured, mean | `last`, `means` | (batch, channels), (channels,) |
| diagonal W_γx and b_γx; W_γh and b_γh | `input_decay`; `hidden_decay` | (2, channels); linear |
| (W, V) and b of z, r, h̃; U of z and r; U of h̃ | `inputs`; `gates`; `candidate` | linear; (2h, h); (h, h) |

Source: Che, Purushotham, Cho, Sontag and Liu (2018), Recurrent Neural Networks for Multivariate Time Series with
Missing Values, Scientific Reports 8, section "GRU-D" (decay rates, decayed inputs, decayed states, gates).
"""

import math

import torch
from torch import Tensor

from gpmoe.errors import ShapeError
from gpmoe.features.causal_network import checked_series, masked
from gpmoe.features.linear_head import seeded_linear

State = tuple[Tensor, Tensor]  # x' (batch, channels), h (batch, n_outputs)


class DecayingRecurrence(torch.nn.Module):
    """GRU-D as a `CausalNetwork`, float64 until it is cast.

    Its `n_inputs` are three for each channel, side by side: values (any where not measured, NaN too), ones where
    measured and zeros elsewhere, and time since the channel's last measurement before, in any unit.

    Args:
        n_channels: channels.
        n_outputs: hidden units.
        means: what a value decays to, ``(n_channels,)``; zeros if None, for standardised values.
        seed: of the start.

    Raises:
        ShapeError: if there is not one mean for each channel.

    Example:
        >>> values = torch.tensor([[[1.0], [float("nan")]]], dtype=torch.float64)
        >>> measured, since = values.isfinite().to(values), torch.tensor([[[0.0], [2.0]]], dtype=torch.float64)
        >>> network = DecayingRecurrence(1, 4)
        >>> network(torch.cat([values, measured, since], -1)).shape
        torch.Size([1, 2, 4])
    """

    means: Tensor

    def __init__(self, n_channels: int, n_outputs: int, *, means: Tensor | None = None, seed: int = 0) -> None:
        super().__init__()
        means = torch.zeros(n_channels, dtype=torch.float64) if means is None else means
        if means.shape != (n_channels,):
            raise ShapeError(f"`means` must have shape ({n_channels},); got {tuple(means.shape)}.")
        self.n_inputs, self.n_outputs = 3 * n_channels, n_outputs
        self.register_buffer("means", means.double())
        generator = torch.Generator().manual_seed(seed)
        bound = 1 / math.sqrt(n_outputs)

        def draw(*shape: int) -> Tensor:
            return bound * (2 * torch.rand(*shape, dtype=torch.float64, generator=generator) - 1)

        self.input_decay = torch.nn.Parameter(draw(2, n_channels).abs())  # where a decay is zero it has no gradient
        self.hidden_decay = seeded_linear(n_channels, n_outputs, generator)
        self.inputs = seeded_linear(2 * n_channels, 3 * n_outputs, generator)
        self.gates = torch.nn.Parameter(draw(2 * n_outputs, n_outputs))
        self.candidate = torch.nn.Parameter(draw(n_outputs, n_outputs))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """See `CausalNetwork`."""
        values, measured, since = self._parts(checked_series(x, mask, self.n_inputs, self.means))
        driven, decay = self._driven(values, measured, since, self._last(values, measured))
        h, outputs = x.new_zeros(len(x), self.n_outputs), []
        for now, kept in zip(driven.unbind(1), decay.unbind(1), strict=True):
            h = self._advance(now, kept * h)
            outputs.append(h)
        return masked(torch.stack(outputs, 1), mask)

    @torch.no_grad()
    def forward_step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """See `CausalNetwork`."""
        values, measured, since = self._parts(x)
        last = torch.where(measured > 0, values, state[0])
        now, kept = self._driven(values, measured, since, last)
        h = self._advance(now, kept * state[1])
        return h, (last, h)

    def clean_state(self, batch: int) -> State:
        """See `CausalNetwork`: last values, which are the means, and hidden units."""
        return self.means.expand(batch, -1).clone(), self.means.new_zeros(batch, self.n_outputs)

    def _parts(self, x: Tensor) -> list[Tensor]:
        """Values, zero where not measured, ones where measured, and times, ``(*batch, channels)`` each."""
        values, measured, since = x.chunk(3, -1)
        return [torch.where(measured > 0, values, 0.0), measured, since]

    def _last(self, values: Tensor, measured: Tensor) -> Tensor:
        """The last value measured up to each step, or the mean, ``(batch, time, channels)``."""
        steps = torch.arange(values.shape[1], device=values.device).view(1, -1, 1)
        at = torch.where(measured > 0, steps, -1).cummax(1).values
        return torch.where(at < 0, self.means, values.gather(1, at.clamp_min(0)))

    def _driven(self, values: Tensor, measured: Tensor, since: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        """What inputs give to z, r and h̃, ``(*batch, 3 n_outputs)``, and the hidden units' decay."""
        weight, bias = self.input_decay
        share = torch.exp(-torch.relu(weight * since + bias))
        filled = torch.where(measured > 0, values, share * last + (1 - share) * self.means)
        return self.inputs(torch.cat([filled, measured], -1)), torch.exp(-torch.relu(self.hidden_decay(since)))

    def _advance(self, driven: Tensor, h: Tensor) -> Tensor:
        """The next hidden units ``(batch, n_outputs)`` from decayed ones."""
        of_gates, of_candidate = driven.split([2 * self.n_outputs, self.n_outputs], -1)
        update, reset = torch.sigmoid(torch.addmm(of_gates, h, self.gates.mT)).chunk(2, -1)
        candidate = torch.tanh(torch.addmm(of_candidate, reset * h, self.candidate.mT))
        return torch.lerp(h, candidate, update)
