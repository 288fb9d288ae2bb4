# mypy: disable-error-code="no-untyped-def, no-untyped-call, misc, call-arg, arg-type"
"""K V and its gradients in one pass over blocks of K, none of which is kept (Numba, float32 and float64, CPU).

| symbol | name in code | shape |
|---|---|---|
| scaled inputs of all leaves of rows and of columns | `Z1`, `Z2` | (D, n), (D, m) |
| V, what K is multiplied with | `V` | (m, t) |
| W = A B', the weight of each entry of K in a gradient | `A`, `B` | (n, u), (m, u) |
| families, shapes and terms of the kernel | `kernel` | see the table in `fused` |

K is cut into square blocks of rows and columns whose number depends on n and m alone, and blocks that share neither
rows nor columns form a round: within a round threads never meet, and what is added to a row comes in a fixed order,
so results don't depend on the number of threads. Of a symmetric K half the blocks are visited, each for both its
products; rounds are then those of a tournament.

Inside a block a strip of rows is computed into a buffer that stays in cache, multiplied with V by loops for a few
columns or by BLAS for many, and added in float64: a float32 sum runs over 32 entries in a loop, 128 in BLAS.
"""

import os
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gpmoe.linalg.compiler import njit
from gpmoe.linalg.exponential import EXACT, SCALES
from gpmoe.linalg.pool import call_for_each
from gpmoe.linalg.threads import at_most_threads
from gpmoe.linalg.tiles import FAST, copy_columns, covariance_strip, leaf, slopes, squared_distances

Array = NDArray[Any]
Kernel = tuple[NDArray[np.int64], NDArray[np.int64], Array, NDArray[np.int64], Array]
"""`rows`, `family`, `shape`, `leaves`, `scale`."""

FEW = 16  # columns up to which loops beat BLAS
_SERIAL_PAIRS = 20_000  # below this, waking a thread costs more than it saves
_STRIP, _WIDTH = 8, 256  # rows and columns of the buffer for few columns: wider ones are faster and less accurate
_SIDE = 128  # of the square buffer for many
_NARROW = 256  # columns of the buffer of a gradient
_FLUSH = 4  # strips after which sums over rows go to float64


@njit(**FAST)
def _rows_times(k, q, v, m, sums):
    """sums[r, q] += sum_j k[r, j] v[q, j] for eight rows."""
    for r in range(0, 8, 4):
        k0, k1, k2, k3, vq = k[r], k[r + 1], k[r + 2], k[r + 3], v[q]
        a = k0.dtype.type(0)
        b, c, d = a, a, a
        for j in range(m):
            a += k0[j] * vq[j]
            b += k1[j] * vq[j]
            c += k2[j] * vq[j]
            d += k3[j] * vq[j]
        sums[r, q] += a
        sums[r + 1, q] += b
        sums[r + 2, q] += c
        sums[r + 3, q] += d


@njit(**FAST)
def _two_rows_times(k, q, v, m, sums):
    """As `_rows_times`, for columns q and q + 1."""
    for r in range(0, 8, 4):
        k0, k1, k2, k3, x, y = k[r], k[r + 1], k[r + 2], k[r + 3], v[q], v[q + 1]
        a = k0.dtype.type(0)
        b, c, d, e, f, g, h = a, a, a, a, a, a, a
        for j in range(m):
            a += k0[j] * x[j]
            b += k1[j] * x[j]
            c += k2[j] * x[j]
            d += k3[j] * x[j]
            e += k0[j] * y[j]
            f += k1[j] * y[j]
            g += k2[j] * y[j]
            h += k3[j] * y[j]
        sums[r, q] += a
        sums[r + 1, q] += b
        sums[r + 2, q] += c
        sums[r + 3, q] += d
        sums[r, q + 1] += e
        sums[r + 1, q + 1] += f
        sums[r + 2, q + 1] += g
        sums[r + 3, q + 1] += h


@njit(**FAST)
def _columns_times(k, u, q, m, out):
    """out[j] += sum_r k[r, j] u[r, q] for eight rows."""
    for r in range(0, 8, 4):
        k0, k1, k2, k3 = k[r], k[r + 1], k[r + 2], k[r + 3]
        a, b, c, d = u[r, q], u[r + 1, q], u[r + 2, q], u[r + 3, q]
        for j in range(m):
            out[j] += (k0[j] * a + k1[j] * b) + (k2[j] * c + k3[j] * d)


