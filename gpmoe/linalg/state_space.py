"""A sum of coregionalised Matérn processes as a state-space model: prediction, scalar update, and their adjoints.

    f_m(t) = Σ_q g_qm(t),   cov(g_qm(t), g_qm'(t')) = B_q[m, m'] k_q(|t - t'|)

The state of one component q holds f and its derivatives f⁽ⁱ⁾/λⁱ, i < order, of all channels: over a time Δ it is
multiplied by A(λΔ) ⊗ I, A(u) = exp(F u), and its stationary covariance is S ⊗ B_q. What is kept is not the posterior
covariance P but what the data have explained of it, R = S ⊗ B - P, a sum of squares that only decays in time:

    predict: m ← A m, R ← A R A';   observe y = h'f + ε: u = (S ⊗ B - R) h, s = h'u + σ², m += u e/s, R += u u'/s

| symbol | name in code | shape |
|---|---|---|
| M channels, d states | `M`, `d` | |
| order of each component (1, 2, 3 for ν = 1/2, 3/2, 5/2) | `orders` | (Q,) |
| λ = sqrt(2ν)/timescale | `rates` | (Q,) |
| B | `B` | (Q, M, M) |
| m, R | `m`, `R` | (d,), (d, d) |
| adjoints of m and R | `gm`, `gR` | (d,), (d, d) |

State (q, i, channel c) is number ``first(q) + i M + c``. All is float64. An error of R is of the order of rounding
times B: variances are good to about 1e-15 of the prior's, so a noise variance of 1e-8 of it still has seven digits.

Source: Särkkä and Solin (2019), Applied Stochastic Differential Equations, sec. 6.3 (filter) and 12.3 (Matérn).
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpmoe.linalg.compiler import njit

Array = NDArray[np.float64]

ORDERS = {"matern12": 1, "matern32": 2, "matern52": 3}

_COMPILED: Any = {"cache": True, "nogil": True, "error_model": "numpy"}
_FAST: Any = {"cache": True, "nogil": True, "error_model": "numpy", "fastmath": True}
_FARTHEST = 600.0  # in u, beyond which A is zero for all that float64 can tell

# F and S of the orders 1, 2 and 3
DRIFT = np.array(
    [
        [[-1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]],
        [[0.0, 1.0, 0.0], [-1.0, -2.0, 0.0], [0.0, 0.0, 0.0]],
        [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [-1.0, -3.0, -3.0]],
    ]
)
FIRST_COLUMN = np.array([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, -1.0 / 3.0]])  # of S


def state_size(orders: NDArray[np.int64], channels: int) -> int:
    """d, how many numbers a state has."""
    return int(orders.sum()) * channels


@njit(**_COMPILED)
def _transition(order, u, A):  # type: ignore[no-untyped-def]
    """A(u) = exp(F u), (order, order)."""
    u = min(u, _FARTHEST)
    e = math.exp(-u)
    if order == 1:
        A[0, 0] = e
    elif order == 2:
        A[0, 0], A[0, 1] = e * (1.0 + u), e * u
        A[1, 0], A[1, 1] = -e * u, e * (1.0 - u)
    else:
        v = u * u
        A[0, 0], A[0, 1], A[0, 2] = e * (1.0 + u + 0.5 * v), e * (u + v), e * 0.5 * v
        A[1, 0], A[1, 1], A[1, 2] = -e * 0.5 * v, e * (1.0 + u - v), e * (u - 0.5 * v)
        A[2, 0], A[2, 1], A[2, 2] = e * (0.5 * v - u), e * (v - 3.0 * u), e * (1.0 - 2.0 * u + 0.5 * v)


@njit(**_FAST)
def _scale(line, factor):  # type: ignore[no-untyped-def]
    for j in range(len(line)):
        line[j] *= factor


@njit(**_FAST)
def _add(line, factor, other):  # type: ignore[no-untyped-def]
    for j in range(len(line)):
        line[j] += factor * other[j]


@njit(**_FAST)
def _dot(line, other):  # type: ignore[no-untyped-def]
    total = 0.0
    for j in range(len(line)):
        total += line[j] * other[j]
    return total


@njit(**_FAST)
def _mix2(a, b, A):  # type: ignore[no-untyped-def]
    f, g, h, k = A[0, 0], A[0, 1], A[1, 0], A[1, 1]  # out of the loop, for all that the compiler knows of aliases
    for j in range(len(a)):
        x, y = a[j], b[j]
        a[j] = f * x + g * y
        b[j] = h * x + k * y


@njit(**_FAST)
def _mix3(a, b, c, A):  # type: ignore[no-untyped-def]
    f0, f1, f2 = A[0, 0], A[0, 1], A[0, 2]
    g0, g1, g2 = A[1, 0], A[1, 1], A[1, 2]
    h0, h1, h2 = A[2, 0], A[2, 1], A[2, 2]
    for j in range(len(a)):
        x, y, z = a[j], b[j], c[j]
        a[j] = f0 * x + f1 * y + f2 * z
        b[j] = g0 * x + g1 * y + g2 * z
        c[j] = h0 * x + h1 * y + h2 * z


@njit(**_FAST)
def _scale_both_sides(R, a):  # type: ignore[no-untyped-def]
    for i in range(len(a)):
        factor = a[i]
        for j in range(len(a)):
            R[i, j] *= factor * a[j]


@njit(**_COMPILED)
def _multiply_state(line, M, orders, A):  # type: ignore[no-untyped-def]
    """line ← (A ⊗ I) line for one vector of states."""
    at = 0
    for q in range(len(orders)):
        order, block = orders[q], A[q]
        if order == 1:
            _scale(line[at : at + M], block[0, 0])
        elif order == 2:
            _mix2(line[at : at + M], line[at + M : at + 2 * M], block)
        else:
            _mix3(line[at : at + M], line[at + M : at + 2 * M], line[at + 2 * M : at + 3 * M], block)
        at += order * M


@njit(**_COMPILED)
def _multiply_both_sides(R, M, orders, A):  # type: ignore[no-untyped-def]
    """R ← (A ⊗ I) R (A ⊗ I)', the rows of one channel and component at a time."""
    if orders.max() == 1:
        a = np.empty(len(R))
        for q in range(len(orders)):
            a[q * M : (q + 1) * M] = A[q, 0, 0]
        _scale_both_sides(R, a)
        return
    at = 0
    for q in range(len(orders)):
        order, block = orders[q], A[q]
        for c in range(at, at + M):
            if order == 1:
                _scale(R[c], block[0, 0])
            elif order == 2:
                _mix2(R[c], R[c + M], block)
            else:
                _mix3(R[c], R[c + M], R[c + 2 * M], block)
            for i in range(order):
                _multiply_state(R[c + i * M], M, orders, A)
        at += order * M


