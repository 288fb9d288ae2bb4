"""Dense posteriors of many ragged series on a grid, each grid time given a prefix of the sorted rows.

The leading block of a Cholesky factor is the factor of the leading block. With C = LL' of a series' rows sorted by
time and V = L⁻¹K of their covariances with the grid, rows beyond a prefix set to zero, one solve gives the posterior
given every prefix: mean V'z, z = L⁻¹y, and covariance K_** - V'V. With all rows known to all it is the smoothed one.

| symbol | name in code | shape |
|---|---|---|
| C, its factor L, T = L⁻¹ | `C`, `L`, `T` | (b, n, n) |
| K, V, A = L⁻ᵀV | `K`, `V`, `A` | (b, n, G, M) |
| L⁻ᵀ of z cut to the prefix | `alpha` | (b, n, G) |
| gradients for mean and covariance | `g_mean`, `g_spread` | (b, G, M), (b, G, M) or (b, G, M, M) |

    dK = α g_mean - 2 A g_spread,   dC = A g_spread A' - ½ (α w' + w α'),   w = A g_mean

No autograd passes through the factor. Series of similar size are padded to batches, all in float64.

Source: Rasmussen and Williams (2006), eq. 2.25-2.26.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpmoe.linalg.likelihood import expect_first_order
from gpmoe.linalg.series_batch import SeriesBatch
from gpmoe.linalg.small_padded import factor_padded
from gpmoe.linalg.small_problems import SmallProblems, check_factors

_LOG_2_PI = math.log(2 * math.pi)
_ENTRIES = 2**20  # of K in one padded batch


def dense_moments(
    batch: SeriesBatch,
    B: Tensor,
    rates: Tensor,
    noise: Tensor,
    *,
    orders: Sequence[int],
    causal: bool,
    joint: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Posterior of f at each grid time, and the log likelihood of all rows.

    Args:
        batch: the series.
        B: coregionalisation of each component, ``(Q, M, M)``.
        rates: λ = sqrt(2ν)/timescale, ``(Q,)``.
        noise: variance of each channel, ``(M,)``.
        orders: ν + 1/2 of each component, 1 to 3.
        causal: given the rows up to each grid time; otherwise given all.
        joint: covariance over channels instead of the variance.

    Returns:
        Mean ``(T, M)``, variance ``(T, M)`` or covariance ``(T, M, M)``, log likelihood ``(B,)``.

    Raises:
        NotPositiveDefiniteError: naming the first series without a factor.
    """
    B64, rates, noise, value = B.double(), rates.double(), noise.double(), batch.value.double()
    prior = B64.sum(0)
    M, T = len(noise), len(batch.grid)
    mean = prior.new_zeros(T, M)
    spread = prior.expand(T, M, M) if joint else prior.diagonal().expand(T, M)
    log_likelihood = prior.new_zeros(len(batch))
    problem = SmallProblems(batch.observed)
    known = torch.from_numpy(batch.known_rows()).to(prior.device)
    for group in _groups(batch, M):
        rows, real = batch.observed.rows_of(group)
        points, wanted = _grid_of(batch, group)
        rows = torch.from_numpy(batch.order).to(rows.device)[rows]
        mask = torch.arange(rows.shape[1], device=rows.device)[:, None] < known[points].unsqueeze(1) if causal else None
        C, K = _covariances(batch, rows, real, points, B64, rates, noise, orders)
        parts = _Moments.apply(C, K, value[rows] * real, mask, real, group, problem, joint)
        log_likelihood = log_likelihood.index_put((torch.from_numpy(group).to(rows.device),), parts[2])
        where = (points[wanted],)
        mean = mean.index_put(where, parts[0][wanted])
        spread = spread.index_put(where, parts[1][wanted], accumulate=True)
    check_factors(problem.jitter, batch.observed)
    return mean.to(B), spread.to(B), log_likelihood.to(B)


