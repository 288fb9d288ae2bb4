"""Covariance products K(X1, X2) V and their gradients on a GPU, K never in memory (Triton).

| symbol | name in code | shape |
|---|---|---|
| scaled inputs of all leaves, rows of K | `Z1` | (D, n) |
| the same, columns of K | `Z2` | (D, m) |
| V, transposed | `V` | (c, m) |
| k_l, leaves of term t, rows of leaf l in Z | `FAMILY`, `LEAVES`, `ROWS` | tuples, as in `fused` |
| weight of K_ij in the gradient, sum_c G_ic V_jc | `weight` | a tile |

A program owns a block of rows and walks over blocks of columns: squared distances by differences (no cancellation),
the kernel and the product stay in registers. One source serves every sum and product of leaves: what the kernel is
made of is compiled in, so a single leaf costs no more than a kernel written for it.

Accuracy: a tile's columns are summed by threads in parallel and over few steps; over spans of tiles sums are
compensated (Kahan), so the error does not grow with m. Products run in full float32; `tf32` hands those of five and
more columns to the tensor cores' 10-bit mantissas. Values of k carry the 2 ulp of the GPU's exp, plus half of an ulp
for each unit of the exponent.

Every sum has a fixed order and no atomics are used: results are the same bit for bit from run to run.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from gpmoe.errors import DifferentiationError
from gpmoe.linalg.stationary import Packed
from gpmoe.linalg.triton_compiler import Launch, expect_triton, jit, tl
from gpmoe.linalg.triton_tiles import add_compensated, covariance, pairs, value, value_and_slopes
from gpmoe.shapes import expect_floating, expect_shape


@jit
def _few_columns(  # type: ignore[no-untyped-def]
    Z1, Z2, V, shape, scale, out, n, m, per_program,
    ROWS: tl.constexpr, FAMILY: tl.constexpr, LEAVES: tl.constexpr, UNROLLED: tl.constexpr,
    COLUMNS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """out[s, c, i] = sum of K_ij V_cj over the j of program column s; each thread sums before threads do."""
    i = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    first = tl.program_id(1) * per_program
    last = tl.minimum(first + per_program, m)
    n, m = n.to(tl.int64), m.to(tl.int64)
    total = (tl.zeros((BLOCK_N,), Z1.dtype.element_ty),) * COLUMNS
    lost = (tl.zeros((BLOCK_N,), Z1.dtype.element_ty),) * COLUMNS
    for start in range(first, last, SPAN):
        part = (tl.zeros((BLOCK_N, BLOCK_M), Z1.dtype.element_ty),) * COLUMNS
        for j0 in range(start, tl.minimum(start + SPAN, last), BLOCK_M):
            j = j0 + tl.arange(0, BLOCK_M)
            K = covariance(Z1, Z2, shape, scale, i, j, n, m, ROWS, FAMILY, LEAVES, UNROLLED)
            longer = ()
            for c in tl.static_range(COLUMNS):
                longer += (part[c] + K * tl.load(V + c * m + j)[None, :],)  # type: ignore[assignment]
            part = longer
        totals, losts = (), ()
        for c in tl.static_range(COLUMNS):
            larger, taken = add_compensated(total[c], lost[c], tl.sum(part[c], 1))
            totals += (larger,)  # type: ignore[assignment]
            losts += (taken,)  # type: ignore[assignment]
        total, lost = totals, losts
    for c in tl.static_range(COLUMNS):
        tl.store(out + (tl.program_id(1) * COLUMNS + c) * n + i, total[c])


@jit
def _many_columns(  # type: ignore[no-untyped-def]
    Z1, Z2, V, shape, scale, out, n, m, per_program,
    ROWS: tl.constexpr, FAMILY: tl.constexpr, LEAVES: tl.constexpr, UNROLLED: tl.constexpr,
    COLUMNS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, SPAN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """As `_few_columns`, by products of tiles."""
    i = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    first = tl.program_id(1) * per_program
    last = tl.minimum(first + per_program, m)
    n, m = n.to(tl.int64), m.to(tl.int64)
    c = tl.arange(0, COLUMNS)
    total = tl.zeros((BLOCK_N, COLUMNS), Z1.dtype.element_ty)
    lost = tl.zeros((BLOCK_N, COLUMNS), Z1.dtype.element_ty)
    for start in range(first, last, SPAN):
        part = tl.zeros((BLOCK_N, COLUMNS), Z1.dtype.element_ty)
        for j0 in range(start, tl.minimum(start + SPAN, last), BLOCK_M):
            j = j0 + tl.arange(0, BLOCK_M)
            K = covariance(Z1, Z2, shape, scale, i, j, n, m, ROWS, FAMILY, LEAVES, UNROLLED)
            v = tl.load(V + c[None, :] * m + j[:, None])
            part = tl.dot(K, v, part, input_precision=PRECISION)
        total, lost = add_compensated(total, lost, part)
    tl.store(out + (tl.program_id(1) * COLUMNS + c)[None, :] * n + i[:, None], total)


@jit
def _gradient(  # type: ignore[no-untyped-def]
    Z1, Z2, left, right, shape, scale, out, n, m, per_program,
    ROWS: tl.constexpr, FAMILY: tl.constexpr, LEAVES: tl.constexpr, UNROLLED: tl.constexpr, COLUMNS: tl.constexpr,
    TERM: tl.constexpr, LEAF: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """Gradient of sum_ij K_ij weight_ij, weight = left' right, for one leaf, by rows of K.

    out[s, :, i] holds, from the j of program column s, the gradients for the leaf's Z1_di, then the shares of row i
    in those of the term's scale and of the leaf's shape. With g = weight dk/dr2, the first is
    2 (Z1_di sum_j g_ij - sum_j g_ij Z2_dj): two sums, whose difference rounds as Z1 and Z2 themselves are rounded.
    Not so for the Matérn-1/2, whose slope has no bound where points nearly meet: it sums differences.
    """
    i = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    first = tl.program_id(1) * per_program
    last = tl.minimum(first + per_program, m)
    n, m = n.to(tl.int64), m.to(tl.int64)
    D: tl.constexpr = ROWS[LEAF + 1] - ROWS[LEAF]
    d = tl.arange(0, WIDTH)
    known = d < D
    gz, gz_lost = tl.zeros((BLOCK_N, WIDTH), Z1.dtype.element_ty), tl.zeros((BLOCK_N, WIDTH), Z1.dtype.element_ty)
    g, g_lost = tl.zeros((BLOCK_N,), Z1.dtype.element_ty), tl.zeros((BLOCK_N,), Z1.dtype.element_ty)
    s, s_lost = tl.zeros((BLOCK_N,), Z1.dtype.element_ty), tl.zeros((BLOCK_N,), Z1.dtype.element_ty)
    a, a_lost = tl.zeros((BLOCK_N,), Z1.dtype.element_ty), tl.zeros((BLOCK_N,), Z1.dtype.element_ty)
    alpha = tl.load(shape + LEAF)
    for start in range(first, last, SPAN):
        gz_part = tl.zeros((BLOCK_N, WIDTH), Z1.dtype.element_ty)
        g_part = tl.zeros((BLOCK_N, BLOCK_M), Z1.dtype.element_ty)
        s_part = tl.zeros((BLOCK_N, BLOCK_M), Z1.dtype.element_ty)
        a_part = tl.zeros((BLOCK_N, BLOCK_M), Z1.dtype.element_ty)
        for j0 in range(start, tl.minimum(start + SPAN, last), BLOCK_M):
            j = j0 + tl.arange(0, BLOCK_M)
            weight = pairs(left, right, i, j, n, m, 0, COLUMNS, UNROLLED // 2, False)
            for leaf in tl.static_range(LEAVES[TERM], LEAVES[TERM + 1]):
                if leaf != LEAF:
                    r2 = pairs(Z1, Z2, i, j, n, m, ROWS[leaf], ROWS[leaf + 1], UNROLLED, True)
                    weight *= value(r2, tl.load(shape + leaf), FAMILY[leaf])
            r2 = pairs(Z1, Z2, i, j, n, m, ROWS[LEAF], ROWS[LEAF + 1], UNROLLED, True)
            k, slope, alpha_slope = value_and_slopes(r2, alpha, FAMILY[LEAF])
            s_part += weight * k
            a_part += weight * alpha_slope
            weight *= slope
            g_part += weight
            if FAMILY[LEAF] == 1:
                for e in range(D):
                    z1, z2 = tl.load(Z1 + (ROWS[LEAF] + e) * n + i), tl.load(Z2 + (ROWS[LEAF] + e) * m + j)
                    column = tl.sum(weight * (z1[:, None] - z2[None, :]), 1)
                    gz_part += tl.where(d[None, :] == e, column[:, None], 0.0)
            else:
                z2 = tl.load(Z2 + (ROWS[LEAF] + d)[None, :] * m + j[:, None], mask=known[None, :], other=0.0)
                gz_part = tl.dot(weight, z2, gz_part, input_precision="ieee")
        gz, gz_lost = add_compensated(gz, gz_lost, gz_part)
        g, g_lost = add_compensated(g, g_lost, tl.sum(g_part, 1))
        s, s_lost = add_compensated(s, s_lost, tl.sum(s_part, 1))
        a, a_lost = add_compensated(a, a_lost, tl.sum(a_part, 1))
    if FAMILY[LEAF] != 1:
        z1 = tl.load(Z1 + (ROWS[LEAF] + d)[None, :] * n + i[:, None], mask=known[None, :], other=0.0)
        gz = z1 * g[:, None] - gz
    factor = tl.load(scale + TERM)
    out += tl.program_id(1) * (D + 2) * n
    tl.store(out + d[None, :] * n + i[:, None], 2.0 * factor * gz, mask=known[None, :])
    tl.store(out + D * n + i, s)
    tl.store(out + (D + 1) * n + i, factor * a)


class Tile(NamedTuple):
    """How a kernel is cut.

    Attributes:
        rows, columns: of a tile.
        span: columns between compensated additions.
        unrolled: rows of a leaf's Z that are kept in registers, see `pairs`.
    """

    rows: int
    columns: int
    span: int
    unrolled: int


# For up to so many rows of Z and so many right-hand sides, in this order; chosen by registers (hardly a spill) and by
# instructions and loads a pair in the machine code for sm_90, not yet by time on a GPU: `benchmarks/gpu.py` takes it.
# A fixed table rather than a measurement at run time: tiles decide the order of sums.
_MOST = 1 << 30
PRODUCT_TILES = {
    torch.float32: {
        (8, 4): Tile(32, 32, 512, 8),
        (8, _MOST): Tile(32, 32, 128, 8),
        (_MOST, 4): Tile(16, 128, 2048, 3),
        (_MOST, _MOST): Tile(16, 128, 256, 3),
    },
    torch.float64: {(8, _MOST): Tile(16, 32, 512, 8), (_MOST, _MOST): Tile(16, 32, 512, 3)},
}
GRADIENT_TILES = {
    torch.float32: {(8, _MOST): Tile(32, 32, 256, 8), (_MOST, _MOST): Tile(16, 128, 512, 3)},
    torch.float64: {(_MOST, _MOST): Tile(16, 32, 256, 3)},
}
_PROGRAMS = 2048  # below so many blocks of rows, columns are shared out among programs too
_TOGETHER = 64  # right-hand sides of one pass
_FEW = 4  # right-hand sides that a thread sums itself


def _tile(table: dict[torch.dtype, dict[tuple[int, int], Tile]], dtype: torch.dtype, D: int, columns: int) -> Tile:
    return next(tile for (rows, most), tile in table[dtype].items() if rows >= D and columns <= most)


def block(packed: Packed) -> int:
    """Points are padded to a multiple of this, the longest side of the tiles that the kernel may take."""
    D, dtype = packed.Z1.shape[0], packed.Z1.dtype
    tiles = [_tile(table, dtype, D, columns) for table in (PRODUCT_TILES, GRADIENT_TILES) for columns in (1, _MOST)]
    return max(max(tile.rows, tile.columns) for tile in tiles)


def _padded(rows: Tensor, multiple: int, lines: int = 0) -> Tensor:
    """Points filled up with zeros to a multiple, and lines (of right-hand sides) to `lines`."""
    return pad(rows, (0, -rows.shape[-1] % multiple, 0, max(0, lines - rows.shape[0]))).contiguous()


def _constants(packed: Packed, tile: Tile) -> dict[str, Any]:
    """What is compiled into a kernel."""
    names = {"ROWS": packed.rows, "FAMILY": packed.family, "LEAVES": packed.leaves}
    return {
        **{name: tuple(int(value) for value in values) for name, values in names.items()},
        "UNROLLED": tile.unrolled,
        "BLOCK_N": tile.rows,
        "BLOCK_M": tile.columns,
        "SPAN": tile.span,
    }


def _shares(n: int, m: int, tile: Tile) -> tuple[int, int, int]:
    """Blocks of rows, programs that share the columns of one, and columns for each; by the sizes alone."""
    blocks, tiles = n // tile.rows, m // tile.columns
    programs = max(1, min(-(-_PROGRAMS // max(1, blocks)), tiles // 4))
    each = max(1, -(-tiles // programs))
    return blocks, -(-tiles // each), each * tile.columns


def product_launch(packed: Packed, V: Tensor, *, tf32: bool = False) -> Launch:
    """The kernel of `triton_product` without gradients, ready to run or to compile ahead of time.

    Args:
        packed: the kernel and its scaled inputs, ``(D, n)`` and ``(D, m)``, points padded with zeros to
            multiples of `block`.
        V: right-hand sides, transposed and padded likewise with zeros, ``(c, m)``, c up to 4, or 8, 16, 32 or 64.
        tf32: products by tensor cores, at their precision.

    Returns:
        A launch whose argument ``out``, ``(shares, c, n)``, sums to the product over its first axis.
    """
    Z2 = packed.Z1 if packed.Z2 is None else packed.Z2
    (D, n), (c, m) = packed.Z1.shape, V.shape
    tile = _tile(PRODUCT_TILES, V.dtype, D, c)
    blocks, shares, each = _shares(n, m, tile)
    arguments: dict[str, Tensor | int] = {"Z1": packed.Z1, "Z2": Z2, "V": V, "shape": packed.shape}
    arguments |= {"scale": packed.scale, "out": V.new_empty(shares, c, n), "n": n, "m": m, "per_program": each}
    constants = _constants(packed, tile) | {"COLUMNS": c}
    if c <= _FEW:
        return Launch(_few_columns, (blocks, shares), arguments, constants)
    return Launch(_many_columns, (blocks, shares), arguments, constants | {"PRECISION": "tf32" if tf32 else "ieee"})


def gradient_launch(packed: Packed, left: Tensor, right: Tensor, term: int, leaf: int) -> Launch:
    """The kernel of the gradient of sum_c left_c' K right_c for one leaf, by rows of K.

    Args:
        packed: as in `product_launch`.
        left: ``(c, n)``, padded likewise.
        right: ``(c, m)``, padded likewise with zeros.
        term, leaf: which leaf, and the term that it belongs to.

    Returns:
        A launch whose argument ``out``, ``(shares, d + 2, n)``, sums over its first axis to the gradients for the
        leaf's rows of Z1 and to each row's shares of those for the term's scale and the leaf's shape.
    """
    Z2 = packed.Z1 if packed.Z2 is None else packed.Z2
    (D, n), (c, m) = packed.Z1.shape, right.shape
    tile = _tile(GRADIENT_TILES, right.dtype, D, c)
    blocks, shares, each = _shares(n, m, tile)
    d = int(packed.rows[leaf + 1] - packed.rows[leaf])
    arguments: dict[str, Tensor | int] = {"Z1": packed.Z1, "Z2": Z2, "left": left, "right": right}
    arguments |= {"shape": packed.shape, "scale": packed.scale, "out": right.new_empty(shares, d + 2, n)}
    arguments |= {"n": n, "m": m, "per_program": each}
    constants = _constants(packed, tile) | {"COLUMNS": c, "TERM": term, "LEAF": leaf, "WIDTH": _power_of_two(d)}
    return Launch(_gradient, (blocks, shares), arguments, constants)


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _product(packed: Packed, V: Tensor, n: int, tf32: bool) -> Tensor:
    """K V for padded inputs; V ``(m, c)``, the product ``(n, c)``."""
    groups = V.mT.split(_TOGETHER)
    lines = [max(1, len(group)) if len(group) <= _FEW else max(8, _power_of_two(len(group))) for group in groups]
    parts = [
        product_launch(packed, _padded(group, block(packed), line), tf32=tf32).run("out").sum(0)[: len(group), :n]
        for group, line in zip(groups, lines, strict=True)
    ]
    return torch.cat(parts).mT


def _row_gradients(packed: Packed, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of sum_c left_c' K right_c for Z1, shape and scale; `left` ``(n, c)``, `right` ``(m, c)``."""
    lines = _power_of_two(left.shape[-1])
    left, right = (_padded(side.mT, block(packed), lines) for side in (left, right))
    dZ, dshape, dscale = [], [], []
    for term, (start, end) in enumerate(zip(packed.leaves[:-1], packed.leaves[1:], strict=True)):
        for leaf in range(int(start), int(end)):
            out = gradient_launch(packed, left, right, term, leaf).run("out").sum(0)
            dZ.append(out[:-2])
            dshape.append(out[-1].sum())
        dscale.append(out[-2].sum())
    return torch.cat(dZ), torch.stack(dshape), torch.stack(dscale)


