"""Layers whose weights follow hyperparameters: an affine, rank-one model of the best response.

    W(λ) = W + (U λ) ∘ W_h,   b(λ) = b + (V λ) ∘ b_h        one gate for each row of W, which is one output unit

| symbol | name in code | shape |
|---|---|---|
| λ, hyperparameters on their unconstrained scale | `raw` | (*batch, h) |
| W, W_h | `weight`, `response_weight` | (out, in), or (out, in, k, k) |
| b, b_h | `bias`, `response_bias` | (out,) |
| U, V | `weight_gates`, `bias_gates` | (out, h) |

A layer costs two of its kind and O(h) for each output. With one hyperparameter the gates lose nothing: any W(λ) that is
affine in λ is of this form.

Source: MacKay, Vicol, Lorraine, Duvenaud and Grosse (2019), Self-Tuning Networks, sec. 3.2, eq. 11-12. Their code also
multiplies W and b by a learned number, which changes the pace of the optimiser but no function, and is left out here.
"""

import math

import torch
from torch import Tensor
from torch.nn import Parameter

from gpmoe.errors import InputError
from gpmoe.shapes import expect_floating, expect_shape

_GATE_SPREAD = 0.01  # standard deviation of the gates at the start: nearly no response


class HyperLinear(torch.nn.Module):
    """A linear layer whose weights are an affine function of hyperparameters.

    Args:
        n_inputs, n_outputs: as of `torch.nn.Linear`.
        n_hyper: h, how many hyperparameters the weights follow.
        seed: of the start. Parameters are float64; ``layer.float()`` makes them float32.

    Raises:
        InputError: for a size below 1.

    Example:
        >>> layer = HyperLinear(3, 2, n_hyper=1)
        >>> x, raw = torch.ones(5, 3, dtype=torch.float64), torch.zeros(5, 1, dtype=torch.float64)
        >>> layer(x, raw).shape
        torch.Size([5, 2])
    """

    def __init__(self, n_inputs: int, n_outputs: int, *, n_hyper: int, seed: int = 0) -> None:
        super().__init__()
        _expect_positive(n_inputs=n_inputs, n_outputs=n_outputs, n_hyper=n_hyper)
        generator = torch.Generator().manual_seed(seed)
        self.weight = _uniform((n_outputs, n_inputs), n_inputs, generator)
        self.bias = _uniform((n_outputs,), n_inputs, generator)
        self.response_weight = _uniform((n_outputs, n_inputs), n_inputs, generator)
        self.response_bias = _uniform((n_outputs,), n_inputs, generator)
        self.weight_gates = _gates(n_outputs, n_hyper, generator)
        self.bias_gates = _gates(n_outputs, n_hyper, generator)

    def forward(self, x: Tensor, raw: Tensor) -> Tensor:
        """W(λ) x + b(λ), each row under hyperparameters of its own.

        Args:
            x: inputs, ``(*batch, in)``.
            raw: hyperparameters, unconstrained, ``(*batch, h)`` or ``(h,)``.

        Returns:
            ``(*batch, out)``.
        """
        _expect_raw(raw, self.weight_gates)
        expect_shape("x", x, last=(self.weight.shape[1],))
        plain = torch.nn.functional.linear(x, self.weight, self.bias)
        response = torch.nn.functional.linear(x, self.response_weight)
        return plain + (raw @ self.weight_gates.mT) * response + (raw @ self.bias_gates.mT) * self.response_bias

    def best_response(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """W(λ) and b(λ), for penalties on them.

        Args:
            raw: ``(*batch, h)``.

        Returns:
            ``(*batch, out, in)`` and ``(*batch, out)``.
        """
        _expect_raw(raw, self.weight_gates)
        weight = self.weight + (raw @ self.weight_gates.mT).unsqueeze(-1) * self.response_weight
        return weight, self.bias + (raw @ self.bias_gates.mT) * self.response_bias


class HyperConv(torch.nn.Module):
    """A two-dimensional convolution whose weights are an affine function of hyperparameters, channel by channel.

    Args:
        n_inputs, n_outputs: channels.
        size: k, of the square window.
        n_hyper: h, how many hyperparameters the weights follow.
        stride, padding: as of `torch.nn.Conv2d`.
        seed: of the start. Parameters are float64; ``layer.float()`` makes them float32.

    Raises:
        InputError: for a size below 1.

    Example:
        >>> layer = HyperConv(1, 4, 3, n_hyper=2)
        >>> image, raw = torch.zeros(5, 1, 8, 8, dtype=torch.float64), torch.zeros(5, 2, dtype=torch.float64)
        >>> layer(image, raw).shape
        torch.Size([5, 4, 6, 6])
    """

    def __init__(
        self,
        n_inputs: int,
        n_outputs: int,
        size: int,
        *,
        n_hyper: int,
        stride: int = 1,
        padding: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        _expect_positive(n_inputs=n_inputs, n_outputs=n_outputs, size=size, n_hyper=n_hyper, stride=stride)
        generator = torch.Generator().manual_seed(seed)
        shape, fan_in = (n_outputs, n_inputs, size, size), n_inputs * size * size
        self.stride, self.padding = stride, padding
        self.weight = _uniform(shape, fan_in, generator)
        self.bias = _uniform((n_outputs,), fan_in, generator)
        self.response_weight = _uniform(shape, fan_in, generator)
        self.response_bias = _uniform((n_outputs,), fan_in, generator)
        self.weight_gates = _gates(n_outputs, n_hyper, generator)
        self.bias_gates = _gates(n_outputs, n_hyper, generator)

    def forward(self, x: Tensor, raw: Tensor) -> Tensor:
        """The convolution of each image under hyperparameters of its own.

        Args:
            x: images, ``(n, in, height, width)``.
            raw: hyperparameters, unconstrained, ``(n, h)`` or ``(h,)``.

        Returns:
            ``(n, out, height', width')``.
        """
        _expect_raw(raw, self.weight_gates)
        expect_shape("x", x, ndim=4, last=(self.weight.shape[1], -1, -1))
        plain = torch.nn.functional.conv2d(x, self.weight, self.bias, self.stride, self.padding)
        response = torch.nn.functional.conv2d(x, self.response_weight, None, self.stride, self.padding)
        shift = (raw @ self.bias_gates.mT) * self.response_bias
        return plain + (raw @ self.weight_gates.mT)[..., None, None] * response + shift[..., None, None]

    def best_response(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """W(λ) and b(λ) of raw ``(*batch, h)``: ``(*batch, out, in, k, k)`` and ``(*batch, out)``."""
        _expect_raw(raw, self.weight_gates)
        weight = self.weight + (raw @ self.weight_gates.mT)[..., None, None, None] * self.response_weight
        return weight, self.bias + (raw @ self.bias_gates.mT) * self.response_bias


def _uniform(shape: tuple[int, ...], fan_in: int, generator: torch.Generator) -> Parameter:
    """Uniform on ±1/√fan_in, as torch starts its layers."""
    draw = torch.rand(shape, dtype=torch.float64, generator=generator)
    return Parameter((2 * draw - 1) / math.sqrt(fan_in))


def _gates(n_outputs: int, n_hyper: int, generator: torch.Generator) -> Parameter:
    return Parameter(_GATE_SPREAD * torch.randn(n_outputs, n_hyper, dtype=torch.float64, generator=generator))


def _expect_raw(raw: Tensor, gates: Tensor) -> None:
    expect_shape("raw", raw, last=(gates.shape[-1],))
    expect_floating("raw", raw, like=gates)


def _expect_positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise InputError(f"`{name}` must be at least 1; got {size}.")
