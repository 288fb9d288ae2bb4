"""K V by KeOps, which writes, compiles and keeps a C++ or CUDA program for each formula and number of columns."""

import fcntl
import hashlib
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpmoe.errors import DifferentiationError, MissingPackageError
from gpmoe.linalg import fused
from gpmoe.linalg.stationary import COSINE, Packed


def keops_product(packed: Packed, V: Tensor) -> Tensor:
    """K V without K, differentiable once; the first call of its kind on a machine compiles, for about ten seconds.

    Args:
        packed: the covariance of n points with m; float32 or float64, on any device.
        V: ``(m, t)``, of the same dtype.

    Returns:
        ``(n, t)``; gradients reach V and the tensors of `packed`.

    Raises:
        MissingPackageError: without pykeops.
    """
    value: Tensor = _KeopsProduct.apply(packed.Z1, packed.Z2, packed.shape, packed.scale, V, packed)
    return value


class _KeopsProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, Z1: Tensor, Z2: Tensor | None, shape: Tensor, scale: Tensor, V: Tensor, packed: Packed
    ) -> Tensor:
        ctx.packed = packed
        ctx.save_for_backward(Z1, Z1 if Z2 is None else Z2, shape, scale, V)
        if not Z1.shape[1] or not len(V):
            return V.new_zeros(Z1.shape[1], V.shape[1])
        with _compiling(packed, V, "value"):
            return _product(packed, Z1, Z1 if Z2 is None else Z2, shape, scale, V)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise DifferentiationError(
                "the KeOps product can be differentiated once; leave out create_graph=True, or use engine='dense'."
            )
        square = ctx.packed.Z2 is None
        tensors = [tensor.detach().clone() for tensor in ctx.saved_tensors]
        needed = list(ctx.needs_input_grad[:5])
        needed[1] = needed[0] if square else needed[1]
        for tensor, need in zip(tensors, needed, strict=True):
            tensor.requires_grad_(need)
        wanted = [tensor for tensor in tensors if tensor.requires_grad]
        if not tensors[0].shape[1] or not len(tensors[4]):
            return (*(torch.zeros_like(t) if t.requires_grad else None for t in tensors), None)
        with _compiling(ctx.packed, tensors[4], f"gradient {needed}"), torch.enable_grad():
            found = iter(torch.autograd.grad(_product(ctx.packed, *tensors), wanted, grad.contiguous()))
        gradients = [next(found) if tensor.requires_grad else None for tensor in tensors]
        if square and gradients[0] is not None and gradients[1] is not None:
            gradients[:2] = [gradients[0] + gradients[1], None]
        return (*gradients, None)


def _product(packed: Packed, Z1: Tensor, Z2: Tensor, shape: Tensor, scale: Tensor, V: Tensor) -> Tensor:
    lazy = _keops().torch.LazyTensor
    total = None
    for t, (start, end) in enumerate(zip(packed.leaves[:-1], packed.leaves[1:], strict=True)):
        term = lazy(scale[t : t + 1])
        for index in range(start, end):
            rows = slice(packed.rows[index], packed.rows[index + 1])
            x, y = (lazy(Z[rows].mT.contiguous().unsqueeze(axis)) for Z, axis in ((Z1, 1), (Z2, 0)))
            term = term * _leaf(int(packed.family[index]), ((x - y) ** 2).sum(-1), lazy(shape[index : index + 1]))
        total = term if total is None else total + term
    assert total is not None
    return total @ V.contiguous()


def _leaf(family: int, r2: Any, shape: Any) -> Any:
    if family == fused.RBF:
        return (-r2 / 2).exp()
    if family == fused.MATERN12:
        return (-r2.sqrt()).exp()
    if family == fused.MATERN32:
        s = (3 * r2).sqrt()
        return (1 + s) * (-s).exp()
    if family == fused.MATERN52:
        s = (5 * r2).sqrt()
        return (1 + s + s * s / 3) * (-s).exp()
    if family == COSINE:
        return 1 - r2 / 2
    return (-shape * (1 + r2 / (2 * shape)).log()).exp()


def _keops() -> Any:
    try:
        import pykeops.torch
    except ModuleNotFoundError:
        raise MissingPackageError('engine="keops" needs pykeops, which is not installed: pip install pykeops') from None
    return pykeops


@contextmanager
def _compiling(packed: Packed, V: Tensor, what: str) -> Iterator[None]:
    """One process at a time compiles, and says so on stderr; a file in KeOps's folder says what has been compiled."""
    folder = Path(_keops().get_build_folder())
    parts = (packed.rows.tolist(), packed.family.tolist(), packed.leaves.tolist(), V.shape[1], V.dtype, V.device.type)
    key = hashlib.sha1(repr((*parts, what)).encode()).hexdigest()[:16]
    done = folder / f"gpmoe-{key}"
    if done.exists():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "gpmoe.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        print(f"gpmoe: KeOps compiles a covariance product ({what.split()[0]}) ...", file=sys.stderr, flush=True)
        start = time.perf_counter()
        yield
        print(f"gpmoe: compiled in {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)
        done.touch()
