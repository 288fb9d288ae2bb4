"""The covariance between two sets of points, with its gradient in one pass over cache blocks.

| symbol | name in code | shape |
|---|---|---|
| K(X1, X2) | `K` | (n, m) |
| W, the gradient that arrives for K | `W` | (n, m) |
| scaled inputs of all leaves | `Z1`, `Z2` | (D, n), (D, m) |

Autograd keeps the inputs alone: backward computes the kernel again, a block at a time, where plain torch would store
several n x m matrices. Kernels that the fused pass does not know go through GPyTorch.
"""

from typing import Any

import numpy as np
import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from gpmoe.errors import DifferentiationError
from gpmoe.linalg import fused
from gpmoe.linalg.compiler import njit
from gpmoe.linalg.fused import (
    _COLUMNS,
    _EXACT,
    _ROWS,
    Array,
    _chunks,
    _copy_columns,
    _pull_back,
    _row_buffers,
    _weigh_row,
)
from gpmoe.linalg.pool import run_pass
from gpmoe.linalg.stationary import Packed, dense_covariance, pack, stationary_terms


def cross_covariance(kernel: Kernel, X1: Tensor, X2: Tensor) -> Tensor:
    """k(X1, X2) as a matrix, differentiable once.

    Args:
        kernel: any GPyTorch kernel.
        X1: ``(*batch, n, d)``.
        X2: ``(*batch, m, d)``.

    Returns:
        ``(*batch, n, m)``; gradients reach the kernel's parameters and both inputs.
    """
    terms = stationary_terms(kernel, X1, X2)
    if terms is None:
        return dense_covariance(kernel, X1, X2)
    packed = pack(terms)
    K: Tensor = _Fused.apply(packed.Z1, packed.Z2, packed.shape, packed.scale, packed)
    return K


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, Z1: Tensor, Z2: Tensor, shape: Tensor, scale: Tensor, packed: Packed) -> Tensor:
        ctx.save_for_backward(Z1, Z2)
        ctx.arrays = packed.arrays()
        K = Z1.new_empty(Z1.shape[-1], Z2.shape[-1])
        fused.assemble(Z1.numpy(), Z2.numpy(), ctx.arrays, K.numpy())
        return K

    @staticmethod
    def backward(ctx: Any, W: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise DifferentiationError("a covariance can be differentiated once; leave out create_graph=True.")
        Z1, Z2 = (Z.numpy() for Z in ctx.saved_tensors)
        found = cross_gradient(W.contiguous().numpy(), Z1, Z2, ctx.arrays)
        return *(torch.from_numpy(gradient) for gradient in found), None


def cross_gradient(W: Array, Z1: Array, Z2: Array, packed: fused.Packed) -> tuple[Array, Array, Array, Array]:
    """Gradient of sum_ij W_ij K_ij with respect to the kernel.

    Args:
        W: ``(n, m)``, row-major.
        Z1, Z2: ``(D, n)`` and ``(D, m)``.
        packed: the kernel.

    Returns:
        Gradients for Z1, for Z2, for shape ``(leaves,)`` and for scale ``(terms,)``.
    """
    n, m = W.shape
    _, _, shape, _, scale = packed
    chunks = _chunks(n)
    dZ1, dZ2 = np.zeros_like(Z1), np.zeros((chunks, *Z2.shape))
    dshape, dscale = np.zeros((chunks, len(shape))), np.zeros((chunks, len(scale)))
    run_pass(_cross_gradient, n * m, chunks, chunks, W, Z1, Z2, *packed, dZ1, dZ2, dshape, dscale)
    dZ1 *= 2.0
    return dZ1, dZ2.sum(0), dshape.sum(0), dscale.sum(0)


@njit(**_EXACT)
def _cross_gradient(first, step, chunks, W, Z1, Z2, rows, family, shape, leaves, scale, dZ1, dZ2, dshape, dscale):  # type: ignore[no-untyped-def]
    n, n2 = W.shape
    count = len(family)
    buffers, z, g = _row_buffers(count), np.empty(_ROWS), np.empty((count, _ROWS, _COLUMNS))
    columns, dcolumns = np.empty((len(Z2), _COLUMNS)), np.empty((len(Z2), _COLUMNS))
    kernel = (rows, family, shape, leaves, scale)
    for chunk in range(first, chunks, step):
        for block in range(chunk, (n + _ROWS - 1) // _ROWS, chunks):
            top, last = block * _ROWS, min((block + 1) * _ROWS, n)
            for j0 in range(0, n2, _COLUMNS):
                m = min(_COLUMNS, n2 - j0)
                _copy_columns(Z2, j0, m, columns)
                dcolumns[:, :m] = 0.0
                g[:, last - top :, :m] = 0.0
                for i in range(top, last):
                    line = W[i, j0 : j0 + m]
                    _weigh_row(line, m, Z1, i, columns, kernel, buffers, g[:, i - top], dshape[chunk], dscale[chunk])
                for leaf in range(count):
                    row, row_end = rows[leaf], rows[leaf + 1]
                    _pull_back(g[leaf], last - top, Z1, top, columns, m, row, row_end, dZ1, dcolumns, z)
                for d in range(len(Z2)):
                    for j in range(m):
                        dZ2[chunk, d, j0 + j] += 2.0 * dcolumns[d, j]
