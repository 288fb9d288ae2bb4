"""Logistic regression on weighted, soft labels.

| symbol | name in code | shape |
|---|---|---|
| A | `A` | (n, p) |
| m_n, how much a row counts, and the part of it that says yes | `mass`, `positive` | (n,) |
| w, prior N(0, 1/λ) | `weights`, `precision` | (p,), λ |
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from gpmoe.linalg import lapack


def logistic_objective(weights: Tensor, A: Tensor, positive: Tensor, mass: Tensor, precision: float) -> Tensor:
    """sum_n [y_n log σ(a_n'w) + (m_n - y_n) log σ(-a_n'w)] - ½ λ w'w, a scalar in nats."""
    h = A @ weights
    log_likelihood = (positive * logsigmoid(h) + (mass - positive) * logsigmoid(-h)).sum()
    return log_likelihood - 0.5 * precision * weights.square().sum()


def fit_logistic(weights: Tensor, A: Tensor, positive: Tensor, mass: Tensor, precision: float) -> Tensor:
    """Weights at the maximum of `logistic_objective`, by Newton's method with step halving from those given.

    Source: Bishop (2006), sec. 4.3.3.
    """
    value = logistic_objective(weights, A, positive, mass, precision)
    for _ in range(50):
        step = _newton_step(weights, A, positive, mass, precision)
        size, trial = 1.0, weights + step
        new = logistic_objective(trial, A, positive, mass, precision)
        while new < value and size > 1e-6:
            size /= 2
            trial = weights + size * step
            new = logistic_objective(trial, A, positive, mass, precision)
        if new < value:
            return weights
        weights, gained, value = trial, float(new - value), new
        if gained < 1e-10 * max(1.0, abs(float(value))):
            return weights
    return weights


def negative_hessian(weights: Tensor, A: Tensor, mass: Tensor, precision: float) -> Tensor:
    """Of `logistic_objective`, ``(p, p)``."""
    probs = torch.sigmoid(A @ weights)
    H = (A.mT * (mass * probs * (1 - probs))) @ A
    lapack.diagonal(H).add_(precision)
    return H


def _newton_step(weights: Tensor, A: Tensor, positive: Tensor, mass: Tensor, precision: float) -> Tensor:
    gradient = A.mT @ (positive - mass * torch.sigmoid(A @ weights)) - precision * weights
    return torch.linalg.solve(negative_hessian(weights, A, mass, precision), gradient)
