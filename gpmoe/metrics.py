"""Scores of predictive distributions against what was observed.

Each function takes a `Predictive` of length n and the targets ``y``, ``(n,)``, both in the caller's units, and
returns a float (`pit` a vector). A score in units of y can be read as an error; log scores are in nats per row.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from gpmoe.distributions import Array, Predictive
from gpmoe.errors import InputError, NonFiniteError, ShapeError

LEVELS: tuple[float, ...] = tuple(round(0.05 * step, 2) for step in range(1, 20))
"""Nominal coverages 0.05, 0.10, ..., 0.95 at which calibration is looked at."""


def log_score(predictive: Predictive, y: ArrayLike) -> float:
    """Mean log predictive density, in nats per row; larger is better.

    It depends on the unit of y: dividing y by c adds log c.

    Args:
        predictive: length n, noise included.
        y: ``(n,)``, units of y.

    Raises:
        ShapeError: if y is not a vector of length n >= 1.
        NonFiniteError: if a target is NaN or infinite; names the row. So do all functions here.

    Source: Gneiting & Raftery (2007), Strictly proper scoring rules, sec. 4.1.

    Example:
        >>> round(log_score(Predictive.gaussian([0.0], [1.0]), [0.0]), 4)
        -0.9189
    """
    return float(predictive.log_prob(_targets(predictive, y)).mean())


def crps(predictive: Predictive, y: ArrayLike) -> float:
    """Mean continuous ranked probability score, in units of y; smaller is better, |error| for a certain forecast.

    Args:
        predictive: length n, noise included.
        y: ``(n,)``, units of y.

    Raises:
        InputError: for a Student-t with at most one degree of freedom.

    Source: Gneiting & Raftery (2007), sec. 4.2; the closed forms are those of `Predictive.crps`.

    Example:
        >>> round(crps(Predictive.gaussian([0.0, 0.0], [1.0, 1.0]), [0.0, 1.0]), 4)
        0.4181
    """
    return float(predictive.crps(_targets(predictive, y)).mean())


def rmse(predictive: Predictive, y: ArrayLike) -> float:
    """Root mean squared error of the predictive mean, in units of y; NaN where a Student-t has no mean.

    Args:
        predictive: length n.
        y: ``(n,)``, units of y.

    Example:
        >>> rmse(Predictive.gaussian([0.0, 0.0], [1.0, 1.0]), [1.0, -7.0])
        5.0
    """
    return float(np.sqrt(np.mean((_targets(predictive, y) - predictive.mean) ** 2)))


def mae(predictive: Predictive, y: ArrayLike) -> float:
    """Mean absolute error of the predictive median, in units of y.

    The median, not the mean, is the forecast that absolute error rewards; for a Gaussian they are the same.

    Args:
        predictive: length n.
        y: ``(n,)``, units of y.

    Source: Gneiting (2011), Making and evaluating point forecasts, sec. 3.

    Example:
        >>> mae(Predictive.gaussian([0.0, 0.0], [1.0, 1.0]), [1.0, -7.0])
        4.0
    """
    return float(np.mean(np.abs(_targets(predictive, y) - predictive.quantile(0.5))))


def interval_coverage(predictive: Predictive, y: ArrayLike, coverage: float = 0.9) -> float:
    """Fraction of targets inside the equal-tailed interval of a nominal coverage.

    A target lies inside when its probability integral transform u has |2u - 1| <= coverage, which needs no
    quantiles.

    Args:
        predictive: length n, noise included.
        y: ``(n,)``, units of y.
        coverage: nominal coverage, strictly between zero and one.

    Raises:
        InputError: if coverage is not strictly between zero and one.

    Example:
        >>> interval_coverage(Predictive.gaussian([0.0, 0.0], [1.0, 1.0]), [0.5, 3.0], coverage=0.9)
        0.5
    """
    if not 0 < coverage < 1:
        raise InputError(f"`coverage` must lie strictly between 0 and 1; got {coverage}.")
    return float(np.mean(np.abs(2.0 * pit(predictive, y) - 1.0) <= coverage))


def interval_width(predictive: Predictive, coverage: float = 0.9) -> float:
    """Mean width of the equal-tailed interval of a nominal coverage, in units of y; smaller is sharper.

    Args:
        predictive: length n >= 1, noise included.
        coverage: nominal coverage, strictly between zero and one.

    Raises:
        InputError: if coverage is not strictly between zero and one.

    Example:
        >>> round(interval_width(Predictive.gaussian([0.0], [1.0])), 4)
        3.2897
    """
    lower, upper = predictive.interval(coverage)
    return float(np.mean(upper - lower))


def pit(predictive: Predictive, y: ArrayLike) -> Array:
    """Probability integral transform: the predictive cdf at each target, ``(n,)``; uniform if calibrated.

    Args:
        predictive: length n, noise included.
        y: ``(n,)``, units of y.

    Source: Gneiting, Balabdaoui & Raftery (2007), Probabilistic forecasts, calibration and sharpness, sec. 3.1.

    Example:
        >>> pit(Predictive.gaussian([0.0, 2.0], [1.0, 1.0]), [0.0, 2.0])
        array([0.5, 0.5])
    """
    return predictive.cdf(_targets(predictive, y))


def calibration_error(predictive: Predictive, y: ArrayLike, levels: Sequence[float] = LEVELS) -> float:
    """Root mean squared difference between nominal and observed coverage of central intervals.

    Zero is perfect; with n targets chance alone gives about 0.4 / sqrt(n). It measures calibration only, so
    read it beside a score of sharpness such as `interval_width` or `crps`.

    Args:
        predictive: length n, noise included.
        y: ``(n,)``, units of y.
        levels: nominal coverages, each strictly between zero and one.

    Raises:
        InputError: if a level is not strictly between zero and one, or there is none.

    Source: Kuleshov, Fenner & Ermon (2018), Accurate uncertainties for deep learning using calibrated regression,
        with central intervals in place of lower tails, equal weights, and a root for readable units.

    Example:
        >>> predictive = Predictive.gaussian([0.0] * 100, [1.0] * 100)
        >>> evenly_spread = predictive[0].quantile((np.arange(100) + 0.5) / 100).ravel()
        >>> calibration_error(predictive, evenly_spread) < 0.01
        True
        >>> round(calibration_error(predictive, 3.0 * evenly_spread), 2)  # errors three times the claim
        0.33
    """
    if len(levels) == 0:
        raise InputError("`levels` must hold at least one nominal coverage; got none.")
    observed = np.array([interval_coverage(predictive, y, level) for level in levels])
    return float(np.sqrt(np.mean((observed - np.asarray(levels)) ** 2)))


def pinball_loss(predictive: Predictive, y: ArrayLike, q: float) -> float:
    """Mean pinball (quantile) loss of the predictive q-quantile, in units of y; smaller is better.

    (q - 1[y < Q]) (y - Q) with Q the q-quantile; at q = 1/2 it is half of `mae`.

    Args:
        predictive: length n, noise included.
        y: ``(n,)``, units of y.
        q: probability strictly between zero and one.

    Raises:
        InputError: if q is not strictly between zero and one.

    Source: Gneiting & Raftery (2007), sec. 6.1; Koenker & Bassett (1978).

    Example:
        >>> pinball_loss(Predictive.gaussian([0.0, 0.0], [1.0, 1.0]), [1.0, -7.0], 0.5)
        2.0
    """
    error = _targets(predictive, y) - predictive.quantile(float(q))
    return float(np.mean(np.maximum(q * error, (q - 1.0) * error)))


def standardised_mean_squared_error(predictive: Predictive, y: ArrayLike) -> float:
    """Mean squared error of the mean over the variance of y (SMSE), no unit; one for the trivial forecast.

    Args:
        predictive: length n.
        y: ``(n,)``, units of y, not all equal.

    Raises:
        InputError: if all targets are equal.

    Source: Rasmussen & Williams (2006), Gaussian processes for machine learning, sec. 2.5.

    Example:
        >>> standardised_mean_squared_error(Predictive.gaussian([0.0, 0.0], [1.0, 1.0]), [-2.0, 2.0])
        1.0
    """
    variance = float(np.var(_targets(predictive, y)))
    if variance == 0:
        raise InputError("the targets are all equal, so their variance is 0; use `rmse`, which needs no spread.")
    return rmse(predictive, y) ** 2 / variance


def mean_standardised_log_loss(
    predictive: Predictive, y: ArrayLike, *, train_mean: float, train_variance: float
) -> float:
    """Mean log loss less that of N(train_mean, train_variance) (MSLL), in nats per row; below zero beats it.

    Args:
        predictive: length n, noise included.
        y: test targets, ``(n,)``, units of y.
        train_mean: mean of the training targets, units of y.
        train_variance: variance of the training targets, units of y squared, positive.

    Raises:
        InputError: if train_variance is not positive and finite.

    Source: Rasmussen & Williams (2006), Gaussian processes for machine learning, sec. 2.5.

    Example:
        >>> predictive = Predictive.gaussian([0.0], [1.0])
        >>> mean_standardised_log_loss(predictive, [0.3], train_mean=0.0, train_variance=1.0)
        0.0
    """
    n = len(predictive)
    trivial = Predictive.gaussian(np.full(n, train_mean), np.full(n, train_variance))
    return log_score(trivial, y) - log_score(predictive, y)


def scores(predictive: Predictive, y: ArrayLike) -> dict[str, float]:
    """The usual scores by name: log_score, crps, rmse, mae, coverage_90, width_90, calibration_error.

    Args:
        predictive: length n, noise included.
        y: ``(n,)``, units of y.

    Raises:
        InputError: for a Student-t with at most one degree of freedom, which has no CRPS.

    Example:
        >>> result = scores(Predictive.gaussian([0.0, 0.0], [1.0, 1.0]), [1.0, -7.0])
        >>> result["rmse"], result["mae"], result["coverage_90"]
        (5.0, 4.0, 0.5)
    """
    return {
        "log_score": log_score(predictive, y),
        "crps": crps(predictive, y),
        "rmse": rmse(predictive, y),
        "mae": mae(predictive, y),
        "coverage_90": interval_coverage(predictive, y, 0.9),
        "width_90": interval_width(predictive, 0.9),
        "calibration_error": calibration_error(predictive, y),
    }


def _targets(predictive: Predictive, y: ArrayLike) -> Array:
    """y as a float64 vector, one finite target a prediction."""
    y = np.asarray(y, dtype=np.float64)
    n = len(predictive)
    if y.shape != (n,) or n == 0:
        raise ShapeError(f"`y` must have shape ({n},), one target a prediction, and not be empty; got {y.shape}.")
    bad = np.flatnonzero(~np.isfinite(y))
    if bad.size:
        raise NonFiniteError(f"`y` must be finite; row {bad[0]} is {y[bad[0]]}. Drop such rows of `predictive` too.")
    return y
