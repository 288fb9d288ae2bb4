"""Observed cells of a table of n inputs by T tasks under a linear model of coregionalisation: dense, exact.

    C_pp' = Σ_q K_q[i(p), i(p')] B_q[t(p), t(p')] + noise_t(p) δ_pp'

| symbol | name in code | shape |
|---|---|---|
| input and task of cell p | `cells[0, p]`, `cells[1, p]` | (2, M) |
| K_q | `K[q]` | (n, n) |
| B_q | `B[q]` | (Q, T, T) |
| noise variance of each task | `noise` | (T,) |
| α = C⁻¹ y | `alpha` | (M,) |

dL/dC = ½(αα' - C⁻¹) is folded on K_q and B_q by hand (see `grid_cells`): one potrf, one potri and O(Q M²).

Source: Álvarez, Rosasco and Lawrence (2012), Kernels for Vector-Valued Functions, sec. 4.2.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gpmoe.linalg import lapack
from gpmoe.linalg.factorisation import Workspace, cholesky_with_jitter_
from gpmoe.linalg.grid_cells import fill_cells, fold_cells
from gpmoe.linalg.likelihood import Precomputed


class CoregionalisedCells:
    """The factorised covariance of the observed cells, O(M³). No gradients pass.

    Args:
        K: covariances of the inputs, ``(n, n)`` each.
        B: covariances of the tasks, ``(Q, T, T)``.
        noise: variance of each task, ``(T,)``.
        cells: input and task of each observed cell, int64 ``(2, M)``.
        workspace: memory to reuse for the factor.

    Attributes:
        jitter: what was added to the diagonal, 0 if nothing.

    Raises:
        NotPositiveDefiniteError, NonFiniteError: see `cholesky_with_jitter_`.

    Example:
        >>> import torch
        >>> one = torch.ones(1, 1, dtype=torch.float64)
        >>> cells = torch.tensor([[0], [0]])
        >>> CoregionalisedCells([one, one], torch.stack([one, one]), one[0] * 2, cells).solve(one * 8)
        tensor([[2.]], dtype=torch.float64)
    """

    def __init__(
        self,
        K: Sequence[Tensor],
        B: Tensor,
        noise: Tensor,
        cells: Tensor,
        workspace: Workspace | None = None,
    ) -> None:
        self.pairs = [(k.detach().contiguous(), b.contiguous()) for k, b in zip(K, B.detach(), strict=True)]
        self.cells, self.n_tasks = cells, len(noise)
        each = noise.detach()[cells[1]]

        def fill(C: Tensor) -> None:
            fill_cells(self.pairs[0], cells, C)
            term = torch.empty_like(C) if len(self.pairs) > 1 else C
            for pair in self.pairs[1:]:
                fill_cells(pair, cells, term)
                C.add_(term)
            lapack.diagonal(C).add_(each)

        self.L = (Workspace() if workspace is None else workspace).matrix(cells.shape[1], like=noise)
        self.jitter = cholesky_with_jitter_(fill, self.L)

    def solve(self, rows: Tensor) -> Tensor:
        """C⁻¹ of each row, ``(c, M)``."""
        if len(rows) == 1:
            return lapack.cholesky_solve(self.L, rows[0].contiguous()).unsqueeze(0)
        half = lapack.solve_triangular(self.L, rows.mT)
        return lapack.solve_triangular(self.L, half, transpose=True).mT

    def quadratic(self, rows: Tensor) -> Tensor:
        """b' C⁻¹ b of each row b, ``(c,)``."""
        return lapack.solve_triangular(self.L, rows.mT).square().sum(0)

    def log_determinant(self) -> Tensor:
        """log |C|."""
        return 2 * lapack.diagonal(self.L).log().sum()

    def gradients(self, alpha: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """dL/dK_q ``(n, n)``, dL/dB ``(Q, T, T)`` and dL/dnoise ``(T,)``; the factor's memory is used up."""
        lapack.inverse_from_cholesky_(self.L)
        each = 0.5 * (alpha.square() - lapack.diagonal(self.L))
        d_noise = alpha.new_zeros(self.n_tasks).index_add_(0, self.cells[1], each)
        folded = [fold_cells(pair, self.cells, alpha, self.L) for pair in self.pairs]
        return [dK for dK, _ in folded], torch.stack([dB for _, dB in folded]), d_noise


def cells_log_likelihood(
    K: Sequence[Tensor], B: Tensor, noise: Tensor, residual: Tensor, cells: Tensor, workspace: Workspace
) -> Tensor:
    """log N(residual | 0, C), ``()``, nats, differentiable once in K, B, noise and residual; see `CoregionalisedCells`.

    The workspace is told the jitter.
    """
    value: Tensor = _CellsLikelihood.apply(residual, noise, B, cells, workspace, *K)
    return value


class _CellsLikelihood(Precomputed):
    @staticmethod
    def forward(
        ctx: Any, residual: Tensor, noise: Tensor, B: Tensor, cells: Tensor, workspace: Workspace, *K: Tensor
    ) -> Tensor:
        covariance = CoregionalisedCells(K, B, noise, cells, workspace)
        workspace.jitter = covariance.jitter
        alpha = covariance.solve(residual.unsqueeze(0))[0]
        count = len(residual) * math.log(2 * math.pi)
        value = -0.5 * (alpha @ residual + covariance.log_determinant() + count)
        if any(ctx.needs_input_grad):
            d_K, d_B, d_noise = covariance.gradients(alpha)
            ctx.gradients = (-alpha, d_noise, d_B, None, None, *d_K)
        return value
