"""Cholesky, its inverse, triangular solves and rank-k products at the speed of the fastest LAPACK at hand.

PyTorch ships one LAPACK (MKL in most builds) and SciPy another (OpenBLAS). Which is faster depends on the
processor, by up to a factor of three, so one short measurement per process decides; ``GPMOE_LAPACK=torch`` or
``GPMOE_LAPACK=scipy`` decides for whoever insists. SciPy works on NumPy views of the tensors: nothing is copied.
CUDA tensors and batches always take torch.

A row-major tensor is, seen by LAPACK, its transpose: the lower triangle here is LAPACK's upper one.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, cast

import torch
from scipy.linalg import blas
from scipy.linalg import lapack as scipy_lapack
from torch import Tensor

from gpmoe.errors import InputError
from gpmoe.linalg.threads import at_most_threads, threads_for

Provider = Literal["torch", "scipy"]

_chosen: Provider | None = None


def provider() -> Provider:
    """Which library runs dense CPU factorisations in this process: "torch" or "scipy".

    Decided at the first call, by ``GPMOE_LAPACK`` or else by a measurement of about 0.1 s. SciPy is taken
    unless torch is at least 1.2 times faster, so that near-equal libraries don't alternate between processes.

    Raises:
        InputError: if ``GPMOE_LAPACK`` is neither "torch" nor "scipy".
    """
    global _chosen
    if _chosen is None:
        wanted = os.environ.get("GPMOE_LAPACK", "")
        if wanted not in ("", "torch", "scipy"):
            raise InputError(f"GPMOE_LAPACK must be 'torch' or 'scipy', or not set; got {wanted!r}.")
        _chosen = cast(Provider, wanted) if wanted else _measure()
    return _chosen


@contextmanager
def use_provider(name: Provider) -> Iterator[None]:
    """Run a block with a given provider; worker processes use it to repeat their parent's choice."""
    global _chosen
    before, _chosen = _chosen, name
    try:
        yield
    finally:
        _chosen = before


def _measure(n: int = 512, repeats: int = 3) -> Provider:
    """Time potrf + potri by both libraries, alternating, each on one thread; compare the minima.

    One thread, because a core that is busy elsewhere stalls whichever library waits for it.
    """
    C = torch.eye(n, dtype=torch.float64).mul_(2.0).add_(1.0 / n)
    work = torch.empty_like(C)
    seconds: dict[Provider, float] = {"torch": float("inf"), "scipy": float("inf")}
    with at_most_threads(1):
        for _ in range(repeats):
            for name in seconds:
                with use_provider(name):
                    work.copy_(C)
                    start = time.perf_counter()
                    cholesky_(work)
                    inverse_from_cholesky_(work)
                    seconds[name] = min(seconds[name], time.perf_counter() - start)
    return "torch" if 1.2 * seconds["torch"] < seconds["scipy"] else "scipy"


def _by_scipy(A: Tensor) -> bool:
    return A.dim() == 2 and A.device.type == "cpu" and provider() == "scipy"


def cholesky_(C: Tensor) -> int:
    """Lower Cholesky factor, written over the lower triangle of the matrix.

    Args:
        C: symmetric, ``(n, n)``, contiguous; only its lower triangle is read. What lies above the diagonal
            afterwards is not defined.

    Returns:
        0, or the order of the leading minor that is not positive definite.
    """
    if _by_scipy(C):
        potrf = scipy_lapack.dpotrf if C.dtype == torch.float64 else scipy_lapack.spotrf
        with threads_for(len(C)):
            return int(potrf(C.numpy().T, lower=0, overwrite_a=1, clean=0)[1])
    L, info = torch.linalg.cholesky_ex(C)
    C.copy_(L)
    return int(info.max())


def inverse_from_cholesky_(L: Tensor) -> None:
    """Inverse of C = L L', its lower triangle written over L.

    Args:
        L: lower Cholesky factor, ``(n, n)``, contiguous; what lies above the diagonal is neither read nor defined
            afterwards.
    """
    if _by_scipy(L):
        potri = scipy_lapack.dpotri if L.dtype == torch.float64 else scipy_lapack.spotri
        with threads_for(len(L)):
            potri(L.numpy().T, lower=0, overwrite_c=1)
    else:
        L.copy_(torch.cholesky_inverse(L))


def solve_triangular(L: Tensor, B: Tensor, *, transpose: bool = False, overwrite: bool = False) -> Tensor:
    """L⁻¹ B, or L⁻' B with `transpose`.

    Args:
        L: lower triangular, ``(n, n)`` or ``(*batch, n, n)``; only its lower triangle is read.
        B: ``(*batch, n, m)``; a transposed view of a contiguous ``(m, n)`` tensor is used as it lies.
        transpose: solve with L' instead.
        overwrite: B's memory may hold the result.

    Returns:
        ``(*batch, n, m)``.
    """
    if _by_scipy(L) and B.dim() == 2:
        trsm = blas.dtrsm if L.dtype == torch.float64 else blas.strsm
        U = L.numpy().T
        with threads_for(len(L)):
            if B.mT.is_contiguous() and not B.is_contiguous():
                kept = trsm(1.0, U, B.numpy(), side=0, lower=0, trans_a=int(not transpose), overwrite_b=int(overwrite))
                return torch.from_numpy(kept)
            Bt = B.contiguous().numpy().T
            turned = trsm(1.0, U, Bt, side=1, lower=0, trans_a=int(transpose), overwrite_b=int(overwrite))
            return torch.from_numpy(turned).mT
    A = L.mT if transpose else L
    return torch.linalg.solve_triangular(A, B, upper=transpose)


def cholesky_solve(L: Tensor, b: Tensor) -> Tensor:
    """(L L')⁻¹ b.

    Args:
        L: lower Cholesky factor, ``(*batch, n, n)``; only its lower triangle is read.
        b: ``(*batch, n)``.

    Returns:
        ``(*batch, n)``.
    """
    if _by_scipy(L) and b.dim() == 1 and len(b):  # one column at a time, trsv is twice as fast as trsm and potrs
        trsv = blas.dtrsv if L.dtype == torch.float64 else blas.strsv
        U = L.numpy().T
        with threads_for(len(L)):
            return torch.from_numpy(trsv(U, trsv(U, b.numpy(), lower=0, trans=1), lower=0, overwrite_x=1))
    half = solve_triangular(L, b.unsqueeze(-1))
    return solve_triangular(L, half, transpose=True, overwrite=True).squeeze(-1)


def rank_k(A: Tensor) -> Tensor:
    """A A', computed as one symmetric product.

    Args:
        A: ``(*batch, m, n)``.

    Returns:
        Exactly symmetric, ``(*batch, m, m)``.
    """
    if _by_scipy(A):
        syrk = blas.dsyrk if A.dtype == torch.float64 else blas.ssyrk
        lower = torch.from_numpy(syrk(1.0, A.contiguous().numpy().T, trans=1, lower=0)).mT
        return lower.tril().add_(lower.tril(-1).mT)
    product = A @ A.mT
    return product.add_(product.mT.clone()).mul_(0.5)


def diagonal(A: Tensor) -> Tensor:
    """A writable view of the last two dimensions' diagonal, ``(*batch, n)``."""
    return A.diagonal(dim1=-2, dim2=-1)
