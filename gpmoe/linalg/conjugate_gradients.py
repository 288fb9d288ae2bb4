"""Preconditioned conjugate gradients for many right-hand sides, in float32 products inside float64 refinement.

| symbol | name in code | shape |
|---|---|---|
| C X = B | `operator`, `X`, `B` | (n, n), (n, c), (n, c) |
| R = B - C X, exact | `R` | (n, c) |
| correction D ≈ C⁻¹R, its recursive residual, direction | `D`, `r`, `p` | (n, active) |

The outer loop computes R in the operator's own precision and stops on it alone; the inner one descends from R by CG in
float32 until its recursive residual has fallen a hundredfold or to what is still wanted, and gives its correction
back. This replaces the recursive residual by the true one every few iterations, so that rounding in float32 delays
convergence but never limits it. Where a whole descent gains less than a factor of two, the rest is done in float64.
Each column has its own step lengths and leaves the batch when it is done.

Source: Hestenes and Stiefel (1952); van der Vorst and Ye (2000), residual replacement; Golub and Ye (1999), the
flexible β, which bears a preconditioner that is applied in rounded arithmetic.
"""

import time

import torch
from torch import Tensor

from gpmoe.linalg.operator import SymmetricOperator
from gpmoe.linalg.preconditioners import Preconditioner
from gpmoe.linalg.solution import Solution, expect_right_hand_sides, relative

_DESCENT = 1e-2  # of the residual, in one inner loop in float32
_LONGEST = 200  # iterations of one inner loop in float32, which may not see that rounding stops it


def conjugate_gradients(
    operator: SymmetricOperator,
    B: Tensor,
    *,
    preconditioner: Preconditioner | None = None,
    start: Tensor | None = None,
    tolerance: float | Tensor = 1e-6,
    max_iterations: int = 1000,
    mixed: bool = True,
) -> Solution:
    """Solve C X = B.

    Args:
        operator: C.
        B: ``(n, c)``, in the operator's dtype.
        preconditioner: P ≈ C.
        start: first X, ``(n, c)``; zero if None.
        tolerance: true residual wanted, relative to each right-hand side; one for all or ``(c,)``.
        max_iterations: products with the whole active batch, at most.
        mixed: take the products of a float64 operator in float32 as long as that gets further.

    Returns:
        The solution; nothing is raised or warned if it has not converged.

    Raises:
        ShapeError, DtypeError, NonFiniteError: if B does not fit the operator.
    """
    began = time.perf_counter()
    expect_right_hand_sides(B, operator)
    norms = torch.linalg.vector_norm(B, dim=0)
    X = torch.zeros_like(B) if start is None else start.clone()
    R = B.clone() if start is None else B - operator.matmul(X)
    goal = torch.as_tensor(tolerance, dtype=B.dtype, device=B.device) * norms
    dtype = torch.float32 if mixed else B.dtype
    iterations = 0
    while True:
        size = torch.linalg.vector_norm(R, dim=0)
        active = (size > goal).nonzero().squeeze(-1)
        if not len(active) or iterations >= max_iterations:
            break
        size = size[active]
        rough = dtype != B.dtype
        target = (0.7 * goal[active] / size).clamp_min(_DESCENT if rough else 0.0)
        most = min(max_iterations - iterations, _LONGEST if rough else max_iterations)
        r = (R[:, active] / size).to(dtype)
        D, used = _descend(operator, preconditioner, r, target.to(dtype), most)
        iterations += used
        trial = X[:, active] + size * D.to(B.dtype)
        remainder = B[:, active] - operator.matmul(trial)
        new_size = torch.linalg.vector_norm(remainder, dim=0)
        better = new_size < size
        X[:, active[better]], R[:, active[better]] = trial[:, better], remainder[:, better]
        if not bool((new_size < 0.5 * size).any()):
            if not rough:
                break
            dtype = B.dtype
    residuals = relative(R, norms)
    return Solution(X, R, residuals, iterations, not len(active), time.perf_counter() - began)


def _descend(
    operator: SymmetricOperator, preconditioner: Preconditioner | None, r: Tensor, target: Tensor, most: int
) -> tuple[Tensor, int]:
    """CG for C D = r from zero until each column's recursive residual is below its target; D and the iterations."""
    whole = torch.zeros_like(r)
    columns = torch.arange(r.shape[1], device=r.device)
    D = torch.zeros_like(r)
    z = r.clone() if preconditioner is None else preconditioner.solve(r)
    p = z.clone()
    rz = (r * z).sum(0)
    iteration = 0
    while iteration < most:
        iteration += 1
        Cp = operator.matmul(p)
        curvature = (p * Cp).sum(0)
        step = torch.where(curvature > 0, rz / curvature, 0.0)
        D.addcmul_(step, p)
        old = r.clone()
        r = torch.addcmul(r, step, Cp, value=-1.0)
        working = (torch.linalg.vector_norm(r, dim=0) > target) & (curvature > 0)
        if not bool(working.any()):
            break
        if int(working.sum()) <= 0.75 * len(working):
            whole[:, columns[~working]] = D[:, ~working]
            columns, target, rz = columns[working], target[working], rz[working]
            D, r, old, p = D[:, working], r[:, working], old[:, working], p[:, working]
        z = r.clone() if preconditioner is None else preconditioner.solve(r)
        beta = (z * (r - old)).sum(0) / rz
        rz = (r * z).sum(0)
        p = torch.addcmul(z, beta.clamp_min(0.0), p)
    whole[:, columns] = D
    return whole, iteration
