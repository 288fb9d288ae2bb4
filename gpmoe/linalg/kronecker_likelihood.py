"""The Gaussian log likelihood on a complete grid, C = K_1 ⊗ … ⊗ K_k + σ²I, with its analytic gradient.

| symbol | name in code | shape |
|---|---|---|
| Q'y, for y on the grid and Q = Q_1 ⊗ … ⊗ Q_k | `rotated` | (*batch, n_1, …, n_k) |
| D = Λ + σ² | `D` | (*batch, n_1, …, n_k) |
| α̃ = D⁻¹ Q'y | `alpha` | (*batch, n_1, …, n_k) |

    log p(y) = -½ (α̃'Q'y + Σ log D + N log 2π)
    dL/dK_j = ½ Q_j [α̃_(j) diag(⊗_{i≠j} λ_i) α̃_(j)' - diag(Σ_{i≠j} ⊗_{i≠j} λ_i / D)] Q_j'

with ·_(j) the unfolding along axis j: no derivative of an eigenvector, so equal eigenvalues do no harm.
Sums of two products, A ⊗ B + C ⊗ D, are brought to this form by the roots of C and D.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gpmoe.errors import ShapeError
from gpmoe.linalg.factorisation import not_positive_definite
from gpmoe.linalg.kronecker import KroneckerEigen, along_axes, expect_square, per_cell
from gpmoe.linalg.likelihood import expect_first_order


def kronecker_log_likelihood(factors: Sequence[Tensor], residual: Tensor, noise: Tensor) -> Tensor:
    """log N(residual | 0, K_1 ⊗ … ⊗ K_k + noise·I), exact, differentiable once, in O(Σ n_j³ + N Σ n_j).

    Args:
        factors: covariances ``(*batch, n_j, n_j)``.
        residual: targets on the grid less their mean, ``(*batch, n_1, …, n_k)``.
        noise: variance, ``(*batch,)``.

    Returns:
        ``(*batch,)``, nats; gradients reach factors, residual and noise.

    Raises:
        ShapeError: if shapes don't fit.
        NotPositiveDefiniteError, NonFiniteError: see `KroneckerEigen`.

    Example:
        >>> import torch
        >>> K = torch.eye(2, dtype=torch.float64)
        >>> kronecker_log_likelihood([K, K], torch.zeros(2, 2, dtype=torch.float64), K.new_tensor(1.0))
        tensor(-5.0620, dtype=torch.float64)
    """
    expect_square(factors)
    batch = tuple(factors[0].shape[:-2])
    wanted = (*batch, *(factor.shape[-1] for factor in factors))
    if tuple(residual.shape) != wanted or tuple(noise.shape) != batch:
        raise ShapeError(
            f"`residual` must have shape {wanted} and `noise` {batch}, as the factors have; got "
            f"{tuple(residual.shape)} and {tuple(noise.shape)}."
        )
    value: Tensor = _EigenLikelihood.apply(residual, noise, *factors)
    return value


class _EigenLikelihood(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, residual: Tensor, noise: Tensor, *factors: Tensor) -> Tensor:
        k = len(factors)
        basis = KroneckerEigen.of(factors)
        D = basis.noisy_spectrum(noise)
        rotated = basis.rotate(residual)
        alpha = rotated / D
        quadratic = (alpha * rotated).flatten(-k).sum(-1)
        value = -0.5 * (quadratic + D.log().flatten(-k).sum(-1) + math.prod(basis.sizes) * math.log(2 * math.pi))
        wants_residual, wants_noise, *wants = ctx.needs_input_grad
        inverse = D.reciprocal_()
        d_noise = 0.5 * (alpha.square() - inverse).flatten(-k).sum(-1) if wants_noise else None
        d_factors = [
            finished_gradient(basis, j, basis.gram(j, alpha.unsqueeze(-k - 1)), inverse) if want else None
            for j, want in enumerate(wants)
        ]
        ctx.gradients = (-basis.rotate_back(alpha) if wants_residual else None, d_noise, *d_factors)
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        expect_first_order()
        return tuple(None if g is None else per_cell(grad, g.dim() - grad.dim()) * g for g in ctx.gradients)


def finished_gradient(basis: KroneckerEigen, axis: int, M: Tensor, inverse: Tensor) -> Tensor:
    """dL/dK_j = ½ Q_j (M - diag(Σ_{i≠j} ⊗_{i≠j} λ_i · inverse)) Q_j', made symmetric, for M ``(*batch, n_j, n_j)``."""
    M.diagonal(dim1=-2, dim2=-1).sub_(basis.trace_against(axis, inverse))
    return basis.factor_from_basis(axis, 0.25 * (M + M.mT))


