# mypy: disable-error-code="call-arg"
"""One small covariance at a time, compiled: its stationary terms, Cholesky factor, inverse and solves (Numba, float64).

These are the parts of `small_batch` and `vecchia`, which run them over thousands of matrices of up to a few hundred
rows, each in the cache of one core. LAPACK's calls cost more than such a matrix does, and vectorise it less.

| symbol | name in code | layout |
|---|---|---|
| n, n rounded up to a multiple of 8 | `n`, `m` | |
| Z, scaled inputs of all leaves, zeros beyond n | `Z` | (D, m) |
| C = U'U, identity beyond n; later U, later C⁻¹ | `A` | (m * m,), rows of the upper triangle; C⁻¹ in the lower |
| T = (U')⁻¹ | `T` | (m * m,), lower triangle |
| k_l, dk_l/dr2, dk_l/dα of leaf l at each pair | `k`, `slope`, `shape_slope` | (leaves, pairs) |

Pairs are those of the upper triangle, row by row, each row from the multiple of 8 at or before its diagonal to m, so
that all loops run over whole vectors. What a row has left of its diagonal is computed and not used. Every O(n³) step
is `_sum_of_products`, four rows by eight columns held in registers.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpmoe.linalg.compiler import intrinsic, ir, njit, types
from gpmoe.linalg.fused import leaf_and_slope

Array = NDArray[np.float64]

JITTERS = (0.0, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6)  # tried in turn, relative to the mean diagonal

_WIDTH, _HEIGHT = 8, 4
_COMPILED: Any = {"cache": True, "nogil": True, "error_model": "numpy"}
_FAST: Any = {"cache": True, "nogil": True, "error_model": "numpy", "fastmath": True}


@intrinsic
def _sum_of_products(
    typingctx: Any, P: Any, Q: Any, stride: Any, i: Any, j: Any, start: Any, stop: Any, out: Any
) -> Any:
    """out[8 r + c] = sum over start <= k < stop of P[k stride + i + r] Q[k stride + j + c], r < 4, c < 8."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = [context.make_array(signature.args[at])(context, builder, args[at]).data for at in (0, 1, 7)]
        stride, i, j, start, stop = args[2:7]
        vector = ir.VectorType(ir.DoubleType(), _WIDTH)
        lanes = ir.Constant(ir.VectorType(ir.IntType(32), _WIDTH), [0] * _WIDTH)
        before = builder.block
        body, after = builder.append_basic_block("body"), builder.append_basic_block("after")
        builder.cbranch(builder.icmp_signed("<", start, stop), body, after)
        builder.position_at_end(body)
        k = builder.phi(ir.IntType(64))
        sums = [builder.phi(vector) for _ in range(_HEIGHT)]
        row = builder.mul(k, stride)
        q = builder.bitcast(builder.gep(data[1], [builder.add(row, j)]), vector.as_pointer())
        right = builder.load(q, align=8)
        p = builder.gep(data[0], [builder.add(row, i)])
        news = []
        for r, total in enumerate(sums):
            left = builder.load(builder.gep(p, [ir.Constant(ir.IntType(64), r)]))
            one = builder.insert_element(ir.Constant(vector, ir.Undefined), left, ir.Constant(ir.IntType(32), 0))
            left = builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), lanes)
            product = builder.fmul(left, right, flags=("contract",))
            news.append(builder.fadd(total, product, flags=("contract",)))
        k_next = builder.add(k, ir.Constant(ir.IntType(64), 1))
        builder.cbranch(builder.icmp_signed("<", k_next, stop), body, after)
        k.add_incoming(start, before)
        k.add_incoming(k_next, body)
        zero = ir.Constant(vector, [0.0] * _WIDTH)
        for total, new in zip(sums, news, strict=True):
            total.add_incoming(zero, before)
            total.add_incoming(new, body)
        builder.position_at_end(after)
        ends = [builder.phi(vector) for _ in range(_HEIGHT)]
        for end, new in zip(ends, news, strict=True):
            end.add_incoming(zero, before)
            end.add_incoming(new, body)
        for r, end in enumerate(ends):
            place = builder.gep(data[2], [ir.Constant(ir.IntType(64), r * _WIDTH)])
            builder.store(end, builder.bitcast(place, vector.as_pointer()), align=8)
        return context.get_dummy_value()

    return types.void(P, Q, *[types.int64] * 5, out), codegen