class _TritonProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, Z1: Tensor, Z2: Tensor | None, shape: Tensor, scale: Tensor, V: Tensor, packed: Packed, tf32: bool
    ) -> Tensor:
        ctx.save_for_backward(Z1, Z2, shape, scale, V)
        ctx.packed, ctx.tf32 = packed, tf32
        return _product(_with(packed, Z1, Z2, shape, scale), V, Z1.shape[-1], tf32)

    @staticmethod
    def backward(ctx: Any, G: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise DifferentiationError("the product can be differentiated once; leave out create_graph=True.")
        Z1, Z2, shape, scale, V = ctx.saved_tensors
        for_Z1, for_Z2, for_shape, for_scale, for_V = ctx.needs_input_grad[:5]
        n, m = Z1.shape[-1], V.shape[0]
        by_rows = _with(ctx.packed, Z1, Z2, shape, scale)
        by_columns = by_rows if Z2 is None else _with(ctx.packed, Z2, Z1, shape, scale)
        dZ1 = dZ2 = dshape = dscale = dV = None
        if for_V:
            dV = _product(by_columns, G, m, ctx.tf32)
        if for_Z1 or for_shape or for_scale:
            if Z2 is None:  # K_ij and K_ji in one pass, each half of the derivative for shape and scale
                dZ1, dshape, dscale = _row_gradients(by_rows, torch.cat([G, V], -1), torch.cat([V, G], -1))
                dshape, dscale = dshape / 2, dscale / 2
            else:
                dZ1, dshape, dscale = _row_gradients(by_rows, G, V)
            dZ1 = dZ1[:, :n]
        if for_Z2:
            dZ2 = _row_gradients(by_columns, V, G)[0][:, :m]
        return dZ1, dZ2, dshape, dscale, dV, None, None


def _with(packed: Packed, Z1: Tensor, Z2: Tensor | None, shape: Tensor, scale: Tensor) -> Packed:
    """The same kernel of these points, padded."""
    size = block(packed)
    second = None if Z2 is None else _padded(Z2, size)
    return replace(packed, Z1=_padded(Z1, size), Z2=second, shape=shape.contiguous(), scale=scale.contiguous())


def triton_product(packed: Packed, V: Tensor, *, tf32: bool = False) -> Tensor:
    """K(X1, X2) V on a GPU, differentiable once, in memory that grows as n + m.

    Args:
        packed: the kernel and its scaled inputs, ``(D, n)`` and ``(D, m)`` or None, from `stationary.pack`.
        V: right-hand sides, ``(m, c)``, of the dtype and on the device of the inputs; a pass takes up to 64.
        tf32: let tensor cores multiply K by V where V has five columns or more: 10-bit mantissas in the product and
            in the gradient for V. Off by default, since errors of 1e-3 stop iterative solvers early.

    Returns:
        ``(n, c)``; gradients reach Z1, Z2, shape, scale and V.

    Raises:
        MissingPackageError: if Triton is not installed.
        DtypeError: if V is not on a GPU, or differs from the inputs in dtype or device.
        ShapeError: if V has not as many rows as K has columns.
    """
    expect_triton(V)
    m = (packed.Z1 if packed.Z2 is None else packed.Z2).shape[-1]
    expect_floating("V", V, like=packed.Z1)
    expect_shape("V", V, ndim=2, last=(m, -1))
    product: Tensor = _TritonProduct.apply(packed.Z1, packed.Z2, packed.shape, packed.scale, V, packed, tf32)
    return product
