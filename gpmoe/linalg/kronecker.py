"""Kronecker products of any number of factors, applied axis by axis, and their eigenbasis.

A vector of length N = n_1 … n_k is a grid tensor ``(n_1, …, n_k)``, last axis fastest, and F_1 ⊗ … ⊗ F_k multiplies
each axis by its factor: O(N Σ n_j), one matrix product an axis, no permutation.

| symbol | name in code | shape |
|---|---|---|
| F_j | `factors[j]` | (*batch, n_j, m_j) |
| a vector on the grid, with c columns before its axes | `T` | (*batch, c, m_1, …, m_k) |
| K_j = Q_j diag(λ_j) Q_j' | `vectors[j]`, `values[j]` | (*batch, n_j, n_j), (*batch, n_j) |
| Λ = λ_1 ⊗ … ⊗ λ_k | `spectrum` | (*batch, n_1, …, n_k) |

Source: Saatçi (2011), Scalable Inference for Structured Gaussian Process Models, ch. 5.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gpmoe.errors import NotPositiveDefiniteError, ShapeError
from gpmoe.linalg import lapack
from gpmoe.linalg.symmetric_eigen import eigh


class AxisFactor(Protocol):
    """A factor that multiplies along an axis without being a matrix, as `ToeplitzFactor` does."""

    @property
    def shape(self) -> torch.Size:
        """``(n, m)``."""

    def along(self, T: Tensor, axis: int) -> Tensor:
        """T ``(…, m, …)`` with this axis (negative) multiplied by the factor, ``(…, n, …)``."""


Factor = Tensor | AxisFactor


def along_axes(factors: Sequence[Factor], T: Tensor) -> Tensor:
    """(F_1 ⊗ … ⊗ F_k) T for a grid tensor, differentiable.

    Args:
        factors: k matrices ``(*batch, n_j, m_j)``, rectangular ones too, or `AxisFactor`s.
        T: ``(*batch, *columns, m_1, …, m_k)``; the columns are those dimensions by which T has more than batch and k.

    Returns:
        ``(*batch, *columns, n_1, …, n_k)``.

    Raises:
        ShapeError: if an axis has another length than its factor.

    Example:
        >>> import torch
        >>> A, B = torch.ones(2, 3), torch.eye(4)
        >>> along_axes([A, B], torch.ones(3, 4)).shape
        torch.Size([2, 4])
    """
    k = len(factors)
    wanted = tuple(factor.shape[-1] for factor in factors)
    if k == 0 or T.dim() < k or tuple(T.shape[T.dim() - k :]) != wanted:
        raise ShapeError(f"a grid tensor for these factors must have shape (*batch, {wanted}); got {tuple(T.shape)}.")
    for j, factor in enumerate(factors):
        T = _along(factor, T, j - k) if isinstance(factor, Tensor) else factor.along(T, j - k)
    return T


def _along(F: Tensor, T: Tensor, axis: int) -> Tensor:
    """T with its axis (negative) multiplied by F: one matrix product on a reshaped view."""
    n, m = F.shape[-2:]
    batch = F.dim() - 2
    before, after = T.shape[batch:axis], T.shape[T.dim() + axis + 1 :]
    lead = T.shape[:batch]
    left, right = math.prod(before), math.prod(after)
    if right == 1:
        product = T.reshape(*lead, left, m) @ F.mT
    else:
        product = F.unsqueeze(-3) @ T.reshape(*lead, left, m, right) if batch or left != 1 else F @ T.reshape(m, right)
    lead = torch.broadcast_shapes(lead, F.shape[:-2]) if batch else lead
    return product.reshape(*lead, *before, n, *after)


def kronecker_matmul(factors: Sequence[Factor], V: Tensor) -> Tensor:
    """(F_1 ⊗ … ⊗ F_k) V for columns, differentiable.

    Args:
        factors: as in `along_axes`.
        V: ``(*batch, Π m_j, c)``.

    Returns:
        ``(*batch, Π n_j, c)``.

    Raises:
        ShapeError: if V has another number of rows.
    """
    sizes = [factor.shape[-1] for factor in factors]
    if V.dim() < 2 or V.shape[-2] != math.prod(sizes):
        raise ShapeError(f"`V` must have shape (*batch, {math.prod(sizes)}, c); got {tuple(V.shape)}.")
    grid = V.mT.reshape(*V.shape[:-2], V.shape[-1], *sizes)
    return along_axes(factors, grid).flatten(-len(sizes)).mT


def outer(vectors: Sequence[Tensor]) -> Tensor:
    """v_1 ⊗ … ⊗ v_k of vectors ``(*batch, n_j)`` as a grid tensor ``(*batch, n_1, …, n_k)``."""
    product = vectors[0]
    for vector in vectors[1:]:
        left = product.dim() - vector.dim() + 1
        product = product.unsqueeze(-1) * vector.reshape(*vector.shape[:-1], *[1] * left, vector.shape[-1])
    return product


@dataclass(frozen=True)
class KroneckerEigen:
    """The eigenbasis of a product of covariances: everything about ⊗K_j + σ²I in O(N Σ n_j).

    Grid tensors are ``(*batch, *columns, n_1, …, n_k)``. No gradients pass; `kronecker_likelihood` has them.

    Attributes:
        values: λ_j ``(*batch, n_j)``, what rounding made negative set to zero.
        vectors: Q_j ``(*batch, n_j, n_j)``.

    Example:
        >>> import torch
        >>> basis = KroneckerEigen.of([torch.eye(2), 3 * torch.eye(3)])
        >>> basis.log_determinant(torch.tensor(1.0))
        tensor(8.3178)
    """

    values: tuple[Tensor, ...]
    vectors: tuple[Tensor, ...]

    @classmethod
    def of(cls, factors: Sequence[Tensor]) -> "KroneckerEigen":
        """Decompose each factor.

        Args:
            factors: symmetric and positive semidefinite, ``(*batch, n_j, n_j)``, all of one batch shape.

        Raises:
            ShapeError: for a factor that is not square or empty, or of another batch shape.
            NonFiniteError: for NaN or infinity.
        """
        expect_square(factors)
        pairs = [eigh(factor) for factor in factors]
        return cls(tuple(values.clamp_min(0) for values, _ in pairs), tuple(vectors for _, vectors in pairs))

    @property
    def sizes(self) -> tuple[int, ...]:
        """n_1, …, n_k."""
        return tuple(values.shape[-1] for values in self.values)

    @property
    def spectrum(self) -> Tensor:
        """Eigenvalues of ⊗K_j, ``(*batch, n_1, …, n_k)``."""
        return outer(self.values)

    def rotate(self, T: Tensor) -> Tensor:
        """Q' T."""
        return along_axes([Q.mT for Q in self.vectors], T)

    def rotate_back(self, T: Tensor) -> Tensor:
        """Q T."""
        return along_axes(self.vectors, T)

    def noisy_spectrum(self, noise: Tensor) -> Tensor:
        """Eigenvalues of ⊗K_j + noise·I, ``(*batch, n_1, …, n_k)``, for noise ``(*batch,)``.

        Raises:
            NotPositiveDefiniteError: if the smallest is not above the rounding error of the largest.
        """
        k = len(self.values)
        spectrum = self.spectrum
        noisy = spectrum + per_cell(noise.detach(), k)
        lowest, highest = noisy.flatten(-k).aminmax(dim=-1)
        eps = torch.finfo(noisy.dtype).eps
        if not bool((lowest > eps * highest).all()):
            raise NotPositiveDefiniteError(
                f"a Kronecker product of factors of {list(self.sizes)} rows plus noise, {noisy.dtype}, has eigenvalues "
                f"from {float(lowest.min()):.1e} to {float(highest.max()):.1e} and is not positive definite.\n"
                "Usual causes, most likely first: a noise variance near zero (raise its lower bound); repeated or "
                "near-repeated points on an axis (merge them); float32 (use float64)."
            )
        return noisy

    def solve(self, T: Tensor, noise: Tensor) -> Tensor:
        """(⊗K_j + noise·I)⁻¹ T, for noise ``(*batch,)``, 0 allowed where K has full rank."""
        D = self._like(T, self.noisy_spectrum(noise))
        return self.rotate_back(self.rotate(T) / D)

    def log_determinant(self, noise: Tensor) -> Tensor:
        """log |⊗K_j + noise·I|, ``(*batch,)``."""
        return self.noisy_spectrum(noise).log().flatten(-len(self.values)).sum(-1)

    def square_root(self, T: Tensor, noise: Tensor) -> Tensor:
        """(⊗K_j + noise·I)^½ T, the symmetric root."""
        k = len(self.values)
        root = (self.spectrum + per_cell(noise, k)).sqrt()
        return self.rotate_back(self.rotate(T) * self._like(T, root))

    def sample(self, n_samples: int, noise: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draws of N(0, ⊗K_j + noise·I), ``(*batch, n_samples, n_1, …, n_k)``."""
        batch = self.values[0].shape[:-1]
        like = self.values[0]
        shape = (*batch, n_samples, *self.sizes)
        standard = torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)
        k = len(self.values)
        root = (self.spectrum + per_cell(noise, k)).sqrt()
        return self.rotate_back(standard * self._like(standard, root))

    def _like(self, T: Tensor, spectrum: Tensor) -> Tensor:
        """A spectrum with ones where T has columns."""
        k, batch = len(self.values), self.values[0].dim() - 1
        columns = T.dim() - k - batch
        return spectrum.reshape((*spectrum.shape[: spectrum.dim() - k], *[1] * columns, *spectrum.shape[-k:]))

    def others(self, axis: int) -> Tensor:
        """⊗_{i≠j} λ_i as a grid tensor with length 1 along axis j, ``(*batch, n_1, …, 1, …, n_k)``."""
        return outer([torch.ones_like(v[..., :1]) if i == axis else v for i, v in enumerate(self.values)])

    def trace_against(self, axis: int, weights: Tensor) -> Tensor:
        """Σ over all axes but one of weights ∘ ⊗_{i≠j} λ_i, ``(*batch, n_j)``: a diagonal's share of dL/dK_j."""
        return sum_to_axis(self.others(axis) * weights, axis, len(self.values))

    def gram(self, axis: int, U: Tensor, W: Tensor | None = None) -> Tensor:
        """Σ U_(j) diag(⊗_{i≠j} λ_i) W_(j)' for rotated grid tensors unfolded along axis j, summed over columns.

        Args:
            axis: j.
            U: ``(*batch, *columns, n_1, …, n_k)`` in the eigenbasis.
            W: of the same shape; U itself if None.

        Returns:
            ``(*batch, n_j, n_j)``, symmetric if W is None.
        """
        weights = self._like(U, self.others(axis))
        if W is None:
            return lapack.rank_k(self._unfold(U * weights.sqrt(), axis))
        return self._unfold(U * weights, axis) @ self._unfold(W, axis).mT

    def _unfold(self, T: Tensor, axis: int) -> Tensor:
        k, batch = len(self.values), self.values[0].dim() - 1
        return T.movedim(axis - k, batch).flatten(batch + 1) if T.dim() > batch + 1 else T.unsqueeze(-1)

    def factor_from_basis(self, axis: int, M: Tensor) -> Tensor:
        """Q_j M Q_j', ``(*batch, n_j, n_j)``."""
        Q = self.vectors[axis]
        return Q @ M @ Q.mT


def per_cell(values: Tensor, k: int) -> Tensor:
    """Values ``(*batch,)`` with k dimensions of length 1 behind, to broadcast over a grid."""
    return values.reshape((*values.shape, *[1] * k))


def sum_to_axis(T: Tensor, axis: int, k: int) -> Tensor:
    """Sum over the last k dimensions but one, ``(*batch, n_j)``."""
    away = [i - k for i in range(k) if i != axis]
    return T.sum(away) if away else T


def expect_square(factors: Sequence[Tensor]) -> None:
    """Check that factors are square, not empty, and of one batch shape, dtype and device.

    Raises:
        ShapeError: if they are not.
    """
    shapes = [tuple(factor.shape) for factor in factors]
    square = all(len(s) >= 2 and s[-1] == s[-2] > 0 for s in shapes)
    if not shapes or not square or len({s[:-2] for s in shapes}) > 1:
        raise ShapeError(
            f"factors must be square covariances (*batch, n_j, n_j) with at least one row and one batch shape; "
            f"got {shapes}."
        )