@njit(**EXACT)
def _take_rows(V, first, count, out):
    """out[:count] = V[first:first + count], and zeros below."""
    for r in range(count):
        for q in range(V.shape[1]):
            out[r, q] = V[first + r, q]
    out[count:] = 0


@njit(**EXACT)
def _multiply_few(i0, i1, j0, j1, both, Z1, Z2, V1, V2, out1, out2, rows, family, shape, leaves, scale, scales):
    """out1[i0:i1] += K V2[j0:j1] and, with `both`, out2[j0:j1] += K' V1[i0:i1], by loops."""
    T, t = Z1.dtype, V2.shape[1]
    block, memory, work = (
        np.empty((len(Z2), _WIDTH), T),
        np.zeros(_STRIP * _WIDTH, T),
        np.empty((2, _STRIP * _WIDTH), T),
    )
    v, u = np.empty((t, _WIDTH), T), np.empty((_STRIP, t), T)
    across, down = np.empty((_STRIP, t)), np.empty((t, _WIDTH), T)
    for j in range(j0, j1, _WIDTH):
        m = min(_WIDTH, j1 - j)
        tile = memory[: _STRIP * m].reshape(_STRIP, m)
        copy_columns(Z2, j, m, block)
        copy_columns(V2.T, j, m, v)
        down[:] = 0
        for i in range(i0, i1, _STRIP):
            count = min(_STRIP, i1 - i)
            covariance_strip(Z1, i, count, block, m, rows, family, shape, leaves, scale, scales, work, memory)
            across[:] = 0
            for q in range(0, t - 1, 2):
                _two_rows_times(tile, q, v, m, across)
            if t % 2:
                _rows_times(tile, t - 1, v, m, across)
            for r in range(count):
                for q in range(t):
                    out1[i + r, q] += across[r, q]
            if both:
                _take_rows(V1, i, count, u)
                for q in range(t):
                    _columns_times(tile, u, q, m, down[q])
                if i + _STRIP >= i1 or (i - i0) // _STRIP % _FLUSH == _FLUSH - 1:
                    for q in range(t):
                        for c in range(m):
                            out2[j + c, q] += down[q, c]
                    down[:] = 0


@njit(**EXACT)
def _multiply_many(i0, i1, j0, j1, both, Z1, Z2, V1, V2, out1, out2, rows, family, shape, leaves, scale, scales):
    """As `_multiply_few`, by BLAS."""
    T, t = Z1.dtype, V2.shape[1]
    block, memory, work = (
        np.empty((len(Z2), _SIDE), T),
        np.zeros(_SIDE * _SIDE, T),
        np.empty((2, _STRIP * _SIDE), T),
    )
    v, u = np.empty((_SIDE, t), T), np.empty((_SIDE, t), T)
    across, down = np.empty((_SIDE, t), T), np.empty((_SIDE, t), T)
    for j in range(j0, j1, _SIDE):
        m = min(_SIDE, j1 - j)
        copy_columns(Z2, j, m, block)
        _take_rows(V2, j, m, v)
        for i in range(i0, i1, _SIDE):
            count = min(_SIDE, i1 - i)
            for r in range(0, count, _STRIP):
                part, strip = min(_STRIP, count - r), memory[r * m : (r + _STRIP) * m]
                covariance_strip(Z1, i + r, part, block, m, rows, family, shape, leaves, scale, scales, work, strip)
            tile = memory[: count * m].reshape(count, m)
            np.dot(tile, v[:m], across[:count])
            for r in range(count):
                for q in range(t):
                    out1[i + r, q] += across[r, q]
            if both:
                _take_rows(V1, i, count, u)
                np.dot(tile.T, u[:count], down[:m])
                for c in range(m):
                    for q in range(t):
                        out2[j + c, q] += down[c, q]


@njit(**EXACT)
def _write(i0, i1, j0, j1, Z1, Z2, out, rows, family, shape, leaves, scale, scales):
    """out[i0:i1, j0:j1] = K."""
    T, one = Z1.dtype, len(scale) == 1
    block, strip, work = np.empty((len(Z2), _WIDTH), T), np.empty(_STRIP * _WIDTH, T), np.empty((2, _STRIP * _WIDTH), T)
    for j in range(j0, j1, _WIDTH):
        m = min(_WIDTH, j1 - j)
        copy_columns(Z2, j, m, block)
        for i in range(i0, i1, _STRIP):
            count = min(_STRIP, i1 - i)
            covariance_strip(Z1, i, count, block, m, rows, family, shape, leaves, scale, scales, work, strip)
            for r in range(count):
                line, values = out[i + r, j : j + m], strip[r * m : (r + 1) * m]
                for c in range(m):
                    line[c] = scale[0] * values[c] if one else values[c]