def _groups(batch: SeriesBatch, M: int) -> list[NDArray[np.int64]]:
    """Series of similar size whose covariances with the grid fit the memory of one padded batch."""
    groups = []
    for group in batch.observed.size_classes():
        rows = int(batch.observed.sizes[group].max()) * max(int(batch.wanted.sizes[group].max()), 1) * M
        groups += np.array_split(group, min(len(group), -(-rows * len(group) // _ENTRIES)))
    return groups


def _grid_of(batch: SeriesBatch, group: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Sorted grid points of some series, padded to the most: ``(b, G)``, and which are wanted."""
    points, wanted = batch.wanted.rows_of(group)
    if not len(batch.grid):
        return points[:, :0], wanted[:, :0]
    return torch.from_numpy(batch.grid_order).to(points.device)[points], wanted


def _covariances(
    batch: SeriesBatch,
    rows: Tensor,
    real: Tensor,
    points: Tensor,
    B: Tensor,
    rates: Tensor,
    noise: Tensor,
    orders: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """C ``(b, n, n)``, identity where there are no rows, and K ``(b, n, G, M)``."""
    time, grid, channel = batch.time.double()[rows], batch.grid.double()[points], batch.channel[rows]
    owns = torch.nn.functional.one_hot(channel, B.shape[-1]).to(B) * real.unsqueeze(-1)
    each = owns.unsqueeze(0) @ B.unsqueeze(1)  # B_q[c_j, :] of each row, (Q, b, n, M)
    between = (time.unsqueeze(-1) - time.unsqueeze(-2)).abs()
    C = torch.diag_embed(torch.where(real, noise[channel], 1.0))
    for q, order in enumerate(orders):
        C = C + matern(rates[q] * between, order) * (each[q] @ owns.mT)
    ahead = (time.unsqueeze(-1) - grid.unsqueeze(-2)).abs()
    k = torch.stack([matern(rates[q] * ahead, order) for q, order in enumerate(orders)], -1)
    return C, k @ each.permute(1, 2, 0, 3)


def matern(u: Tensor, order: int) -> Tensor:
    """Matérn correlation of ν = order - 1/2 at u = sqrt(2ν) |t - t'| / timescale."""
    decay = (-u).exp()
    if order == 1:
        return decay
    return (1 + u if order == 2 else 1 + u + u.square() / 3) * decay


class _Moments(torch.autograd.Function):
    """Mean ``(b, G, M)``, minus what the rows explain of the (co)variance, log likelihood ``(b,)``."""

    @staticmethod
    def forward(
        ctx: Any,
        C: Tensor,
        K: Tensor,
        y: Tensor,
        mask: Tensor | None,
        real: Tensor,
        group: NDArray[np.int64],
        problem: SmallProblems,
        joint: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        L = factor_padded(C, real, group, problem)
        T = torch.linalg.solve_triangular(L, torch.eye(L.shape[-1]).to(L).expand_as(L), upper=False)
        z = (T @ y.unsqueeze(-1)).squeeze(-1)
        V = (T @ K.flatten(-2)).view_as(K)
        if mask is not None:
            V *= mask.unsqueeze(-1)
        mean = (z.unsqueeze(-2) @ V.flatten(-2)).view_as(K[:, 0])
        columns = V.transpose(1, 2)
        explained = columns.mT @ columns if joint else torch.einsum("bngm,bngm->bgm", V, V)
        total = z.square().sum(-1) + 2 * L.diagonal(dim1=-2, dim2=-1).log().sum(-1) + real.sum(-1).to(L) * _LOG_2_PI
        ctx.save_for_backward(T, z, V, mask)
        ctx.joint = joint
        return mean, -explained, -0.5 * total

    @staticmethod
    def backward(ctx: Any, g_mean: Tensor, g_spread: Tensor, g_log: Tensor) -> tuple[Tensor | None, ...]:
        expect_first_order()
        T, z, V, mask = ctx.saved_tensors
        whole = T.mT @ z.unsqueeze(-1)
        alpha = whole if mask is None else T.mT @ (z.unsqueeze(-1) * mask)
        A = (T.mT @ V.flatten(-2)).view_as(V)
        w = (A.transpose(1, 2) @ g_mean.unsqueeze(-1)).squeeze(-1).mT  # (b, n, G)
        if ctx.joint:
            weighted = (A.transpose(1, 2) @ (0.5 * (g_spread + g_spread.mT))).transpose(1, 2)
        else:
            weighted = A * g_spread.unsqueeze(1)
        dC = weighted.flatten(-2) @ A.flatten(-2).mT
        through_mean = alpha @ (w.sum(-1, keepdim=True) if mask is None else w).mT
        dC -= 0.5 * (through_mean + through_mean.mT)
        dC += 0.5 * g_log[:, None, None] * (whole @ whole.mT - T.mT @ T)
        dK = torch.addcmul(alpha.unsqueeze(-1) * g_mean.unsqueeze(1), weighted, weighted.new_tensor(-2.0))
        dy = w.sum(-1) - g_log.unsqueeze(-1) * whole.squeeze(-1)
        return dC, dK, dy, None, None, None, None, None
