"""Sums of quadratic forms in a covariance, with their gradient for the kernel: what pathwise gradients need.

    q = sum_c w_c v_c' K(X, X) v_c,     dq/dK = sum_c w_c v_c v_c'

The weights of all pairs are formed as one symmetric product where they fit into the memory given, and pulled through
the kernel in the fused pass; otherwise in blocks of rows under autograd.
"""

from typing import Any

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from gpmoe.linalg import fused
from gpmoe.linalg.likelihood import learnable_tensors
from gpmoe.linalg.operator import covariance_times, product
from gpmoe.linalg.stationary import Packed, dense_covariance, pack, row_blocks, stationary_terms


def quadratic_forms(kernel: Kernel, X: Tensor, V: Tensor, weights: Tensor, *, memory: float = 2e9) -> Tensor:
    """sum_c weights_c v_c' K(X, X) v_c, differentiable once in the kernel's parameters and X.

    Args:
        kernel: any GPyTorch kernel without batch dimensions.
        X: ``(n, d)``.
        V: the v_c, ``(n, c)``; constant.
        weights: ``(c,)``; constant.
        memory: bytes that a matrix of pairs may take.

    Returns:
        A scalar.
    """
    V, weights = V.detach(), weights.detach()
    x = X.detach()
    value = ((V * covariance_times(kernel, x, x, V)).sum(0) * weights).sum()
    terms = stationary_terms(kernel, X) if 8 * len(X) ** 2 <= memory else None
    if terms is not None:
        packed = pack(terms)
        fused_value: Tensor = _Fused.apply(packed.Z1, packed.shape, packed.scale, value, V, weights, packed)
        return fused_value
    blocked: Tensor = _Blocked.apply(X, value, V, weights, kernel, *learnable_tensors(kernel))
    return blocked


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        Z: Tensor,
        shape: Tensor,
        scale: Tensor,
        value: Tensor,
        V: Tensor,
        weights: Tensor,
        packed: Packed,
    ) -> Tensor:
        W = product(V * (-2 * weights), V.mT)
        gradients = fused.gradient(torch.zeros(len(V), dtype=V.dtype).numpy(), W.numpy(), Z.numpy(), packed.arrays())
        ctx.gradients = tuple(torch.from_numpy(gradient) for gradient in gradients)
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *(grad * gradient for gradient in ctx.gradients), None, None, None, None


class _Blocked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, X: Tensor, value: Tensor, V: Tensor, weights: Tensor, kernel: Kernel, *parameters: Tensor
    ) -> Tensor:
        x = X.detach().requires_grad_(ctx.needs_input_grad[0])
        wanted = [x, *parameters] if x.requires_grad else list(parameters)
        total = [torch.zeros_like(tensor) for tensor in wanted]
        weighted = V * weights
        for rows, columns, on_diagonal in row_blocks(len(X), len(X), symmetric=True, cuda=X.is_cuda):
            with torch.enable_grad():
                left = x[rows]
                K = dense_covariance(kernel, left, left if on_diagonal else x[columns])
            slope = product(weighted[rows], V[columns].mT).mul_(1.0 if on_diagonal else 2.0)
            if wanted and K.requires_grad:
                for sum_, piece in zip(total, torch.autograd.grad(K, wanted, slope, allow_unused=True), strict=True):
                    if piece is not None:
                        sum_ += piece
        ctx.gradients = total if x.requires_grad else [None, *total]
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        dX, *d_parameters = (None if gradient is None else grad * gradient for gradient in ctx.gradients)
        return dX, None, None, None, None, *d_parameters
