"""The Vecchia approximation: each observation given its nearest neighbours among those before it.

| symbol | name in code | shape |
|---|---|---|
| c(i), rows that row i is conditioned on | `neighbours` | (n, m), -1 where there are fewer |
| C of c(i) and i, noise included, i last; C = U'U | `A` | see `small_dense` |
| v, e: variance and error of y_i given y_c(i) | `v`, `e` | |
| u = (-C_cc⁻¹ C_ci, 1), b = (C_cc⁻¹ r_c, 0) | `u`, `b` | (m + 1,) |

    log p(y) ~ sum_i log N(y_i | y_c(i)) = -½ sum_i (e²/v + log v + log 2π),   e = u'r,   v = u'Cu
    d log p_i / dC = g_v uu' - ½ g_e (bu' + ub'),   g_v = -½ (1/v - e²/v²),   g_e = -e/v

e and v are the last entries of U and of (U')⁻¹r, so a row costs one small factor, and its gradient no inverse but two
triangular solves. Noise is part of C: neighbours are observations, not latent values.

One compiled pass (Numba; float64, CPU, kernels that `stationary_terms` knows) goes through the rows in a number of
chunks that is always the same, so results don't depend on the number of threads. Other kernels, float32 and other
devices take blocks of rows through torch.

Sources: Vecchia (1988); Guinness (2018); Guinness (2021), Gaussian process learning via Fisher scoring of Vecchia's
approximation, for gradients; here they are in the form above.
"""

import math
from typing import Any

import numpy as np
import torch
from gpytorch.kernels import Kernel
from numpy.typing import NDArray
from torch import Tensor

from gpmoe.linalg import small_dense as dense
from gpmoe.linalg.compiler import njit
from gpmoe.linalg.factorisation import Workspace
from gpmoe.linalg.likelihood import Precomputed, learnable_tensors
from gpmoe.linalg.pool import run_pass
from gpmoe.linalg.stationary import Packed, pack, stationary_terms
from gpmoe.linalg.vecchia_blocked import Blocked, blocked_marginals, no_factor

_LOG_2_PI = math.log(2 * math.pi)
_CHUNKS = 8
_COMPILED: Any = {"cache": True, "nogil": True, "error_model": "numpy"}

Array = NDArray[np.float64]
Neighbours = NDArray[np.int32]


def vecchia_log_likelihood(
    kernel: Kernel, X: Tensor, residual: Tensor, noise: Tensor, neighbours: Neighbours, *, workspace: Workspace
) -> Tensor:
    """sum_i log N(residual_i | residual_c(i)) under the covariance K(X, X) + diag(noise), differentiable once.

    Args:
        kernel: any GPyTorch kernel without batch dimensions.
        X: inputs in their order, ``(n, d)``.
        residual: targets less their mean, ``(n,)``.
        noise: noise variance of each row, ``(n,)``.
        neighbours: as `previous_neighbours` gives them, ``(n, m)``.
        workspace: where the largest jitter is reported.

    Returns:
        A scalar, nats; gradients reach the kernel's parameters, X, residual and noise. With all previous rows as
        neighbours it is the exact log likelihood.

    Raises:
        NotPositiveDefiniteError: if a row and its neighbours have a covariance without a factor at the largest jitter.
    """
    terms = stationary_terms(kernel, X)
    if terms is not None:
        packed = pack(terms)
        value: Tensor = _Compiled.apply(
            packed.Z1, packed.shape, packed.scale, residual, noise, packed, neighbours, workspace
        )
        return value
    value = Blocked.apply(X, residual, noise, kernel, neighbours, workspace, *learnable_tensors(kernel))
    return value


def vecchia_marginals(
    kernel: Kernel, X: Tensor, residual: Tensor, noise: Tensor, X_new: Tensor, neighbours: Neighbours
) -> tuple[Tensor, Tensor]:
    """Mean (less the prior's) and variance of the latent function at new points, each given its own neighbours.

    Args:
        kernel, X, residual, noise: as in `vecchia_log_likelihood`.
        X_new: ``(q, d)``.
        neighbours: rows of X for each new point, ``(q, m)``.

    Returns:
        ``(q,)`` each, without gradients, in memory of the order of the inputs.
    """
    with torch.no_grad():
        terms = stationary_terms(kernel, X_new, X)
        if terms is None:
            return blocked_marginals(kernel, X, residual, noise, X_new, neighbours)
        packed = pack(terms)
        assert packed.Z2 is not None
        mean, variance, jitter = np.empty(len(X_new)), np.empty(len(X_new)), np.zeros(_CHUNKS)
        data = (packed.Z2.numpy(), *packed.arrays(), residual.numpy(), noise.contiguous().numpy())
        _run(_marginals, neighbours, packed.Z1.numpy(), *data, mean, variance, jitter)
        return torch.from_numpy(mean), torch.from_numpy(variance)