@njit(**FAST)
def _dot(a, b, m):
    total = a.dtype.type(0)
    for j in range(m):
        total += a[j] * b[j]
    return total


@njit(**FAST)
def _pull_back(g, Z, i, block, m, row, end, dZ, dblock):
    """Add the gradient of sum_j g[j] r2(i, j) to column i of dZ and to the block's."""
    for d in range(row, end):
        z = Z[d, i]
        column, dcolumn = block[d], dblock[d]
        total = g.dtype.type(0)
        for j in range(m):
            t = g[j] * (z - column[j])
            t += t
            dcolumn[j] -= t
            total += t
        dZ[d, i] += total


@njit(**EXACT)
def _times_others(w, k, skip, count, m, g):
    """g = w times all k but one."""
    for j in range(m):
        g[j] = w[j]
    for other in range(count):
        if other != skip:
            for j in range(m):
                g[j] *= k[other, j]


@njit(**EXACT)
def _differentiate(
    i0, i1, j0, j1, Z1, Z2, A, B, dZ1, dZ2, d_shape, d_scale, rows, family, shape, leaves, scale, scales
):
    """Add the gradients of sum_ij W_ij K_ij over a block, W = A B'."""
    T, D, u = Z1.dtype, len(Z1), A.shape[1]
    block, dblock = np.empty((D, _NARROW), T), np.zeros((D, _NARROW), T)
    a, b, w = np.empty((_STRIP, u), T), np.zeros((u, _NARROW), T), np.empty((_STRIP, _NARROW), T)
    most = np.max(leaves[1:] - leaves[:-1])
    k, slope, shape_slope = np.empty((most, _NARROW), T), np.empty((most, _NARROW), T), np.empty((most, _NARROW), T)
    r2, g = np.empty(_NARROW, T), np.empty(_NARROW, T)
    for j in range(j0, j1, _NARROW):
        m = min(_NARROW, j1 - j)
        copy_columns(Z2, j, m, block)
        copy_columns(B.T, j, m, b)
        for i in range(i0, i1, _STRIP):
            count = min(_STRIP, i1 - i)
            _take_rows(A, i, count, a)
            np.dot(a, b, w)
            for r in range(count):
                for term in range(len(scale)):
                    start, parts = leaves[term], leaves[term + 1] - leaves[term]
                    for x in range(parts):
                        index = start + x
                        squared_distances(Z1, i + r, block, m, rows[index], rows[index + 1], r2)
                        k[x, :m] = r2[:m]
                        leaf(family[index], shape[index], scales, m, k[x])
                        slopes(family[index], shape[index], m, r2, k[x], slope[x], shape_slope[x])
                    for x in range(parts):
                        index = start + x
                        _times_others(w[r], k, x, parts, m, g)
                        if x == 0:
                            d_scale[term] += _dot(g, k[0], m)
                        s = scale[term]
                        for c in range(m):
                            g[c] *= s
                        if family[index] == 4:
                            d_shape[index] += _dot(g, shape_slope[x], m)
                        for c in range(m):
                            g[c] *= slope[x, c]
                        _pull_back(g, Z1, i + r, block, m, rows[index], rows[index + 1], dZ1, dblock)
            if i + _STRIP >= i1 or (i - i0) // _STRIP % _FLUSH == _FLUSH - 1:
                for d in range(D):
                    for c in range(m):
                        dZ2[d, j + c] += dblock[d, c]
                dblock[:] = 0


