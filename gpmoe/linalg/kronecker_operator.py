"""Kronecker products as linear_operator's algebra takes them."""

from typing import Any

import torch
from linear_operator.operators import LinearOperator
from linear_operator.operators.kronecker_product_linear_operator import KroneckerProductTriangularLinearOperator
from linear_operator.operators.triangular_linear_operator import TriangularLinearOperator
from torch import Tensor

from gpmoe.errors import ShapeError
from gpmoe.linalg.kronecker import kronecker_matmul


class KroneckerOperator(LinearOperator):
    """F_1 ⊗ … ⊗ F_k as a linear operator, multiplied axis by axis.

    Args:
        *factors: matrices ``(*batch, n_j, m_j)``; batch dimensions are broadcast.

    Raises:
        ShapeError: if there is no factor, or one is not a matrix.

    Example:
        >>> import torch
        >>> operator = KroneckerOperator(torch.eye(2), torch.ones(3, 3))
        >>> operator.shape
        torch.Size([6, 6])
        >>> (operator @ torch.ones(6)).tolist()
        [3.0, 3.0, 3.0, 3.0, 3.0, 3.0]
    """

    def __init__(self, *factors: Tensor) -> None:
        if not factors or any(factor.dim() < 2 for factor in factors):
            shapes = [tuple(factor.shape) for factor in factors]
            raise ShapeError(f"a Kronecker product takes matrices (*batch, n_j, m_j), at least one; got {shapes}.")
        batch = torch.broadcast_shapes(*(factor.shape[:-2] for factor in factors))
        factors = tuple(_expanded(factor, batch) for factor in factors)
        super().__init__(*factors)
        self.factors = factors

    def _size(self) -> torch.Size:
        rows, columns = 1, 1
        for factor in self.factors:
            rows, columns = rows * factor.shape[-2], columns * factor.shape[-1]
        return torch.Size((*self.factors[0].shape[:-2], rows, columns))

    def _matmul(self, rhs: Tensor) -> Tensor:
        V = rhs.unsqueeze(-1) if rhs.dim() == 1 else rhs
        batch = torch.broadcast_shapes(V.shape[:-2], self.batch_shape)
        factors = self.factors if batch == self.batch_shape else [_expanded(factor, batch) for factor in self.factors]
        product = kronecker_matmul(factors, V.expand(*batch, *V.shape[-2:]))
        return product.squeeze(-1) if rhs.dim() == 1 else product

    def _t_matmul(self, rhs: Tensor) -> Tensor:
        return self._transpose_nonbatch()._matmul(rhs)

    def _transpose_nonbatch(self) -> "KroneckerOperator":
        return KroneckerOperator(*(factor.mT for factor in self.factors))

    def _bilinear_derivative(self, left_vecs: Tensor, right_vecs: Tensor) -> tuple[Tensor | None, ...]:
        left, right = (V.unsqueeze(-1) if V.dim() == 1 else V for V in (left_vecs, right_vecs))
        with torch.enable_grad():
            factors = [factor.detach().requires_grad_(True) for factor in self.factors]
            value = (left * KroneckerOperator(*factors)._matmul(right)).sum()
        return torch.autograd.grad(value, factors)

    def _expand_batch(self, batch_shape: torch.Size | list[int]) -> "KroneckerOperator":
        return KroneckerOperator(*(_expanded(factor, torch.Size(batch_shape)) for factor in self.factors))

    def _diagonal(self) -> Tensor:
        product = self.factors[0].diagonal(dim1=-2, dim2=-1)
        for factor in self.factors[1:]:
            product = (product.unsqueeze(-1) * factor.diagonal(dim1=-2, dim2=-1).unsqueeze(-2)).flatten(-2)
        return product

    def _get_indices(self, row_index: Any, col_index: Any, *batch_indices: Any) -> Tensor:
        product: Tensor | None = None
        for factor in reversed(self.factors):
            n, m = factor.shape[-2:]
            entry = factor[(*batch_indices, row_index % n, col_index % m)]
            product = entry if product is None else product * entry
            row_index, col_index = row_index // n, col_index // m
        assert product is not None
        return product

    def _cholesky(self, upper: bool = False) -> KroneckerProductTriangularLinearOperator:
        """The factors' own, where all have one."""
        pairs = [torch.linalg.cholesky_ex(factor) for factor in self.factors]
        if any(bool(info.any()) for _, info in pairs):
            return super()._cholesky(upper=upper)
        roots = [L.mT if upper else L for L, _ in pairs]
        triangles = (TriangularLinearOperator(root, upper=upper) for root in roots)
        return KroneckerProductTriangularLinearOperator(*triangles, upper=upper)

    def _solve(self, rhs: Tensor, preconditioner: Any = None, num_tridiag: int | None = 0) -> Any:
        """By the factors' inverses; linear_operator asks for Lanczos matrices where it takes iterative ways."""
        if num_tridiag:
            return super()._solve(rhs, preconditioner, num_tridiag)
        return KroneckerOperator(*(torch.linalg.inv(factor) for factor in self.factors))._matmul(rhs)

    def inv_quad_logdet(
        self, inv_quad_rhs: Tensor | None = None, logdet: bool | None = False, reduce_inv_quad: bool | None = True
    ) -> tuple[Tensor | None, Tensor | None]:
        """rhs' F⁻¹ rhs, a column each or their sum, and log |F|: exact, whatever the settings are."""
        quadratic = None
        if inv_quad_rhs is not None:
            V = inv_quad_rhs.unsqueeze(-1) if inv_quad_rhs.dim() == 1 else inv_quad_rhs
            quadratic = (V * self.solve(V)).sum(-2)
            quadratic = quadratic.sum(-1) if reduce_inv_quad else quadratic
        return quadratic, self._logdet() if logdet else None

    def _logdet(self) -> Tensor:
        """Sum of N / n_j log |F_j|."""
        N = self.shape[-1]
        parts = [N // F.shape[-1] * torch.linalg.slogdet(F).logabsdet for F in self.factors]
        return torch.stack(parts).sum(0)


def _expanded(factor: Tensor, batch: torch.Size) -> Tensor:
    return factor if factor.shape[:-2] == batch else factor.expand(*batch, *factor.shape[-2:])
