"""Stationary covariances and their gradients in one pass over cache blocks (Numba, float64, CPU).

A covariance is a sum of terms, a term a scaled product of leaves, a leaf a function of squared distance:

    K_ij = sum_t s_t prod_{l in t} k_l(r2_l(i, j)),   r2_l(i, j) = |z_l(i) - z_l(j)|²

| symbol | name in code | shape |
|---|---|---|
| scaled inputs of all leaves, one under another | `Z` | (D, n), row-contiguous |
| rows of leaf l in Z | `rows[l]:rows[l + 1]` | |
| k_l | `family[l]`, `shape[l]` (the α of a rational quadratic) | (leaves,) |
| leaves of term t | `leaves[t]:leaves[t + 1]` | |
| s_t | `scale[t]` | (terms,) |

Inputs are packed by `stationary.py`. Work is cut into a number of chunks that depends on n alone, each summed in a
fixed order: results don't depend on the number of threads. Threads are plain Python threads around functions that
release the GIL, so no OpenMP pool spins beside LAPACK's.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpmoe.linalg.compiler import intrinsic, ir, njit, types
from gpmoe.linalg.pool import run_pass

RBF, MATERN12, MATERN32, MATERN52, RATIONAL_QUADRATIC = range(5)

_ROWS, _COLUMNS, _MOST_CHUNKS = 16, 256, 16

Array = NDArray[np.float64]

# contract allows fused multiply-add; "reassoc" is left out where rounding tricks need the order as written.
_EXACT: Any = {
    "cache": True,
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"contract", "nsz", "nnan", "ninf", "arcp"},
}
_FAST: Any = {"cache": True, "nogil": True, "error_model": "numpy", "fastmath": True}


@intrinsic
def _bits(typingctx: Any, x: Any) -> Any:
    """The bit pattern of a float64 as an int64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(64))

    return types.int64(types.float64), codegen