def _run(function: Any, neighbours: Neighbours, *arguments: Any) -> None:
    """Call a compiled pass on all threads; its last argument is the largest jitter of each chunk, NaN for failure."""
    cost = neighbours.shape[0] * (neighbours.shape[1] + 1) ** 2
    run_pass(function, cost, _CHUNKS, neighbours, *arguments)
    if np.isnan(arguments[-1]).any():
        raise no_factor(neighbours.shape[1])


@njit(**_COMPILED)
def _memory(size, D, leaves):  # type: ignore[no-untyped-def]
    """Buffers for one row and its neighbours, `size` in all."""
    m = dense.padded(size)
    pairs = dense.pairs_of(m)
    square = (np.empty(m * m), np.empty(32))
    values = (np.empty(pairs), np.empty((leaves, pairs)), np.empty((leaves, pairs)), np.empty((leaves, pairs)))
    return square, values, np.empty(D * m), np.empty(D * m), np.empty(pairs), np.empty((4, m)), np.empty(size, np.int64)


@njit(**_COMPILED)
def _gather(near, Z, residual, noise, z, h, local_noise, rows):  # type: ignore[no-untyped-def]
    """Copy a row's neighbours into the buffers; returns their number, and inputs with room for one more."""
    n = 0
    while n < len(near) and near[n] >= 0:
        rows[n] = near[n]
        n += 1
    m = dense.padded(n + 1)
    local = z[: len(Z) * m].reshape(len(Z), m)
    for d in range(len(Z)):
        for j in range(n):
            local[d, j] = Z[d, rows[j]]
        local[d, n:] = 0.0
    for j in range(n):
        h[j], local_noise[j] = residual[rows[j]], noise[rows[j]]
    return n, m, local


@njit(**_COMPILED)
def _factorise(local, n, m, rows, family, shape, leaves, scale, noise, square, values):  # type: ignore[no-untyped-def]
    """U of n gathered rows; the jitter that it took, NaN if there is none."""
    (A, tile), (r2, k, slope, shape_slope) = square, values
    dense.evaluate_leaves(local, m, rows, family, shape, r2, k, slope, shape_slope)
    jitter, diagonal = 0.0, 0.0
    for relative in dense.JITTERS:
        jitter = relative * diagonal
        diagonal = dense.assemble(k, leaves, scale, noise, jitter, n, m, A)
        if dense.factorise(A, m, tile):
            return jitter
    return np.nan


@njit(**_COMPILED)
def _conditionals(  # type: ignore[no-untyped-def]
    first, step, neighbours, Z, rows, family, shape, leaves, scale, residual, noise, with_gradient,
    value, change, dshape, dscale, jitter,
):  # fmt: skip
    """log p of each row given its neighbours; each chunk's gradients for Z, residual and noise (one above another in
    `change`), shape and scale."""
    D = len(Z)
    square, values, z, dz, w, vectors, near = _memory(neighbours.shape[1] + 1, D, len(family))
    (A, _), (g, k, slope, shape_slope) = square, values
    h, local_noise, u, b = vectors
    for chunk in range(first, _CHUNKS, step):
        for row in range(chunk, len(residual), _CHUNKS):
            n, m, local = _gather(neighbours[row], Z, residual, noise, z, h, local_noise, near)
            near[n], h[n], local_noise[n] = row, residual[row], noise[row]
            for d in range(D):
                local[d, n] = Z[d, row]
            needed = _factorise(local, n + 1, m, rows, family, shape, leaves, scale, local_noise, square, values)
            if not needed <= jitter[chunk]:
                jitter[chunk] = needed
            if np.isnan(needed):
                continue
            dense.solve_forward(A, n + 1, m, h)
            deviation = A[n * m + n]
            value[row] = -0.5 * (h[n] * h[n] + _LOG_2_PI) - math.log(deviation)
            if not with_gradient:
                continue
            for j in range(n):
                u[j], b[j] = -A[j * m + n], h[j]
            dense.solve_backward(A, n, m, u)
            dense.solve_backward(A, n, m, b)
            u[n], b[n] = 1.0, 0.0
            g_v, g_e = 0.5 * (h[n] * h[n] - 1.0) / (deviation * deviation), -h[n] / deviation
            local_change = dz[: D * m].reshape(D, m)
            local_change[:] = 0.0
            _weights(u, b, g_v, g_e, n + 1, m, w, local_noise)
            dense.pull_back(
                w, n + 1, m, local, rows, family, leaves, scale, k, slope, shape_slope, g,
                local_change, dshape[chunk], dscale[chunk],
            )  # fmt: skip
            for d in range(D):
                for j in range(n + 1):
                    change[chunk, d, near[j]] += local_change[d, j]
            for j in range(n + 1):
                change[chunk, D, near[j]] += g_e * u[j]
                change[chunk, D + 1, near[j]] += local_noise[j]


