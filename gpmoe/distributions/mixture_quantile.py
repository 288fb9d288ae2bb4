"""Quantiles of Gaussian mixtures."""

import numpy as np
from scipy.special import ndtr, ndtri

from gpmoe.distributions.standard_densities import Array, normal_log_density


def mixture_quantile(weights: Array, means: Array, scales: Array, q: float) -> Array:
    """Invert the cdf of Gaussian mixtures, ``(n, k)`` to ``(n,)``, by Newton's method kept inside a bracket.

    The q-quantiles of the components bracket that of the mixture. A Newton step that leaves the bracket or is
    more than half as long as the step before gives way to bisection.

    Source: Press et al. (2007), Numerical Recipes, 3rd ed., sec. 9.4 (rtsafe).
    """
    if q > 0.5:  # the lower tail of the mirrored mixture keeps the digits that 1 - cdf would lose
        return -mixture_quantile(weights, -means, scales, 1.0 - q)
    present = weights > 0
    ends = means + scales * ndtri(q)
    lower = np.where(present, ends, np.inf).min(-1)
    upper = np.where(present, ends, -np.inf).max(-1)
    finest = 1e-13 * np.where(present, scales, np.inf).min(-1)
    x: Array = 0.5 * (lower + upper)
    step: Array = upper - lower
    active = np.arange(len(means))
    while active.size:
        i = active
        excess, density, rounding = _cdf_excess(x[i], weights[i], means[i], scales[i], q)
        lower[i] = np.where(excess < 0, x[i], lower[i])
        upper[i] = np.where(excess > 0, x[i], upper[i])
        newton = x[i] - excess / np.maximum(density, np.finfo(np.float64).tiny)
        usable = (newton > lower[i]) & (newton < upper[i]) & (2.0 * np.abs(newton - x[i]) <= np.abs(step[i]))
        new = np.where(usable, newton, 0.5 * (lower[i] + upper[i]))
        step[i], x[i] = new - x[i], np.where(np.abs(excess) <= rounding, x[i], new)
        done = (np.abs(excess) <= rounding) | (np.abs(step[i]) <= finest[i] + 4.0 * np.spacing(np.abs(new)))
        active = i[~done]
    return x


def _cdf_excess(x: Array, weights: Array, means: Array, scales: Array, q: float) -> tuple[Array, Array, Array]:
    """cdf(x) - q, the density, and the rounding error of the first, each ``(n,)``.

    Components below x count as their weight less their upper tail, so that nothing cancels where the cdf is flat.
    """
    z = (x[:, None] - means) / scales
    above = z > 0
    tails = weights * ndtr(-np.abs(z))
    offset = (weights * above).sum(-1) - q
    excess = offset + np.where(above, -tails, tails).sum(-1)
    density = (weights / scales * np.exp(normal_log_density(z))).sum(-1)
    rounding = 4.0 * np.finfo(np.float64).eps * (np.abs(offset) + tails.sum(-1))
    return np.asarray(excess), np.asarray(density), np.asarray(rounding)
