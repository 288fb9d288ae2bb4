"""Observed cells of a linear model of coregionalisation in time, by the Kalman filter: exact, O(M d²).

With Matérn kernels of one input the model has a state of d = T Σ order_q numbers (see `state_space`), and the filter
gives log N(y | 0, C). Its gradient in y is -C⁻¹ y, so that the filter's adjoint also solves systems: no matrix of
M x M anywhere.

| symbol | name in code | shape |
|---|---|---|
| time and task of each observed cell | `time`, `task` | (M,) |
| λ_q = sqrt(2ν)/lengthscale, ν + 1/2 | `rates`, `orders` | (Q,) |
| B_q, noise variance of each task | `B`, `noise` | (Q, T, T), (T,) |
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gpmoe.linalg.series_batch import SeriesBatch
from gpmoe.linalg.state_space_filter import CausalMoments, FilterProblem

_ROWS = 2**20  # of all right-hand sides that are filtered at once


class CoregionalisedFilter:
    """Solves with C = Σ_q K_q ∘ B_q + noise of cells in time. No gradients pass.

    Args:
        time, task: of each observed cell, ``(M,)``, float and int64.
        B: covariances of the tasks, ``(Q, T, T)``.
        rates: λ, ``(Q,)``.
        noise: variance of each task, ``(T,)``.
        orders: 1, 2 or 3 for Matérn-1/2, -3/2 and -5/2, one for each component.

    Example:
        >>> import torch
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> cells = CoregionalisedFilter(one, torch.tensor([0]), one.view(1, 1, 1), one, one, [1])
        >>> cells.solve(6 * one.unsqueeze(0))
        tensor([[3.]], dtype=torch.float64)
    """

    jitter = 0.0

    def __init__(
        self, time: Tensor, task: Tensor, B: Tensor, rates: Tensor, noise: Tensor, orders: Sequence[int]
    ) -> None:
        self.time, self.task, self.orders = time, task, orders
        self.model = (B.detach(), rates.detach(), noise.detach())

    def solve(self, rows: Tensor) -> Tensor:
        """C⁻¹ of each row, ``(c, M)``."""
        at_once = max(1, _ROWS // len(self.time))
        return torch.cat([rows[:0], *(self._solve(part) for part in rows.detach().split(at_once))])

    def _solve(self, rows: Tensor) -> Tensor:
        c = len(rows)
        with torch.enable_grad():
            values = rows.reshape(-1).clone().requires_grad_()
            total = _filtered(*self.model, values, self.time.repeat(c), self.task.repeat(c), c, self.orders).sum()
        (slope,) = torch.autograd.grad(total, values)
        return -slope.view_as(rows)

    def quadratic(self, rows: Tensor) -> Tensor:
        """b' C⁻¹ b of each row b, ``(c,)``."""
        return (rows * self.solve(rows)).sum(-1)


def filter_log_likelihood(
    B: Tensor, rates: Tensor, noise: Tensor, residual: Tensor, time: Tensor, task: Tensor, orders: Sequence[int]
) -> Tensor:
    """log N(residual | 0, C), ``()``, nats, differentiable once in B, rates, noise and residual.

    Args: see `CoregionalisedFilter`; residual ``(M,)``.
    """
    return _filtered(B, rates, noise, residual, time, task, 1, orders)[0]


def _filtered(
    B: Tensor,
    rates: Tensor,
    noise: Tensor,
    values: Tensor,
    time: Tensor,
    task: Tensor,
    copies: int,
    orders: Sequence[int],
) -> Tensor:
    """Log likelihood of each of some copies of the cells with values of their own, ``(copies,)``."""
    offsets = torch.arange(copies + 1) * (len(time) // copies)
    batch = SeriesBatch(time, task, values.detach(), offsets, time[:0], torch.zeros(copies + 1, dtype=torch.int64))
    moments: tuple[Tensor, Tensor, Tensor] = CausalMoments.apply(
        B, rates, noise, values, FilterProblem(batch, np.array(orders), False)
    )
    return moments[2]
