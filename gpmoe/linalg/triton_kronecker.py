"""Products of Kronecker factors with a matrix on a GPU, without permutations in memory (Triton).

| symbol | name in code | shape |
|---|---|---|
| factor i | `A` | (a, b) |
| V, with the axis of factor i in the middle | `X` | (left, b, right) |
| the same after factor i | `Y` | (left, a, right) |
| position in left and right together | `p` | left * right |

(A_1 ⊗ ... ⊗ A_k) V multiplies each axis of V, seen as a tensor, by its factor: Y_lir = sum_j A_ij X_ljr, one matrix
product whose index arithmetic stands for the permutation: each factor reads V once and writes it once, whatever the
place of its axis. Sums over j are compensated from tile to tile and have a fixed order: results are the same bit for
bit from run to run.

Source: Fernandes, Plateau and Stewart (1998), sec. 3; the tiles are those of a matrix product.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from gpmoe.errors import DifferentiationError, ShapeError
from gpmoe.linalg.triton_compiler import Launch, expect_triton, jit, tl
from gpmoe.linalg.triton_tiles import add_compensated
from gpmoe.shapes import expect_floating, expect_shape


@jit
def _multiply_axis(  # type: ignore[no-untyped-def]
    A, X, Y, a, b, left, right,
    BLOCK_A: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_P: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Y_lir = sum_j A_ij X_ljr."""
    p = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    i = tl.program_id(1) * BLOCK_A + tl.arange(0, BLOCK_A)
    inside = p < left.to(tl.int64) * right
    outer, r = p // right, p % right
    total = tl.zeros((BLOCK_A, BLOCK_P), X.dtype.element_ty)
    lost = tl.zeros((BLOCK_A, BLOCK_P), X.dtype.element_ty)
    for first in range(0, b, BLOCK_B):
        j = first + tl.arange(0, BLOCK_B)
        known = j < b
        factor = tl.load(
            A + i[:, None].to(tl.int64) * b + j[None, :], mask=(i < a)[:, None] & known[None, :], other=0.0
        )
        x = tl.load(X + (outer * b)[None, :] * right + r[None, :] + j[:, None].to(tl.int64) * right,
                    mask=known[:, None] & inside[None, :], other=0.0)  # fmt: skip
        total, lost = add_compensated(total, lost, tl.dot(factor, x, input_precision=PRECISION))
    to = Y + (outer * a)[None, :] * right + r[None, :] + i[:, None].to(tl.int64) * right
    tl.store(to, total, mask=(i < a)[:, None] & inside[None, :])


