"""Channels and covariates at zero mean and unit variance, as the training data have it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpmoe.early_warning.rows import Array
from gpmoe.early_warning.series import RaggedSeries
from gpmoe.errors import ShapeError

_LARGEST = 8.0  # standard deviations
_SKEWED = 2.0  # skewness from which a channel of non-negative values is read on a logarithmic scale


@dataclass(frozen=True, eq=False)
class SeriesScaling:
    """An affine map a channel, after a logarithm for those that are positive and skewed.

    Scaled values are clipped to ±8, so that one slip of a pen does not move everything.

    A logged channel is sign(v) log(1 + |v|), which later values of the other sign can't break.

    Attributes:
        mean, std: of each channel, on its logarithmic scale where it is logged, ``(M,)``; 0 and 1 for a channel that
            was never measured, std 1 for a constant one.
        logged: ``(M,)``, bool.
        static_mean, static_std: of each covariate, ``(s,)``.

    Example:
        >>> series = RaggedSeries.from_arrays([0.0, 1.0], [0, 0], [2.0, 4.0], [0, 2], n_channels=1)
        >>> SeriesScaling.fit(series).apply(series).value.tolist()
        [-1.0, 1.0]
    """

    mean: Array
    std: Array
    logged: NDArray[np.bool_]
    static_mean: Array
    static_std: Array

    @classmethod
    def fit(cls, series: RaggedSeries, *, log_skewed: bool = False) -> "SeriesScaling":
        """Learn from training series alone, each measurement counting once.

        Args:
            series: training data.
            log_skewed: log the channels whose values are never negative and have a skewness above 2.
        """
        channel, value, n = series.channel, series.value, series.n_channels
        logged = _skewed(channel, value, n) if log_skewed else np.zeros(n, dtype=bool)
        mean, std = _moments(channel, np.where(logged[channel], _log(value), value), n)
        known = ~np.isnan(series.static)
        columns = np.nonzero(known)[1]
        static_mean, static_std = _moments(columns, series.static[known], series.static.shape[1])
        return cls(mean, std, logged, static_mean, static_std)

    def values(self, channel: ArrayLike, value: ArrayLike) -> Array:
        """Scaled values of measurements, ``(n,)`` each: what `apply` does, for a stream."""
        index, raw = np.asarray(channel), np.asarray(value, dtype=np.float64)
        scaled = (np.where(self.logged[index], _log(raw), raw) - self.mean[index]) / self.std[index]
        return np.clip(scaled, -_LARGEST, _LARGEST)

    def unscaled(self, channel: ArrayLike, value: ArrayLike) -> Array:
        """The inverse of `values`, for what was not clipped."""
        index, scaled = np.asarray(channel), np.asarray(value, dtype=np.float64)
        raw = scaled * self.std[index] + self.mean[index]
        return np.where(self.logged[index], np.sign(raw) * np.expm1(np.abs(raw)), raw)

    def apply(self, series: RaggedSeries) -> RaggedSeries:
        """The series with scaled values and covariates.

        Raises:
            ShapeError: if they have other numbers of channels or covariates.
        """
        came = (series.n_channels, series.static.shape[1])
        if came != (len(self.mean), len(self.static_mean)):
            raise ShapeError(
                f"the scaling was learned on {len(self.mean)} channels and {len(self.static_mean)} static covariates; "
                f"got {came[0]} and {came[1]}."
            )
        static = (series.static - self.static_mean) / self.static_std
        return series.with_values(self.values(series.channel, series.value), static)


def _log(value: Array) -> Array:
    return np.sign(value) * np.log1p(np.abs(value))


def _moments(group: NDArray[np.int64], value: Array, n: int) -> tuple[Array, Array]:
    """Mean and standard deviation of each group, 0 and 1 for an empty one, 1 for a constant one."""
    count = np.maximum(np.bincount(group, minlength=n), 1)
    mean = np.bincount(group, value, minlength=n) / count
    std = np.sqrt(np.bincount(group, (value - mean[group]) ** 2, minlength=n) / count)
    return mean, np.where(std > 1e-12 * np.maximum(np.abs(mean), 1e-300), std, 1.0)


def _skewed(group: NDArray[np.int64], value: Array, n: int) -> NDArray[np.bool_]:
    mean, std = _moments(group, value, n)
    count = np.maximum(np.bincount(group, minlength=n), 1)
    skewness = np.bincount(group, ((value - mean[group]) / std[group]) ** 3, minlength=n) / count
    negative = np.bincount(group, value < 0, minlength=n)
    return (skewness > _SKEWED) & (negative == 0)
