"""Covariances of partially observed grids: which way is cheapest, and the likelihood by it.

The covariance of the observed cells is a projection R (K_1 ⊗ … ⊗ K_k + σ²I) R'. There are four ways:

| method | for | cost | exact |
|---|---|---|---|
| "eigenbasis" | complete grids | Σ n_j³ + N Σ n_j | yes |
| "complement" | few missing cells, see `complement` | m N Σ n_j + m³ | yes |
| "dense" | few observed cells, see `grid_cells` | M³ | yes |
| "iterative" | neither | (probes + 1) · steps · N Σ n_j | log-determinant and its gradient estimated |

Source: Lin, Ament, Balandat, Eriksson, Hernández-Lobato and Bakshy (2025), Scalable Gaussian Processes with Latent
Kronecker Structure.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from gpmoe.errors import InputError, ShapeError
from gpmoe.linalg.complement import Complement, Iterative
from gpmoe.linalg.factorisation import Workspace
from gpmoe.linalg.grid_cells import CellCovariance
from gpmoe.linalg.kronecker import expect_square
from gpmoe.linalg.likelihood import expect_first_order

Method = Literal["eigenbasis", "complement", "dense", "iterative"]

_MOST_FLOPS = 2e12  # an exact evaluation that costs more, about 20 s on two cores, is left for the iterative way
_MOST_BYTES = 4e9
_STEPS = 30  # conjugate gradient steps that a plan reckons with


@dataclass(frozen=True)
class Plan:
    """How a grid is solved, and why.

    Attributes:
        method: one of `Method`.
        flops: of each way that could be taken, for one likelihood and gradient.
        reason: in words.
    """

    method: Method
    flops: dict[str, float]
    reason: str


@dataclass(frozen=True)
class GridReport:
    """What the last evaluation did.

    Attributes:
        method: the way taken.
        reason: why.
        jitter: what was added to the diagonal of the matrix factorised, 0 if nothing.
        residual: largest relative residual ‖C α - y‖ / ‖y‖ of an iterative solve, 0 otherwise.
        steps: of conjugate gradients.
        standard_error: of the log likelihood, nats, 0 where it is exact.
        converged: whether iterative solves met their tolerance.
    """

    method: Method
    reason: str
    jitter: float = 0.0
    residual: float = 0.0
    steps: int = 0
    standard_error: float = 0.0
    converged: bool = True

    def __str__(self) -> str:
        if self.method != "iterative":
            return self.method
        return f"iterative (relative residual {self.residual:.1e}, standard error {self.standard_error:.2g} nats)"


def plan(sizes: Sequence[int], observed: int, method: str = "auto", probes: int = 16) -> Plan:
    """Choose how to solve a grid of which some cells are observed.

    Args:
        sizes: n_1, …, n_k.
        observed: M.
        method: "auto" for the cheapest exact way, and the iterative one where that would take more than 2e12
            operations or 4 GB; or one of `Method`.
        probes: of the iterative way.

    Raises:
        InputError: for another word, or "eigenbasis" where cells are missing.

    Example:
        >>> plan((10, 500), 4500).method
        'complement'
        >>> plan((10, 500), 500).method
        'dense'
    """
    if method not in ("auto", *get_args(Method)):
        raise InputError(f"`method` must be 'auto' or one of {', '.join(get_args(Method))}; got {method!r}.")
    N, total = math.prod(sizes), sum(sizes)
    m, eigen = N - observed, 10.0 * sum(float(n) ** 3 for n in sizes)
    flops = {
        "complement": eigen + 8.0 * m * N * total + 4.0 * float(m) ** 3,
        "dense": float(observed) ** 3 + 30.0 * len(sizes) ** 2 * float(observed) ** 2,
        "iterative": eigen + 4.0 * (probes + 1) * _STEPS * N * total,
    }
    if method == "eigenbasis" and m:
        raise InputError(f"'eigenbasis' takes complete grids; {m} of {N} cells are missing. Take method='auto'.")
    if m == 0 and method == "auto":
        return Plan("eigenbasis", {"eigenbasis": eigen + 4.0 * N * total}, "every cell is observed")
    if method != "auto":
        return Plan(cast(Method, method), flops, "asked for")
    sides = {"complement": m, "dense": observed}
    fitting = [name for name in ("complement", "dense") if 8.0 * sides[name] ** 2 <= _MOST_BYTES]
    best = min(fitting, key=lambda name: flops[name], default=None)
    if best is None or flops[best] > _MOST_FLOPS:
        cheapest = min(flops["complement"], flops["dense"])
        reason = (
            f"an exact likelihood of {observed} of {N} cells would take {cheapest:.0e} operations or too much memory"
        )
        return Plan("iterative", flops, reason)
    few = f"{m} of {N} cells are missing" if best == "complement" else f"{observed} of {N} cells are observed"
    return Plan(cast(Method, best), flops, few)


class LatentKronecker:
    """The observed cells of one grid, whose covariance changes from call to call.

    Args:
        observed: which cells have data, bool ``(n_1, …, n_k)``.
        method: see `plan`.
        iterative: tolerance and probes of the iterative way; `Iterative()` if None.

    Attributes:
        plan: what was chosen.
        report: what the last evaluation did.

    Raises:
        ShapeError: if no cell is observed.

    Example:
        >>> import torch
        >>> K = torch.eye(2, dtype=torch.float64)
        >>> grid = LatentKronecker(torch.tensor([[True, True], [False, True]]))
        >>> round(float(grid.log_likelihood([K, K], torch.zeros(3, dtype=torch.float64), K.new_tensor(1.0))), 3)
        -3.797
    """

    def __init__(self, observed: Tensor, *, method: str = "auto", iterative: Iterative | None = None) -> None:
        if observed.dtype != torch.bool or observed.dim() == 0 or not bool(observed.any()):
            raise ShapeError(
                "`observed` must be a bool tensor (n_1, ..., n_k) with at least one True; got "
                f"{tuple(observed.shape)} of {observed.dtype}."
            )
        self.observed = observed
        self.iterative = Iterative() if iterative is None else iterative
        self.plan = plan(tuple(observed.shape), int(observed.sum()), method, self.iterative.probes)
        self.report = GridReport(self.plan.method, self.plan.reason)
        self.workspace = Workspace()

    def log_likelihood(self, factors: Sequence[Tensor], residual: Tensor, noise: Tensor) -> Tensor:
        """log N(residual | 0, R (⊗K_j) R' + noise·I), differentiable once.

        Args:
            factors: K_j ``(n_j, n_j)``.
            residual: observed targets less their mean, ``(M,)``, in the order of ``grid[observed]``.
            noise: variance, ``()``.

        Returns:
            ``()``, nats. By the iterative way it is an estimate, whose standard error the report has; its probes are
            the same at each call.

        Raises:
            ShapeError: if shapes don't fit.
            NotPositiveDefiniteError, NonFiniteError: if the covariance has no factor.
        """
        self._check(factors, residual, noise)
        value: Tensor = _LatentLikelihood.apply(residual, noise, self, *factors)
        return value

    def factorise(self, factors: Sequence[Tensor], noise: Tensor) -> Complement | CellCovariance:
        """An object whose `solve` applies C⁻¹ to rows ``(c, M)``; it owns its memory. No gradients."""
        return self._factorise([factor.detach() for factor in factors], noise.detach(), Workspace())

    def _factorise(self, factors: Sequence[Tensor], noise: Tensor, memory: Workspace) -> Complement | CellCovariance:
        if self.plan.method == "dense":
            return CellCovariance(factors, noise, self.observed.nonzero().T.contiguous(), memory)
        how = self.iterative if self.plan.method == "iterative" else None
        return Complement(factors, noise, self.observed, how, memory)

    def remember(self, solver: Complement | CellCovariance) -> None:
        """Take what a solver did into the report; the standard error of the last likelihood stays."""
        method, reason = self.plan.method, self.plan.reason
        if isinstance(solver, CellCovariance):
            self.report = GridReport(method, reason, solver.jitter)
        else:
            error = self.report.standard_error if solver.standard_error is None else solver.standard_error
            how = (solver.residual, solver.steps, error, solver.converged)
            self.report = GridReport(method, reason, solver.jitter, *how)

    def _check(self, factors: Sequence[Tensor], residual: Tensor, noise: Tensor) -> None:
        expect_square(factors)
        sizes, M = tuple(len(factor) for factor in factors), int(self.observed.sum())
        if any(factor.dim() != 2 for factor in factors) or sizes != tuple(self.observed.shape):
            raise ShapeError(
                f"factors must have {tuple(self.observed.shape)} rows, as the grid has; got "
                f"{[tuple(factor.shape) for factor in factors]}."
            )
        if tuple(residual.shape) != (M,) or noise.dim():
            raise ShapeError(
                f"`residual` must have shape ({M},), one for each observed cell, and `noise` (); got "
                f"{tuple(residual.shape)} and {tuple(noise.shape)}."
            )


class _LatentLikelihood(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, residual: Tensor, noise: Tensor, grid: LatentKronecker, *factors: Tensor) -> Tensor:
        solver = grid._factorise(factors, noise, grid.workspace)
        wanted = any(ctx.needs_input_grad)
        if isinstance(solver, CellCovariance):
            alpha = solver.solve(residual.unsqueeze(0))[0]
            count = len(residual) * math.log(2 * math.pi)
            value = -0.5 * (alpha @ residual + solver.log_determinant() + count)
            d_factors, d_noise = solver.gradients(alpha) if wanted else ([], None)
        else:
            value, done, pairs = solver.log_likelihood(residual)
            alpha = done.alpha[0]
            d_factors, d_noise = solver.gradients(done, pairs) if wanted else ([], None)
        grid.remember(solver)
        if wanted:
            ctx.gradients = (-alpha, d_noise, None, *d_factors)
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        expect_first_order()
        return tuple(None if g is None else grad * g for g in ctx.gradients)