@njit(**_COMPILED)
def transitions(gap, orders, rates, A):  # type: ignore[no-untyped-def]
    """Fill A, (Q, 3, 3), for a time `gap`."""
    for q in range(len(orders)):
        _transition(orders[q], rates[q] * gap, A[q])


@njit(**_COMPILED)
def predict(m, R, M, orders, A):  # type: ignore[no-untyped-def]
    """m ← A m, R ← A R A'."""
    _multiply_state(m, M, orders, A)
    _multiply_both_sides(R, M, orders, A)


@njit(**_COMPILED)
def observe(m, R, M, orders, B, c, y, noise, u):  # type: ignore[no-untyped-def]
    """Condition on one value of channel c; u is left for the adjoint. Returns e and s."""
    at, e, s = 0, y, noise
    u[:] = 0.0
    for q in range(len(orders)):
        _add(u, -1.0, R[at + c])
        e -= m[at + c]
        at += orders[q] * M
    at = 0
    for q in range(len(orders)):
        for i in range(orders[q]):
            share = FIRST_COLUMN[orders[q] - 1, i]
            if share != 0.0:
                _add(u[at + i * M : at + (i + 1) * M], share, B[q, c])
        s += u[at + c]
        at += orders[q] * M
    _add(m, e / s, u)
    for i in range(len(R)):
        _add(R[i], u[i] / s, u)
    return e, s


@njit(**_COMPILED)
def read(m, R, M, orders, B, mean, variance):  # type: ignore[no-untyped-def]
    """Mean and variance of f, (M,) each."""
    mean[:], variance[:] = 0.0, 0.0
    row = 0
    for q in range(len(orders)):
        for c in range(M):
            mean[c] += m[row + c]
            variance[c] += B[q, c, c]
            column = 0
            for p in range(len(orders)):
                variance[c] -= R[row + c, column + c]
                column += orders[p] * M
        row += orders[q] * M


