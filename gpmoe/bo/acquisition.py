"""Noisy expected improvement in closed form over draws of the values at the best points and the pending ones.

| symbol | name in code | shape |
|---|---|---|
| points at which f is drawn: the likeliest best, the pending | `T` | (t, d) |
| draws of f(T) given the data, S of them | `draws` | (S, t) |
| training inputs and T, scaled | `U` | (u, d) |
| k(x, U) W: mean of f(x) given data and one draw | `W` | (u, S) |
| k(x, x) - k(x, U) P k(U, x): its variance | `P` | (u, u) |

α(x) = log mean_s E[max(f(x) - max f_s(T), 0) | data, f_s(T)]: each expectation is that of a Gaussian, so nothing is
drawn at x, and value and gradient are smooth. It is what BoTorch's `qLogNoisyExpectedImprovement` estimates by
sampling, with the value at pending points imputed from the same draws.

Source: Letham, Karrer, Ottoni and Bakshy (2019), Constrained Bayesian Optimization with Noisy Experiments, sec. 4;
Ament, Daulton, Eriksson, Balandat and Bakshy (2023), Unexpected Improvements to Expected Improvement, appendix A.1.
"""

import math
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import erfcx, log_ndtr, ndtr, ndtri
from scipy.stats import qmc

from gpmoe.bo.surrogate import Surrogate

Matrix = NDArray[np.float64]
Vector = NDArray[np.float64]

_ROOT_5 = math.sqrt(5)
_LOG_ROOT_2_PI = 0.5 * math.log(2 * math.pi)
_BEST = 16  # observed points among which the best is sought
_FAR = 1e3  # standard deviations below the best from where the asymptote of log h is used


class Acquisition(Protocol):
    """A function of model inputs that is maximised."""

    def __call__(self, X: Matrix) -> Vector:
        """Values at inputs ``(m, d)``, ``(m,)``."""
        ...

    def with_slope(self, X: Matrix) -> tuple[Vector, Matrix]:
        """Values ``(m,)`` and gradients ``(m, d)`` at inputs ``(m, d)``."""
        ...


class NoisyExpectedImprovement:
    """log noisy EI of one surrogate; see above.

    Args:
        surrogate: a fitted GP.
        pending: inputs whose outcomes are under way, ``(q, d)``.
        draws: S, how many draws of the values at T.
        seed: for the draws.
        observed: rows of the training data that can be the best; all if None.
    """

    def __init__(
        self,
        surrogate: Surrogate,
        pending: Matrix,
        *,
        seed: int,
        draws: int = 32,
        observed: NDArray[np.intp] | None = None,
    ) -> None:
        self.surrogate = surrogate
        X = surrogate.evidence.X
        rows = np.arange(len(X)) if observed is None else observed
        mean = surrogate.mean + surrogate.covariance(surrogate.Z[rows], surrogate.Z) @ surrogate.alpha
        best = rows[np.argsort(-mean, kind="stable")[:_BEST]]
        T = np.unique(np.concatenate([X[best], pending]), axis=0)
        mu, sigma = surrogate.posterior(T)
        scale = surrogate.scale
        sigma[np.diag_indices_from(sigma)] += 1e-8 * scale
        values, vectors = np.linalg.eigh(sigma)
        root = vectors * np.sqrt(values.clip(1e-9 * scale))
        uniform = qmc.Sobol(len(T), seed=np.random.default_rng(seed)).random(draws)
        normal = ndtri(uniform.clip(1e-9, 1 - 1e-9))
        beta = (vectors / values.clip(1e-9 * scale)) @ (vectors.T @ (root @ normal.T))  # (t, S)
        self.best = (mu[:, None] + root @ normal.T).max(0)
        self._assemble(surrogate.scaled(T), beta, (vectors / values.clip(1e-9 * scale)) @ vectors.T)

    def _assemble(self, Z_T: Matrix, beta: Matrix, inverse: Matrix) -> None:
        """U, W and P from the conditioning on T."""
        surrogate = self.surrogate
        n, t = len(surrogate.Z), len(Z_T)
        A = surrogate.precision @ surrogate.covariance(surrogate.Z, Z_T)
        R = np.concatenate([-A.T, np.eye(t)], axis=1)  # cov(x, T) = R k(U, x)
        self.U = np.concatenate([surrogate.Z, Z_T])
        self.W = R.T @ beta
        self.W[:n] += surrogate.alpha[:, None]
        self.P = R.T @ inverse @ R
        self.P[:n, :n] += surrogate.precision

    def __call__(self, X: Matrix) -> Vector:
        """See `Acquisition`."""
        k = self.surrogate.covariance(self.surrogate.scaled(X), self.U)
        _, sigma, z, _ = self._standard(k)
        return log_sum_exp(log_h(z)) + np.log(sigma) - math.log(z.shape[1])

    def with_slope(self, X: Matrix) -> tuple[Vector, Matrix]:
        """See `Acquisition`."""
        surrogate = self.surrogate
        Z = surrogate.scaled(X)
        k = surrogate.covariance(Z, self.U)
        kP, sigma, z, floored = self._standard(k)
        terms = log_h(z)
        total = log_sum_exp(terms)
        share = np.exp(terms - total[:, None])
        steep = np.exp(log_ndtr(z) - terms)  # d log h / dz = Φ / h
        per_mean = share * steep / sigma[:, None]  # of the log by the mean of each draw
        per_sigma = (share * (1 - z * steep)).sum(1) / sigma
        pull = per_mean @ self.W.T - (np.where(floored, 0.0, per_sigma) / sigma)[:, None] * kP
        slope = pull_back(pull, Z, self.U, surrogate.scale) * surrogate.slopes(X)
        return total + np.log(sigma) - math.log(z.shape[1]), slope

    def _standard(self, k: Matrix) -> tuple[Matrix, Vector, Matrix, NDArray[np.bool_]]:
        """k P, standard deviation, (mean - best) / deviation of each draw, and where the variance was lifted."""
        kP = k @ self.P
        variance = self.surrogate.scale - np.einsum("ij,ij->i", kP, k)
        floor = 1e-10 * self.surrogate.scale
        sigma = np.sqrt(np.maximum(variance, floor))
        z = (self.surrogate.mean + k @ self.W - self.best) / sigma[:, None]
        return kP, sigma, z, variance <= floor