@intrinsic
def _from_bits(typingctx: Any, bits: Any) -> Any:
    """The float64 of a bit pattern."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.DoubleType())

    return types.float64(types.int64), codegen


@njit(**_EXACT)
def _exp(x):  # type: ignore[no-untyped-def]
    """exp(x) for x <= 0 within 1 ulp, in instructions that vectorise; 3e-308 below x = -708."""
    x = max(x, -708.0)
    t = x * 1.4426950408889634 + 6755399441055744.0  # the low bits of t now hold round(x / ln 2)
    k = t - 6755399441055744.0
    r = (x - k * 0.6931471804855391) - k * 7.440617110012397e-11
    p = 2.5110037605963777e-08  # minimax on |r| <= ln(2)/2, relative error 3e-18
    p = p * r + 2.763263963904103e-07
    p = p * r + 2.755724091857897e-06
    p = p * r + 2.4801485482328494e-05
    p = p * r + 0.00019841269890047113
    p = p * r + 0.0013888888952314775
    p = p * r + 0.008333333333319601
    p = p * r + 0.0416666666664881
    p = p * r + 0.1666666666666668
    p = p * r + 0.5000000000000019
    p = p * r + 1.0
    p = p * r + 1.0
    return p * _from_bits((_bits(t) + 1023) << 52)


@njit(**_EXACT)
def _leaf(family, shape, r2, m, k):  # type: ignore[no-untyped-def]
    """k[j] = k_l(r2[j])."""
    if family == 0:
        for j in range(m):
            k[j] = _exp(-0.5 * r2[j])
    elif family == 1:
        for j in range(m):
            k[j] = _exp(-math.sqrt(r2[j]))
    elif family == 2:
        for j in range(m):
            s = math.sqrt(3.0 * r2[j])
            k[j] = (1.0 + s) * _exp(-s)
    elif family == 3:
        for j in range(m):
            s = math.sqrt(5.0 * r2[j])
            k[j] = (1.0 + s + s * s * (1.0 / 3.0)) * _exp(-s)
    else:
        for j in range(m):
            k[j] = -shape * math.log1p(r2[j] / (2.0 * shape))
        for j in range(m):
            k[j] = _exp(k[j])


@njit(**_EXACT)
def leaf_and_slope(family, shape, r2, m, k, slope, shape_slope):  # type: ignore[no-untyped-def]
    """k, dk/dr2 and (rational quadratic) dk/dα at each r2[j]."""
    if family == 0:
        for j in range(m):
            k[j] = _exp(-0.5 * r2[j])
            slope[j] = -0.5 * k[j]
    elif family == 1:
        for j in range(m):
            r = math.sqrt(r2[j])
            k[j] = _exp(-r)
            slope[j] = -0.5 * k[j] / r if r > 0.0 else 0.0
    elif family == 2:
        for j in range(m):
            s = math.sqrt(3.0 * r2[j])
            e = _exp(-s)
            k[j] = (1.0 + s) * e
            slope[j] = -1.5 * e
    elif family == 3:
        for j in range(m):
            s = math.sqrt(5.0 * r2[j])
            e = _exp(-s)
            k[j] = (1.0 + s + s * s * (1.0 / 3.0)) * e
            slope[j] = (-5.0 / 6.0) * (1.0 + s) * e
    else:
        for j in range(m):
            shape_slope[j] = math.log1p(r2[j] / (2.0 * shape))
        for j in range(m):
            q = r2[j] / (2.0 * shape)
            k[j] = _exp(-shape * shape_slope[j])
            slope[j] = -0.5 * k[j] / (1.0 + q)
            shape_slope[j] = k[j] * (q / (1.0 + q) - shape_slope[j])


@njit(**_FAST)
def _squared_distances(Z1, i, block, m, row, row_end, r2):  # type: ignore[no-untyped-def]
    """r2[j] = sum over rows d of (Z1[d, i] - block[d, j])², four rows at a time to spare loads and stores."""
    first = (row_end - row) % 4
    r2[:m] = 0.0
    for d in range(row, row + first):
        z = Z1[d, i]
        for j in range(m):
            diff = z - block[d, j]
            r2[j] += diff * diff
    for d in range(row + first, row_end, 4):
        z0, z1, z2, z3 = Z1[d, i], Z1[d + 1, i], Z1[d + 2, i], Z1[d + 3, i]
        for j in range(m):
            t0, t1, t2, t3 = z0 - block[d, j], z1 - block[d + 1, j], z2 - block[d + 2, j], z3 - block[d + 3, j]
            r2[j] += (t0 * t0 + t1 * t1) + (t2 * t2 + t3 * t3)


# Columns are copied into a block whose index starts at zero: of an index that may be negative, as Python's may, the
# compiler makes a test for each entry, and no vector instructions.


@njit(**_EXACT)
def _copy_columns(Z, j0, width, block):  # type: ignore[no-untyped-def]
    for d in range(len(Z)):
        row = Z[d, j0 : j0 + width]
        for j in range(width):
            block[d, j] = row[j]


@njit(**_EXACT)
def _assemble(first, step, chunks, symmetric, Z1, Z2, rows, family, shape, leaves, scale, out):  # type: ignore[no-untyped-def]
    n, n2 = out.shape
    r2, k, product = np.empty(_COLUMNS), np.empty(_COLUMNS), np.empty(_COLUMNS)
    columns = np.empty((len(Z2), _COLUMNS))
    for chunk in range(first, chunks, step):
        for block in range(chunk, (n + _ROWS - 1) // _ROWS, chunks):
            last = min((block + 1) * _ROWS, n)
            for j0 in range(0, last if symmetric else n2, _COLUMNS):
                _copy_columns(Z2, j0, min(_COLUMNS, n2 - j0), columns)
                for i in range(block * _ROWS, last):
                    m = min(_COLUMNS, (i + 1 if symmetric else n2) - j0)
                    if m <= 0:
                        continue
                    line = out[i, j0 : j0 + m]
                    for term in range(len(scale)):
                        for leaf in range(leaves[term], leaves[term + 1]):
                            _squared_distances(Z1, i, columns, m, rows[leaf], rows[leaf + 1], r2)
                            if leaf == leaves[term]:
                                _leaf(family[leaf], shape[leaf], r2, m, product)
                            else:
                                _leaf(family[leaf], shape[leaf], r2, m, k)
                                for j in range(m):
                                    product[j] *= k[j]
                        if term == 0:
                            for j in range(m):
                                line[j] = scale[term] * product[j]
                        else:
                            for j in range(m):
                                line[j] += scale[term] * product[j]


@njit(**_FAST)
def _dot(a, b, m):  # type: ignore[no-untyped-def]
    total = 0.0
    for j in range(m):
        total += a[j] * b[j]
    return total


@njit(**_FAST)
def _weigh(w, k, slope, scale, m, g):  # type: ignore[no-untyped-def]
    """g = w scale slope; returns the sum of w k."""
    total = 0.0
    for j in range(m):
        total += w[j] * k[j]
        g[j] = scale * w[j] * slope[j]
    return total


@njit(**_FAST)
def _pull_back(g, count, Z, i0, block, width, row, row_end, dZ, dblock, z):  # type: ignore[no-untyped-def]
    """Add half the gradient of sum_ij g[i, j] r2(i0 + i, j) to `count` columns of dZ from i0 on and to the block's.

    Four rows of g at a time; those beyond `count` hold zeros. `z` is memory for one number a row.
    """
    for d in range(row, row_end):
        z[:] = 0.0
        for i in range(count):
            z[i] = Z[d, i0 + i]
        x, dx = block[d], dblock[d]
        for i in range(0, count, 4):
            z0, z1, z2, z3 = z[i], z[i + 1], z[i + 2], z[i + 3]
            g0, g1, g2, g3 = g[i], g[i + 1], g[i + 2], g[i + 3]
            s0 = s1 = s2 = s3 = 0.0
            for j in range(width):
                t0, t1, t2, t3 = g0[j] * (z0 - x[j]), g1[j] * (z1 - x[j]), g2[j] * (z2 - x[j]), g3[j] * (z3 - x[j])
                dx[j] -= (t0 + t1) + (t2 + t3)
                s0 += t0
                s1 += t1
                s2 += t2
                s3 += t3
            z[i], z[i + 1], z[i + 2], z[i + 3] = s0, s1, s2, s3
        for i in range(count):
            dZ[d, i0 + i] += z[i]


@njit(**_EXACT)
def _row_buffers(count):  # type: ignore[no-untyped-def]
    """r2 and a product of `_COLUMNS` entries; k, dk/dr2 and dk/dα of each leaf."""
    leaves = (np.empty((count, _COLUMNS)), np.empty((count, _COLUMNS)), np.empty((count, _COLUMNS)))
    return np.empty(_COLUMNS), np.empty(_COLUMNS), leaves


@njit(**_EXACT)
def _weigh_row(w, m, Z, i, columns, kernel, buffers, g, dshape, dscale):  # type: ignore[no-untyped-def]
    """g[leaf] = w dK_i/dr2_leaf for one row of K; shares of that row in the gradients for shape and scale are added."""
    rows, family, shape, leaves, scale = kernel
    r2, v, (k, slope, shape_slope) = buffers
    for term in range(len(scale)):
        start, end = leaves[term], leaves[term + 1]
        for leaf in range(start, end):
            _squared_distances(Z, i, columns, m, rows[leaf], rows[leaf + 1], r2)
            leaf_and_slope(family[leaf], shape[leaf], r2, m, k[leaf], slope[leaf], shape_slope[leaf])
        for leaf in range(start, end):
            for j in range(m):
                v[j] = w[j]
            for other in range(start, end):
                if other != leaf:
                    for j in range(m):
                        v[j] *= k[other, j]
            total = _weigh(v, k[leaf], slope[leaf], scale[term], m, g[leaf])
            if leaf == start:
                dscale[term] += total
            if family[leaf] == 4:
                dshape[leaf] += scale[term] * _dot(v, shape_slope[leaf], m)


@njit(**_EXACT)
def _gradient(first, step, chunks, a, W, Z, rows, family, shape, leaves, scale, dZ, dshape, dscale):  # type: ignore[no-untyped-def]
    n, count = len(a), len(family)
    buffers, w, z = _row_buffers(count), np.empty(_COLUMNS), np.empty(_ROWS)
    g = np.empty((count, _ROWS, _COLUMNS))
    columns, dcolumns = np.empty((len(Z), _COLUMNS)), np.empty((len(Z), _COLUMNS))
    kernel = (rows, family, shape, leaves, scale)
    for chunk in range(first, chunks, step):
        dZ[chunk] = 0.0
        for block in range(chunk, (n + _ROWS - 1) // _ROWS, chunks):
            top, last = block * _ROWS, min((block + 1) * _ROWS, n)
            for j0 in range(0, last, _COLUMNS):
                width = min(_COLUMNS, last - j0)
                _copy_columns(Z, j0, width, columns)
                dcolumns[:, :width] = 0.0
                for i in range(top, top + _ROWS):
                    m = min(width, i - j0) if i < last else 0
                    m = max(m, 0)
                    g[:, i - top, m:width] = 0.0
                    if m == 0:
                        continue
                    line, others = W[i, j0 : j0 + m], a[j0 : j0 + m]
                    for j in range(m):
                        w[j] = a[i] * others[j] - line[j]
                    _weigh_row(w, m, Z, i, columns, kernel, buffers, g[:, i - top], dshape[chunk], dscale[chunk])
                for leaf in range(count):
                    row, row_end = rows[leaf], rows[leaf + 1]
                    _pull_back(g[leaf], last - top, Z, top, columns, width, row, row_end, dZ[chunk], dcolumns, z)
                for d in range(len(Z)):
                    for j in range(width):
                        dZ[chunk, d, j0 + j] += dcolumns[d, j]
        for d in range(len(Z)):
            for i in range(n):
                dZ[chunk, d, i] *= 2.0


@njit(**_EXACT)
def _collect(a, W, dZ, dshape, dscale):  # type: ignore[no-untyped-def]
    """Sum the chunks, in their order, into the first one; scales get the diagonal's share."""
    on_diagonal = 0.0
    for i in range(len(a)):
        on_diagonal += a[i] * a[i] - W[i, i]
    for chunk in range(1, len(dZ)):
        dZ[0] += dZ[chunk]
        dshape[0] += dshape[chunk]
        dscale[0] += dscale[chunk]
    dscale[0] += 0.5 * on_diagonal


