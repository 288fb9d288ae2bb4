"""A dilated convolution in time that looks back only, with normed weights, and its rectifier.

    out_t = relu(b + sum_{i<k} W_i x_{t - i d}),   W = g v / |v| for each output,   x_t = 0 for t < 0

Time comes first and channels last: a tap is then a matrix product of the first rows of one block of memory with W_i,
added to the last rows of another. Nothing is padded, gathered or transposed, and products with the zeros before the
start are left out.

| symbol | name in code | shape |
|---|---|---|
| W_i, i counts steps of d into the past | `weight[i]` | (outputs, inputs) |
| v, g, b | `direction`, `gain`, `bias` | (k, outputs, inputs), (outputs, 1), (outputs,) |

Source: Bai, Kolter and Koltun (2018), An Empirical Evaluation of Generic Convolutional and Recurrent Networks for
Sequence Modeling, sec. 3.1-3.3; Salimans and Kingma (2016), Weight Normalization, eq. 2.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class CausalConvolution(torch.nn.Module):
    """A causal convolution and a rectifier on ``(time, batch, channels)``.

    Args:
        n_inputs, n_outputs: channels.
        kernel_size: k, taps.
        dilation: d, steps between taps.
        generator: of the start.

    Example:
        >>> layer = CausalConvolution(3, 4, 2, 8, torch.Generator().manual_seed(0))
        >>> layer(torch.zeros(20, 5, 3, dtype=torch.float64)).shape
        torch.Size([20, 5, 4])
    """

    def __init__(
        self, n_inputs: int, n_outputs: int, kernel_size: int, dilation: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.n_inputs, self.kernel_size, self.dilation = n_inputs, kernel_size, dilation
        draw = torch.randn(kernel_size, n_outputs, n_inputs, dtype=torch.float64, generator=generator)
        self.direction = torch.nn.Parameter(draw * math.sqrt(2 / (kernel_size * n_inputs)))
        self.gain = torch.nn.Parameter(self._norm().detach())
        self.bias = torch.nn.Parameter(torch.zeros(n_outputs, dtype=torch.float64))

    @property
    def span(self) -> int:
        """Steps back to the oldest tap."""
        return (self.kernel_size - 1) * self.dilation

    def weight(self) -> Tensor:
        """W = g v / |v|, ``(k, n_outputs, n_inputs)``."""
        return self.direction * (self.gain / self._norm())

    def forward(self, x: Tensor) -> Tensor:
        """Outputs ``(time, batch, n_outputs)`` of x ``(time, batch, n_inputs)``, differentiable once."""
        output: Tensor = _Convolution.apply(x, self.weight(), self.bias, self.dilation)
        return output

    def step(self, x: Tensor, ring: Tensor, t: int) -> Tensor:
        """The output ``(batch, n_outputs)`` at step t; the input goes into the ring.

        Args:
            x: the input at step t, ``(batch, n_inputs)``.
            ring: the last `span` inputs, ``(span, batch, n_inputs)``, that of step s at ``s % span``; changed in place.
            t: the step, from 0.
        """
        weight = self.weight()
        output = torch.addmm(self.bias, x, weight[0].mT)
        for i in range(1, self.kernel_size):
            output.addmm_(ring[(t - i * self.dilation) % self.span], weight[i].mT)
        if self.span:
            ring[t % self.span] = x
        return output.relu_()

    def _norm(self) -> Tensor:
        """|v| of each output, ``(n_outputs, 1)``."""
        return torch.linalg.vector_norm(self.direction, dim=(0, 2)).unsqueeze(-1)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, dilation: int) -> Tensor:
        time, batch, channels = x.shape
        rows = x.reshape(-1, channels)
        output = torch.addmm(bias, rows, weight[0].mT)
        shifts = [i * dilation * batch for i in range(1, len(weight)) if i * dilation < time]
        for i, shift in enumerate(shifts, 1):
            output[shift:].addmm_(rows[:-shift], weight[i].mT)
        output.relu_()
        ctx.save_for_backward(rows, weight, output)
        ctx.shifts = shifts
        return output.view(time, batch, weight.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, output = ctx.saved_tensors
        slope = torch.ops.aten.threshold_backward(grad.reshape(output.shape), output, 0)
        d_weight = torch.zeros_like(weight)
        torch.mm(slope.mT, rows, out=d_weight[0])
        d_rows = slope @ weight[0] if ctx.needs_input_grad[0] else None
        for i, shift in enumerate(ctx.shifts, 1):
            torch.mm(slope[shift:].mT, rows[:-shift], out=d_weight[i])
            if d_rows is not None:
                d_rows[:-shift].addmm_(slope[shift:], weight[i])
        d_x = None if d_rows is None else d_rows.view(*grad.shape[:2], weight.shape[2])
        return d_x, d_weight, slope.sum(0), None
