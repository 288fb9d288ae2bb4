"""The compiled pass over many small problems: likelihoods and their gradients (see `small_batch` for the notation)."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpmoe.linalg import small_dense as dense
from gpmoe.linalg.compiler import njit
from gpmoe.linalg.likelihood import expect_first_order
from gpmoe.linalg.small_problems import SmallProblems

_LOG_2_PI = math.log(2 * math.pi)
_COMPILED: Any = {"cache": True, "nogil": True, "error_model": "numpy"}


@njit(**_COMPILED)
def memory_for(longest, d):  # type: ignore[no-untyped-def]
    """Buffers for problems of up to `longest` rows."""
    m = dense.padded(longest)
    pairs = dense.pairs_of(m)
    square = (np.empty(m * m), np.empty(m * m), np.empty(32))
    leaves = (np.empty(pairs), np.empty((1, pairs)), np.empty((1, pairs)), np.empty((1, pairs)))
    return square, leaves, np.empty(d * m), np.empty(d * m), np.empty(pairs)


@njit(**_COMPILED)
def factorise_problem(Z, start, n, family, shape, scale, noise, memory):  # type: ignore[no-untyped-def]
    """U of one problem in the buffers; returns its scaled inputs and the jitter, NaN if there is no factor."""
    (A, _, tile), (r2, k, slope, shape_slope), z, _, _ = memory
    d, m = len(Z), dense.padded(n)
    local = z[: d * m].reshape(d, m)
    for row in range(d):
        local[row, :n] = Z[row, start : start + n]
        local[row, n:] = 0.0
    rows, leaves = np.array([0, d]), np.array([0, 1])
    dense.evaluate_leaves(local, m, rows, family, shape, r2, k, slope, shape_slope)
    jitter, diagonal = 0.0, 0.0
    for relative in dense.JITTERS:
        jitter = relative * diagonal
        diagonal = dense.assemble(k, leaves, scale, noise[start : start + n], jitter, n, m, A)
        if dense.factorise(A, m, tile):
            return local, jitter
    return local, np.nan


@njit(**_COMPILED)
def solve_problem(A, n, m, b, x):  # type: ignore[no-untyped-def]
    x[:n] = b
    dense.solve_forward(A, n, m, x)
    dense.solve_backward(A, n, m, x)


@njit(**_COMPILED)
def _likelihoods(  # type: ignore[no-untyped-def]
    first, step, order, offsets, family, Z, shape, scale, residual, noise, with_gradient,
    value, dZ, dshape, dscale, alpha, dnoise, jitter,
):  # fmt: skip
    """log p(y) of each problem and, if wanted, its gradient."""
    if len(order) == 0:
        return
    memory = memory_for(offsets[order[0] + 1] - offsets[order[0]], len(Z))
    (A, T, tile), _, _, _, w = memory
    for at in range(first, len(order), step):
        b = order[at]
        start, n = offsets[b], offsets[b + 1] - offsets[b]
        if n == 0:
            continue
        m = dense.padded(n)
        local, jitter[b] = factorise_problem(Z, start, n, family, shape[b : b + 1], scale[b : b + 1], noise, memory)
        if np.isnan(jitter[b]):
            continue
        a, r = alpha[start : start + n], residual[start : start + n]
        solve_problem(A, n, m, r, a)
        total = n * _LOG_2_PI
        for i in range(n):
            total += a[i] * r[i] + 2.0 * math.log(A[i * m + i])
        value[b] = -0.5 * total
        if with_gradient:
            dense.invert_factor(A, m, T, tile)
            dense.invert(A, m, T, tile)
            _likelihood_weights(A, a, n, m, w, dnoise[start : start + n])
            pull_back_problem(w, n, m, local, start, family, scale, b, memory, dZ, dshape, dscale)


@njit(**_COMPILED)
def _likelihood_weights(C_inverse, a, n, m, w, dnoise):  # type: ignore[no-untyped-def]
    """Weights of `small_dense.pull_back` for ½(αα' - C⁻¹), and the gradient for each row's noise."""
    at = 0
    for i in range(n):
        begin = i // 8 * 8
        line, others, inverse = w[at : at + m - begin], a[begin:n], C_inverse[i * m + begin : i * m + m]
        line[:] = 0.0
        for j in range(i - begin, n - begin):
            line[j] = a[i] * others[j] - inverse[j]
        line[i - begin] *= 0.5
        dnoise[i] = line[i - begin]
        at += m - begin


@njit(**_COMPILED)
def pull_back_problem(w, n, m, local, start, family, scale, b, memory, dZ, dshape, dscale):  # type: ignore[no-untyped-def]
    """Chain a problem's weights to its rows of dZ, its shape and its scale."""
    _, (g, k, slope, shape_slope), _, dz, _ = memory
    d = len(local)
    change = dz[: d * m].reshape(d, m)
    change[:] = 0.0
    rows, leaves = np.array([0, d]), np.array([0, 1])
    dense.pull_back(
        w, n, m, local, rows, family, leaves, scale[b : b + 1], k, slope, shape_slope, g,
        change, dshape[b : b + 1], dscale[b : b + 1],
    )  # fmt: skip
    for row in range(d):
        for i in range(n):
            dZ[row, start + i] += change[row, i]


class Likelihoods(torch.autograd.Function):
    """log p(y) of each problem, ``(B,)``, as a function of scaled inputs and hyperparameters."""

    @staticmethod
    def forward(
        ctx: Any, Z: Tensor, shape: Tensor, scale: Tensor, residual: Tensor, noise: Tensor, problem: SmallProblems
    ) -> Tensor:
        arrays = [part.detach().contiguous().numpy() for part in (Z, shape, scale, residual, noise)]
        value = np.zeros(len(problem.ragged))
        gradients = [np.zeros_like(array) for array in arrays]
        wanted = any(ctx.needs_input_grad)
        problem.run(_likelihoods, np.array([problem.family]), *arrays, wanted, value, *gradients)
        if wanted:
            np.negative(gradients[3], out=gradients[3])  # d/d residual is -α
            ctx.gradients, ctx.owner = [torch.from_numpy(array) for array in gradients], problem.ragged.owner
        return torch.from_numpy(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        expect_first_order()
        each_row = grad[ctx.owner]
        factors = (each_row, grad, grad, each_row, each_row)
        return *(g * factor for g, factor in zip(ctx.gradients, factors, strict=True)), None
