"""Channels and covariates on one scale, as the training data have it: standardised, or as normal scores."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from gpmoe.early_warning.rows import Array
from gpmoe.early_warning.series import RaggedSeries
from gpmoe.errors import InputError, ShapeError

KINDS = ("standard", "normal")
_LEVELS = 201  # quantiles from which normal scores interpolate
_TAIL = 0.002  # the least probability of a normal score: a value beyond the training data has that of ±2.9


@dataclass(frozen=True, eq=False)
class SeriesScaling:
    """A rising, piecewise linear map a channel and a covariate.

    "standard" subtracts the mean and divides by the standard deviation. "normal" maps the quantiles of the training
    data to those of N(0, 1), which tames skewed channels and slips of the pen: what is beyond the training data stays
    at the ends, ±2.9. Each measurement counts once.

    Attributes:
        kind: "standard" or "normal".
        knots, scores: where the map bends and its values there, rising, ``(M + s, k)``; for "standard" mean and mean
            plus standard deviation, with the scores 0 and 1. A channel that was never measured has one knot, 0, and a
            constant one has its value, both with the score 0.
        n_channels: M.

    Example:
        >>> series = RaggedSeries.from_arrays([0.0, 1.0], [0, 0], [2.0, 4.0], [0, 2], n_channels=1)
        >>> SeriesScaling.fit(series).apply(series).value.tolist()
        [-1.0, 1.0]
    """

    kind: str
    knots: Array
    scores: Array
    n_channels: int

    @classmethod
    def fit(cls, series: RaggedSeries, kind: str = "standard") -> "SeriesScaling":
        """Learn from training series alone.

        Raises:
            InputError: for an unknown kind.
        """
        if kind not in KINDS:
            raise InputError(f"`kind` must be one of {', '.join(KINDS)}; got {kind!r}.")
        order = np.argsort(series.channel, kind="stable")
        bounds = np.searchsorted(series.channel[order], np.arange(1, series.n_channels))
        columns = np.split(series.value[order], bounds)
        columns += [column[~np.isnan(column)] for column in series.static.T]
        made = [_standard(column) if kind == "standard" else _normal(column) for column in columns]
        knots, scores = (_stacked([pair[side] for pair in made]) for side in (0, 1))
        return cls(kind, knots, scores, series.n_channels)

    def values(self, channel: ArrayLike, value: ArrayLike) -> Array:
        """Scaled values of measurements, ``(n,)`` each: what `apply` does, for a stream."""
        index, raw = np.asarray(channel, dtype=np.int64), np.asarray(value, dtype=np.float64)
        return self._mapped(index, raw, self.knots, self.scores)

    def unscaled(self, channel: ArrayLike, value: ArrayLike) -> Array:
        """The inverse of `values`, within the training data for normal scores."""
        index, scaled = np.asarray(channel, dtype=np.int64), np.asarray(value, dtype=np.float64)
        return self._mapped(index, scaled, self.scores, self.knots)

    def static(self, covariates: ArrayLike) -> Array:
        """Scaled covariates ``(N, s)``; what is NaN stays NaN."""
        raw = np.asarray(covariates, dtype=np.float64)
        index = np.broadcast_to(self.n_channels + np.arange(raw.shape[-1]), raw.shape)
        found = self._mapped(index.ravel(), raw.ravel(), self.knots, self.scores)
        return np.where(np.isnan(raw), np.nan, found.reshape(raw.shape))

    def apply(self, series: RaggedSeries) -> RaggedSeries:
        """The series with scaled values and covariates.

        Raises:
            ShapeError: if they have other numbers of channels or covariates.
        """
        n_static = len(self.knots) - self.n_channels
        if (series.n_channels, series.static.shape[1]) != (self.n_channels, n_static):
            raise ShapeError(
                f"the scaling was learned on {self.n_channels} channels and {n_static} static covariates; "
                f"got {series.n_channels} and {series.static.shape[1]}."
            )
        return series.with_values(self.values(series.channel, series.value), self.static(series.static))

    def _mapped(self, index: NDArray[np.int64], value: Array, knots: Array, scores: Array) -> Array:
        index, value = np.broadcast_arrays(index, value)
        if self.kind == "standard":
            slope = (scores[:, 1] - scores[:, 0]) / (knots[:, 1] - knots[:, 0])
            return scores[index, 0] + (value - knots[index, 0]) * slope[index]
        out = np.empty(value.shape)
        for column in np.unique(index):
            rows = index == column
            out[rows] = np.interp(value[rows], knots[column], scores[column])
        return out


def _stacked(rows: list[Array]) -> Array:
    """Rows of different lengths side by side, the last entry of each repeated."""
    longest = max(map(len, rows))
    return np.stack([np.pad(row, (0, longest - len(row)), mode="edge") for row in rows])


def _standard(column: Array) -> tuple[Array, Array]:
    mean, std = (float(column.mean()), float(column.std())) if len(column) else (0.0, 1.0)
    if not std > 1e-12 * max(abs(mean), 1e-300):
        std = 1.0
    return np.array([mean, mean + std]), np.array([0.0, 1.0])


def _normal(column: Array) -> tuple[Array, Array]:
    """Distinct quantiles, and the normal score of the mean level of each."""
    if not len(column):
        return np.zeros(1), np.zeros(1)
    levels = np.linspace(0, 1, _LEVELS)
    knots, which = np.unique(np.quantile(column, levels), return_inverse=True)
    mean_level = np.bincount(which, levels) / np.bincount(which)
    return knots, ndtri(np.clip(mean_level, _TAIL, 1 - _TAIL))
