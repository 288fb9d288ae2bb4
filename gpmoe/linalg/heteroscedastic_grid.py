"""Complete grids whose cells have noise variances of their own, C = K_1 ⊗ … ⊗ K_k + diag(d), by conjugate gradients.

| symbol | name in code | shape |
|---|---|---|
| d | `noise` | (n_1, …, n_k) |
| eigenvalues of the preconditioner M = ⊗K_j + d̄ I, d̄ the geometric mean of d | `D` | (n_1, …, n_k) |
| z = M^½ g for g of random signs | `z` | (probes, n_1, …, n_k) |

    log |C| = log |M| + E g' log(M^-½ C M^-½) g
    tr(C⁻¹ dC) = tr(M⁻¹ dC) + E ((C⁻¹ - M⁻¹) z)' dC M⁻¹ z

Only the second terms are estimated, and they vanish where d is constant.

Source: Gardner, Pleiss, Bindel, Weinberger and Wilson (2018), GPyTorch, sec. 4; Wenger et al. (2022), Preconditioning
for Scalable Gaussian Process Hyperparameter Optimization, for what the exact terms spare.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gpmoe.errors import InputError, ShapeError
from gpmoe.linalg.complement import Iterative
from gpmoe.linalg.grid_conjugate_gradients import Solved, conjugate_gradients, log_quadrature
from gpmoe.linalg.kronecker import KroneckerEigen, along_axes, expect_square
from gpmoe.linalg.kronecker_likelihood import finished_gradient
from gpmoe.linalg.likelihood import expect_first_order


class HeteroscedasticGrid:
    """Solves and likelihoods with ⊗K_j + diag(d).

    Args:
        how: tolerance of the relative residual, probes, their seed; `Iterative()` if None.

    Attributes:
        residual: the largest relative residual ‖C x - b‖ / ‖b‖ of the last call.
        steps: of its conjugate gradients.
        standard_error: of its log likelihood, nats; 0 after a solve.
        converged: whether it met the tolerance.

    Example:
        >>> import torch
        >>> K = torch.eye(2, dtype=torch.float64)
        >>> grid = HeteroscedasticGrid()
        >>> grid.solve([K, K], torch.tensor([[1.0, 3.0], [1.0, 1.0]], dtype=torch.float64), K.new_ones(1, 2, 2))
        tensor([[[0.5000, 0.2500],
                 [0.5000, 0.5000]]], dtype=torch.float64)
    """

    def __init__(self, how: Iterative | None = None) -> None:
        self.how = Iterative() if how is None else how
        self.residual, self.steps, self.standard_error, self.converged = 0.0, 0, 0.0, True

    def solve(self, factors: Sequence[Tensor], noise: Tensor, B: Tensor) -> Tensor:
        """C⁻¹ B without gradients.

        Args:
            factors: K_j ``(n_j, n_j)``.
            noise: d, positive, ``(n_1, …, n_k)``.
            B: ``(c, n_1, …, n_k)``.

        Returns:
            ``(c, n_1, …, n_k)``.

        Raises:
            ShapeError, InputError: if shapes don't fit or a variance is not positive.
        """
        _check(factors, noise, B)
        factors, noise = [factor.detach() for factor in factors], noise.detach()
        basis, D = _preconditioner(factors, noise)
        self.standard_error = 0.0
        return self._solve(factors, noise, basis, D, B.detach()).x

    def log_likelihood(self, factors: Sequence[Tensor], residual: Tensor, noise: Tensor) -> Tensor:
        """An estimate of log N(residual | 0, C), nats, differentiable once.

        Args:
            factors: K_j ``(n_j, n_j)``.
            residual: ``(n_1, …, n_k)``.
            noise: d, positive, ``(n_1, …, n_k)``.

        Returns:
            ``()``; gradients reach factors, residual and noise. Its standard error is an attribute.

        Raises:
            ShapeError, InputError: if shapes don't fit or a variance is not positive.
        """
        _check(factors, noise, residual.unsqueeze(0))
        value: Tensor = _Likelihood.apply(residual, noise, self, *factors)
        return value

    def _solve(self, factors: Sequence[Tensor], noise: Tensor, basis: KroneckerEigen, D: Tensor, B: Tensor) -> Solved:
        norms = B.flatten(1).norm(dim=1).clamp_min(torch.finfo(B.dtype).tiny)
        solved = conjugate_gradients(
            lambda T: along_axes(factors, T).addcmul_(T, noise),
            B,
            lambda r: r.flatten(1).norm(dim=1) / norms,
            tolerance=self.how.tolerance,
            max_steps=self.how.max_steps,
            precondition=lambda T: basis.rotate_back(basis.rotate(T).div_(D)),
        )
        self.residual, self.steps, self.converged = float(solved.relative.max()), solved.steps, solved.converged
        return solved


class _Likelihood(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, residual: Tensor, noise: Tensor, grid: HeteroscedasticGrid, *factors: Tensor) -> Tensor:
        how, N = grid.how, residual.numel()
        basis, D = _preconditioner(factors, noise)
        generator = torch.Generator(device=residual.device).manual_seed(how.seed)
        signs = torch.randint(0, 2, (how.probes, *residual.shape), generator=generator, device=residual.device)
        weighted = basis.rotate(signs.to(residual) * 2 - 1) / D.sqrt()  # Q' M⁻¹ z
        z = basis.rotate_back(weighted * D)
        solved = grid._solve(factors, noise, basis, D, torch.cat([residual.unsqueeze(0), z]))
        alpha = solved.x[0]
        logs = N * log_quadrature(solved.quadrature, first=1)
        grid.standard_error = 0.5 * float(logs.std()) / math.sqrt(how.probes) if how.probes > 1 else float("nan")
        value = -0.5 * ((alpha * residual).sum() + D.log().sum() + logs.mean() + N * math.log(2 * math.pi))
        difference = basis.rotate(solved.x[1:]) - weighted
        inverse, rotated = 1 / D, basis.rotate(solved.x[:1])
        d_factors = []
        for j in range(len(factors)):
            M = basis.gram(j, rotated) - basis.gram(j, difference, weighted) / how.probes
            d_factors.append(finished_gradient(basis, j, M, inverse))
        paired = (basis.rotate_back(difference) * basis.rotate_back(weighted)).mean(0)
        diagonal = along_axes([Q.square() for Q in basis.vectors], inverse)
        ctx.gradients = (-alpha, 0.5 * (alpha.square() - diagonal - paired), None, *d_factors)
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        expect_first_order()
        return tuple(None if g is None else grad * g for g in ctx.gradients)


def _preconditioner(factors: Sequence[Tensor], noise: Tensor) -> tuple[KroneckerEigen, Tensor]:
    basis = KroneckerEigen.of(factors)
    return basis, basis.noisy_spectrum(noise.log().mean().exp())


def _check(factors: Sequence[Tensor], noise: Tensor, B: Tensor) -> None:
    expect_square(factors)
    sizes = tuple(len(factor) for factor in factors)
    if any(factor.dim() != 2 for factor in factors) or tuple(noise.shape) != sizes or tuple(B.shape[1:]) != sizes:
        raise ShapeError(
            f"noise variances and data must lie on the factors' grid {sizes}; got {tuple(noise.shape)} and "
            f"{tuple(B.shape[1:])}."
        )
    if not bool((noise > 0).all()):
        raise InputError(f"noise variances must be positive; got a minimum of {float(noise.min())}.")
