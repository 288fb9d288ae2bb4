"""How a covariance follows from tensors: packed as a sum of products, or by a kernel of any kind."""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from gpmoe.linalg import fused, tiled_product
from gpmoe.linalg.compiler import AVAILABLE
from gpmoe.linalg.covariance_product import packed_product
from gpmoe.linalg.fused_product import fused_matrix
from gpmoe.linalg.product_plan import Engine
from gpmoe.linalg.stationary import COSINE, Packed, dense_covariance

Tensors = tuple[Tensor, ...]


class Source(Protocol):
    """A covariance as a function of tensors; those of a square one hold its inputs once."""

    @property
    def square(self) -> bool:
        """Whether it is the covariance of points with themselves."""

    def size(self, tensors: Tensors) -> tuple[int, int]:
        """(n, m)."""

    def multiply(self, tensors: Tensors, V: Tensor) -> Tensor:
        """K V, ``(n, t)``."""

    def derivative(self, tensors: Tensors, U: Tensor, V: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of sum_ij (U V')_ij K_ij for each tensor."""

    def select(self, tensors: Tensors, rows: Any, columns: Any) -> tuple["Source", Tensors]:
        """The covariance of some rows with some columns, by index or slice."""

    def turned(self, tensors: Tensors) -> Tensors:
        """The tensors of the transpose."""

    def matrix(self, tensors: Tensors) -> Tensor:
        """K as a matrix, differentiable."""

    def pairs(self, tensors: Tensors) -> Tensor:
        """The diagonal of K, differentiable."""


@dataclass(frozen=True)
class PackedSource:
    """A sum of products of leaves; its tensors are Z1, Z2 unless square, shape and scale, see `Packed`."""

    rows: np.ndarray
    family: np.ndarray
    leaves: np.ndarray
    engine: Engine
    square: bool

    def packed(self, tensors: Tensors) -> Packed:
        """Tensors and structure together."""
        Z1, *between, shape, scale = tensors
        return Packed(Z1, between[0] if between else None, shape, scale, self.rows, self.family, self.leaves)

    def size(self, tensors: Tensors) -> tuple[int, int]:
        """See `Source`."""
        return tensors[0].shape[1], tensors[0 if self.square else 1].shape[1]

    def multiply(self, tensors: Tensors, V: Tensor) -> Tensor:
        """See `Source`."""
        if self.engine == "dense":
            return self.matrix(tensors) @ V
        return packed_product(self.packed(tensors), V, self.engine)

    def derivative(self, tensors: Tensors, U: Tensor, V: Tensor) -> tuple[Tensor | None, ...]:
        """See `Source`; by the engine's own gradient."""
        copies = tuple(tensor.detach().requires_grad_() for tensor in tensors)
        with torch.enable_grad():
            product = self.multiply(copies, V)
        return torch.autograd.grad(product, copies, U, allow_unused=True)

    def select(self, tensors: Tensors, rows: Any, columns: Any) -> tuple[Source, Tensors]:
        """See `Source`."""
        Z1, *between, shape, scale = tensors
        Z2 = between[0] if between else Z1
        source = PackedSource(self.rows, self.family, self.leaves, self.engine, square=False)
        return source, (Z1[:, rows], Z2[:, columns], shape, scale)

    def turned(self, tensors: Tensors) -> Tensors:
        """See `Source`."""
        return tensors if self.square else (tensors[1], tensors[0], *tensors[2:])

    def matrix(self, tensors: Tensors) -> Tensor:
        """See `Source`."""
        packed = self.packed(tensors)
        on_cpu = packed.Z1.device.type == "cpu"
        if AVAILABLE and on_cpu and not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)):
            return fused_matrix(packed)
        other = packed.Z1 if packed.Z2 is None else packed.Z2

        def distances(rows: slice) -> Tensor:
            exact = "donot_use_mm_for_euclid_dist"
            return torch.cdist(packed.Z1[rows].mT.contiguous(), other[rows].mT.contiguous(), compute_mode=exact)

        return _sum_of_products(packed, distances)

    def pairs(self, tensors: Tensors) -> Tensor:
        """See `Source`."""
        packed = self.packed(tensors)
        other = packed.Z1 if packed.Z2 is None else packed.Z2
        most = min(packed.Z1.shape[1], other.shape[1])
        difference = packed.Z1[:, :most] - other[:, :most]
        return _sum_of_products(packed, lambda rows: torch.linalg.vector_norm(difference[rows], dim=0))


def _sum_of_products(packed: Packed, distances: Any) -> Tensor:
    """The covariance at the distances that each leaf's rows of Z have."""
    total = None
    for term, (start, end) in enumerate(zip(packed.leaves[:-1], packed.leaves[1:], strict=True)):
        product = packed.scale[term]
        for leaf in range(start, end):
            r = distances(slice(packed.rows[leaf], packed.rows[leaf + 1]))
            product = product * _value(int(packed.family[leaf]), r, packed.shape[leaf])
        total = product if total is None else total + product
    assert total is not None
    return total


def _value(family: int, r: Tensor, alpha: Tensor) -> Tensor:
    if family == fused.RBF:
        return (-0.5 * r.square()).exp()
    if family == fused.MATERN12:
        return (-r).exp()
    if family == fused.MATERN32:
        s = math.sqrt(3) * r
        return (1 + s) * (-s).exp()
    if family == fused.MATERN52:
        s = math.sqrt(5) * r
        return (1 + s + s.square() / 3) * (-s).exp()
    if family == COSINE:
        return 1 - 0.5 * r.square()
    return (-alpha * torch.log1p(r.square() / (2 * alpha))).exp()


@dataclass(frozen=True)
class KernelSource:
    """Any kernel; its tensors are X1, X2 unless square, and those of the kernel that want a gradient."""

    kernel: Kernel
    square: bool

    def _inputs(self, tensors: Tensors) -> tuple[Tensor, Tensor | None]:
        return tensors[0], None if self.square else tensors[1]

    def size(self, tensors: Tensors) -> tuple[int, int]:
        """See `Source`."""
        return len(tensors[0]), len(tensors[0 if self.square else 1])

    def multiply(self, tensors: Tensors, V: Tensor) -> Tensor:
        """See `Source`."""
        return tiled_product.multiply(self.kernel, *self._inputs(tensors), V)

    def derivative(self, tensors: Tensors, U: Tensor, V: Tensor) -> tuple[Tensor | None, ...]:
        """See `Source`."""
        dX1, dX2, rest = tiled_product.differentiate(self.kernel, *self._inputs(tensors), U, V)
        return (dX1, *([] if dX2 is None else [dX2]), *rest)

    def select(self, tensors: Tensors, rows: Any, columns: Any) -> tuple[Source, Tensors]:
        """See `Source`."""
        X1, X2 = self._inputs(tensors)
        parameters = tensors[1 if self.square else 2 :]
        return KernelSource(self.kernel, square=False), (X1[rows], (X1 if X2 is None else X2)[columns], *parameters)

    def turned(self, tensors: Tensors) -> Tensors:
        """See `Source`."""
        return tensors if self.square else (tensors[1], tensors[0], *tensors[2:])

    def matrix(self, tensors: Tensors) -> Tensor:
        """See `Source`."""
        X1, X2 = self._inputs(tensors)
        return dense_covariance(self.kernel, X1, X1 if X2 is None else X2)

    def pairs(self, tensors: Tensors) -> Tensor:
        """See `Source`."""
        X1, X2 = self._inputs(tensors)
        other = X1 if X2 is None else X2
        most = min(len(X1), len(other))
        return self.kernel(X1[:most], other[:most], diag=True)
