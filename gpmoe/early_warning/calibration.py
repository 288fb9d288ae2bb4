"""Whether risks mean what they say: calibration error, and the net benefit of acting on them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from gpmoe.early_warning.alarms import checked_risk
from gpmoe.early_warning.bootstrap import DEFAULT, Bootstrap, Estimate
from gpmoe.early_warning.rows import Array, Index
from gpmoe.early_warning.series import RaggedSeries
from gpmoe.errors import InputError


@dataclass(frozen=True)
class Reliability:
    """Mean risk and observed frequency in bins of risk, and their mean distance.

    Attributes:
        error: sum over bins of |observed - mean risk|, weighted by the share of rows (expected calibration error). It
            can't be negative, so that chance alone lifts it, and its interval lies a little high.
        mean_risk, observed: ``(b,)``.
        count: rows of each bin, ``(b,)``.
    """

    error: Estimate
    mean_risk: Array
    observed: Array
    count: Array


@dataclass(frozen=True)
class DecisionCurve:
    """Net benefit of acting where the risk exceeds a threshold: TP / n - FP / n * p / (1 - p).

    Attributes:
        thresholds: ``(k,)``.
        net_benefit: one estimate a threshold, per row.
        treat_all: of acting always, ``(k,)``; never acting has 0.
    """

    thresholds: Array
    net_benefit: tuple[Estimate, ...]
    treat_all: Array


def reliability(
    series: RaggedSeries, risk: ArrayLike, *, n_bins: int = 15, bootstrap: Bootstrap = DEFAULT
) -> Reliability:
    """Calibration in bins of equal numbers of rows, so that rare events are not left to one bin.

    Args:
        series: with one label a grid time, or one a series.
        risk: probabilities, ``(G,)`` or ``(N,)`` accordingly.
        n_bins: at most so many; fewer where risks are tied.
        bootstrap: how the interval is made.

    Raises:
        InputError: if risks are not probabilities, or there are no labels.

    Source: Naeini, Cooper & Hauskrecht (2015), Obtaining well calibrated probabilities using Bayesian binning, with
        bins of equal mass.

    Example:
        >>> series = RaggedSeries.from_arrays(
        ...     np.arange(4.0), [0] * 4, [0.0] * 4, [0, 4], n_channels=1, labels=[0, 1, 0, 1])
        >>> reliability(series, [0.5, 0.5, 0.5, 0.5]).error.value
        0.0
    """
    score, label, owner = _labelled(series, risk)
    edges = np.unique(np.quantile(score, np.arange(1, n_bins) / n_bins))
    place = np.searchsorted(edges, score, side="left")
    bins = len(edges) + 1
    cell = owner * bins + place
    parts = [np.bincount(cell, w, minlength=len(series) * bins) for w in (np.ones(len(score)), score, label)]
    sums: Array = np.concatenate([part.reshape(len(series), bins).astype(np.float64) for part in parts], axis=1)

    def error(total: Array) -> Array:
        count, risks, events = np.split(total, 3, axis=-1)
        return np.abs(events - risks).sum(-1) / count.sum(-1)

    count, risks, events = np.split(sums.sum(axis=0), 3)
    some = count > 0
    estimate = bootstrap.of_sums(sums, error)
    return Reliability(estimate, risks[some] / count[some], events[some] / count[some], count[some])


def decision_curve(
    series: RaggedSeries, risk: ArrayLike, thresholds: Sequence[float], *, bootstrap: Bootstrap = DEFAULT
) -> DecisionCurve:
    """Net benefit at each threshold probability.

    Args:
        series: with one label a grid time, or one a series.
        risk: probabilities, ``(G,)`` or ``(N,)`` accordingly.
        thresholds: the risk at which acting is just worth it, each in [0, 1).
        bootstrap: how intervals are made.

    Raises:
        InputError: if risks or thresholds are not probabilities, or there are no labels.

    Source: Vickers & Elkin (2006), Decision curve analysis, Medical Decision Making 26(6).

    Example:
        >>> series = RaggedSeries.from_arrays(
        ...     np.arange(4.0), [0] * 4, [0.0] * 4, [0, 4], n_channels=1, labels=[0, 1, 0, 1])
        >>> decision_curve(series, [0.1, 0.9, 0.2, 0.8], [0.5]).net_benefit[0].value
        0.5
    """
    score, label, owner = _labelled(series, risk)
    levels = np.asarray(thresholds, dtype=np.float64)
    if ((levels < 0) | (levels >= 1)).any():
        raise InputError(f"`thresholds` must lie in [0, 1); got {levels.tolist()}.")
    n = len(series)
    rows = np.bincount(owner, minlength=n)
    benefits = []
    for level in levels:
        gain = np.where(score > level, np.where(label > 0, 1.0, -level / (1 - level)), 0.0)
        sums: Array = np.column_stack([np.bincount(owner, gain, minlength=n), rows]).astype(np.float64)
        benefits.append(bootstrap.of_sums(sums, lambda s: s[..., 0] / s[..., 1]))
    prevalence = np.mean(label > 0)
    return DecisionCurve(levels, tuple(benefits), prevalence - (1 - prevalence) * levels / (1 - levels))


def _labelled(series: RaggedSeries, risk: ArrayLike) -> tuple[Array, Array, Index]:
    """Probabilities, labels and owners of the rows whose label is known."""
    if series.labels is None or series.labels.ndim != 1:
        raise InputError("calibration needs one label a grid time or a series, of one task.")
    per_series = series.label_per == "series"
    score = np.asarray(risk, dtype=np.float64) if per_series else checked_risk(series, risk)
    owner = np.arange(len(series)) if per_series else series.grid_owner
    if score.shape != owner.shape or not ((score >= 0) & (score <= 1)).all():
        raise InputError(
            f"`risk` must hold {len(owner)} probabilities, one a label; got shape {score.shape}"
            + (f", {np.nanmin(score):g} to {np.nanmax(score):g}." if score.size else ".")
        )
    known = ~np.isnan(series.labels)
    return score[known], series.labels[known], owner[known]
