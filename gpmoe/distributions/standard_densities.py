"""Log densities and scores of the standard normal and the standard Student-t, elementwise."""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaln, erf, stdtr

Array: TypeAlias = NDArray[np.float64]

_LOG_SQRT_2_PI = 0.5 * float(np.log(2.0 * np.pi))


def normal_log_density(z: Array) -> Array:
    """log density of the standard normal at z, nats."""
    with np.errstate(over="ignore"):
        return np.asarray(-0.5 * z**2 - _LOG_SQRT_2_PI)


def student_t_log_density(z: Array, nu: Array) -> Array:
    """log density of the standard Student-t with nu degrees of freedom at z, nats."""
    with np.errstate(over="ignore"):
        return np.asarray(-betaln(0.5, 0.5 * nu) - 0.5 * np.log(nu) - 0.5 * (nu + 1) * np.log1p(z**2 / nu))


def mean_absolute(z: Array) -> Array:
    """E|Z| of Z ~ N(z, 1) = 2 phi(z) + z (2 Phi(z) - 1)."""
    return np.asarray(2.0 * np.exp(normal_log_density(z)) + z * erf(z / np.sqrt(2.0)))


def student_t_crps(z: Array, nu: Array) -> Array:
    """CRPS of the standard Student-t at z, from Jordan, Krueger & Lerch (2019), for nu > 1, ``(..., n)``."""
    with np.errstate(over="ignore"):
        tail = nu * np.exp(-betaln(0.5, 0.5 * nu) - 0.5 * np.log(nu) - 0.5 * (nu - 1) * np.log1p(z**2 / nu))
    spread = np.sqrt(nu) * np.exp(betaln(0.5, nu - 0.5) - 2.0 * betaln(0.5, 0.5 * nu))
    return np.asarray(np.abs(z) * (2.0 * stdtr(nu, np.abs(z)) - 1.0) + 2.0 * (tail - spread) / (nu - 1.0))
