# mypy: disable-error-code="no-untyped-def, no-untyped-call, misc, call-arg"
"""One row of a tile of a covariance, and its slopes: what the fused products are made of (Numba, float32 and float64).

A covariance is a sum of terms, a term a scaled product of leaves, a leaf a function of squared distance; symbols are
those of the table in `fused`. Beyond its families there is `COSINE`, k = 1 - r2/2: of points on a circle, where
|(cos, sin)(a) - (cos, sin)(b)|² = 2 - 2 cos(a - b), it is the cosine of their angle.

Columns come in a block whose index starts at zero: of an index that may be negative, as Python's may, the compiler
makes a test for each entry, and no vector instructions.
"""

import math
from typing import Any

import numpy as np

from gpmoe.linalg.compiler import njit
from gpmoe.linalg.exponential import EXACT, exp_scaled, fma, log1p_pair

FAST: Any = {"cache": True, "nogil": True, "error_model": "numpy", "fastmath": True}


@njit(**EXACT)
def copy_columns(Z, j0, width, block):
    """block[:, :width] = Z[:, j0:j0 + width]."""
    for d in range(len(Z)):
        row = Z[d, j0 : j0 + width]
        for j in range(width):
            block[d, j] = row[j]


@njit(**FAST)
def squared_distances(Z, i, block, m, row, end, r2):
    """r2[j] = sum over rows d of (Z[d, i] - block[d, j])², four rows at a time to spare loads and stores."""
    d = row + (end - row) % 4
    if d - row == 1:
        z = Z[row, i]
        for j in range(m):
            a = z - block[row, j]
            r2[j] = a * a
    elif d - row == 2:
        z, y = Z[row, i], Z[row + 1, i]
        for j in range(m):
            a, b = z - block[row, j], y - block[row + 1, j]
            r2[j] = a * a + b * b
    elif d - row == 3:
        z, y, x = Z[row, i], Z[row + 1, i], Z[row + 2, i]
        for j in range(m):
            a, b, c = z - block[row, j], y - block[row + 1, j], x - block[row + 2, j]
            r2[j] = a * a + b * b + c * c
    else:
        r2[:m] = 0
    while d < end:
        z, y, x, w = Z[d, i], Z[d + 1, i], Z[d + 2, i], Z[d + 3, i]
        for j in range(m):
            a, b, c, e = z - block[d, j], y - block[d + 1, j], x - block[d + 2, j], w - block[d + 3, j]
            r2[j] += (a * a + b * b) + (c * c + e * e)
        d += 4


@njit(**EXACT)
def _root(p, lost):
    """√(p + lost), as an unevaluated sum of two numbers."""
    s = math.sqrt(p)
    return s, (fma(-s, s, p) + lost) / (s + s + type(p)(1e-30))


@njit(**EXACT)
def leaf(family, shape, scales, m, k):
    """Replace squared distances k[j] by k_l(k[j])."""
    T = k.dtype.type
    half_hi, half_lo, hi, lo = scales[0], scales[1], scales[2], scales[3]
    one, zero = T(1.0), T(0.0)
    if family == 0:
        for j in range(m):
            k[j] = exp_scaled(k[j], zero, half_hi, half_lo)
    elif family == 1:
        for j in range(m):
            s, low = _root(k[j], zero)
            k[j] = exp_scaled(s, low, hi, lo)
    elif family == 2:
        three = T(3.0)
        for j in range(m):
            p = three * k[j]
            s, low = _root(p, fma(three, k[j], -p))
            k[j] = (one + s) * exp_scaled(s, low, hi, lo)
    elif family == 3:
        five, five_thirds = T(5.0), T(5.0 / 3.0)
        for j in range(m):
            p = five * k[j]
            s, low = _root(p, fma(five, k[j], -p))
            k[j] = fma(five_thirds, k[j], one + s) * exp_scaled(s, low, hi, lo)
    elif family == 4:
        alpha = np.float64(shape)
        twice, inverse = 2.0 * alpha, 1.0 / (2.0 * alpha)
        for j in range(m):
            r = np.float64(k[j])
            q = r * inverse
            high, low = log1p_pair(q, fma(-q, twice, r) * inverse)
            s = alpha * high
            low = fma(alpha, high, -s) + alpha * low
            k[j] = exp_scaled(s, low, -1.4426950408889634, -2.0355273740931033e-17)
    else:
        half = T(0.5)
        for j in range(m):
            k[j] = one - half * k[j]


@njit(**EXACT)
def slopes(family, shape, m, r2, k, slope, shape_slope):
    """dk/dr2 and (rational quadratic) dk/dα at each r2[j], where k[j] = k_l(r2[j])."""
    T = k.dtype.type
    one, zero, half = T(1.0), T(0.0), T(0.5)
    if family == 0:
        for j in range(m):
            slope[j] = -half * k[j]
    elif family == 1:
        for j in range(m):
            slope[j] = -half * k[j] / math.sqrt(r2[j]) if r2[j] > zero else zero
    elif family == 2:
        factor, three = T(-1.5), T(3.0)
        for j in range(m):
            slope[j] = factor * k[j] / (one + math.sqrt(three * r2[j]))
    elif family == 3:
        factor, five, five_thirds = T(-5.0 / 6.0), T(5.0), T(5.0 / 3.0)
        for j in range(m):
            s = one + math.sqrt(five * r2[j])
            slope[j] = factor * s * k[j] / (s + five_thirds * r2[j])
    elif family == 4:
        inverse = 1.0 / (2.0 * np.float64(shape))
        for j in range(m):
            q = np.float64(r2[j]) * inverse
            high, low = log1p_pair(q, 0.0)
            slope[j] = -0.5 * k[j] / (1.0 + q)
            shape_slope[j] = k[j] * (q / (1.0 + q) - (high + low))
    else:
        for j in range(m):
            slope[j] = -half


@njit(**EXACT)
def distances(Z, i, count, block, m, row, end, out):
    """Squared distances of `count` rows, one after another in memory."""
    for r in range(count):
        squared_distances(Z, i + r, block, m, row, end, out[r * m : (r + 1) * m])


@njit(**EXACT)
def covariance_strip(Z, i, count, block, m, rows, family, shape, leaves, scale, scales, work, out):
    """K of `count` rows from i on with a block's m columns, row after row in memory.

    A kernel of one term leaves out its scale, which is its caller's to apply.
    """
    size = count * m
    for term in range(len(scale)):
        start = leaves[term]
        product = out if term == 0 else work[1]
        for index in range(start, leaves[term + 1]):
            target = product if index == start else work[0]
            distances(Z, i, count, block, m, rows[index], rows[index + 1], target)
            leaf(family[index], shape[index], scales, size, target)
            if index > start:
                for j in range(size):
                    product[j] *= target[j]
        if len(scale) > 1:
            s = scale[term]
            if term == 0:
                for j in range(size):
                    product[j] *= s
            else:
                for j in range(size):
                    out[j] += s * product[j]