def _chunks(n: int) -> int:
    return max(1, min(_MOST_CHUNKS, -(-n // (2 * _ROWS))))


Packed = tuple[NDArray[np.int64], NDArray[np.int64], Array, NDArray[np.int64], Array]
"""`rows`, `family`, `shape`, `leaves`, `scale` of the table above."""


def assemble(Z1: Array, Z2: Array | None, packed: Packed, out: Array) -> None:
    """Write a covariance.

    Args:
        Z1: ``(D, n)``.
        Z2: ``(D, m)``; None for the covariance of Z1 with itself, of which the lower triangle is written.
        packed: the kernel.
        out: ``(n, m)``, row-major, overwritten.
    """
    n, m = out.shape
    symmetric = Z2 is None
    chunks = _chunks(n)
    run_pass(
        _assemble,
        n * m // (2 if symmetric else 1),
        chunks,
        chunks,
        symmetric,
        Z1,
        Z1 if Z2 is None else Z2,
        *packed,
        out,
    )


def gradient(a: Array, W: Array, Z: Array, packed: Packed) -> tuple[Array, Array, Array]:
    """Gradient of ½(a'Ka - tr(WK)) with respect to the kernel.

    Args:
        a: ``(n,)``.
        W: symmetric ``(n, n)``; the lower triangle is read.
        Z: ``(D, n)``.
        packed: the kernel.

    Returns:
        Gradients for Z ``(D, n)``, for shape ``(leaves,)`` and for scale ``(terms,)``.
    """
    D, n = Z.shape
    _, _, shape, _, scale = packed
    chunks = _chunks(n)
    dZ, dshape, dscale = np.empty((chunks, D, n)), np.zeros((chunks, len(shape))), np.zeros((chunks, len(scale)))
    run_pass(_gradient, n * n // 2, chunks, chunks, a, W, Z, *packed, dZ, dshape, dscale)
    _collect(a, W, dZ, dshape, dscale)
    return dZ[0], dshape[0], dscale[0]
