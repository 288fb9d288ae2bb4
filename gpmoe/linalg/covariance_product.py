"""K(X1, X2) V by whichever engine suits: the door to all of them.

| engine | what it does | kernels | where |
|---|---|---|---|
| dense | makes K and multiplies; differentiable twice, with batch dimensions | any | anywhere |
| fused | one pass over blocks in cache; a symmetric K costs half | sums and products of stationary ones | CPU |
| tiled | blocks of rows in torch, recomputed for gradients | any | anywhere |
| keops | a program that KeOps compiles, about ten seconds for each formula | as fused | anywhere |
| triton | distances, kernel and product in registers | as fused | CUDA |
"""

import importlib
import importlib.util

from gpytorch.kernels import Kernel
from torch import Tensor

from gpmoe.errors import MissingPackageError, ShapeError
from gpmoe.linalg.fused_product import fused_product
from gpmoe.linalg.product_plan import Engine, Wanted, batched, plan_terms
from gpmoe.linalg.stationary import Packed, dense_covariance, pack, product_terms
from gpmoe.linalg.tiled_product import tiled_product
from gpmoe.shapes import expect_finite, expect_floating, expect_shape


def covariance_product(kernel: Kernel, X1: Tensor, X2: Tensor | None, V: Tensor, *, engine: Wanted = "auto") -> Tensor:
    """K(X1, X2) V, differentiable once in V, X1, X2 and every parameter of the kernel.

    Args:
        kernel: any GPyTorch kernel.
        X1: ``(n, d)``, float32 or float64; ``(*batch, n, d)`` with engine "dense".
        X2: ``(m, d)``; None for the covariance of X1 with itself, which costs half with some engines.
        V: ``(m, t)`` or ``(m,)``.
        engine: see the table above; "auto" takes the fastest by estimate, `plan_product` says which and why.

    Returns:
        ``(n, t)`` or ``(n,)``.

    Raises:
        ShapeError, DtypeError, NonFiniteError: if the tensors don't fit each other.
        InputError, UnsupportedKernelError, MissingPackageError: if the engine can't run; see `plan_product`.

    Example:
        >>> import torch
        >>> from gpytorch.kernels import RBFKernel
        >>> X = torch.linspace(0, 1, 5, dtype=torch.float64).unsqueeze(-1)
        >>> covariance_product(RBFKernel().double(), X, None, torch.ones(5, dtype=torch.float64)).shape
        torch.Size([5])
    """
    _check(X1, X2, V)
    columns = V if V.dim() > 1 else V.unsqueeze(-1)
    terms = None if batched(kernel, X1, X2) or not len(X1) else product_terms(kernel, X1, X2)
    plan = plan_terms(terms, kernel, X1, X2, columns=columns.shape[-1], products=1, engine=engine)
    if plan.engine == "dense":
        result = dense_covariance(kernel, X1, X1 if X2 is None else X2) @ columns
    elif plan.engine == "tiled" or terms is None or not len(V):
        result = tiled_product(kernel, X1, X2, columns)
    else:
        result = packed_product(pack(terms), columns, plan.engine)
    return result if V.dim() > 1 else result.squeeze(-1)


def _check(X1: Tensor, X2: Tensor | None, V: Tensor) -> None:
    expect_floating("X1", X1)
    expect_shape("X1", X1, last=(-1, -1))
    expect_finite("X1", X1)
    other = X1 if X2 is None else X2
    if X2 is not None:
        expect_floating("X2", X2, like=X1)
        expect_shape("X2", X2, last=(-1, X1.shape[-1]))
        expect_finite("X2", X2)
    expect_floating("V", V, like=X1)
    if V.dim() == 0 or V.shape[-1 if V.dim() == 1 else -2] != other.shape[-2]:
        raise ShapeError(
            f"`V` must have shape ({other.shape[-2]}, any) or ({other.shape[-2]},), a row for each of "
            f"{'X1' if X2 is None else 'X2'}'s; got {tuple(V.shape)}."
        )
    expect_finite("V", V)


def packed_product(packed: Packed, V: Tensor, engine: Engine) -> Tensor:
    """K V of a packed covariance by one of the engines that take one.

    Args:
        packed: the covariance of n points with m.
        V: ``(m, t)``.
        engine: "fused", "keops" or "triton".

    Returns:
        ``(n, t)``; gradients reach V and the tensors of `packed`.

    Raises:
        MissingPackageError: if the engine's package is not installed.
    """
    if engine == "fused":
        return fused_product(packed, V)
    if engine == "keops":
        return importlib.import_module("gpmoe.linalg.keops_product").keops_product(packed, V)
    if importlib.util.find_spec("gpmoe.linalg.triton_product") is None:
        raise MissingPackageError("engine='triton' is not part of this build of gpmoe; use engine='fused' or 'keops'.")
    return importlib.import_module("gpmoe.linalg.triton_product").triton_product(packed, V)
