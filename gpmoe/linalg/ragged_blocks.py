"""Many symmetric positive definite matrices of different sizes at once: solves, log-determinants and their gradients.

What `small_batch` is for stationary kernels, for covariances that were computed elsewhere: ICM blocks of adapters,
sums of kernels, anything. Matrix b is ``(n_b, n_b)``; all lie one after another, row by row, in one flat tensor.

| symbol | name in code | shape |
|---|---|---|
| C of all problems | `blocks` | (sum of n_b²,) |
| right-hand sides, x = C⁻¹b | `b`, `x` | (total,) or (total, p) |

    db = C⁻¹ dx,     dC = -½ (db x' + x db') + g C⁻¹    for a gradient g for log|C|
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpmoe.errors import ShapeError
from gpmoe.linalg import small_dense as dense
from gpmoe.linalg.compiler import njit
from gpmoe.linalg.likelihood import expect_first_order
from gpmoe.linalg.ragged import Ragged
from gpmoe.linalg.small_padded import factor_padded
from gpmoe.linalg.small_problems import SmallProblems, check_factors
from gpmoe.shapes import expect_floating, expect_shape

_COMPILED: Any = {"cache": True, "nogil": True, "error_model": "numpy"}


def solve_blocks(blocks: Tensor, b: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """C⁻¹b and log|C| of each matrix, from one factor, differentiable once.

    Args:
        blocks: the matrices' entries, row by row, ``(sum of n_b²,)``, float64 or float32; taken for symmetric, and so
            are their gradients.
        b: right-hand sides, ``(total,)`` or ``(total, p)``.
        offsets: integers ``(B + 1,)``: problem b has the rows ``offsets[b]:offsets[b + 1]`` of `b`.

    Returns:
        Solutions of the shape of `b`, and log-determinants ``(B,)``, 0 for a matrix without rows.

    Raises:
        NotPositiveDefiniteError: naming the first matrix that has no factor at a jitter of 1e-6 of its mean diagonal
            (1e-3 in float32); less is tried first, none as a rule.

    Example:
        >>> import torch
        >>> blocks = torch.tensor([2.0, 4.0, 1.0, 1.0, 4.0], dtype=torch.float64)
        >>> x, log_determinants = solve_blocks(blocks, blocks.new_tensor([1.0, 5.0, 5.0]), torch.tensor([0, 1, 3]))
        >>> [round(value, 3) for value in x.tolist()], log_determinants.exp().round().tolist()
        ([0.5, 1.0, 1.0], [2.0, 15.0])
    """
    expect_floating("blocks", blocks)
    expect_floating("b", b, like=blocks)
    if b.dim() not in (1, 2):
        raise ShapeError(f"`b` must have shape (total,) or (total, p); got {tuple(b.shape)}.")
    ragged = Ragged.of(offsets, rows=len(b), device=b.device)
    expect_shape("blocks", blocks, ndim=1, last=(int((ragged.sizes**2).sum()),))
    problem = SmallProblems(ragged)
    columns = b.unsqueeze(-1) if b.dim() == 1 else b
    x, log_determinants = (_Solve.apply if problem.compiled(b) else _padded_solve)(blocks, columns, problem)
    return x.reshape(b.shape), log_determinants


@njit(**_COMPILED)
def _solutions(first, step, order, offsets, starts, blocks, x, gradient, g, value, change, jitter):  # type: ignore[no-untyped-def]
    """Turn columns b of `x` (p, total) into solutions; with `gradient` (p, total), that for x, also into those for b
    and for C, where `g` are the gradients for the log-determinants."""
    if len(order) == 0:
        return
    m = dense.padded(offsets[order[0] + 1] - offsets[order[0]])
    A, T, tile = np.empty(m * m), np.empty(m * m), np.empty(32)
    for at in range(first, len(order), step):
        b = order[at]
        start, n = offsets[b], offsets[b + 1] - offsets[b]
        m = dense.padded(n)
        C = blocks[starts[b] : starts[b + 1]]
        jitter[b] = _factorise(C, n, m, A, tile)
        if np.isnan(jitter[b]):
            continue
        for i in range(n):
            value[b] += 2.0 * np.log(A[i * m + i])
        for column in range(len(x)):
            part = x[column, start : start + n]
            dense.solve_forward(A, n, m, part)
            dense.solve_backward(A, n, m, part)
        for column in range(len(gradient)):
            part = gradient[column, start : start + n]
            dense.solve_forward(A, n, m, part)
            dense.solve_backward(A, n, m, part)
        if len(gradient):
            dense.invert_factor(A, m, T, tile)
            dense.invert(A, m, T, tile)
            solved, slopes = x[:, start : start + n], gradient[:, start : start + n]
            _block_gradient(A, g[b], solved, slopes, n, m, change[starts[b] : starts[b + 1]])


@njit(**_COMPILED)
def _factorise(C, n, m, A, tile):  # type: ignore[no-untyped-def]
    """U of one matrix; returns the jitter that it took, NaN if there is none."""
    diagonal = 0.0
    for i in range(n):
        diagonal += C[i * n + i] / n
    for relative in dense.JITTERS:
        for i in range(m):
            begin = i // 8 * 8
            A[i * m + begin : i * m + m] = 0.0
            if i < n:
                A[i * m + begin : i * m + n] = C[i * n + begin : i * n + n]
            A[i * m + i] = C[i * n + i] + relative * diagonal if i < n else 1.0
        if dense.factorise(A, m, tile):
            return relative * diagonal
    return np.nan


@njit(**_COMPILED)
def _block_gradient(C_inverse, g, x, db, n, m, change):  # type: ignore[no-untyped-def]
    for i in range(n):
        for j in range(i, n):
            total = g * C_inverse[i * m + j]
            for column in range(len(x)):
                total -= 0.5 * (db[column, i] * x[column, j] + x[column, i] * db[column, j])
            change[i * n + j] = total
            change[j * n + i] = total


class _Solve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, blocks: Tensor, b: Tensor, problem: SmallProblems) -> tuple[Tensor, Tensor]:
        x = b.detach().mT.clone(memory_format=torch.contiguous_format)
        value, none = np.zeros(len(problem.ragged)), np.zeros(0)
        ctx.blocks, ctx.right, ctx.problem = blocks.detach().contiguous().numpy(), x.clone(), problem
        problem.run(_solutions, _starts(problem), ctx.blocks, x.numpy(), np.zeros((0, 0)), none, value, none)
        return x.mT, torch.from_numpy(value)

    @staticmethod
    def backward(ctx: Any, g_x: Tensor, g_value: Tensor) -> tuple[Tensor | None, ...]:
        expect_first_order()
        x, db = ctx.right.clone(), g_x.mT.clone(memory_format=torch.contiguous_format)
        value, change = np.zeros(len(ctx.problem.ragged)), np.zeros_like(ctx.blocks)
        arrays = (ctx.blocks, x.numpy(), db.numpy(), g_value.contiguous().numpy(), value, change)
        ctx.problem.run(_solutions, _starts(ctx.problem), *arrays)
        return torch.from_numpy(change), db.mT, None


def _starts(problem: SmallProblems) -> Any:
    """Where each matrix begins, ``(B + 1,)``."""
    return np.concatenate([[0], np.cumsum(problem.ragged.sizes**2)])


def _padded_solve(blocks: Tensor, b: Tensor, problem: SmallProblems) -> tuple[Tensor, Tensor]:
    x, value = torch.zeros_like(b), b.new_zeros(len(problem.ragged))
    starts = torch.from_numpy(_starts(problem)[:-1]).to(b.device)
    for group in problem.ragged.size_classes():
        index, real = problem.ragged.rows_of(group)
        members = torch.from_numpy(group).to(b.device)
        sizes, places = real.sum(-1), torch.arange(real.shape[-1], device=b.device)
        both = real.unsqueeze(-1) & real.unsqueeze(-2)
        at = starts[members][:, None, None] + places[:, None] * sizes[:, None, None] + places
        C = torch.where(both, blocks[torch.where(both, at, 0)], 0.0)
        C = 0.5 * (C + C.mT) + torch.diag_embed(torch.where(real, 0.0, 1.0).to(b))
        L = factor_padded(C, real, group, problem)
        solved = torch.cholesky_solve(torch.where(real.unsqueeze(-1), b[index], 0.0), L)
        x = x.index_put((index[real],), solved[real])
        value = value.index_put((members,), 2 * L.diagonal(dim1=-2, dim2=-1).log().sum(-1))
    check_factors(problem.jitter, problem.ragged)
    return x, value
