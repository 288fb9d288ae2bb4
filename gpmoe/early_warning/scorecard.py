"""The scores by which one model of early warning is set beside another, and beside the clock."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from gpmoe.early_warning.alarms import checked_risk
from gpmoe.early_warning.bootstrap import DEFAULT, Bootstrap, Estimate
from gpmoe.early_warning.calibration import reliability
from gpmoe.early_warning.ranking import largest_risk, series_ranking, time_ranking
from gpmoe.early_warning.rows import Array
from gpmoe.early_warning.series import RaggedSeries
from gpmoe.early_warning.utility import ChallengeUtility
from gpmoe.errors import InputError


@dataclass(frozen=True)
class Scorecard:
    """How well a score tells what comes; None where the series don't allow it.

    Attributes:
        time_auroc, time_auprc: over grid times pooled; None for labels a series.
        series_auroc, series_auprc: over series, by the score of `series_score`.
        utility: of the challenge 2019, with times read as hours, at a threshold found on the other half of the
            series; None without events.
        calibration_error: of scores that are probabilities.
        prevalence: share of positives of grid times, or of series for labels a series.
    """

    time_auroc: Estimate | None
    time_auprc: Estimate | None
    series_auroc: Estimate
    series_auprc: Estimate
    utility: Estimate | None
    calibration_error: Estimate | None
    prevalence: float


def scorecard(series: RaggedSeries, risk: ArrayLike, *, bootstrap: Bootstrap = DEFAULT) -> Scorecard:
    """Score a model, or the clock: pass `grid_times` of the series as its risk.

    Args:
        series: with labels of one task, which the model has not seen.
        risk: at each grid time, ``(G,)``.
        bootstrap: how intervals are made.

    Raises:
        InputError: without labels, or with several tasks.

    Example:
        >>> series = RaggedSeries.from_arrays(
        ...     np.arange(4.0), [0] * 4, [0.0] * 4, [0, 2, 4], n_channels=1, labels=[0, 1, 0, 0])
        >>> scorecard(series, [0.1, 0.9, 0.2, 0.3]).time_auroc.value
        1.0
    """
    score = checked_risk(series, risk)
    if series.labels is None or series.labels.ndim != 1:
        raise InputError("a scorecard needs labels of one task; pick one, or pass `labels` when making the series.")
    per_time = time_ranking(series, score, bootstrap=bootstrap) if series.label_per == "grid" else None
    filled = series[np.diff(series.grid_offsets) > 0]
    whole = series_score(filled, score)
    per_series = series_ranking(filled, whole, bootstrap=bootstrap)
    probable = bool(((score >= 0) & (score <= 1)).all())
    judged = (series, score) if per_time is not None else (filled, whole)
    return Scorecard(
        None if per_time is None else per_time.auroc,
        None if per_time is None else per_time.auprc,
        per_series.auroc,
        per_series.auprc,
        crossed_utility(series, score, bootstrap=bootstrap) if has_events(series) else None,
        reliability(*judged, bootstrap=bootstrap).error if probable else None,
        per_series.prevalence if per_time is None else per_time.prevalence,
    )


def series_score(series: RaggedSeries, risk: Array) -> Array:
    """One score a series: its last where labels are one a series, else its largest, ``(N,)``."""
    if series.label_per == "series":
        return np.asarray(risk, dtype=np.float64)[series.grid_offsets[1:] - 1]
    return largest_risk(series, risk)


def has_events(series: RaggedSeries) -> bool:
    """Whether there are event times, and an event among them."""
    return series.event_time is not None and bool(np.isfinite(series.event_time).any())


def crossed_utility(
    series: RaggedSeries, risk: ArrayLike, *, seed: int = 0, bootstrap: Bootstrap = DEFAULT
) -> Estimate:
    """Utility of the challenge 2019 of calls above the best threshold of the other half of the series.

    Args:
        series: with event times.
        risk: ``(G,)``.
        seed: of the halves, each with half of the events.
        bootstrap: how the interval is made.
    """
    score, rule = checked_risk(series, risk), ChallengeUtility()
    if series.event_time is None:
        raise InputError("the utility needs `event_time` of the series, infinite where there is none.")
    order = np.random.default_rng(seed).permutation(len(series))
    order = order[np.argsort(np.isinf(series.event_time[order]), kind="stable")]
    half = np.zeros(len(series), dtype=bool)
    half[order[::2]] = True
    of_row = half[series.grid_owner]
    called = np.zeros(len(score), dtype=bool)
    for side in (True, False):
        threshold, _ = rule.best_threshold(series[half == side], score[of_row == side])
        called[of_row != side] = score[of_row != side] > threshold
    return rule.score(series, called, bootstrap=bootstrap)
