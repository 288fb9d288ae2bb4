"""Gradients of the Gaussian log likelihood from linear solves alone, warm-started from one call to the next.

| symbol | name in code | shape |
|---|---|---|
| C = K + diag(noise) | `operator` | (n, n) |
| α = C⁻¹(y - m) | first column of `solutions` | (n,) |
| ξ_s = f_s(X) + ε_s, prior samples with noise | `targets` | (n, probes) |
| z_s = C⁻¹ξ_s | other columns of `solutions` | (n, probes) |

    d log p(y) = ½ α' dC α - ½ tr(C⁻¹ dC) - α' d(y - m),     E z_s' dC z_s = tr(C⁻¹ dC)

The random numbers behind f_s and ε_s are drawn once, so that the z_s move smoothly with the hyperparameters and the
solutions at one step are good first guesses at the next. They are also what posterior samples are made of.

Source: Lin et al., "Improving linear system solvers for hyperparameter optimisation in iterative Gaussian processes",
arXiv 2405.18457, sec. 3 (pathwise estimator) and 4 (warm start).
"""

import math
from dataclasses import replace

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from gpmoe.linalg.fourier_features import draw_prior_paths
from gpmoe.linalg.lanczos import Estimate
from gpmoe.linalg.operator import KernelOperator
from gpmoe.linalg.quadratic_forms import quadratic_forms
from gpmoe.linalg.solution import Solution
from gpmoe.linalg.systems import LinearSolver, LinearSystem

_FEATURES = 512


class PathwiseLikelihood:
    """The gradient of log N(residual | 0, C) for a kernel, its noise and the residual.

    Args:
        kernel: sums and products of scaled stationary kernels, see `fourier_features`.
        X: ``(n, d)``.
        solver: how systems are solved.
        probes: prior samples behind the trace.
        generator: for them.

    Attributes:
        solution: of the last solve, None before the first.
    """

    def __init__(
        self,
        kernel: Kernel,
        X: Tensor,
        *,
        solver: LinearSolver,
        probes: int = 8,
        generator: torch.Generator | None = None,
    ) -> None:
        self.kernel = kernel
        self.X = X
        self.solver = solver
        self.paths = draw_prior_paths(kernel, X, paths=probes, features=_FEATURES, generator=generator)
        self.white = torch.randn(len(X), probes, dtype=X.dtype, device=X.device, generator=generator)
        self.solution: Solution | None = None

    def surrogate(self, residual: Tensor, noise: Tensor, *, tolerance: float | None = None) -> Tensor:
        """A scalar whose gradient is an unbiased estimate of the log likelihood's; its value means nothing.

        Args:
            residual: targets less their mean, ``(n,)``.
            noise: noise variance of each point, ``(n,)``.
            tolerance: relative residual of the solves; the solver's own if None.
        """
        probes = self.white.shape[1]
        operator = KernelOperator(self.kernel, self.X, noise, memory=self.solver.memory)
        system = self.solver.prepare(operator, columns=1 + probes, tolerance=tolerance)
        targets = self.paths.values(self.X) + noise.detach().sqrt()[:, None] * self.white
        B = torch.cat([residual.detach()[:, None], targets], dim=1)
        start = None if self.solution is None else self.solution.X
        self.solution = system.solve(B, start=start, tolerance=tolerance)
        V = self.solution.X
        weights = V.new_tensor([0.5, *[-0.5 / probes] * probes])
        forms = quadratic_forms(self.kernel, self.X, V, weights, memory=self.solver.memory)
        return forms + noise @ (V.square() @ weights) - V[:, 0] @ residual


def estimated_log_density(
    system: LinearSystem, residual: Tensor, solution: Solution, *, generator: torch.Generator | None = None
) -> Estimate:
    """log N(residual | 0, C), nats, with the determinant estimated by stochastic Lanczos quadrature.

    Args:
        system: of C.
        residual: targets less their mean, ``(n,)``.
        solution: of C X = residual, its first column.
        generator: for the probes.
    """
    alpha, remainder = solution.X[:, 0], solution.remainder[:, 0]
    quadratic = float(alpha @ (residual + remainder))  # exact to second order in the remainder
    determinant = system.log_determinant(generator=generator)
    value = -0.5 * (quadratic + determinant.value + len(residual) * math.log(2 * math.pi))
    return replace(determinant, value=value, standard_error=0.5 * determinant.standard_error)