class ProbabilityOfSuccess:
    """weight log P(a trial succeeds), P = Φ(mean / √variance) of a GP on labels, -1 for failure and 1 for success.

    Args:
        surrogate: fitted to the labels.
        weight: more than one avoids failures more than the expected improvement alone would.

    Source: Rasmussen and Williams (2006), sec. 6.5, least-squares classification.
    """

    def __init__(self, surrogate: Surrogate, weight: float = 1.0) -> None:
        self.surrogate, self.weight = surrogate, weight

    def __call__(self, X: Matrix) -> Vector:
        """See `Acquisition`."""
        return self.with_slope(X)[0]

    def with_slope(self, X: Matrix) -> tuple[Vector, Matrix]:
        """See `Acquisition`."""
        s = self.surrogate
        Z = s.scaled(X)
        k = s.covariance(Z, s.Z)
        kP = k @ s.precision
        variance = np.maximum(s.scale - np.einsum("ij,ij->i", kP, k), 0.0) + s.noise
        mean = s.mean + k @ s.alpha
        z = mean / np.sqrt(variance)
        steep = np.exp(-0.5 * z * z - _LOG_ROOT_2_PI - log_ndtr(z))
        pull = steep[:, None] * (s.alpha / np.sqrt(variance)[:, None] + (z / variance)[:, None] * kP)
        slope = pull_back(pull, Z, s.Z, s.scale) * s.slopes(X)
        return self.weight * log_ndtr(z), self.weight * slope


class Sum:
    """The sum of acquisitions, such as of log EI and a log probability."""

    def __init__(self, *parts: Acquisition) -> None:
        self.parts = parts

    def __call__(self, X: Matrix) -> Vector:
        """See `Acquisition`."""
        return np.sum([part(X) for part in self.parts], axis=0)

    def with_slope(self, X: Matrix) -> tuple[Vector, Matrix]:
        """See `Acquisition`."""
        values, slopes = zip(*(part.with_slope(X) for part in self.parts), strict=True)
        return np.sum(values, axis=0), np.sum(slopes, axis=0)


def pull_back(pull: Matrix, Z: Matrix, U: Matrix, scale: float) -> Matrix:
    """Gradient by z of sum_j pull_j k(z, u_j) for Matérn-5/2, ``(m, d)``: dk/dz = -5/3 (1 + √5 r) e^{-√5 r} (z - u)."""
    r = np.sqrt(np.maximum((Z * Z).sum(1)[:, None] + (U * U).sum(1) - 2 * Z @ U.T, 0.0))
    weight = pull * (-5 / 3 * scale) * (1 + _ROOT_5 * r) * np.exp(-_ROOT_5 * r)
    return weight.sum(1)[:, None] * Z - weight @ U


def log_h(z: Matrix) -> Matrix:
    """log of h(z) = φ(z) + z Φ(z), the expected excess of a standard normal over -z, for any finite z."""
    below = np.minimum(z, -1.0)
    ratio = 1 + math.sqrt(math.pi / 2) * below * erfcx(-below / math.sqrt(2))  # h / φ
    far = below < -_FAR
    with np.errstate(divide="ignore"):
        log_ratio = np.where(far, -2 * np.log(-below), np.log(np.where(far, 1.0, ratio)))
    above = np.maximum(z, -1.0)
    density = np.exp(-0.5 * above * above - _LOG_ROOT_2_PI)
    return np.where(z > -1, np.log(density + above * ndtr(above)), -0.5 * below * below - _LOG_ROOT_2_PI + log_ratio)


def log_sum_exp(terms: Matrix) -> Vector:
    """log of the sum of exponentials over the last axis."""
    top = terms.max(-1)
    return top + np.log(np.exp(terms - top[..., None]).sum(-1))
