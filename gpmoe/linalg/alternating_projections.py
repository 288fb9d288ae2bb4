"""Linear solves block by block, with the Cholesky factors of the diagonal blocks computed once.

| symbol | name in code | shape |
|---|---|---|
| C X = B, R = B - C X | `operator`, `X`, `R` | (n, n), (n, c), (n, c) |
| rows of block I | `blocks[I]` | (b,) |
| C[I, I] = L L' | `factors[I]` | (b, b) |

Each step solves one block exactly, X[I] += C[I, I]⁻¹ R[I], which projects the error onto the complement of that block
in the norm of C: the error falls whatever the condition number, and a step costs b rows of the covariance. The block
with the largest residual is next. n / b steps, a pass, cost one product.

Source: Wu et al., "Large-scale Gaussian processes via alternating projection", arXiv 2310.17137, alg. 1.
"""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from gpmoe.errors import InputError
from gpmoe.linalg import lapack
from gpmoe.linalg.factorisation import not_positive_definite
from gpmoe.linalg.operator import SymmetricOperator, product
from gpmoe.linalg.solution import Solution, expect_right_hand_sides, relative

_REPLACEMENT = 10  # passes after which the running residual is computed anew


@dataclass(frozen=True)
class Blocks:
    """A partition of the rows of an operator, in their order, with the factor of each diagonal block."""

    index: tuple[Tensor, ...]
    factors: tuple[Tensor, ...]


def factorise_blocks(operator: SymmetricOperator, block_size: int) -> Blocks:
    """Cholesky factors of C[I, I] for consecutive blocks of rows.

    Raises:
        InputError: if the block size is not positive.
        NotPositiveDefiniteError: if a block has no factor; no jitter is added, since it would change the solution.
    """
    if block_size < 1:
        raise InputError(f"`block_size` must be at least 1; got {block_size}.")
    index = torch.arange(len(operator.noise), device=operator.noise.device).split(block_size)
    return Blocks(tuple(index), tuple(_factor(operator, rows) for rows in index))


def _factor(operator: SymmetricOperator, rows: Tensor) -> Tensor:
    L = operator.rows(rows)[:, rows].contiguous()
    lapack.diagonal(L).add_(operator.noise[rows])
    if lapack.cholesky_(L):
        raise not_positive_definite(L, 0.0)
    return L


def alternating_projections(
    operator: SymmetricOperator,
    B: Tensor,
    *,
    blocks: Blocks,
    start: Tensor | None = None,
    tolerance: float | Tensor = 1e-6,
    max_passes: int = 1000,
) -> Solution:
    """Solve C X = B.

    Args:
        operator: C.
        B: ``(n, c)``, in the operator's dtype.
        blocks: of `factorise_blocks`.
        start: first X, ``(n, c)``; zero if None.
        tolerance: true residual wanted, relative to each right-hand side; one for all or ``(c,)``.
        max_passes: as many steps as there are blocks are one pass.

    Returns:
        The solution, its iterations in passes; nothing is raised or warned if it has not converged.

    Raises:
        ShapeError, DtypeError, NonFiniteError: if B does not fit the operator.
    """
    began = time.perf_counter()
    expect_right_hand_sides(B, operator)
    norms = torch.linalg.vector_norm(B, dim=0)
    goal = torch.as_tensor(tolerance, dtype=B.dtype, device=B.device) * norms
    X = torch.zeros_like(B) if start is None else start.clone()
    R = B.clone() if start is None else B - operator.matmul(X)
    steps, converged = 0, False
    while not (converged := _reached(R, goal)) and steps < max_passes * len(blocks.index):
        for _ in range(_REPLACEMENT * len(blocks.index)):
            if _reached(R, 0.9 * goal):
                break
            _project(operator, blocks, X, R, norms)
            steps += 1
        R = B - operator.matmul(X)
    passes = -(-steps // max(len(blocks.index), 1))
    return Solution(X, R, relative(R, norms), passes, converged, time.perf_counter() - began)


def _reached(R: Tensor, goal: Tensor) -> bool:
    return bool((torch.linalg.vector_norm(R, dim=0) <= goal).all())


def _project(operator: SymmetricOperator, blocks: Blocks, X: Tensor, R: Tensor, norms: Tensor) -> None:
    """Solve the block with the largest residual, over all right-hand sides relative to their norms, in place."""
    squares = (R / norms.clamp_min(torch.finfo(R.dtype).tiny)).square().sum(1)
    chosen = int(torch.stack([squares[rows].sum() for rows in blocks.index]).argmax())
    rows, L = blocks.index[chosen], blocks.factors[chosen]
    half = lapack.solve_triangular(L, R[rows])
    step = lapack.solve_triangular(L, half, transpose=True).contiguous()
    X[rows] += step
    R -= product(operator.rows(rows).mT.contiguous(), step)
    R[rows] -= operator.noise[rows, None] * step