@njit(**_COMPILED)
def read_joint(m, R, M, orders, B, mean, covariance):  # type: ignore[no-untyped-def]
    """Mean of f, (M,), and its covariance over channels, (M, M)."""
    mean[:], covariance[:] = 0.0, 0.0
    row = 0
    for q in range(len(orders)):
        for c in range(M):
            mean[c] += m[row + c]
            _add(covariance[c], 1.0, B[q, c])
            column = 0
            for p in range(len(orders)):
                _add(covariance[c], -1.0, R[row + c, column : column + M])
                column += orders[p] * M
        row += orders[q] * M


@njit(**_COMPILED)
def pull_back_read(gm, gR, M, orders, g_mean, g_variance, dB):  # type: ignore[no-untyped-def]
    """Adjoint of `read`."""
    row = 0
    for q in range(len(orders)):
        for c in range(M):
            gm[row + c] += g_mean[c]
            dB[q, c, c] += g_variance[c]
            column = 0
            for p in range(len(orders)):
                gR[row + c, column + c] -= g_variance[c]
                column += orders[p] * M
        row += orders[q] * M


@njit(**_COMPILED)
def pull_back_read_joint(gm, gR, M, orders, g_mean, g_covariance, dB):  # type: ignore[no-untyped-def]
    """Adjoint of `read_joint`, for a symmetric gradient."""
    row = 0
    for q in range(len(orders)):
        for c in range(M):
            gm[row + c] += g_mean[c]
            _add(dB[q, c], 1.0, g_covariance[c])
            column = 0
            for p in range(len(orders)):
                _add(gR[row + c, column : column + M], -1.0, g_covariance[c])
                column += orders[p] * M
        row += orders[q] * M


@njit(**_COMPILED)
def pull_back_observe(gm, gR, M, orders, c, u, e, s, g_log, dB, gu):  # type: ignore[no-untyped-def]
    """Adjoint of `observe` and of its share of the log likelihood, -½(e²/s + log s); returns those of y and noise."""
    through_mean = _dot(gm, u)
    square = 0.0
    for i in range(len(gR)):
        v = _dot(gR[i], u)
        square += v * u[i]
        gu[i] = 2.0 * v / s + gm[i] * e / s
    ge = through_mean / s - g_log * e / s
    gs = -(through_mean * e + square) / (s * s) + 0.5 * g_log * (e * e / s - 1.0) / s
    at = 0
    for q in range(len(orders)):
        gm[at + c] -= ge
        gu[at + c] += gs
        at += orders[q] * M
    at = 0
    for q in range(len(orders)):
        for i in range(orders[q]):
            share = FIRST_COLUMN[orders[q] - 1, i]
            if share != 0.0:
                _add(dB[q, c], share, gu[at + i * M : at + (i + 1) * M])
        _add(gR[at + c], -0.5, gu)
        for i in range(len(gR)):
            gR[i, at + c] -= 0.5 * gu[i]
        at += orders[q] * M
    return ge, gs


@njit(**_COMPILED)
def pull_back_predict(gm, gR, m, R, M, orders, gap, A, drates):  # type: ignore[no-untyped-def]
    """Adjoint of `predict`, where m and R are those before it.

    F commutes with A, so that the slope for u is tr(gR F R) with gR already pulled back.
    """
    for q in range(len(orders)):
        order = orders[q]
        for i in range(order):
            for k in range(i):
                A[q, i, k], A[q, k, i] = A[q, k, i], A[q, i, k]
    predict(gm, gR, M, orders, A)
    at = 0
    for q in range(len(orders)):
        order = orders[q]
        total = 0.0
        for i in range(order):
            for k in range(order):
                f = DRIFT[order - 1, i, k]
                if f == 0.0:
                    continue
                inner = 0.0
                for c in range(M):
                    row, other = at + i * M + c, at + k * M + c
                    inner += 2.0 * _dot(gR[row], R[other]) + gm[row] * m[other]
                total += f * inner
        drates[q] += gap * total
        at += order * M