@njit(**_COMPILED)
def _weights(u, b, g_v, g_e, n, m, w, dnoise):  # type: ignore[no-untyped-def]
    """Weights of `small_dense.pull_back` for g_v uu' - ½ g_e (bu' + ub'); its diagonal is the gradient for noise."""
    at = 0
    for i in range(n):
        begin = i // 8 * 8
        line, others, more = w[at : at + m - begin], u[begin:n], b[begin:n]
        line[:] = 0.0
        by_u, by_b = 2.0 * g_v * u[i] - g_e * b[i], -g_e * u[i]
        for j in range(i - begin, n - begin):
            line[j] = by_u * others[j] + by_b * more[j]
        line[i - begin] *= 0.5
        dnoise[i] = line[i - begin]
        at += m - begin


@njit(**_COMPILED)
def _marginals(  # type: ignore[no-untyped-def]
    first, step, neighbours, Z_new, Z, rows, family, shape, leaves, scale, residual, noise, mean, variance, jitter
):  # fmt: skip
    """Latent mean and variance at new points. Twice the prior variance on a new point's diagonal keeps C well away
    from singular where it repeats a neighbour; it is taken off again."""
    D = len(Z)
    square, values, z, _, _, vectors, near = _memory(neighbours.shape[1] + 1, D, len(family))
    A = square[0]
    h, local_noise, _, _ = vectors
    prior = scale.sum()
    for chunk in range(first, _CHUNKS, step):
        for row in range(chunk, len(mean), _CHUNKS):
            n, m, local = _gather(neighbours[row], Z, residual, noise, z, h, local_noise, near)
            h[n], local_noise[n] = 0.0, prior
            for d in range(D):
                local[d, n] = Z_new[d, row]
            needed = _factorise(local, n + 1, m, rows, family, shape, leaves, scale, local_noise, square, values)
            if not needed <= jitter[chunk]:
                jitter[chunk] = needed
            if np.isnan(needed):
                continue
            dense.solve_forward(A, n + 1, m, h)
            deviation = A[n * m + n]
            mean[row] = -h[n] * deviation
            variance[row] = max(deviation * deviation - prior - needed, 2.2e-16 * prior)


class _Compiled(Precomputed):
    @staticmethod
    def forward(
        ctx: Any,
        Z: Tensor,
        shape: Tensor,
        scale: Tensor,
        residual: Tensor,
        noise: Tensor,
        packed: Packed,
        neighbours: Neighbours,
        workspace: Workspace,
    ) -> Tensor:
        D, n = Z.shape
        wanted = any(ctx.needs_input_grad)
        value, jitter = np.empty(n), np.zeros(_CHUNKS)
        change = np.zeros((_CHUNKS, D + 2, n if wanted else 0))
        dshape, dscale = np.zeros((_CHUNKS, len(shape))), np.zeros((_CHUNKS, len(scale)))
        data = (*packed.arrays(), residual.detach().contiguous().numpy(), noise.detach().contiguous().numpy())
        _run(_conditionals, neighbours, Z.numpy(), *data, wanted, value, change, dshape, dscale, jitter)
        workspace.jitter = float(jitter.max())
        total = torch.from_numpy(change.sum(0))
        sums = (torch.from_numpy(part.sum(0)) for part in (dshape, dscale))
        ctx.gradients = (total[:D], *sums, total[D], total[D + 1], None, None, None) if wanted else ()
        return residual.new_tensor(value.sum())
