"""Pairs of a poor and a good design, by gradient steps on synthetic functions that explain a table of designs.

    g_s(x) = k_s(x, X) (K_s + noise I)⁻¹ y,   k_s(x, x') = v_s exp(-|x - x'|² / (2 l_s²))
    x± ← x± ± η ∇g_s(x±)   from the best rows of the table,   y± = g_s(x±)

| symbol | name in code | shape |
|---|---|---|
| X, y: the table, standardised | `X`, `y` | (n, d), (n,) |
| l_s, v_s: around l_0 = a √d and v_0 | `lengthscale`, `outputscale` | |
| x±, y± | `x_high`, `x_low`, `y_high`, `y_low` | (pairs, d), (pairs,) |

Source: Dang et al. (2025), ROOT: Rethinking Offline Optimization as Distributional Translation via Probabilistic
Bridge, sec. 4.1. There l_0 is 1 for continuous designs and 6.25 for 24 inputs of discrete ones, jittered by ±0.25;
here it grows with √d, as distances do, and is jittered by a fraction, and each function sees a sample of rows of its
own, so that many cheap functions together use a large table.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gpmoe.errors import InputError
from gpmoe.linalg import lapack
from gpmoe.linalg.factorisation import cholesky_with_jitter_


@dataclass(frozen=True)
class SyntheticSettings:
    """How synthetic functions and the pairs on them are made.

    Attributes:
        n_functions: how many functions.
        n_rows: rows that each sees, at most.
        n_starts: best rows of the table from which pairs start, on each function.
        n_steps, step: gradient steps of each half of a pair, and η in standardised units.
        lengthscale, outputscale: a, in units of √d, and v_0.
        jitter: l and v are uniform within this fraction of their centres.
        noise: noise variance, in standardised y².
    """

    n_functions: int = 64
    n_rows: int = 2000
    n_starts: int = 256
    n_steps: int = 100
    step: float = 0.05
    lengthscale: float = 1.25
    outputscale: float = 6.25
    jitter: float = 0.25
    noise: float = 0.01

    def __post_init__(self) -> None:
        counts = (self.n_functions, self.n_rows, self.n_starts, self.n_steps)
        sizes = (self.step, self.lengthscale, self.outputscale, self.noise)
        if min(counts) < 1 or not (min(sizes) > 0 and max(sizes) < math.inf and 0 <= self.jitter < 1):
            raise InputError(f"counts must be at least 1, sizes positive and finite, 0 <= jitter < 1; got {self}.")


class PosteriorMean:
    """The posterior mean of a GP with a Gaussian kernel, with its gradient, by two products.

    Args:
        X: ``(n, d)``.
        y: ``(n,)``, of mean zero.
        lengthscale, outputscale: l and v.
        noise: noise variance.

    Example:
        >>> X = torch.linspace(-2, 2, 9, dtype=torch.float64).unsqueeze(-1)
        >>> g = PosteriorMean(X, -X.squeeze(-1).square(), lengthscale=1.0, outputscale=4.0, noise=1e-4)
        >>> top = g.climb(X[2:3], step=0.1, n_steps=50)
        >>> bool(top.abs() < 0.05)
        True
    """

    def __init__(self, X: Tensor, y: Tensor, *, lengthscale: float, outputscale: float, noise: float) -> None:
        self.X, self.lengthscale, self.outputscale = X, lengthscale, outputscale
        exact = X.double()  # the system is too ill-conditioned for float32

        def fill(C: Tensor) -> None:
            C.copy_(self._covariance(exact, exact))
            lapack.diagonal(C).add_(noise)

        L = exact.new_empty(len(X), len(X))
        cholesky_with_jitter_(fill, L)
        alpha = lapack.cholesky_solve(L, y.double()).to(X).unsqueeze(-1)
        self._weights = torch.cat([alpha, alpha * X], dim=-1)

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """g and ∇g at x ``(m, d)``: ``(m,)`` and ``(m, d)``."""
        sums = self._covariance(x, self.X) @ self._weights
        value = sums[:, 0]
        return value, (sums[:, 1:] - value.unsqueeze(-1) * x) / self.lengthscale**2

    def climb(self, x: Tensor, *, step: float, n_steps: int) -> Tensor:
        """Where plain gradient steps lead from x ``(m, d)``; down for a negative `step`."""
        for _ in range(n_steps):
            x = x + step * self.value_and_gradient(x)[1]
        return x

    def _covariance(self, x: Tensor, X: Tensor) -> Tensor:
        r2 = x.square().sum(-1, keepdim=True) + X.square().sum(-1) - 2 * x @ X.mT
        return r2.clamp_min_(0).mul_(-0.5 / self.lengthscale**2).exp_().mul_(self.outputscale)


@dataclass(frozen=True)
class Pairs:
    """Poor and good ends of gradient paths, with their values on the function that made them.

    Attributes:
        x_high, x_low: ``(pairs, d)``.
        y_high, y_low: ``(pairs,)``, y_high > y_low.
        best: the largest y_high of each function, ``(functions,)``.
    """

    x_high: Tensor
    x_low: Tensor
    y_high: Tensor
    y_low: Tensor
    best: Tensor


def synthetic_pairs(X: Tensor, y: Tensor, settings: SyntheticSettings, generator: torch.Generator) -> Pairs:
    """Draw synthetic functions and follow them up and down from the best rows.

    Args:
        X: designs, standardised, ``(n, d)``.
        y: values, standardised, ``(n,)``.
        settings: how many and which functions.
        generator: of rows and hyperparameters.

    Returns:
        At most n_functions x n_starts pairs: those whose ends differ by more than 1e-3 in y.

    Raises:
        InputError: if no path leads anywhere.
    """
    starts = X[y.topk(min(settings.n_starts, len(y))).indices]
    found: list[tuple[Tensor, ...]] = []
    for _ in range(settings.n_functions):
        g = _draw(X, y, settings, generator)
        high = g.climb(starts, step=settings.step, n_steps=settings.n_steps)
        low = g.climb(starts, step=-settings.step, n_steps=settings.n_steps)
        y_high, y_low = (g.value_and_gradient(end)[0] for end in (high, low))
        found.append((high, low, y_high, y_low))
    best = torch.stack([part[2].max() for part in found])
    x_high, x_low, y_high, y_low = (torch.cat(parts) for parts in zip(*found, strict=True))
    kept = y_high - y_low > 1e-3
    if not bool(kept.any()):
        raise InputError(
            "no gradient path changes y by more than 1e-3: y is constant, or `step` too small or too large."
        )
    return Pairs(x_high[kept], x_low[kept], y_high[kept], y_low[kept], best)


def _draw(X: Tensor, y: Tensor, settings: SyntheticSettings, generator: torch.Generator) -> PosteriorMean:
    """The posterior mean at jittered hyperparameters, given a sample of the rows."""
    rows = torch.randperm(len(X), generator=generator)[: settings.n_rows]
    draw = torch.rand(2, dtype=torch.float64, generator=generator)
    factor_l, factor_v = (1 + settings.jitter * (2 * draw - 1)).tolist()
    return PosteriorMean(
        X[rows],
        y[rows],
        lengthscale=settings.lengthscale * math.sqrt(X.shape[-1]) * factor_l,
        outputscale=settings.outputscale * factor_v,
        noise=settings.noise,
    )
