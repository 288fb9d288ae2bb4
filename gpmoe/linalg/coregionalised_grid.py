"""Observed cells of an intrinsic model of coregionalisation by (latent) Kronecker algebra, with a noise per task.

C = R (K ⊗ B + I ⊗ diag(noise)) R' has one noise too many for Kronecker algebra. Divided by the noise's standard
deviations it is D R (K ⊗ B̃ + I) R' D with B̃ = diag(noise)^-½ B diag(noise)^-½, which has the unit noise that
`latent_kronecker` takes, at observed cells as on the whole grid; log N(y) loses ½ Σ log noise.
"""

from torch import Tensor

from gpmoe.linalg.complement import Complement
from gpmoe.linalg.grid_cells import CellCovariance
from gpmoe.linalg.latent_kronecker import LatentKronecker


class CoregionalisedGrid:
    """Solves with C from the solver of its whitened form. No gradients pass.

    Args:
        solver: of R (K ⊗ B̃ + I) R'.
        weights: 1/sqrt(noise) of each observed cell, ``(M,)``.
    """

    def __init__(self, solver: Complement | CellCovariance, weights: Tensor) -> None:
        self.solver, self.weights, self.jitter = solver, weights, solver.jitter

    def solve(self, rows: Tensor) -> Tensor:
        """C⁻¹ of each row, ``(c, M)``."""
        return self.solver.solve(rows * self.weights) * self.weights

    def quadratic(self, rows: Tensor) -> Tensor:
        """b' C⁻¹ b of each row b, ``(c,)``."""
        return self.solver.quadratic(rows * self.weights)


def whitened(B: Tensor, noise: Tensor) -> Tensor:
    """B̃ = diag(noise)^-½ B diag(noise)^-½, ``(T, T)``."""
    inverse = noise.rsqrt()
    return B * inverse.unsqueeze(-1) * inverse


def grid_log_likelihood(
    grid: LatentKronecker, K: Tensor, B: Tensor, noise: Tensor, residual: Tensor, task: Tensor
) -> Tensor:
    """log N(residual | 0, C), ``()``, nats, differentiable once.

    Args:
        grid: which cells of ``(n, T)`` are observed, and how to solve.
        K, B: covariances of inputs ``(n, n)`` and tasks ``(T, T)``.
        noise: variance of each task, ``(T,)``.
        residual: of the observed cells, ``(M,)``, in the order of ``table[observed]``.
        task: of each observed cell, int64 ``(M,)``.
    """
    each = noise[task]
    one = noise.new_ones(())
    return grid.log_likelihood([K, whitened(B, noise)], residual * each.rsqrt(), one) - 0.5 * each.log().sum()


def factorised_grid(grid: LatentKronecker, K: Tensor, B: Tensor, noise: Tensor, task: Tensor) -> CoregionalisedGrid:
    """Arguments as of `grid_log_likelihood`."""
    solver = grid.factorise([K, whitened(B, noise)], noise.new_ones(()))
    return CoregionalisedGrid(solver, noise.detach()[task].rsqrt())
