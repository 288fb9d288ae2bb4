"""A covariance with noise as a linear operator: what iterative solvers see of a kernel and its data.

| symbol | name in code | shape |
|---|---|---|
| C = K + diag(noise) | the operator | (n, n), not stored in float64 |
| K in float32, kept where it fits into the memory given | `_kept` | (n, n) |

The dtype of the right-hand sides decides the precision of a product: a float64 operator multiplies float32 columns in
float32, which is what mixed-precision refinement needs.
"""

from collections.abc import Iterator
from copy import deepcopy
from typing import Protocol

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from gpmoe.errors import ShapeError
from gpmoe.linalg import lapack
from gpmoe.linalg.covariance_product import covariance_product
from gpmoe.linalg.stationary import fill_covariance
from gpmoe.shapes import expect_floating, expect_shape


class SymmetricOperator(Protocol):
    """C = K + diag(noise), symmetric and positive definite, ``(n, n)``."""

    @property
    def noise(self) -> Tensor:
        """What is added to the diagonal, ``(n,)``; its dtype and device are the operator's."""

    def matmul(self, V: Tensor) -> Tensor:
        """C V in the precision of V, ``(n, c)``."""

    def diagonal(self) -> Tensor:
        """The diagonal of K, without noise, ``(n,)``."""

    def rows(self, index: Tensor) -> Tensor:
        """Rows of K, without noise, ``(len(index), n)``."""


class DenseOperator:
    """A covariance that is kept whole.

    Args:
        K: without noise, ``(n, n)``, symmetric.
        noise: ``(n,)``.

    Example:
        >>> import torch
        >>> C = DenseOperator(torch.ones(2, 2), torch.tensor([1.0, 2.0]))
        >>> C.matmul(torch.ones(2, 1)).squeeze().tolist()
        [3.0, 4.0]
    """

    def __init__(self, K: Tensor, noise: Tensor) -> None:
        expect_floating("K", K)
        expect_floating("noise", noise, like=K)
        expect_shape("noise", noise, ndim=1)
        expect_shape("K", K, ndim=2, last=(len(noise), len(noise)))
        self.K = K
        self.noise = noise

    def matmul(self, V: Tensor) -> Tensor:
        """See `SymmetricOperator`."""
        return product(self.K.to(V.dtype), V) + self.noise.to(V.dtype)[:, None] * V

    def diagonal(self) -> Tensor:
        """See `SymmetricOperator`."""
        return lapack.diagonal(self.K)

    def rows(self, index: Tensor) -> Tensor:
        """See `SymmetricOperator`."""
        return self.K[index]


class KernelOperator:
    """The covariance of a kernel on its training inputs, computed as it is multiplied.

    Args:
        kernel: any GPyTorch kernel without batch dimensions.
        X: ``(n, d)``.
        noise: noise variance of each point, ``(n,)``.
        memory: bytes; K is kept in float32 if that takes no more. Never in float64.

    Example:
        >>> import torch
        >>> from gpytorch.kernels import RBFKernel
        >>> C = KernelOperator(RBFKernel().double(), torch.zeros(2, 1).double(), torch.ones(2).double())
        >>> C.matmul(torch.ones(2, 1).double()).squeeze().tolist()
        [3.0, 3.0]
    """

    def __init__(self, kernel: Kernel, X: Tensor, noise: Tensor, *, memory: float = 2e9) -> None:
        expect_floating("noise", noise, like=X)
        expect_shape("X", X, ndim=2)
        expect_shape("noise", noise, ndim=1, last=(len(X),))
        if len(kernel.batch_shape):
            raise ShapeError(f"`kernel` must have no batch dimensions; got {tuple(kernel.batch_shape)}.")
        self.kernel = kernel
        self.X = X.detach()
        self.noise = noise.detach()
        self.keeps = 4 * len(X) ** 2 <= memory
        self._kept: Tensor | None = None
        self._single: Kernel | None = None

    def matmul(self, V: Tensor) -> Tensor:
        """See `SymmetricOperator`."""
        with torch.no_grad():
            return self._covariance_times(V).add_(self.noise.to(V.dtype)[:, None] * V)

    def diagonal(self) -> Tensor:
        """See `SymmetricOperator`."""
        with torch.no_grad():
            diagonal: Tensor = self.kernel(self.X, diag=True)
        return diagonal

    def rows(self, index: Tensor) -> Tensor:
        """See `SymmetricOperator`."""
        out = self.X.new_empty(len(index), len(self.X))
        fill_covariance(self.kernel, self.X[index], self.X, out)
        return out

    def _covariance_times(self, V: Tensor) -> Tensor:
        if V.dtype == torch.float32 and self.keeps:
            if self._kept is None:
                self._kept = covariance_in_single(self.kernel, self.X)
            return product(self._kept, V)
        if V.dtype == self.X.dtype:
            return covariance_times(self.kernel, self.X, self.X, V)
        if self._single is None:
            self._single = deepcopy(self.kernel).to(V.dtype)
        X = self.X.to(V.dtype)
        return covariance_times(self._single, X, X, V)


def covariance_times(kernel: Kernel, X1: Tensor, X2: Tensor, V: Tensor) -> Tensor:
    """K(X1, X2) V without gradients, ``(m, c)`` for X1 ``(m, d)``, X2 ``(n, d)`` and V ``(n, c)``."""
    with torch.no_grad():
        return covariance_product(kernel, X1, None if X1 is X2 else X2, V)


def covariance_in_single(kernel: Kernel, X: Tensor) -> Tensor:
    """K(X, X) in float32, computed in the dtype of X, ``(n, n)``."""
    K = torch.empty(len(X), len(X), dtype=torch.float32, device=X.device)
    for rows, block in _blocks_of_rows(kernel, X, X):
        K[rows] = block
    return K


def _blocks_of_rows(kernel: Kernel, X1: Tensor, X2: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of K(X1, X2), each in the memory of the one before."""
    size = max(32, 2**21 // max(len(X2), 1))
    memory = X1.new_empty(min(size, len(X1)), len(X2))
    for start in range(0, len(X1), size):
        x = X1[start : start + size]
        fill_covariance(kernel, x, X2, memory[: len(x)])
        yield slice(start, start + len(x)), memory[: len(x)]


def product(A: Tensor, V: Tensor) -> Tensor:
    """A V by the faster library at hand.

    Args:
        A: ``(m, n)``, row-major.
        V: ``(n, c)``, of the same dtype.
    """
    if A.device.type == "cpu" and lapack.provider() == "scipy":
        return torch.from_numpy(A.numpy() @ V.numpy())
    return A @ V
