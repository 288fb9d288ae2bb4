"""The compiled pass over many small problems: posteriors at new points and their gradients.

With a = C⁻¹k for the covariances k of a new point, its mean is k'α and its variance s - k'a; from gradients g_m and g_v
for the two come g_m α - 2 g_v a for k, and -½ g_m (aα' + αa') + g_v aa' for C.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpmoe.linalg import fused
from gpmoe.linalg import small_dense as dense
from gpmoe.linalg.compiler import njit
from gpmoe.linalg.likelihood import expect_first_order
from gpmoe.linalg.small_likelihoods import factorise_problem, memory_for, pull_back_problem, solve_problem
from gpmoe.linalg.small_problems import SmallProblems

_COMPILED: Any = {"cache": True, "nogil": True, "error_model": "numpy"}


@njit(**_COMPILED)
def _new_pair(local, n, z_new, j, family, shape, vectors):  # type: ignore[no-untyped-def]
    """k, dk/dr2 and dk/dα of new point j with a problem's n rows; z_new is (d, total_new)."""
    r2, k, slope, shape_slope = vectors
    r2[:n] = 0.0
    for row in range(len(local)):
        z, others = z_new[row, j], local[row]
        for i in range(n):
            r2[i] += (z - others[i]) ** 2
    fused.leaf_and_slope(family[0], shape, r2, n, k, slope, shape_slope)


@njit(**_COMPILED)
def _posteriors(  # type: ignore[no-untyped-def]
    first, step, order, offsets, family, new_offsets, Z_new, Z, shape, scale, residual, noise,
    with_gradient, g_mean, g_variance, mean, variance, dZ_new, dZ, dshape, dscale, dresidual, dnoise, jitter,
):  # fmt: skip
    """Mean and variance of the latent function at each new point, or the gradient of sums of them with weights."""
    if len(order) == 0:
        return
    longest = max(offsets[order[0] + 1] - offsets[order[0]], 1)
    memory = memory_for(longest, len(Z))
    (A, _, _), _, _, _, w = memory
    room = np.empty((6, dense.padded(longest)))
    vectors = (room[0], room[1], room[2], room[3])
    for at in range(first, len(order), step):
        b = order[at]
        start, n = offsets[b], offsets[b + 1] - offsets[b]
        m = dense.padded(n)
        s, q = scale[b], new_offsets[b + 1] - new_offsets[b]
        if q == 0:
            continue
        local, jitter[b] = factorise_problem(Z, start, n, family, shape[b : b + 1], scale[b : b + 1], noise, memory)
        if np.isnan(jitter[b]):
            continue
        alpha, h = room[4, :n], room[5]
        solve_problem(A, n, m, residual[start : start + n], alpha)
        w[: dense.pairs_of(m)] = 0.0
        for j in range(new_offsets[b], new_offsets[b + 1]):
            _new_pair(local, n, Z_new, j, family, shape[b], vectors)
            h[:n] = s * vectors[1][:n]
            dense.solve_forward(A, n, m, h)
            if not with_gradient:
                total, explained = 0.0, 0.0
                for i in range(n):
                    total += s * vectors[1][i] * alpha[i]
                    explained += h[i] * h[i]
                mean[j], variance[j] = total, max(s - explained, 2.2e-16 * s)
                continue
            dense.solve_backward(A, n, m, h)
            gm, gv = g_mean[j], g_variance[j]
            dscale[b] += gv
            _add_posterior_weights(w, h, alpha, n, m, gm, gv)
            for i in range(n):
                dresidual[start + i] += gm * h[i]
                h[i] = gm * alpha[i] - 2.0 * gv * h[i]  # the gradient for K(x_i, x_j)
                dscale[b] += h[i] * vectors[1][i]
                if family[0] == 4:
                    dshape[b] += s * h[i] * vectors[3][i]
            _pull_back_new(local, n, start, Z_new, j, s, h, vectors[2], dZ_new, dZ)
        if with_gradient:
            _close_weights(w, n, m, dnoise[start : start + n])
            pull_back_problem(w, n, m, local, start, family, scale, b, memory, dZ, dshape, dscale)


@njit(**_COMPILED)
def _pull_back_new(local, n, start, Z_new, j, s, g, slope, dZ_new, dZ):  # type: ignore[no-untyped-def]
    """Chain the gradient for a new point's covariances to its inputs and the problem's."""
    for row in range(len(local)):
        total = 0.0
        for i in range(n):
            t = 2.0 * s * g[i] * slope[i] * (Z_new[row, j] - local[row, i])
            total += t
            dZ[row, start + i] -= t
        dZ_new[row, j] += total


@njit(**_COMPILED)
def _add_posterior_weights(w, a, alpha, n, m, gm, gv):  # type: ignore[no-untyped-def]
    """Add dC of gm k'C⁻¹r - gv k'C⁻¹k for a = C⁻¹k: -½ gm (aα' + αa') + gv aa', a pair's two entries together."""
    at = 0
    for i in range(n):
        begin = i // 8 * 8
        line, others, more = w[at : at + n - begin], alpha[begin:n], a[begin:n]
        by_alpha, by_a = -gm * a[i], 2.0 * gv * a[i] - gm * alpha[i]
        for j in range(n - begin):
            line[j] += by_alpha * others[j] + by_a * more[j]
        at += m - begin


@njit(**_COMPILED)
def _close_weights(w, n, m, dnoise):  # type: ignore[no-untyped-def]
    """Make accumulated weights those of `small_dense.pull_back`; the diagonal is the gradient for the noise."""
    at = 0
    for i in range(n):
        begin = i // 8 * 8
        w[at : at + i - begin] = 0.0
        w[at + i - begin] *= 0.5
        dnoise[i] += w[at + i - begin]
        at += m - begin


class Posteriors(torch.autograd.Function):
    """Mean less the prior's and variance at each new point, as a function of inputs and hyperparameters."""

    @staticmethod
    def forward(
        ctx: Any,
        Z_new: Tensor,
        Z: Tensor,
        shape: Tensor,
        scale: Tensor,
        residual: Tensor,
        noise: Tensor,
        problem: SmallProblems,
    ) -> tuple[Tensor, Tensor]:
        assert problem.new is not None
        ctx.arrays = [part.detach().contiguous().numpy() for part in (Z_new, Z, shape, scale, residual, noise)]
        ctx.problem = problem
        none = np.zeros(0)
        mean, variance = np.zeros(Z_new.shape[-1]), np.zeros(Z_new.shape[-1])
        unused = (np.zeros((0, 0)), np.zeros((0, 0)), none, none, none, none)
        problem.run(
            _posteriors,
            np.array([problem.family]),
            problem.new.offsets,
            *ctx.arrays,
            False,
            none,
            none,
            mean,
            variance,
            *unused,
        )
        return torch.from_numpy(mean), torch.from_numpy(variance)

    @staticmethod
    def backward(ctx: Any, g_mean: Tensor, g_variance: Tensor) -> tuple[Tensor | None, ...]:
        expect_first_order()
        problem, none = ctx.problem, np.zeros(0)
        gradients = [np.zeros_like(array) for array in ctx.arrays]
        weights = (g_mean.contiguous().numpy(), g_variance.contiguous().numpy())
        problem.run(
            _posteriors,
            np.array([problem.family]),
            problem.new.offsets,
            *ctx.arrays,
            True,
            *weights,
            none,
            none,
            *gradients,
        )
        return *(torch.from_numpy(gradient) for gradient in gradients), None
