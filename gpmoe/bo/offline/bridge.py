"""A Brownian bridge from poor designs to good ones, and the network that walks it backwards.

    x_t = (1 - m_t) x_high + m_t x_low + √δ_t ε,   δ_t = 2 (m_t - m_t²),   ε ~ N(0, I)
    network: (x_t, m_t, y_high, y_low) ↦ x_t - x_high

| symbol | name in code | shape |
|---|---|---|
| m_t, from 0 at the good end to 1 at the poor one | `m` | (n,) |
| δ_t | `bridge_variance(m)` | (n,) |
| w, weight of the guidance | `guidance` | |
| η, share of fresh noise in a step | `fresh_noise` | |

Guidance is classifier-free: the network sometimes learns without the two values, and sampling goes (1 + w) of the way
from what it says without them to what it says with them. Values are standardised, so that zeros mean "not said".

Source: Li, Xue, Liu and Lai (2023), BBDM: Image-to-image Translation with Brownian Bridge Diffusion Models, eq. 4-13;
Dang et al. (2025), ROOT, sec. 4.2, whose eq. 10 lacks the factor 2 that its program has. Against that program: the two
values keep their order from training to sampling; chance comes from one generator, which is never set back; a step
keeps the variance δ_s of the bridge for every η (there the fresh noise is η² v and the kept one δ_s - v). Adam's rate
falls along half a cosine, in place of an average of weights.
"""

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gpmoe.bo.offline.synthetic_pairs import Pairs
from gpmoe.errors import InputError

_ENDS = (0.001, 0.999)  # m is kept off 0 and 1, where the bridge has no variance


@dataclass(frozen=True)
class BridgeSettings:
    """The network, its training, and how it is walked.

    Attributes:
        hidden: units of each of three hidden layers.
        n_steps, batch_size, learning_rate: of Adam.
        drop: how often training leaves out the two values.
        n_sampling_steps: of a walk from poor to good.
        guidance: w.
        fresh_noise: η, in [0, 1].
    """

    hidden: int = 256
    n_steps: int = 5000
    batch_size: int = 256
    learning_rate: float = 1e-3
    drop: float = 0.15
    n_sampling_steps: int = 200
    guidance: float = 0.5
    fresh_noise: float = 0.2

    def __post_init__(self) -> None:
        counts = (self.hidden, self.n_steps, self.batch_size, self.n_sampling_steps - 1)
        fractions = (self.drop, self.fresh_noise)
        if min(counts) < 1 or not self.learning_rate > 0 or not all(0 <= part <= 1 for part in fractions):
            raise InputError(
                "need hidden, n_steps, batch_size >= 1, n_sampling_steps >= 2, learning_rate > 0 and drop and "
                f"fresh_noise in [0, 1]; got {self}."
            )


def bridge_variance(m: Tensor) -> Tensor:
    """δ = 2 (m - m²), elementwise."""
    return 2 * (m - m.square())


def bridge_step(
    x: Tensor, x_high: Tensor, x_low: Tensor, m: tuple[Tensor, Tensor], eta: float, noise: Tensor
) -> Tensor:
    """From x_t to x_s, nearer to the good end, given both ends; if x_t is from the bridge, so is x_s, for every η.

    Args:
        x, x_high, x_low: ``(n, d)``.
        m: m_t and m_s < m_t, scalars.
        eta: η, in [0, 1]; with 1 the walk is the bridge's own Markov chain backwards, with 0 it is deterministic.
        noise: standard normal, ``(n, d)``.

    Returns:
        ``(n, d)``.
    """
    (m_t, m_s), (d_t, d_s) = m, (bridge_variance(part) for part in m)
    v = (d_t - d_s * ((1 - m_t) / (1 - m_s)).square()) * d_s / d_t
    off = x - (1 - m_t) * x_high - m_t * x_low
    return (1 - m_s) * x_high + m_s * x_low + ((d_s - eta**2 * v) / d_t).sqrt() * off + eta * v.sqrt() * noise


