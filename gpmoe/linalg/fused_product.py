"""K V for kernels that are sums of products of functions of squared distance, by the fused pass on the CPU."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpmoe.errors import DifferentiationError
from gpmoe.linalg import product_pass
from gpmoe.linalg.stationary import Packed


def fused_product(packed: Packed, V: Tensor) -> Tensor:
    """K V without K, differentiable once.

    Args:
        packed: the covariance of n points with m; float32 or float64, on the CPU.
        V: ``(m, t)``, of the same dtype.

    Returns:
        ``(n, t)``; gradients reach V and the tensors of `packed`. Each entry of K is within 4 ulp of the value at its
        float32 or float64 squared distance, and sums run in float64 above blocks of 256 entries.
    """
    value: Tensor = _FusedProduct.apply(packed.Z1, packed.Z2, packed.shape, packed.scale, V, packed)
    return value


def fused_matrix(packed: Packed) -> Tensor:
    """K itself, ``(n, m)``, not differentiable."""
    Z1, Z2, kernel = _arrays(packed)
    out = np.empty((Z1.shape[1], (Z1 if Z2 is None else Z2).shape[1]), Z1.dtype)
    product_pass.matrix(Z1, Z2, kernel, out)
    return torch.from_numpy(out)


def _array(tensor: Tensor) -> product_pass.Array:
    return np.ascontiguousarray(tensor.detach().numpy())


def _arrays(packed: Packed) -> tuple[product_pass.Array, product_pass.Array | None, product_pass.Kernel]:
    Z2 = None if packed.Z2 is None else _array(packed.Z2)
    kernel = (packed.rows, packed.family, _array(packed.shape), packed.leaves, _array(packed.scale))
    return _array(packed.Z1), Z2, kernel


class _FusedProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, Z1: Tensor, Z2: Tensor | None, shape: Tensor, scale: Tensor, V: Tensor, packed: Packed
    ) -> Tensor:
        ctx.arrays, ctx.V = _arrays(packed), _array(V)
        left, right, kernel = ctx.arrays
        return torch.from_numpy(product_pass.multiply(left, right, ctx.V, kernel))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise DifferentiationError(
                "the fused product can be differentiated once; leave out create_graph=True, or use engine='dense'."
            )
        (Z1, Z2, kernel), G = ctx.arrays, _array(grad)
        dV = None
        if ctx.needs_input_grad[4]:
            dV = product_pass.multiply(Z1 if Z2 is None else Z2, None if Z2 is None else Z1, G, kernel)
        gradients: tuple[product_pass.Array | None, ...] = (None, None, None, None)
        if any(ctx.needs_input_grad[:4]):
            gradients = product_pass.differentiate(Z1, Z2, G, ctx.V, kernel)
        return (*(None if g is None else torch.from_numpy(g).to(grad.dtype) for g in (*gradients, dV)), None)
