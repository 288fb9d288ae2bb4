"""Dense posteriors of many ragged series on a grid, each grid time given a prefix of the sorted rows.

The leading block of a Cholesky factor is the factor of the leading block. With C = LL' of a series' rows sorted by
time and V = L⁻¹K of their covariances with the grid, rows beyond a prefix set to zero, one solve gives the posterior
given every prefix: mean V'z, z = L⁻¹y, and covariance K_** - V'V. With all rows known to all it is the smoothed one.

| symbol | name in code | shape |
|---|---|---|
| C, its factor L | `C`, `L` | (b, n, n) |
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
_ENTRIES = 2**23  # of K in one padded batch


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
    known = batch.known_rows()
    for group in _groups(batch, M):
        rows, real = batch.observed.rows_of(group)
        points, wanted = batch.wanted.rows_of(group)
        rows = torch.from_numpy(batch.order).to(rows.device)[rows]
        points = torch.from_numpy(batch.grid_order).to(points.device)[points]
        prefix = torch.from_numpy(known).to(points.device)[points] if causal else real.sum(-1, keepdim=True)
        mask = (torch.arange(rows.shape[1], device=rows.device)[:, None] < prefix.unsqueeze(1)) & real.unsqueeze(-1)
        mask = mask.expand(-1, -1, points.shape[1])
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
        mask: Tensor,
        real: Tensor,
        group: NDArray[np.int64],
        problem: SmallProblems,
        joint: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        L = factor_padded(C, real, group, problem)
        z = torch.linalg.solve_triangular(L, y.unsqueeze(-1), upper=False).squeeze(-1)
        V = torch.linalg.solve_triangular(L, K.flatten(-2), upper=False).view_as(K) * mask.unsqueeze(-1)
        mean = torch.einsum("bngm,bn->bgm", V, z)
        columns = V.permute(0, 2, 1, 3)
        explained = columns.mT @ columns if joint else V.square().sum(1)
        total = z.square().sum(-1) + 2 * L.diagonal(dim1=-2, dim2=-1).log().sum(-1) + real.sum(-1).to(L) * _LOG_2_PI
        ctx.save_for_backward(L, z, V, mask)
        ctx.joint = joint
        return mean, -explained, -0.5 * total

    @staticmethod
    def backward(ctx: Any, g_mean: Tensor, g_spread: Tensor, g_log: Tensor) -> tuple[Tensor | None, ...]:
        expect_first_order()
        L, z, V, mask = ctx.saved_tensors
        U = L.mT
        alpha = torch.linalg.solve_triangular(U, z.unsqueeze(-1) * mask, upper=True)
        whole = torch.linalg.solve_triangular(U, z.unsqueeze(-1), upper=True).squeeze(-1)
        A = torch.linalg.solve_triangular(U, V.flatten(-2), upper=True).view_as(V)
        if ctx.joint:
            weighted = (A.permute(0, 2, 1, 3) @ (0.5 * (g_spread + g_spread.mT))).permute(0, 2, 1, 3)
        else:
            weighted = A * g_spread.unsqueeze(1)
        w = torch.einsum("bngm,bgm->bng", A, g_mean)
        dC = weighted.flatten(-2) @ A.flatten(-2).mT
        through_mean = alpha @ w.mT
        dC = dC - 0.5 * (through_mean + through_mean.mT)
        half = 0.5 * g_log[:, None, None]
        dC = dC + half * (whole.unsqueeze(-1) * whole.unsqueeze(-2) - torch.cholesky_inverse(L))
        dK = alpha.unsqueeze(-1) * g_mean.unsqueeze(1) - 2 * weighted
        dy = w.sum(-1) - g_log.unsqueeze(-1) * whole
        return dC, dK, dy, None, None, None, None, None
