"""Tasks with spectra of their own, and delays between them."""

import math
from typing import Any

import torch
from gpytorch.priors import NormalPrior
from torch import Tensor
from torch.nn import Parameter

from gpmoe.errors import InputError
from gpmoe.kernels.parameter import constrained, declare_positive, set_constrained
from gpmoe.kernels.task_rows import TaskRowKernel, pairs_of_rows


class SpectralTaskKernel(TaskRowKernel):
    """The multi-output spectral mixture: tasks that oscillate alike, each later or earlier, wider or narrower.

    In component q, task t has a Gaussian spectrum of mean μ_t and standard deviation s_t, in cycles per unit of each
    input, amplitude w_t, delay θ_t and phase φ_t. Over pairs of tasks, with every operation by input,

        s² = 2 s_t² s_t'² / (s_t² + s_t'²),   μ = (s_t² μ_t' + s_t'² μ_t) / (s_t² + s_t'²),
        c = w_t w_t' Π sqrt(2 s_t s_t' / (s_t² + s_t'²)) exp(-¼ (μ_t - μ_t')² / (s_t² + s_t'²)),
        k = Σ_q c exp(-2π² Σ s² δ²) cos(2π Σ μ δ + φ_t - φ_t'),   δ = x - x' + θ_t - θ_t'.

    One task of one input has GPyTorch's spectral mixture kernel, with weights w². The spectra are scaled to
    k((x, t), (x, t)) = Σ_q w_qt². Component q starts with s = 4^q/(2π√d), the lengthscale √d/4^q, and μ = s, without
    delays; amplitudes have standard normal priors, for tasks of about unit variance. It has no part that tasks keep to
    themselves: add a `TaskKernel` for that.

    Args:
        n_tasks: T.
        n_inputs: d.
        n_components: Q.

    Attributes:
        amplitudes, phases: w and φ, ``(Q, T)``.
        delays: θ, ``(Q, T, d)``, units of the inputs.
        means, scales: μ and s, ``(Q, T, d)``, cycles per unit.

    Raises:
        InputError: if a number is less than one; in a product, if a task is none of 0 to T - 1.

    Example:
        >>> import torch
        >>> kernel = SpectralTaskKernel(n_tasks=2, n_inputs=1)
        >>> kernel.delays.data[0, 1] = 0.5  # task 1 is ahead of task 0
        >>> rows = torch.tensor([[1.0, 0.0], [0.5, 1.0]], dtype=torch.float64)
        >>> kernel(rows).to_dense().shape
        torch.Size([2, 2])

    Source: Parra and Tobar (2017), Spectral Mixture Kernels for Multi-Output Gaussian Processes, eq. 8, 15-17.
    """

    def __init__(self, n_tasks: int, n_inputs: int, n_components: int = 1) -> None:
        super().__init__()
        if min(n_tasks, n_inputs, n_components) < 1:
            raise InputError(
                f"tasks, inputs and components must be at least 1; got {n_tasks}, {n_inputs} and {n_components}."
            )
        self.n_tasks, self.n_inputs, self.n_components = n_tasks, n_inputs, n_components
        each = torch.zeros(n_components, n_tasks, dtype=torch.float64)
        spread = each.unsqueeze(-1).repeat(1, 1, n_inputs)
        self.amplitudes = Parameter(each + 1 / math.sqrt(n_components))
        self.phases, self.delays = Parameter(each.clone()), Parameter(spread.clone())
        start = 4.0 ** torch.arange(n_components).view(-1, 1, 1) / (2 * math.pi * math.sqrt(n_inputs)) + spread
        declare_positive(self, "means", start)
        declare_positive(self, "scales", start)
        prior = NormalPrior(each.new_zeros(()), each.new_ones(()))
        self.register_prior("amplitudes_prior", prior, _amplitudes)

    @property
    def means(self) -> Tensor:
        """μ, ``(Q, T, d)``."""
        return constrained(self, "means")

    @means.setter
    def means(self, value: Tensor) -> None:
        set_constrained(self, "means", value)

    @property
    def scales(self) -> Tensor:
        """s, ``(Q, T, d)``."""
        return constrained(self, "scales")

    @scales.setter
    def scales(self, value: Tensor) -> None:
        set_constrained(self, "scales", value)

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        """The covariance of rows ``(*batch, n, d + 1)`` and ``(*batch, m, d + 1)``, or its diagonal."""
        difference, pick = pairs_of_rows(x1, x2, self.n_tasks, diag=diag)
        components = [self._component(q) for q in range(self.n_components)]
        total = torch.zeros_like(difference[..., 0])
        for amplitude, phase, square, mean, delay in components:
            exponent, angle = torch.zeros_like(total), pick(phase)
            for i in range(self.n_inputs):
                shifted = difference[..., i] + pick(delay[..., i])
                exponent = exponent - 2 * math.pi**2 * pick(square[..., i]) * shifted.square()
                angle = angle + 2 * math.pi * pick(mean[..., i]) * shifted
            total = total + pick(amplitude) * exponent.exp() * angle.cos()
        return total

    def _component(self, q: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """c and φ_t - φ_t', ``(T, T)``; s², μ and θ_t - θ_t', ``(T, T, d)``."""
        s, mean, w = self.scales[q], self.means[q], self.amplitudes[q]
        a, b = s.unsqueeze(1), s
        both = a.square() + b.square()
        apart = (mean.unsqueeze(1) - mean).square() / both
        overlap = (2 * a * b / both).sqrt().prod(-1) * (-0.25 * apart.sum(-1)).exp()
        cross_mean = (a.square() * mean + b.square() * mean.unsqueeze(1)) / both
        phase, delay = self.phases[q], self.delays[q]
        return (
            torch.outer(w, w) * overlap,
            phase.unsqueeze(1) - phase,
            2 * (a * b).square() / both,
            cross_mean,
            delay.unsqueeze(1) - delay,
        )


def _amplitudes(kernel: SpectralTaskKernel) -> Tensor:
    return kernel.amplitudes
