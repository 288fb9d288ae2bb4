"""What all observed cells of a linear model of coregionalisation tell of the tasks at any time: exact, O(M d²).

One Kalman filter runs forward in time and one backward (see `state_space`, whose states and letters these are). With
the stationary covariance P = L L' = S ⊗ B, let (m, F) be the whitened mean and explained covariance of the state given
the cells up to a time, and (b, K) those given the cells after it. Given all cells, the state has whitened moments

    mean m + (I - F) (I - K F)⁻¹ (b - K m),   covariance (I - F) - (I - F) (I - K F)⁻¹ K (I - F).

In reversed time a Matérn process has the same law, with the signs of its odd derivatives turned.

Source: Fraser and Potter (1969), The Optimum Linear Smoother as a Combination of Two Optimum Linear Filters.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpmoe.linalg import state_space
from gpmoe.linalg.compiler import njit

_ENTRIES = 2**22  # of the covariances that are held at once: 32 MB
_COMPILED: Any = {"cache": True, "nogil": True, "error_model": "numpy"}

Array = NDArray[np.float64]


@njit(**_COMPILED)
def _states(time, channel, value, grid, inclusive, orders, rates, B, noise, means, explained):  # type: ignore[no-untyped-def]
    """Mean and explained covariance of the state at sorted grid times, given cells before or, if inclusive, at them."""
    M, d = B.shape[1], means.shape[1]
    m, R, u, A = np.zeros(d), np.zeros((d, d)), np.empty(d), np.empty((len(orders), 3, 3))
    j, now = 0, 0.0
    for g in range(len(grid)):
        while True:
            row = j < len(time) and (time[j] < grid[g] or (inclusive and time[j] == grid[g]))
            then = time[j] if row else grid[g]
            if (g > 0 or j > 0) and then > now:
                state_space.transitions(then - now, orders, rates, A)
                state_space.predict(m, R, M, orders, A)
            now = then
            if not row:
                break
            state_space.observe(m, R, M, orders, B, channel[j], value[j], noise[channel[j]], u)
            j += 1
        means[g], explained[g] = m, R


def smoothed_marginals(
    B: Tensor,
    rates: Tensor,
    noise: Tensor,
    residual: Tensor,
    time: Tensor,
    task: Tensor,
    new_time: Tensor,
    orders: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Posterior mean and variance of every task, without noise, at new times given all cells. No gradients pass.

    Args:
        B: covariances of the tasks, ``(Q, T, T)``, positive definite.
        rates: λ, ``(Q,)``.
        noise: variance of each task, ``(T,)``.
        residual, time, task: of each observed cell, ``(M,)``, the last int64.
        new_time: ``(m,)``, in any order.
        orders: 1, 2 or 3 for Matérn-1/2, -3/2 and -5/2, one for each component.

    Returns:
        ``(m, T)`` each.

    Example:
        >>> import torch
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> smoothed_marginals(one.view(1, 1, 1), one, one, 6 * one, one, torch.tensor([0]), one, [1])
        (tensor([[3.]], dtype=torch.float64), tensor([[0.5000]], dtype=torch.float64))
    """
    model = (np.array(orders), *(part.detach().contiguous().numpy() for part in (rates, B, noise)))
    L, signs = _stationary_factor(B.detach(), orders), _parities(orders, B.shape[1])
    d, T = len(signs), B.shape[1]
    grid, place = new_time.detach().unique(return_inverse=True)
    cells = [part.detach()[time.argsort(stable=True)] for part in (time, task, residual)]
    reversed_cells = [-cells[0].flip(0), cells[1].flip(0), cells[2].flip(0)]
    # the f of task t is the sum of its first states over components
    first = np.cumsum([0, *orders[:-1]]) * T
    H = torch.zeros(d, T, dtype=B.dtype)
    for at in first.tolist():
        H[at : at + T] += torch.eye(T, dtype=B.dtype)
    reader = L.mT @ H
    parts = []
    for some in grid.split(max(1, _ENTRIES // d**2)):
        m, F = _whitened(cells, some, True, model, L)
        b, K = (part.flip(0) for part in _whitened(reversed_cells, -some.flip(0), False, model, L, signs))
        parts.append(_combined(m, F, b, K, reader))
    mean, variance = (torch.cat(columns)[place] for columns in zip(*parts, strict=True))
    return mean, variance


def _combined(m: Tensor, F: Tensor, b: Tensor, K: Tensor, reader: Tensor) -> tuple[Tensor, Tensor]:
    """Moments of the tasks at each time, ``(m, T)``, from those of the whitened states."""
    left = reader - F @ reader  # (I - F) L'H
    innovation = (b - (K @ m.unsqueeze(-1)).squeeze(-1)).unsqueeze(-1)
    solved = torch.linalg.solve(torch.eye(len(reader), dtype=F.dtype) - K @ F, torch.cat([innovation, K @ left], -1))
    mean = m @ reader + (left.mT @ solved[..., :1]).squeeze(-1)
    variance = (reader * left).sum(-2) - (left * solved[..., 1:]).sum(-2)
    return mean, variance


def _whitened(
    cells: Sequence[Tensor], grid: Tensor, inclusive: bool, model: Any, L: Tensor, signs: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """L⁻¹ m and L⁻¹ R L⁻ᵀ of the filter's states at grid times, whose entries `signs` multiplies first."""
    time, task, value = (part.contiguous().numpy() for part in cells)
    means, explained = np.empty((len(grid), len(L))), np.empty((len(grid), len(L), len(L)))
    _states(time, task, value, grid.contiguous().numpy(), inclusive, *model, means, explained)
    m, R = torch.from_numpy(means), torch.from_numpy(explained)
    if signs is not None:
        m, R = m * signs, R * signs * signs.unsqueeze(-1)
    half = torch.linalg.solve_triangular(L, R, upper=False)
    white = torch.linalg.solve_triangular(L, half.mT.contiguous(), upper=False)
    return torch.linalg.solve_triangular(L, m.unsqueeze(-1), upper=False).squeeze(-1), white


def _stationary_factor(B: Tensor, orders: Sequence[int]) -> Tensor:
    """The lower Cholesky factor of S ⊗ B over components, ``(d, d)``."""
    third = 1.0 / 3.0
    S = B.new_tensor([[1.0, 0.0, -third], [0.0, third, 0.0], [-third, 0.0, 1.0]])
    full = [S if order == 3 else torch.eye(order, dtype=B.dtype) for order in orders]
    pairs = zip(full, torch.linalg.cholesky(B), strict=True)
    return torch.block_diag(*(torch.kron(torch.linalg.cholesky(s), b) for s, b in pairs))


def _parities(orders: Sequence[int], T: int) -> Tensor:
    """-1 for the odd derivatives of a state, 1 for the others, ``(d,)``."""
    each = [(-1.0) ** i for order in orders for i in range(order)]
    return torch.tensor(each, dtype=torch.float64).repeat_interleave(T)
