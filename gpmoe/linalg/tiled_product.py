"""K V for any kernel, in blocks of rows that are computed, used and dropped; their gradients recompute them."""

from typing import Any

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from gpmoe.errors import DifferentiationError
from gpmoe.linalg.likelihood import learnable_tensors
from gpmoe.linalg.stationary import dense_covariance, row_blocks


def tiled_product(kernel: Kernel, X1: Tensor, X2: Tensor | None, V: Tensor) -> Tensor:
    """K V in the memory of a few blocks of rows, differentiable once.

    Args:
        kernel: any GPyTorch kernel without batch dimensions.
        X1: ``(n, d)``.
        X2: ``(m, d)``; None for the covariance of X1 with itself, of which half is computed.
        V: ``(m, t)``.

    Returns:
        ``(n, t)``; gradients reach V, the inputs and the kernel's parameters.
    """
    value: Tensor = _TiledProduct.apply(kernel, X1, X2, V, *learnable_tensors(kernel))
    return value


def multiply(kernel: Kernel, X1: Tensor, X2: Tensor | None, V: Tensor) -> Tensor:
    """K V, not differentiable; shapes as in `tiled_product`."""
    total = V.new_zeros(len(X1), V.shape[1])
    if not total.numel() or not len(V):
        return total
    other = X1 if X2 is None else X2
    for rows, columns, on_diagonal in row_blocks(len(X1), len(other), symmetric=X2 is None, cuda=X1.is_cuda):
        left = X1[rows]
        with torch.no_grad():
            K = dense_covariance(kernel, left, left if on_diagonal else other[columns])
        total[rows] += K @ V[columns]
        if X2 is None and not on_diagonal:
            total[columns] += K.mT @ V[rows]
    return total


def differentiate(
    kernel: Kernel, X1: Tensor, X2: Tensor | None, U: Tensor, V: Tensor
) -> tuple[Tensor, Tensor | None, list[Tensor]]:
    """Gradients of sum_ij (U V')_ij K_ij.

    Args:
        kernel: as in `tiled_product`, as are X1 and X2.
        U: ``(n, t)``.
        V: ``(m, t)``.

    Returns:
        Gradients for X1, for X2 or None, and for each of ``learnable_tensors(kernel)``.
    """
    x1 = X1.detach().requires_grad_()
    x2 = x1 if X2 is None else X2.detach().requires_grad_()
    wanted = [x1, *([] if X2 is None else [x2]), *learnable_tensors(kernel)]
    total = [torch.zeros_like(tensor) for tensor in wanted]
    blocks = row_blocks(len(x1), len(x2), symmetric=X2 is None, cuda=X1.is_cuda) if len(x1) and len(x2) else []
    for rows, columns, on_diagonal in blocks:
        W = U[rows] @ V[columns].mT
        if X2 is None and not on_diagonal:
            W += V[rows] @ U[columns].mT
        with torch.enable_grad():
            left = x1[rows]
            K = dense_covariance(kernel, left, left if on_diagonal else x2[columns])
        if K.requires_grad:
            pieces = torch.autograd.grad(K, wanted, W, allow_unused=True)
            for sum_, piece in zip(total, pieces, strict=True):
                if piece is not None:
                    sum_ += piece
    first, *rest = total
    return first, None if X2 is None else rest.pop(0), rest


class _TiledProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernel: Kernel, X1: Tensor, X2: Tensor | None, V: Tensor, *parameters: Tensor) -> Tensor:
        ctx.arguments = kernel, X1, X2, V
        return multiply(kernel, X1, X2, V)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise DifferentiationError(
                "the tiled product can be differentiated once; leave out create_graph=True, or use engine='dense'."
            )
        kernel, X1, X2, V = ctx.arguments
        dV, dX1, dX2 = None, None, None
        rest: list[Tensor | None] = [None] * (len(ctx.needs_input_grad) - 4)
        if ctx.needs_input_grad[3]:
            dV = multiply(kernel, X1 if X2 is None else X2, None if X2 is None else X1, grad)
        if any(g for i, g in enumerate(ctx.needs_input_grad) if i != 3):
            dX1, dX2, gradients = differentiate(kernel, X1, X2, grad, V)
            rest = list(gradients)
        return (None, dX1, dX2, dV, *rest)