def _bounds(n: int) -> list[tuple[int, int]]:
    """Blocks of rows: few enough that starting them costs nothing, and enough to share out."""
    size = 256 if n < 2048 else 512 * -(-n // 16384)
    return [(start, min(start + size, n)) for start in range(0, n, size)]


def rounds(blocks: int, others: int) -> list[list[tuple[int, int]]]:
    """All pairs of a row block and a column block, in rounds in which no block appears twice."""
    most = max(blocks, others)
    return [[(i, (i + r) % most) for i in range(blocks) if (i + r) % most < others] for r in range(most)]


def tournament(blocks: int) -> list[list[tuple[int, int]]]:
    """All unordered pairs of different blocks, in rounds in which no block appears twice (the circle method)."""
    players = blocks + blocks % 2  # with an odd number, the last of them is a bye
    ring = players - 1
    found = []
    for r in range(ring):
        pairs = [(r, ring)] + [((r + k) % ring, (r - k) % ring) for k in range(1, players // 2)]
        found.append([(max(pair), min(pair)) for pair in pairs if max(pair) < blocks])
    return found


def _threads(pairs: int) -> int:
    return min(torch.get_num_threads(), os.cpu_count() or 1) if pairs > _SERIAL_PAIRS else 1


def multiply(Z1: Array, Z2: Array | None, V: Array, kernel: Kernel) -> Array:
    """K V.

    Args:
        Z1: ``(D, n)``.
        Z2: ``(D, m)``; None for the covariance of Z1 with itself.
        V: ``(m, t)``, row-major; all of one dtype.
        kernel: the kernel.

    Returns:
        ``(n, t)``.
    """
    n, (m, t) = Z1.shape[1], V.shape
    one = _multiply_few if t <= FEW else _multiply_many
    total, scales = np.zeros((n, t)), SCALES[V.dtype]
    row_blocks = _bounds(n)
    threads = _threads(n * m)

    def step(both: bool, pair: tuple[int, int]) -> None:
        i, j = pair
        one(*row_blocks[i], *columns[j], both, Z1, other, V, V, total, total, *kernel, scales)

    with at_most_threads(1):
        if Z2 is None:
            other, columns = Z1, row_blocks
            call_for_each(partial(step, False), [(i, i) for i in range(len(row_blocks))], threads)
            for pairs in tournament(len(row_blocks)):
                call_for_each(partial(step, True), pairs, threads)
        else:
            other, columns = Z2, _bounds(m)
            for pairs in rounds(len(row_blocks), len(columns)):
                call_for_each(partial(step, False), pairs, threads)
    scale = kernel[-1]
    return (total * scale[0] if len(scale) == 1 else total).astype(V.dtype)


def matrix(Z1: Array, Z2: Array | None, kernel: Kernel, out: Array) -> None:
    """Write K into ``(n, m)`` row-major memory."""
    other, scales = Z1 if Z2 is None else Z2, SCALES[out.dtype]

    def step(pair: tuple[tuple[int, int], tuple[int, int]]) -> None:
        _write(*pair[0], *pair[1], Z1, other, out, *kernel, scales)

    n, m = out.shape
    call_for_each(step, [(i, j) for i in _bounds(n) for j in _bounds(m)], _threads(n * m))


def differentiate(
    Z1: Array, Z2: Array | None, A: Array, B: Array, kernel: Kernel
) -> tuple[Array, Array | None, Array, Array]:
    """Gradients of sum_ij (A B')_ij K_ij.

    Args:
        Z1: ``(D, n)``.
        Z2: ``(D, m)``; None for the covariance of Z1 with itself.
        A: ``(n, u)``.
        B: ``(m, u)``; all of one dtype.
        kernel: the kernel.

    Returns:
        Gradients for Z1 ``(D, n)``, for Z2 ``(D, m)`` or None, for shape ``(leaves,)`` and for scale ``(terms,)``, in
        float64.
    """
    (D, n), scales = Z1.shape, SCALES[Z1.dtype]
    threads, row_blocks = _threads(n * len(B)), _bounds(n)
    dZ1 = np.zeros((D, n))
    d_shape, d_scale = np.zeros((len(row_blocks), len(kernel[2]))), np.zeros((len(row_blocks), len(kernel[-1])))

    def step(left: Array, right: Array, pair: tuple[int, int]) -> None:
        i, j = pair
        sums = (dZ1, dZ2, d_shape[i], d_scale[i])
        _differentiate(*row_blocks[i], *columns[j], Z1, other, left, right, *sums, *kernel, scales)

    with at_most_threads(1):
        if Z2 is None:  # K_ij and K_ji together: half of the blocks, and half of the weight within each on the diagonal
            other, columns, dZ2 = Z1, row_blocks, dZ1
            left, right = np.hstack([A, B]), np.hstack([B, A])
            call_for_each(partial(step, 0.5 * left, right), [(i, i) for i in range(len(row_blocks))], threads)
            for pairs in tournament(len(row_blocks)):
                call_for_each(partial(step, left, right), pairs, threads)
        else:
            other, columns, dZ2 = Z2, _bounds(len(B)), np.zeros(Z2.shape)
            for pairs in rounds(len(row_blocks), len(columns)):
                call_for_each(partial(step, A, B), pairs, threads)
    return dZ1, None if Z2 is None else dZ2, d_shape.sum(0), d_scale.sum(0)