@njit(**_COMPILED)
def padded(n):  # type: ignore[no-untyped-def]
    """n rounded up to a multiple of 8."""
    return (n + 7) // 8 * 8


@njit(**_COMPILED)
def pairs_of(m):  # type: ignore[no-untyped-def]
    """How many pairs m padded rows have."""
    return m * (m + 8) // 2


@njit(**_FAST)
def _squared_distances(Z, m, row, row_end, r2):  # type: ignore[no-untyped-def]
    r2[: pairs_of(m)] = 0.0
    for d in range(row, row_end):
        at = 0
        for i in range(m):
            z, first = Z[d, i], i // 8 * 8
            others, sums = Z[d, first:m], r2[at : at + m - first]
            for j in range(len(others)):
                diff = z - others[j]
                sums[j] += diff * diff
            at += m - first


@njit(**_COMPILED)
def evaluate_leaves(Z, m, rows, family, shape, r2, k, slope, shape_slope):  # type: ignore[no-untyped-def]
    """Fill `k` and its slopes, each leaf at all pairs."""
    count = pairs_of(m)
    for leaf in range(len(family)):
        _squared_distances(Z, m, rows[leaf], rows[leaf + 1], r2)
        leaf_and_slope(family[leaf], shape[leaf], r2, count, k[leaf], slope[leaf], shape_slope[leaf])


@njit(**_COMPILED)
def assemble(k, leaves, scale, noise, jitter, n, m, A):  # type: ignore[no-untyped-def]
    """Write C = K + diag(noise + jitter) from the leaves' values; returns the mean of its diagonal."""
    total, at = 0.0, 0
    for i in range(m):
        first = i // 8 * 8
        width = m - first
        line = A[i * m + first : i * m + m]
        line[:] = 0.0
        if i >= n:
            line[i - first] = 1.0
            continue
        for term in range(len(scale)):
            factor, values = scale[term], k[leaves[term], at : at + width]
            if leaves[term + 1] == leaves[term] + 1:
                for j in range(width):
                    line[j] += factor * values[j]
            else:
                for j in range(width):
                    product = factor
                    for leaf in range(leaves[term], leaves[term + 1]):
                        product *= k[leaf, at + j]
                    line[j] += product
        line[n - first :] = 0.0
        line[i - first] += noise[i]
        total += line[i - first]
        line[i - first] += jitter
        at += width
    return total / max(n, 1)


@njit(**_FAST)
def _subtract(line, factor, other):  # type: ignore[no-untyped-def]
    for j in range(len(line)):
        line[j] -= factor * other[j]


