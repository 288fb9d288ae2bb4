"""The covariance of chosen cells of a grid, written out, and gradients folded back on the factors.

| symbol | name in code | shape |
|---|---|---|
| coordinates of cell p on axis j | `cells[j, p]` | (k, M) |
| C_pq = Π_j K_j[a_j(p), a_j(q)] + σ²δ_pq | `C`, later its factor L, later C⁻¹ | (M, M), one matrix in place |
| α = C⁻¹ y | `alpha` | (M,) |

One pass over the lower triangle fills C and one folds dL/dC = ½(αα' - C⁻¹) on the factors:
dL/dK_j[a, b] = Σ_{p at a, q at b} dL/dC_pq Π_{i≠j} K_i[a_i(p), a_i(q)]. Compiled where Numba is installed and the
tensors are on the CPU, else in row blocks of torch.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpmoe.linalg import lapack
from gpmoe.linalg.compiler import AVAILABLE, njit
from gpmoe.linalg.factorisation import Workspace, cholesky_with_jitter_
from gpmoe.linalg.pool import run_pass

_CHUNKS = 4  # of rows; each folds into memory of its own, and their sum does not depend on the number of threads
_BLOCK = 2**20  # entries of a block of rows, where torch does the work
_COMPILED: Any = {"cache": True, "nogil": True, "error_model": "numpy", "fastmath": True}


@njit(**_COMPILED)
def _fill(first, step, flat, start, size, cells, C):  # type: ignore[no-untyped-def]
    for p in range(first, cells.shape[1], step):
        line = C[p, : p + 1]
        for j in range(len(size)):
            row = flat[start[j] + cells[j, p] * size[j] :]
            column = cells[j]
            if j == 0:
                for q in range(len(line)):
                    line[q] = row[column[q]]
            else:
                for q in range(len(line)):
                    line[q] *= row[column[q]]


@njit(**_COMPILED)
def _fold(first, step, chunks, flat, start, size, cells, alpha, inverse, gradient):  # type: ignore[no-untyped-def]
    k, M = cells.shape
    w, g = np.empty(M, inverse.dtype), np.empty(M, inverse.dtype)
    for chunk in range(first, chunks, step):
        for p in range(chunk, M, chunks):
            line = inverse[p, : p + 1]
            for q in range(p + 1):
                w[q] = alpha[p] * alpha[q] - line[q]
            w[p] *= 0.5
            for j in range(k):
                for q in range(p + 1):
                    g[q] = w[q]
                for i in range(k):
                    if i != j:
                        row = flat[start[i] + cells[i, p] * size[i] :]
                        column = cells[i]
                        for q in range(p + 1):
                            g[q] *= row[column[q]]
                out = gradient[chunk, start[j] + cells[j, p] * size[j] :]
                column = cells[j]
                for q in range(p + 1):
                    out[column[q]] += g[q]


class CellCovariance:
    """The factorised covariance of some cells of a grid: exact, O(M³).

    Args:
        factors: K_j ``(n_j, n_j)``, without gradients.
        noise: variance, ``()``.
        cells: coordinates of the cells, int64 ``(k, M)``.
        workspace: memory to reuse, and where the jitter is reported.

    Raises:
        NotPositiveDefiniteError, NonFiniteError: see `cholesky_with_jitter_`.

    Example:
        >>> import torch
        >>> K = torch.eye(2, dtype=torch.float64)
        >>> cells = torch.tensor([[0, 0, 1], [0, 1, 1]])
        >>> CellCovariance([K, K], K.new_tensor(1.0), cells).solve(K.new_ones(1, 3))
        tensor([[0.5000, 0.5000, 0.5000]], dtype=torch.float64)
    """

    def __init__(
        self, factors: Sequence[Tensor], noise: Tensor, cells: Tensor, workspace: Workspace | None = None
    ) -> None:
        self.workspace = Workspace() if workspace is None else workspace
        self.factors = [factor.contiguous() for factor in factors]
        self.cells = cells
        self.L = self.workspace.matrix(cells.shape[1], like=self.factors[0])

        def fill(C: Tensor) -> None:
            fill_cells(self.factors, cells, C)
            lapack.diagonal(C).add_(noise)

        self.jitter = self.workspace.jitter = cholesky_with_jitter_(fill, self.L)

    def solve(self, B: Tensor) -> Tensor:
        """C⁻¹ of each row of B, ``(c, M)``."""
        if len(B) == 1:
            return lapack.cholesky_solve(self.L, B[0]).unsqueeze(0)
        half = lapack.solve_triangular(self.L, B.mT)
        return lapack.solve_triangular(self.L, half, transpose=True).mT

    def quadratic(self, B: Tensor) -> Tensor:
        """b' C⁻¹ b of each row of B, ``(c, M)``."""
        return lapack.solve_triangular(self.L, B.mT).square().sum(0)

    def log_determinant(self) -> Tensor:
        """log |C|."""
        return 2 * lapack.diagonal(self.L).log().sum()

    def gradients(self, alpha: Tensor) -> tuple[list[Tensor], Tensor]:
        """dL/dK_j and dL/dσ² of the log likelihood; the factor's memory is used up.

        Args:
            alpha: C⁻¹ y, ``(M,)``.
        """
        lapack.inverse_from_cholesky_(self.L)
        d_noise = 0.5 * (alpha.square() - lapack.diagonal(self.L)).sum()
        return fold_cells(self.factors, self.cells, alpha, self.L), d_noise


