"""Tiles of a covariance in a GPU's registers: the functions that Triton kernels share.

| symbol | name in code | shape |
|---|---|---|
| rows, columns of the tile | `i`, `j` | (BLOCK_N,), (BLOCK_M,) |
| scaled inputs of all leaves, rows and columns of K | `Z1`, `Z2` | (D, n), (D, m) |
| k_l, leaves of term t, rows of leaf l in Z | `FAMILY`, `LEAVES`, `ROWS` | tuples, as in `fused` |

Z1 and Z2 are contiguous; n and m are their numbers of points, as int64, and every i < n and j < m.
"""

from gpmoe.linalg.triton_compiler import jit, tl


@jit
def _log1p(q):  # type: ignore[no-untyped-def]
    """log(1 + q): what rounding took from 1 + q is divided out. Source: Goldberg (1991), theorem 4."""
    u = 1.0 + q
    taken = u - 1.0
    return tl.where(taken == 0.0, q, tl.log(u) * (q / tl.where(taken == 0.0, 1.0, taken)))


@jit
def value(r2, alpha, FAMILY: tl.constexpr):  # type: ignore[no-untyped-def]
    """k(r2); families are numbered as in `fused` and, after those, `stationary.COSINE`."""
    if FAMILY == 0:
        k = tl.exp(-0.5 * r2)
    elif FAMILY == 1:
        k = tl.exp(-tl.sqrt(r2))
    elif FAMILY == 2:
        s = tl.sqrt(3.0 * r2)
        k = (1.0 + s) * tl.exp(-s)
    elif FAMILY == 3:
        s = tl.sqrt(5.0 * r2)
        k = (1.0 + s + s * s * (1.0 / 3.0)) * tl.exp(-s)
    elif FAMILY == 4:
        k = tl.exp(-alpha * _log1p(r2 / (2.0 * alpha)))
    else:
        k = 1.0 - 0.5 * r2
    return k


@jit
def value_and_slopes(r2, alpha, FAMILY: tl.constexpr):  # type: ignore[no-untyped-def]
    """k, dk/dr2 and (rational quadratic; else zero) dk/dα; the slope of a Matérn-1/2 at r2 = 0 is taken for zero."""
    alpha_slope = tl.zeros_like(r2)
    if FAMILY == 0:
        k = tl.exp(-0.5 * r2)
        slope = -0.5 * k
    elif FAMILY == 1:
        r = tl.sqrt(r2)
        k = tl.exp(-r)
        slope = tl.where(r > 0.0, -0.5 * k / tl.where(r > 0.0, r, 1.0), 0.0)
    elif FAMILY == 2:
        s = tl.sqrt(3.0 * r2)
        e = tl.exp(-s)
        k = (1.0 + s) * e
        slope = -1.5 * e
    elif FAMILY == 3:
        s = tl.sqrt(5.0 * r2)
        e = tl.exp(-s)
        k = (1.0 + s + s * s * (1.0 / 3.0)) * e
        slope = (-5.0 / 6.0) * (1.0 + s) * e
    elif FAMILY == 4:
        q = r2 / (2.0 * alpha)
        log = _log1p(q)
        k = tl.exp(-alpha * log)
        slope = -0.5 * k / (1.0 + q)
        alpha_slope = k * (q / (1.0 + q) - log)
    else:
        k = 1.0 - 0.5 * r2
        slope = tl.zeros_like(r2) - 0.5
    return k, slope, alpha_slope


@jit
def _add_pairs(tile, A, B, i, j, n, m, d, DISTANCE: tl.constexpr):  # type: ignore[no-untyped-def]
    a = tl.load(A + d * n + i)[:, None]
    b = tl.load(B + d * m + j)[None, :]
    if DISTANCE:
        tile += (a - b) * (a - b)
    else:
        tile += a * b
    return tile


@jit
def pairs(A, B, i, j, n, m, FIRST: tl.constexpr, LAST: tl.constexpr, UNROLLED: tl.constexpr, DISTANCE: tl.constexpr):  # type: ignore[no-untyped-def]
    """The tile of sum_d (A_di - B_dj)², or of sum_d A_di B_dj, for d from FIRST up to LAST.

    Up to UNROLLED rows are written out, and the compiler keeps those of A in registers from tile to tile; more would
    not fit there, and run in a loop, four at a time.
    """
    tile = tl.zeros((i.shape[0], j.shape[0]), A.dtype.element_ty)
    looped: tl.constexpr = (LAST - FIRST) // 4 * 4 if LAST - FIRST > UNROLLED else 0
    for d in range(FIRST, FIRST + looped, 4):
        for e in tl.static_range(4):
            tile = _add_pairs(tile, A, B, i, j, n, m, d + e, DISTANCE)
    for d in tl.static_range(FIRST + looped, LAST):
        tile = _add_pairs(tile, A, B, i, j, n, m, d, DISTANCE)
    return tile


@jit
def covariance(  # type: ignore[no-untyped-def]
    Z1, Z2, shape, scale, i, j, n, m,
    ROWS: tl.constexpr, FAMILY: tl.constexpr, LEAVES: tl.constexpr, UNROLLED: tl.constexpr,
):  # fmt: skip
    """The tile of K_ij."""
    K = tl.zeros((i.shape[0], j.shape[0]), Z1.dtype.element_ty)
    for t in tl.static_range(len(LEAVES) - 1):
        term = tl.zeros_like(K) + tl.load(scale + t)
        for leaf in tl.static_range(LEAVES[t], LEAVES[t + 1]):
            r2 = pairs(Z1, Z2, i, j, n, m, ROWS[leaf], ROWS[leaf + 1], UNROLLED, True)
            term *= value(r2, tl.load(shape + leaf), FAMILY[leaf])
        K += term
    return K


@jit
def add_compensated(total, lost, part):  # type: ignore[no-untyped-def]
    """Add to a sum and keep what rounding took from it. Source: Kahan (1965)."""
    part = part - lost
    larger = total + part
    return larger, (larger - total) - part