@njit(**_COMPILED)
def factorise(A, m, tile):  # type: ignore[no-untyped-def]
    """Overwrite the upper triangle of C by U; False if C is not positive definite (or not finite)."""
    for i in range(0, m, 4):
        for j in range(i // 8 * 8, m, 8):
            _sum_of_products(A, A, m, i, j, 0, i, tile)
            for r in range(4):
                line = A[(i + r) * m + j : (i + r) * m + j + 8]
                for c in range(8):
                    line[c] -= tile[8 * r + c]
        for r in range(4):
            pivot = A[(i + r) * m + i + r]
            if not 0.0 < pivot < math.inf:
                return False
            line = A[(i + r) * m + i + r : (i + r) * m + m]
            inverse = 1.0 / math.sqrt(pivot)
            for j in range(len(line)):
                line[j] *= inverse
            for s in range(r + 1, 4):
                _subtract(A[(i + s) * m + i + s : (i + s) * m + m], line[s - r], line[s - r :])
    return True


@njit(**_COMPILED)
def invert_factor(A, m, T, tile):  # type: ignore[no-untyped-def]
    """T = (U')⁻¹, lower triangular, zeros right of its diagonal up to the next multiple of 8."""
    for i in range(0, m, 4):
        end = i // 8 * 8 + 8
        for j in range(0, end, 8):
            _sum_of_products(A, T, m, i, j, j, i, tile)
            for r in range(4):
                line = T[(i + r) * m + j : (i + r) * m + j + 8]
                for c in range(8):
                    line[c] = -tile[8 * r + c]
        for r in range(4):
            row = (i + r) * m
            line = T[row : row + end]
            line[i + r] += 1.0
            for s in range(r):
                _subtract(line, A[(i + s) * m + i + r], T[(i + s) * m : (i + s) * m + end])
            inverse = 1.0 / A[row + i + r]
            for j in range(end):
                line[j] *= inverse


@njit(**_COMPILED)
def invert(A, m, T, tile):  # type: ignore[no-untyped-def]
    """C⁻¹ = T'T over the upper triangle of A; T as `invert_factor` leaves it."""
    for i in range(0, m, 4):
        for j in range(i // 8 * 8, m, 8):
            _sum_of_products(T, T, m, i, j, max(i, j), m, tile)
            for r in range(4):
                line = A[(i + r) * m + j : (i + r) * m + j + 8]
                for c in range(8):
                    line[c] = tile[8 * r + c]


@njit(**_FAST)
def solve_forward(A, n, m, b):  # type: ignore[no-untyped-def]
    """b = (U')⁻¹ b, on the first n rows."""
    for i in range(n):
        b[i] /= A[i * m + i]
        _subtract(b[i + 1 : n], b[i], A[i * m + i + 1 : i * m + n])


@njit(**_FAST)
def solve_backward(A, n, m, b):  # type: ignore[no-untyped-def]
    """b = U⁻¹ b, on the first n rows."""
    for i in range(n - 1, -1, -1):
        line, known = A[i * m + i + 1 : i * m + n], b[i + 1 : n]
        total = b[i]
        for j in range(len(line)):
            total -= line[j] * known[j]
        b[i] = total / A[i * m + i]


@njit(**_FAST)
def _dot(a, b, count):  # type: ignore[no-untyped-def]
    total = 0.0
    for j in range(count):
        total += a[j] * b[j]
    return total


@njit(**_FAST)
def _multiply(a, b, factor, count):  # type: ignore[no-untyped-def]
    for j in range(count):
        a[j] *= factor * b[j]


@njit(**_FAST)
def _pull_back_distances(g, Z, n, m, row, row_end, dZ):  # type: ignore[no-untyped-def]
    """Add the gradient of sum over pairs of g r2 to dZ."""
    for d in range(row, row_end):
        at = 0
        for i in range(n):
            first, z, total = i // 8 * 8, Z[d, i], 0.0
            others, sums, weights = Z[d, first:m], dZ[d, first:m], g[at : at + m - first]
            for j in range(len(others)):
                t = 2.0 * weights[j] * (z - others[j])
                sums[j] -= t
                total += t
            dZ[d, i] += total
            at += m - first


@njit(**_COMPILED)
def pull_back(w, n, m, Z, rows, family, leaves, scale, k, slope, shape_slope, g, dZ, dshape, dscale):  # type: ignore[no-untyped-def]
    """Add the gradient of sum over pairs of w K for Z (D, m), shape (leaves,) and scale (terms,).

    `w` holds a pair's weight once: K_ij + K_ji right of the diagonal, K_ii on it, zero left of it and beyond n.
    """
    count = 0
    for i in range(n):
        count += m - i // 8 * 8
    for term in range(len(scale)):
        for leaf in range(leaves[term], leaves[term + 1]):
            g[:count] = w[:count]
            for other in range(leaves[term], leaves[term + 1]):
                if other != leaf:
                    _multiply(g, k[other], 1.0, count)
            if leaf == leaves[term]:
                dscale[term] += _dot(g, k[leaf], count)
            if family[leaf] == 4:
                dshape[leaf] += scale[term] * _dot(g, shape_slope[leaf], count)
            _multiply(g, slope[leaf], scale[term], count)
            _pull_back_distances(g, Z, n, m, rows[leaf], rows[leaf + 1], dZ)