class Bridge(torch.nn.Module):
    """A network of three hidden layers that says how far a point on the bridge is from its good end.

    Args:
        n_inputs: d.
        settings: of network and sampling.
        generator: of the start.

    Example:
        >>> bridge = Bridge(2, BridgeSettings(hidden=8), torch.Generator().manual_seed(0))
        >>> x, one = torch.zeros(5, 2), torch.ones(5)
        >>> bridge(x, 0.5 * one, one, -one).shape
        torch.Size([5, 2])
    """

    def __init__(self, n_inputs: int, settings: BridgeSettings, generator: torch.Generator) -> None:
        super().__init__()
        sizes = [n_inputs + 3, *3 * [settings.hidden], n_inputs]
        self.settings = settings
        self.layers = torch.nn.ModuleList(_linear(*pair, generator) for pair in itertools.pairwise(sizes))

    def forward(self, x: Tensor, m: Tensor, y_high: Tensor, y_low: Tensor) -> Tensor:
        """x_t - x_high of x ``(n, d)`` and m, y_high and y_low ``(n,)``: ``(n, d)``."""
        h = torch.cat([x, torch.stack([m, y_high, y_low], dim=-1)], dim=-1)
        for layer in self.layers[:-1]:
            h = torch.nn.functional.silu(layer(h))
        out: Tensor = self.layers[-1](h)
        return out

    @torch.no_grad()
    def sample(self, x_low: Tensor, y_high: Tensor, y_low: Tensor, generator: torch.Generator) -> Tensor:
        """Walk from poor designs to good ones.

        Args:
            x_low: where to start, ``(n, d)``.
            y_high: values asked for, ``(n,)``.
            y_low: values of the starts, ``(n,)``.
            generator: of the noise.

        Returns:
            Designs, ``(n, d)``.
        """
        steps = torch.linspace(_ENDS[1], _ENDS[0], self.settings.n_sampling_steps).to(x_low)
        x = x_low + bridge_variance(steps[0]).sqrt() * _normal(x_low, generator)
        for m in itertools.pairwise(steps):
            x_high = x - self._guided(x, m[0].expand(len(x)), y_high, y_low)
            x = bridge_step(x, x_high, x_low, m, self.settings.fresh_noise, _normal(x, generator))
        return x - self._guided(x, steps[-1].expand(len(x)), y_high, y_low)

    def _guided(self, x: Tensor, m: Tensor, y_high: Tensor, y_low: Tensor) -> Tensor:
        unsaid = torch.zeros_like(y_high)
        w = self.settings.guidance
        guided: Tensor = (1 + w) * self(x, m, y_high, y_low) - w * self(x, m, unsaid, unsaid)
        return guided


def train_bridge(pairs: Pairs, settings: BridgeSettings, generator: torch.Generator) -> Bridge:
    """Learn x_t - x_high from pairs, by Adam on the mean absolute error.

    Args:
        pairs: designs and values, standardised.
        settings: of network and training.
        generator: of the start, minibatches, times and noise.
    """
    bridge = Bridge(pairs.x_high.shape[-1], settings, generator).to(pairs.x_high)
    adam = torch.optim.Adam(bridge.parameters(), lr=settings.learning_rate)
    for step in range(settings.n_steps):
        adam.param_groups[0]["lr"] = settings.learning_rate * (1 + math.cos(math.pi * step / settings.n_steps)) / 2
        rows = torch.randint(len(pairs.y_low), (settings.batch_size,), generator=generator)
        draw = torch.rand(2, settings.batch_size, dtype=pairs.x_low.dtype, generator=generator)
        m, said = _ENDS[0] + (_ENDS[1] - _ENDS[0]) * draw[0], draw[1] >= settings.drop
        x_high, x_low = pairs.x_high[rows], pairs.x_low[rows]
        spread = bridge_variance(m).sqrt().unsqueeze(-1)
        off = m.unsqueeze(-1) * (x_low - x_high) + spread * _normal(x_low, generator)
        loss = (bridge(x_high + off, m, pairs.y_high[rows] * said, pairs.y_low[rows] * said) - off).abs().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    return bridge


def _linear(n_inputs: int, n_outputs: int, generator: torch.Generator) -> torch.nn.Linear:
    """A layer that starts uniform on ±1/√n_inputs, from a generator."""
    layer = torch.nn.utils.skip_init(torch.nn.Linear, n_inputs, n_outputs)
    for parameter in layer.parameters():
        draw = torch.rand(parameter.shape, generator=generator)
        parameter.data.copy_((2 * draw - 1) / math.sqrt(n_inputs))
    return layer


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, dtype=like.dtype, generator=generator)