def sum_log_likelihood(first: Sequence[Tensor], second: Sequence[Tensor], residual: Tensor) -> Tensor:
    """log N(residual | 0, A_1 ⊗ … ⊗ A_k + C_1 ⊗ … ⊗ C_k), exact, differentiable once.

    With C_j = L_j L_j' both are diagonal in the generalised eigenbasis of each pair (A_j, C_j): the data whitened by
    L_1⁻¹ ⊗ … ⊗ L_k⁻¹ have covariance ⊗ L_j⁻¹ A_j L_j⁻' + I.

    Args:
        first: A_j, positive semidefinite, ``(*batch, n_j, n_j)``.
        second: C_j, positive definite, of the same shapes.
        residual: ``(*batch, n_1, …, n_k)``.

    Returns:
        ``(*batch,)``, nats.

    Raises:
        ShapeError, NotPositiveDefiniteError: if shapes don't fit, or a C_j is not positive definite.

    Source: Rakitsch, Lippert, Borgwardt and Stegle (2013), It is all in the noise, eq. 5-8.
    """
    whitened, roots = whiten_sum(first, second)
    inverses = [torch.linalg.solve_triangular(L, torch.eye(L.shape[-1]).to(L).expand_as(L), upper=False) for L in roots]
    white = along_axes(inverses, residual)
    N = math.prod(L.shape[-1] for L in roots)
    log_roots = [N // L.shape[-1] * L.diagonal(dim1=-2, dim2=-1).log().sum(-1) for L in roots]
    value = kronecker_log_likelihood(whitened, white, white.new_ones(white.shape[: white.dim() - len(roots)]))
    return value - torch.stack(log_roots).sum(0)


def sum_solve(first: Sequence[Tensor], second: Sequence[Tensor], T: Tensor) -> Tensor:
    """(A_1 ⊗ … ⊗ A_k + C_1 ⊗ … ⊗ C_k)⁻¹ T for a grid tensor ``(*batch, *columns, n_1, …, n_k)``, without gradients."""
    with torch.no_grad():
        whitened, roots = whiten_sum(first, second)
        basis = KroneckerEigen.of(whitened)
        U = [torch.linalg.solve_triangular(L.mT, Q, upper=True) for L, Q in zip(roots, basis.vectors, strict=True)]
        D = basis.noisy_spectrum(T.new_ones(roots[0].shape[:-2]))
        return along_axes(U, along_axes([u.mT for u in U], T) / basis._like(T, D))


def whiten_sum(first: Sequence[Tensor], second: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """L_j⁻¹ A_j L_j⁻' and L_j, where C_j = L_j L_j'."""
    expect_square([*first])
    expect_square([*second])
    if [A.shape for A in first] != [C.shape for C in second]:
        raise ShapeError(
            f"both products must have factors of the same shapes; got {[tuple(A.shape) for A in first]} and "
            f"{[tuple(C.shape) for C in second]}."
        )
    roots = [_root(C) for C in second]
    whitened = []
    for A, L in zip(first, roots, strict=True):
        half = torch.linalg.solve_triangular(L, A, upper=False)
        whitened.append(torch.linalg.solve_triangular(L, half.mT, upper=False))
    return whitened, roots


def _root(C: Tensor) -> Tensor:
    L, info = torch.linalg.cholesky_ex(C)
    if bool(info.any()):
        raise not_positive_definite(C, 0.0)
    return L
