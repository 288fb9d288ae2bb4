"""The surrogate of a sweep: an exact GP on warped inputs, fitted by the fused likelihood.

| symbol | name in code | shape |
|---|---|---|
| inputs in the unit cube, targets | `X`, `y` | (n, d), (n,) |
| w(x) = 1 - (1 - x^a)^b | `warp` | per parameter |
| Z = w(X) / lengthscale | `Z` | (d, n) |
| θ = logs of lengthscales, a, b, outputscale, noise; mean | `theta` | (g + 2m + 3,) |
| α = C⁻¹(y - mean), C = K + noise I | `alpha` | (n,) |

k is Matérn-5/2. Priors are Gaussian in θ. That of the lengthscales is BoTorch's, which lengthens with the number of
parameters: its log-normal density has its mode at exp(√2 - 3) √g, and as a function of the log lengthscale is a
Gaussian about that mode. A middle at the median, exp(√2) √g, makes surrogates of few trials flat and too sure of
themselves. The gradient costs one pass over K, as that of `inference.plain_evidence`.

Source: Hvarfner, Hellsten and Nardi (2024), Vanilla Bayesian Optimization Performs Great in High Dimensions, sec. 4;
Snoek, Swersky, Zemel and Adams (2014), Input Warping for Bayesian Optimization of Non-Stationary Functions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize

from gpmoe.errors import NotPositiveDefiniteError
from gpmoe.linalg import fused, lapack
from gpmoe.linalg.factorisation import cholesky_with_jitter_

Matrix = NDArray[np.float64]
Vector = NDArray[np.float64]

_LOG_2_PI = math.log(2 * math.pi)
_EDGE = 1e-6  # coordinates are kept this far from 0 and 1, where warps may be infinitely steep
_SPREADS = {"length": math.sqrt(3), "warp": 0.2, "output": 0.5, "noise": 1.5}


@dataclass(frozen=True)
class Layout:
    """Which columns share a lengthscale, and which are warped.

    Attributes:
        owner: for each column its parameter, ``(d,)``, from 0 on without gaps.
        warped: columns that are warped, ``(m,)``.
    """

    owner: NDArray[np.intp]
    warped: NDArray[np.intp]

    @property
    def groups(self) -> int:
        """Number of lengthscales."""
        return int(self.owner.max()) + 1


class Evidence:
    """log p(y | X, θ) + log p(θ) and its gradient.

    Args:
        X: inputs, ``(n, d)``, in [0, 1].
        y: targets, ``(n,)``, about standardised.
        layout: of the columns.
    """

    def __init__(self, X: Matrix, y: Vector, layout: Layout) -> None:
        self.X, self.y, self.layout = X, y, layout
        m, g = len(layout.warped), layout.groups
        self.length, self.a, self.b = slice(0, g), slice(g, g + m), slice(g + m, g + 2 * m)
        self.output, self.noise, self.mean = g + 2 * m, g + 2 * m + 1, g + 2 * m + 2
        middle, spread = np.zeros(g + 2 * m + 3), np.ones(g + 2 * m + 3)
        middle[self.length], spread[self.length] = math.sqrt(2) - 3 + 0.5 * math.log(g), _SPREADS["length"]
        spread[self.a] = spread[self.b] = _SPREADS["warp"]
        spread[self.output] = _SPREADS["output"]
        middle[self.noise], spread[self.noise] = -6.0, _SPREADS["noise"]
        self._middle, self._spread = middle, spread
        clipped = X[:, layout.warped].clip(_EDGE, 1 - _EDGE).T
        self._log_x = np.log(clipped)

    def start(self) -> Vector:
        """θ to begin with: lengthscales that leave neighbours alike, no warp."""
        theta = self._middle.copy()
        theta[self.length] = math.log(0.5) + 0.5 * math.log(self.layout.groups)
        return theta

    def draw(self, rng: np.random.Generator) -> Vector:
        """θ near the start, for a further climb."""
        theta = self.start()
        theta[self.length] += rng.normal(0, 1.0, self.layout.groups)
        theta[self.noise] += 2 * rng.normal()
        return theta

    def bounds(self) -> list[tuple[float, float]]:
        """The box in which θ is searched."""
        box = np.stack([self._middle - 12, self._middle + 12], axis=1)
        box[self.length] = math.log(0.005), math.log(1e4)
        box[self.a] = box[self.b] = -2.0, 2.0
        box[self.output] = -4.0, 6.0
        box[self.noise] = math.log(1e-6), 2.0
        box[self.mean] = -20.0, 20.0
        return [(low, high) for low, high in box]

    def __call__(self, theta: Vector) -> tuple[float, Vector]:
        """Value, nats, and gradient ``(g + 2m + 3,)``.

        Raises:
            NotPositiveDefiniteError: if C has no factor even with jitter.
        """
        Z, packed, C, alpha = self.factorise(theta)
        n, layout = len(self.y), self.layout
        diagonal = C.numpy().diagonal()
        value = -0.5 * float((self.y - theta[self.mean]) @ alpha) - float(np.log(diagonal).sum()) - 0.5 * n * _LOG_2_PI
        lapack.inverse_from_cholesky_(C)
        dZ, _, d_scale = fused.gradient(alpha, C.numpy(), Z, packed)
        slope = np.zeros_like(theta)
        inverse = np.exp(-theta[self.length])[layout.owner]
        slope[self.length] = -np.bincount(layout.owner, np.einsum("ij,ij->i", dZ, Z), minlength=layout.groups)
        if len(layout.warped):
            da, db = self._warp_slopes(theta)
            pull = dZ[layout.warped] * inverse[layout.warped, None]
            slope[self.a], slope[self.b] = np.einsum("ij,ij->i", pull, da), np.einsum("ij,ij->i", pull, db)
        slope[self.output] = d_scale[0] * math.exp(theta[self.output])
        slope[self.noise] = 0.5 * math.exp(theta[self.noise]) * float(alpha @ alpha - diagonal.sum())
        slope[self.mean] = alpha.sum()
        u = (theta - self._middle) / self._spread
        return value - 0.5 * float(u @ u), slope - u / self._spread

    def factorise(self, theta: Vector) -> tuple[Matrix, fused.Packed, torch.Tensor, Vector]:
        """Z, the packed kernel, the factor of C and α."""
        Z = self.scaled(self.X, theta)
        n, d = self.X.shape
        family = np.array([fused.MATERN52])
        packed = (np.array([0, d]), family, np.ones(1), np.array([0, 1]), np.array([math.exp(theta[self.output])]))
        C = torch.empty(n, n, dtype=torch.float64)

        def fill(target: torch.Tensor) -> None:
            fused.assemble(Z, None, packed, target.numpy())
            lapack.diagonal(target).add_(math.exp(theta[self.noise]))

        cholesky_with_jitter_(fill, C)
        alpha = lapack.cholesky_solve(C, torch.from_numpy(self.y - theta[self.mean])).numpy()
        return Z, packed, C, alpha

    def scaled(self, X: Matrix, theta: Vector) -> Matrix:
        """Z of inputs, ``(d, m)``."""
        W = np.array(X.T, order="C")  # a copy, also of one row
        warped = self.layout.warped
        if len(warped):
            x = W[warped].clip(_EDGE, 1 - _EDGE)
            a, b = np.exp(theta[self.a])[:, None], np.exp(theta[self.b])[:, None]
            W[warped] = -np.expm1(b * np.log1p(-(x**a)))
        return W * np.exp(-theta[self.length])[self.layout.owner, None]

    def _warp_slopes(self, theta: Vector) -> tuple[Matrix, Matrix]:
        """dw / d log a and dw / d log b, ``(m, n)`` each."""
        a, b = np.exp(theta[self.a])[:, None], np.exp(theta[self.b])[:, None]
        power = np.exp(a * self._log_x)
        log_rest = np.log1p(-power)
        return a * b * np.exp((b - 1) * log_rest) * power * self._log_x, -b * log_rest * np.exp(b * log_rest)


class Surrogate:
    """A Gaussian process fitted to outcomes, with what an acquisition needs of it.

    Args:
        evidence: of its data.
        theta: hyperparameters.

    Attributes:
        value: log evidence plus log prior, nats.
        Z: scaled training inputs, ``(n, d)``.
        alpha: ``(n,)``.
        precision: C⁻¹, ``(n, n)``.
    """

    def __init__(self, evidence: Evidence, theta: Vector, value: float) -> None:
        self.evidence, self.theta, self.value = evidence, theta, value
        Z, self._packed, C, self.alpha = evidence.factorise(theta)
        self.Z = np.ascontiguousarray(Z.T)
        lapack.inverse_from_cholesky_(C)
        lower = C.numpy()
        self.precision = np.tril(lower) + np.tril(lower, -1).T
        self.scale = math.exp(theta[evidence.output])
        self.noise = math.exp(theta[evidence.noise])
        self.mean = float(theta[evidence.mean])

    def scaled(self, X: Matrix) -> Matrix:
        """Warped and scaled inputs, ``(m, d)``, from ``(m, d)``."""
        return np.ascontiguousarray(self.evidence.scaled(X, self.theta).T)

    def slopes(self, X: Matrix) -> Matrix:
        """dz/dx of each column, ``(m, d)``; zero where warps are cut off."""
        evidence, theta = self.evidence, self.theta
        slope = np.broadcast_to(np.exp(-theta[evidence.length])[evidence.layout.owner], X.shape).copy()
        warped = evidence.layout.warped
        if len(warped):
            x = X[:, warped].clip(_EDGE, 1 - _EDGE)
            a, b = np.exp(theta[evidence.a]), np.exp(theta[evidence.b])
            slope[:, warped] *= a * b * x ** (a - 1) * (1 - x**a) ** (b - 1)
        return slope

    def covariance(self, Z1: Matrix, Z2: Matrix) -> Matrix:
        """k between scaled inputs ``(m, d)`` and ``(n, d)``, ``(m, n)``."""
        out = np.empty((len(Z1), len(Z2)))
        fused.assemble(np.ascontiguousarray(Z1.T), np.ascontiguousarray(Z2.T), self._packed, out)
        return out

    def posterior(self, X: Matrix) -> tuple[Vector, Matrix]:
        """Mean ``(m,)`` and covariance ``(m, m)`` of the latent function at inputs ``(m, d)``."""
        Z = self.scaled(X)
        K = self.covariance(Z, self.Z)
        return self.mean + K @ self.alpha, self.covariance(Z, Z) - K @ self.precision @ K.T


def fit_surrogate(
    X: Matrix,
    y: Vector,
    layout: Layout,
    *,
    starts: Sequence[Vector] = (),
    rng: np.random.Generator | None = None,
    max_iterations: int = 50,
) -> Surrogate:
    """Hyperparameters by L-BFGS-B from several starts; the best end.

    Args:
        X: inputs, ``(n, d)``.
        y: targets, ``(n,)``, standardised.
        layout: of the columns.
        starts: hyperparameters to start from; the usual ones if there are none.
        rng: draws one further start; None for none.
        max_iterations: of each.
    """
    evidence = Evidence(X, y, layout)
    starts = [*(starts or [evidence.start()]), *([] if rng is None else [evidence.draw(rng)])]
    ends = [climb(evidence, start, max_iterations) for start in starts]
    theta, value = max(ends, key=lambda end: end[1])
    return Surrogate(evidence, theta, value)


def climb(evidence: Evidence, start: Vector, max_iterations: int) -> tuple[Vector, float]:
    """L-BFGS-B from one start; hyperparameters and value of its end."""

    def loss(theta: Vector) -> tuple[float, Vector]:
        try:
            value, slope = evidence(theta)
        except NotPositiveDefiniteError:  # a trial point too far out: the line search must shorten its step
            return math.inf, np.zeros_like(theta)
        return -value, -slope

    bounds = evidence.bounds()
    options = {"maxiter": max_iterations, "maxcor": 20, "ftol": 1e-7, "gtol": 1e-4}
    end = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return end.x, -float(end.fun)
