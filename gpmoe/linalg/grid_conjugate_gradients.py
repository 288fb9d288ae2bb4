"""Conjugate gradients on several grid tensors at once, with the quadrature for log-determinants that they yield.

| symbol | name in code | shape |
|---|---|---|
| A x = b, one system a row | `b`, `x` | (c, n_1, …, n_k) |
| step lengths α_i and ratios β_i of row c | `Quadrature` | (steps, c) |
| T, the Lanczos matrix of A and b: 1/α_i + β_{i-1}/α_{i-1} and √β_i/α_i | | |

Source: Golub and Van Loan (2013), sec. 10.2 and 11.3; Ubaru, Chen and Saad (2017), for the quadrature.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

_CHECK_EVERY = 4

Operator = Callable[[Tensor], Tensor]


class Quadrature(NamedTuple):
    """What conjugate gradients learned of the spectrum."""

    alphas: Tensor  # (steps, c)
    betas: Tensor  # (steps, c)
    taken: Tensor  # (c,), how many steps each row took


class Solved(NamedTuple):
    """The solution and how good it is."""

    x: Tensor
    r: Tensor  # b - A x, as recurred
    relative: Tensor  # (c,), as the caller measures it
    steps: int
    converged: bool
    quadrature: Quadrature


def conjugate_gradients(
    product: Operator,
    b: Tensor,
    relative: Operator,
    *,
    tolerance: float,
    max_steps: int,
    start: Solved | None = None,
    precondition: Operator | None = None,
) -> Solved:
    """Solve A x = b for symmetric positive definite A.

    Args:
        product: A times a grid tensor ``(c, n_1, …)``.
        b: ``(c, n_1, …)``.
        relative: residual ``(c, n_1, …)`` to what must fall below the tolerance, ``(c,)``; asked every few steps.
        tolerance: of every row.
        max_steps: at most so many products.
        start: take up from there.
        precondition: an approximation of A⁻¹.

    Returns:
        The solution; rows that met the tolerance are left as they are.
    """
    x, r = (torch.zeros_like(b), b.clone()) if start is None else (start.x.clone(), start.r.clone())
    s = r if precondition is None else precondition(r)
    p, rs = s.clone(), _dots(r, s)
    measured = relative(r)
    spent = torch.finfo(b.dtype).eps ** 2 * rs  # a row this small has nothing left to give
    active = (measured > tolerance) & (rs > 0)
    alphas, betas = [], []
    taken = torch.zeros_like(rs, dtype=torch.long)
    steps = 0
    while bool(active.any()) and steps < max_steps:
        q = product(p)
        alpha = torch.where(active, rs / _dots(p, q), 0.0)
        x.add_(_spread(alpha, p) * p)
        r = r - _spread(alpha, p) * q
        s = r if precondition is None else precondition(r)
        new = _dots(r, s)
        beta = torch.where(active, new / rs, 0.0)
        alphas.append(alpha)
        betas.append(beta)
        taken += active
        p = s + _spread(beta, p) * p
        rs = torch.where(active, new, rs)
        active = active & (rs > spent)
        steps += 1
        if steps % _CHECK_EVERY == 0:
            measured = relative(r)
            active = active & (measured > tolerance)
    none = b.new_zeros(0, len(b))
    coefficients = (torch.stack(alphas), torch.stack(betas)) if alphas else (none, none)
    measured = relative(r)
    return Solved(x, r, measured, steps, bool((measured <= tolerance).all()), Quadrature(*coefficients, taken))


def log_quadrature(quadrature: Quadrature, first: int) -> Tensor:
    """v' log(A) v for the unit vectors v along the rows of b from `first` on, ``(c - first,)``."""
    found = []
    alphas, betas = quadrature.alphas.double().cpu().numpy(), quadrature.betas.double().cpu().numpy()
    for row in range(first, alphas.shape[1]):
        count = int(quadrature.taken[row])
        alpha, beta = alphas[:count, row], betas[:count, row]
        diagonal = 1 / alpha + np.concatenate([[0.0], beta[:-1] / alpha[:-1]])
        nodes, vectors = eigh_tridiagonal(diagonal, np.sqrt(beta[:-1]) / alpha[:-1])
        found.append(vectors[0] ** 2 @ np.log(nodes))
    return torch.tensor(found).to(quadrature.alphas)


def _dots(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)


def _spread(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape((-1, *[1] * (like.dim() - 1)))