def _compiled(C: Tensor) -> bool:
    return AVAILABLE and C.device.type == "cpu"


def _flat(factors: Sequence[Tensor]) -> tuple[Any, Any, Any]:
    size = np.array([len(K) for K in factors])
    start = np.concatenate([[0], np.cumsum(size**2)[:-1]])
    return torch.cat([K.reshape(-1) for K in factors]).numpy(), start, size


def fill_cells(factors: Sequence[Tensor], cells: Tensor, C: Tensor) -> None:
    """Write the lower triangle of Π_j K_j[a_j, a_j'] into C ``(M, M)``."""
    if _compiled(C):
        run_pass(_fill, C.numel() // 2, _CHUNKS, *_flat(factors), cells.numpy(), C.numpy())
        return
    for rows in _row_blocks(cells.shape[1]):
        C[rows] = factors[0][cells[0, rows]][:, cells[0]]
        for K, a in zip(factors[1:], cells[1:], strict=True):
            C[rows] *= K[a[rows]][:, a]


def fold_cells(factors: Sequence[Tensor], cells: Tensor, alpha: Tensor, inverse: Tensor) -> list[Tensor]:
    """dL/dK_j, ``(n_j, n_j)`` and symmetric, for dL/dC = ½(αα' - inverse), of which the lower triangle is read."""
    if _compiled(inverse):
        flat, start, size = _flat(factors)
        gradient = np.zeros((_CHUNKS, len(flat)), flat.dtype)
        pairs = inverse.numel() // 2
        arguments = (cells.numpy(), alpha.contiguous().numpy(), inverse.numpy(), gradient)
        run_pass(_fold, pairs, _CHUNKS, _CHUNKS, flat, start, size, *arguments)
        pieces = torch.from_numpy(gradient.sum(0)).split([len(K) ** 2 for K in factors])
        found = [piece.view_as(K) for piece, K in zip(pieces, factors, strict=True)]
    else:
        found = _fold_by_torch(factors, cells, alpha, inverse)
    return [0.5 * (d + d.mT) for d in found]


def _fold_by_torch(factors: Sequence[Tensor], cells: Tensor, alpha: Tensor, inverse: Tensor) -> list[Tensor]:
    found = [torch.zeros_like(K) for K in factors]
    for rows in _row_blocks(cells.shape[1]):
        weight = torch.outer(alpha[rows], alpha).sub_(inverse[rows])
        weight = weight.tril(rows.start)  # rows of the block keep columns up to their own
        weight.diagonal(rows.start).mul_(0.5)
        for j, K in enumerate(factors):
            g = weight.clone()
            for i, other in enumerate(factors):
                if i != j:
                    g *= other[cells[i, rows]][:, cells[i]]
            by_column = torch.zeros(g.shape[0], len(K), dtype=K.dtype, device=K.device).index_add_(1, cells[j], g)
            found[j].index_add_(0, cells[j, rows], by_column)
    return found


def _row_blocks(M: int) -> list[slice]:
    size = max(1, _BLOCK // M)
    return [slice(start, min(start + size, M)) for start in range(0, M, size)]
