"""Linear solves by stochastic gradients of the dual objective, on random rows.

| symbol | name in code | shape |
|---|---|---|
| C X = B | `operator`, `X`, `B` | (n, n), (n, c), (n, c) |
| velocity, average of the iterates | `velocity`, `average` | (n, c) |
| rows of a step | `rows` | (batch,) |

Each step follows the rows' part of the gradient, C[rows] X - B[rows], with Nesterov's momentum, and the iterates are
averaged geometrically. A step costs `batch` rows of the covariance, so that early progress on very large problems comes
before the first whole product; to small residuals conjugate gradients are faster.

Source: Lin et al., "Stochastic gradient descent for Gaussian processes done right", arXiv 2310.20581, alg. 1.
"""

import time

import torch
from torch import Tensor

from gpmoe.errors import InputError
from gpmoe.linalg.operator import SymmetricOperator, product
from gpmoe.linalg.solution import Solution, expect_right_hand_sides, relative

_MOMENTUM = 0.9


def stochastic_dual_descent(
    operator: SymmetricOperator,
    B: Tensor,
    *,
    batch_size: int = 512,
    start: Tensor | None = None,
    tolerance: float | Tensor = 1e-2,
    max_passes: int = 200,
    generator: torch.Generator | None = None,
) -> Solution:
    """Solve C X = B.

    Args:
        operator: C.
        B: ``(n, c)``, in the operator's dtype.
        batch_size: rows a step.
        start: first X, ``(n, c)``; zero if None.
        tolerance: true residual wanted, relative to each right-hand side; one for all or ``(c,)``. It is looked at
            after every tenth pass, which costs a product.
        max_passes: n / batch_size steps are one pass.
        generator: for the rows.

    Returns:
        The solution, its iterations in passes; nothing is raised or warned if it has not converged.

    Raises:
        ShapeError, DtypeError, NonFiniteError: if B does not fit the operator.
    """
    began = time.perf_counter()
    expect_right_hand_sides(B, operator)
    if batch_size < 1:
        raise InputError(f"`batch_size` must be at least 1; got {batch_size}.")
    n = len(B)
    batch_size = min(batch_size, n)
    norms = torch.linalg.vector_norm(B, dim=0)
    goal = torch.as_tensor(tolerance, dtype=B.dtype, device=B.device) * norms
    X = torch.zeros_like(B) if start is None else start.clone()
    best, R = X.clone(), B.clone() if start is None else B - operator.matmul(X)
    step_size = _step_size(operator, batch_size, generator) if n else 0.0
    velocity, average, passes = torch.zeros_like(X), X.clone(), 0
    steps_a_pass = -(-n // max(batch_size, 1))
    while bool((torch.linalg.vector_norm(R, dim=0) > goal).any()) and passes < max_passes:
        share = 1 / steps_a_pass  # of the newest iterate in the average, which so spans about one pass
        for _ in range(10 * steps_a_pass):
            rows = torch.randint(n, (batch_size,), generator=generator, device=B.device)
            velocity *= _MOMENTUM
            ahead = X + velocity
            slope = product(operator.rows(rows), ahead) + operator.noise[rows, None] * ahead[rows] - B[rows]
            velocity.index_add_(0, rows, slope, alpha=-step_size)
            X += velocity
            average.lerp_(X, share)
        passes += 10
        R = B - operator.matmul(average)
        best = average.clone()
    residuals = relative(R, norms)
    return Solution(best, R, residuals, passes, bool((residuals * norms <= goal).all()), time.perf_counter() - began)


def _step_size(operator: SymmetricOperator, batch_size: int, generator: torch.Generator | None) -> float:
    """A step in the rows drawn at which momentum stays stable: by C's largest eigenvalue and by its largest entry.

    A step moves `batch_size` of n coordinates, in expectation batch_size / n of a full gradient step; the largest
    eigenvalue of C on the rows of a batch is at most about batch_size / n of C's, plus its largest diagonal entry.
    """
    noise = operator.noise
    n = len(noise)
    v = torch.randn(n, 1, generator=generator, dtype=noise.dtype, device=noise.device)
    size = 0.0
    for _ in range(8):
        v = operator.matmul(v / torch.linalg.vector_norm(v))
        size = float(torch.linalg.vector_norm(v))
    entry = float((operator.diagonal() + noise).max())
    return 0.5 / (size * batch_size / n + entry)
