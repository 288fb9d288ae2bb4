"""Intervals of a statistic over series: whole series are drawn again, since the times of one are not independent."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpmoe.early_warning.rows import Array
from gpmoe.errors import InputError


@dataclass(frozen=True)
class Estimate:
    """A statistic with its bootstrap interval; NaN where it is not defined.

    Example:
        >>> print(Estimate(0.8432, 0.8301, 0.8566))
        0.843 [0.830, 0.857]
    """

    value: float
    lower: float
    upper: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.lower:.3f}, {self.upper:.3f}]"


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made: percentiles over resamples of series.

    Attributes:
        n_resamples: of the series, with replacement.
        coverage: of the intervals.
        seed: of NumPy's generator; the same seed draws the same series for every statistic.

    Source: Efron & Tibshirani (1993), An introduction to the bootstrap, sec. 13.3.

    Example:
        >>> sums = np.array([[1.0, 2.0], [0.0, 2.0], [1.0, 2.0]])
        >>> Bootstrap(seed=0).of_sums(sums, lambda s: s[..., 0] / s[..., 1]).value
        0.3333333333333333
    """

    n_resamples: int = 200
    coverage: float = 0.95
    seed: int | None = 0

    def __post_init__(self) -> None:
        if self.n_resamples < 2 or not 0 < self.coverage < 1:
            raise InputError(
                f"a bootstrap needs at least 2 resamples and a coverage between 0 and 1; got {self.n_resamples} "
                f"and {self.coverage}."
            )

    def counts(self, n: int) -> Array:
        """How often each of n series is drawn in each resample, ``(n_resamples, n)``."""
        rng = np.random.default_rng(self.seed)
        drawn = (np.bincount(rng.integers(0, n, n), minlength=n) for _ in range(self.n_resamples))
        return np.array([*drawn], dtype=np.float64)

    def of_sums(self, sums: Array, statistic: Callable[[Array], Array]) -> Estimate:
        """Interval of a function of sums over series.

        Args:
            sums: what each series adds, ``(N, k)``.
            statistic: from ``(*batch, k)`` to ``(*batch,)``.
        """
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.interval(float(statistic(sums.sum(axis=0))), statistic(self.counts(len(sums)) @ sums))

    def of_weights(self, n: int, statistic: Callable[[Array], tuple[float, ...]]) -> tuple[Estimate, ...]:
        """Intervals of statistics of series that count with weights ``(N,)``, all ones for the estimates."""
        values = statistic(np.ones(n))
        drawn = np.array([statistic(weights) for weights in self.counts(n)])
        return tuple(self.interval(value, column) for value, column in zip(values, drawn.T, strict=True))

    def interval(self, value: float, drawn: NDArray[np.float64]) -> Estimate:
        """Percentile interval of the resamples in which the statistic is defined."""
        known = drawn[np.isfinite(drawn)]
        if not known.size:
            return Estimate(value, np.nan, np.nan)
        tail = (1 - self.coverage) / 2
        lower, upper = np.quantile(known, [tail, 1 - tail])
        return Estimate(value, float(lower), float(upper))


DEFAULT = Bootstrap()
"""200 resamples, 95 %."""