@jit
def _factor_gradient(  # type: ignore[no-untyped-def]
    X, G, out, a, b, left, right, per_program,
    BLOCK_A: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_P: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out[s, i, j] = sum of G_lir X_ljr over the l and r of share s."""
    i = tl.program_id(0) * BLOCK_A + tl.arange(0, BLOCK_A)
    j = tl.program_id(1) * BLOCK_B + tl.arange(0, BLOCK_B)
    begin = tl.program_id(2).to(tl.int64) * per_program
    end = tl.minimum(begin + per_program, left.to(tl.int64) * right)
    total = tl.zeros((BLOCK_A, BLOCK_B), X.dtype.element_ty)
    lost = tl.zeros((BLOCK_A, BLOCK_B), X.dtype.element_ty)
    for first in range(begin, end, BLOCK_P):
        p = first + tl.arange(0, BLOCK_P)
        inside = p < end
        outer, r = p // right, p % right
        g = tl.load(G + (outer * a)[None, :] * right + r[None, :] + i[:, None].to(tl.int64) * right,
                    mask=(i < a)[:, None] & inside[None, :], other=0.0)  # fmt: skip
        x = tl.load(X + (outer * b)[:, None] * right + r[:, None] + j[None, :].to(tl.int64) * right,
                    mask=inside[:, None] & (j < b)[None, :], other=0.0)  # fmt: skip
        total, lost = add_compensated(total, lost, tl.dot(g, x, input_precision=PRECISION))
    to = out + (tl.program_id(2).to(tl.int64) * a + i[:, None]) * b + j[None, :]
    tl.store(to, total, mask=(i < a)[:, None] & (j < b)[None, :])


# Longest sides of a tile along the rows of A, its columns and p: by registers, without spills, in the machine code for
# sm_90 (`benchmarks/gpu.py` prints them). Shorter axes take the next power of two from 16.
MULTIPLY_TILES = {torch.float32: (64, 16, 32), torch.float64: (32, 16, 32)}
GRADIENT_TILES = {torch.float32: (64, 64, 32), torch.float64: (32, 32, 16)}
_PROGRAMS = 512  # below so many tiles of a factor's gradient, left and right are shared out among programs too


def _sides(tiles: dict[torch.dtype, tuple[int, int, int]], A: Tensor) -> dict[str, int]:
    longest_a, longest_b, block_p = tiles[A.dtype]
    fit = [max(16, 1 << (size - 1).bit_length()) for size in A.shape]
    return {"BLOCK_A": min(longest_a, fit[0]), "BLOCK_B": min(longest_b, fit[1]), "BLOCK_P": block_p}


def multiply_launch(A: Tensor, X: Tensor, *, tf32: bool = False) -> Launch:
    """The kernel that multiplies the middle axis of a tensor by a matrix, ready to run or to compile.

    Args:
        A: ``(a, b)``, contiguous.
        X: ``(left, b, right)``, contiguous.
        tf32: products by tensor cores, at their precision.

    Returns:
        A launch whose argument ``Y``, ``(left, a, right)``, holds the result.
    """
    (a, b), (left, _, right) = A.shape, X.shape
    sides = _sides(MULTIPLY_TILES, A)
    grid = (-(-left * right // sides["BLOCK_P"]), -(-a // sides["BLOCK_A"]))
    arguments: dict[str, Tensor | int] = {"A": A, "X": X, "Y": X.new_empty(left, a, right)}
    arguments |= {"a": a, "b": b, "left": left, "right": right}
    return Launch(_multiply_axis, grid, arguments, {**sides, "PRECISION": "tf32" if tf32 else "ieee"})


def factor_gradient_launch(A: Tensor, X: Tensor, G: Tensor, *, tf32: bool = False) -> Launch:
    """The kernel of the gradient for a factor.

    Args:
        A: ``(a, b)``.
        X: what A was applied to, ``(left, b, right)``, contiguous.
        G: gradient for the result, ``(left, a, right)``, contiguous.
        tf32: products by tensor cores, at their precision.

    Returns:
        A launch whose argument ``out``, ``(shares, a, b)``, sums to the gradient over its first axis.
    """
    (a, b), (left, _, right) = A.shape, X.shape
    sides = _sides(GRADIENT_TILES, A)
    blocks = (-(-a // sides["BLOCK_A"]), -(-b // sides["BLOCK_B"]))
    steps = -(-left * right // sides["BLOCK_P"])
    shares = max(1, min(-(-_PROGRAMS // max(1, prod(blocks))), steps // 4))
    each = -(-steps // shares)
    shares = -(-steps // max(1, each))
    arguments: dict[str, Tensor | int] = {"X": X, "G": G, "out": X.new_empty(shares, a, b)}
    arguments |= {"a": a, "b": b, "left": left, "right": right, "per_program": each * sides["BLOCK_P"]}
    constants = {**sides, "PRECISION": "tf32" if tf32 else "ieee"}
    return Launch(_factor_gradient, (*blocks, shares), arguments, constants)


class _AxisProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, A: Tensor, X: Tensor, tf32: bool) -> Tensor:
        A, X = A.contiguous(), X.contiguous()
        ctx.save_for_backward(A, X if ctx.needs_input_grad[0] else None)
        ctx.tf32 = tf32
        return multiply_launch(A, X, tf32=tf32).run("Y")

    @staticmethod
    def backward(ctx: Any, G: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise DifferentiationError("the product can be differentiated once; leave out create_graph=True.")
        (A, X), G = ctx.saved_tensors, G.contiguous()
        dA = factor_gradient_launch(A, X, G, tf32=ctx.tf32).run("out").sum(0) if ctx.needs_input_grad[0] else None
        dX = multiply_launch(A.mT.contiguous(), G, tf32=ctx.tf32).run("Y") if ctx.needs_input_grad[1] else None
        return dA, dX, None


def kron_matmul(factors: Sequence[Tensor], V: Tensor, *, tf32: bool = False) -> Tensor:
    """(A_1 ⊗ ... ⊗ A_k) V on a GPU, differentiable once.

    Args:
        factors: matrices ``(a_i, b_i)``, square or not, of the dtype and on the device of V.
        V: ``(b_1 ... b_k, c)``, the last factor's index running fastest.
        tf32: products by tensor cores, with 10-bit mantissas; off by default.

    Returns:
        ``(a_1 ... a_k, c)``; gradients reach the factors and V. For them the tensor before each factor that needs one
        is kept.

    Raises:
        MissingPackageError: if Triton is not installed.
        DtypeError: if V is not on a GPU, or a factor differs from V in dtype or device.
        ShapeError: if a factor is no matrix, or V has not as many rows as the factors' product has columns.
    """
    expect_triton(V)
    if not factors:
        raise ShapeError("`factors` is empty; pass at least one matrix.")
    for number, A in enumerate(factors):
        expect_shape(f"factors[{number}]", A, ndim=2)
        expect_floating(f"factors[{number}]", A, like=V)
    expect_floating("V", V)
    expect_shape("V", V, ndim=2, last=(prod(A.shape[1] for A in factors), -1))
    c = right = V.shape[1]
    for number in reversed(range(len(factors))):
        A, left = factors[number], prod(A.shape[1] for A in factors[:number])
        V = _AxisProduct.apply(A, V.reshape(left, A.shape[1], right), tf32)
        right *= A.shape[0]
    return V.reshape(prod(A.shape[0] for A in factors), c)
