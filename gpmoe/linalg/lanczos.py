"""Log-determinants and traces of functions of a covariance by stochastic Lanczos quadrature, with standard errors.

| symbol | name in code | shape |
|---|---|---|
| C, P (preconditioner; identity without one) | `operator`, `preconditioner` | (n, n) |
| A = P^-½ C P^-½, never formed | | (n, n) |
| v ~ N(0, P), so that P^-½ v is white | `v` | (n, probes) |
| Lanczos basis of A in the coordinates of v and of P⁻¹v | `Q`, `W` | steps of (n, probes) |
| tridiagonal matrices | `alpha`, `beta` | (steps, probes) |

    log|C| = log|P| + tr log A,     tr f(A) ≈ mean over probes of |P^-½ v|² e₁'f(T)e₁

The closer P is to C, the closer A to the identity and the smaller the part that is estimated.

Source: Ubaru, Chen and Saad (2017), stochastic Lanczos quadrature; Gardner et al. (2018), sec. 4, preconditioned.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gpmoe.errors import InputError
from gpmoe.linalg.operator import SymmetricOperator
from gpmoe.linalg.preconditioners import Preconditioner

_EXHAUSTED = 1e-10  # of the norm, below which a Krylov space is complete


@dataclass(frozen=True)
class Estimate:
    """A number estimated from random probes.

    Attributes:
        value: the estimate.
        standard_error: of the estimate, from the spread over probes; infinite for a single probe.
        iterations: Lanczos steps of each probe.
        seconds: wall time.
    """

    value: float
    standard_error: float
    iterations: int
    seconds: float


def log_determinant(
    operator: SymmetricOperator,
    *,
    preconditioner: Preconditioner | None = None,
    probes: int = 16,
    steps: int = 30,
    generator: torch.Generator | None = None,
) -> Estimate:
    """log|C|, nats.

    Args:
        operator: C.
        preconditioner: P, whose determinant is exact; what is estimated is log|P⁻¹C|.
        probes: random vectors; the standard error falls with their square root.
        steps: Lanczos steps, one product with all probes each.
        generator: for the probes.
    """
    began = time.perf_counter()
    if preconditioner is None:
        v = _normal(operator, probes, generator)
        values, taken = _quadrature(operator, None, v, steps, torch.log)
        return _estimate(0.0, values, taken, began)
    v = preconditioner.sample(probes, generator=generator)
    values, taken = _quadrature(operator, preconditioner, v, steps, torch.log)
    return _estimate(preconditioner.log_determinant(), values, taken, began)


def trace_of(
    operator: SymmetricOperator,
    function: Callable[[Tensor], Tensor],
    *,
    probes: int = 16,
    steps: int = 30,
    generator: torch.Generator | None = None,
) -> Estimate:
    """tr f(C): the sum of a function over the eigenvalues.

    Args:
        operator: C.
        function: f, elementwise on positive tensors: `torch.reciprocal` for the trace of the inverse.
        probes, steps, generator: see `log_determinant`.
    """
    began = time.perf_counter()
    values, taken = _quadrature(operator, None, _normal(operator, probes, generator), steps, function)
    return _estimate(0.0, values, taken, began)


def _normal(operator: SymmetricOperator, probes: int, generator: torch.Generator | None) -> Tensor:
    if probes < 1:
        raise InputError(f"`probes` must be at least 1; got {probes}.")
    noise = operator.noise
    return torch.randn(len(noise), probes, generator=generator, dtype=noise.dtype, device=noise.device)


def _estimate(exact: float, values: Tensor, steps: int, began: float) -> Estimate:
    error = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return Estimate(exact + float(values.mean()), error, steps, time.perf_counter() - began)


def _quadrature(
    operator: SymmetricOperator,
    preconditioner: Preconditioner | None,
    v: Tensor,
    steps: int,
    function: Callable[[Tensor], Tensor],
) -> tuple[Tensor, int]:
    """|u|² e₁'f(T)e₁ for u = P^-½ v of each probe, ``(probes,)``, and the steps taken."""
    alpha, beta, squared = _tridiagonal(operator, preconditioner, v, min(steps, len(v)))
    T = torch.diag_embed(alpha.mT)
    for offset in (1, -1):
        T = T + torch.diag_embed(beta[:-1].mT, offset=offset)
    eigenvalues, vectors = torch.linalg.eigh(T)
    tiny = torch.finfo(v.dtype).tiny
    return squared * (vectors[:, 0].square() * function(eigenvalues.clamp_min(tiny))).sum(-1), len(alpha)


def _tridiagonal(
    operator: SymmetricOperator, preconditioner: Preconditioner | None, v: Tensor, steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Lanczos with full reorthogonalisation: diagonals, off-diagonals ``(steps, probes)``, and |P^-½ v|².

    A column whose Krylov space is complete before the others goes on with zeros, which add a decoupled block.
    """
    w = v.clone() if preconditioner is None else preconditioner.solve(v)
    squared = (v * w).sum(0)
    norm = squared.sqrt()
    Q, W = [v / norm], [w / norm]
    alpha, beta = [], []
    for step in range(steps):
        u = operator.matmul(W[-1])
        alpha.append((u * W[-1]).sum(0))
        for _ in range(2):
            for q, w in zip(Q, W, strict=True):
                u = u - (u * w).sum(0) * q
        w = u.clone() if preconditioner is None else preconditioner.solve(u)
        norm = (u * w).sum(0).clamp_min(0.0).sqrt()
        alive = norm > _EXHAUSTED * alpha[0].abs()
        beta.append(torch.where(alive, norm, 0.0))
        if step == steps - 1 or not bool(alive.any()):
            break
        inverse = torch.where(alive, 1 / norm, 0.0)
        Q.append(u * inverse)
        W.append(w * inverse)
    dead = torch.stack(beta).eq(0).cumsum(0).roll(1, 0)
    dead[0] = 0
    diagonal = torch.where(dead > 0, 1.0, torch.stack(alpha))
    return diagonal, torch.stack(beta), squared
