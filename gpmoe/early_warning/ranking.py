"""How well scores rank what has an event above what has none: AUROC and AUPRC, per time and per series."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from gpmoe.early_warning.alarms import checked_risk
from gpmoe.early_warning.bootstrap import DEFAULT, Bootstrap, Estimate
from gpmoe.early_warning.rows import Array, Index
from gpmoe.early_warning.series import RaggedSeries
from gpmoe.errors import InputError, ShapeError


@dataclass(frozen=True)
class RankingScores:
    """Area under the receiver operating curve, and average precision.

    Attributes:
        auroc: probability that a positive scores above a negative, ties counting half.
        auprc: precision averaged over the positives (average precision); `prevalence` for scores that tell nothing.
        prevalence: share of positives.
    """

    auroc: Estimate
    auprc: Estimate
    prevalence: float


class Ranking:
    """Rows sorted once by score, so that each weighting of their series costs one sum over rows.

    Rows of one score that has positives are one segment, and so are the negatives between two such: neither area
    changes within a segment but linearly.

    Args:
        score: ``(n,)``.
        label: 0 or 1, ``(n,)``.
        owner: series of each row, ``(n,)``.

    Example:
        >>> Ranking(np.array([0.1, 0.4, 0.8]), np.array([0.0, 1.0, 0.0]), np.arange(3)).areas(np.ones(3))
        (0.5, 0.5)
    """

    def __init__(self, score: Array, label: Array, owner: Index) -> None:
        order = np.argsort(-score, kind="stable")
        first = np.flatnonzero(np.diff(score[order], prepend=np.nan) != 0)
        tied = np.searchsorted(first, np.arange(len(order)), side="right") - 1
        positive = np.flatnonzero(label[order] > 0)
        has = np.bincount(tied[positive], minlength=len(first)) > 0
        begins = has | np.concatenate([[True], has[:-1]])[: len(has)]
        self.owner, self.starts = owner[order], first[begins]
        self.positive_owner, self.segment = self.owner[positive], (np.cumsum(begins) - 1)[tied[positive]]

    def areas(self, weights: Array) -> tuple[float, float]:
        """AUROC and average precision when series count with these weights ``(N,)``; NaN if a class is missing."""
        if not len(self.starts):
            return np.nan, np.nan
        total = np.add.reduceat(weights[self.owner], self.starts)
        new_hits = np.bincount(self.segment, weights[self.positive_owner], minlength=len(total))
        new_false = total - new_hits
        hits, false = np.cumsum(new_hits), np.cumsum(new_false)
        if not hits[-1] or not false[-1]:
            return np.nan, np.nan
        area = (new_false * (hits - new_hits / 2)).sum() / (hits[-1] * false[-1])
        precision = hits / np.maximum(hits + false, np.finfo(float).tiny)
        return float(area), float((new_hits * precision).sum() / hits[-1])


def time_ranking(series: RaggedSeries, risk: ArrayLike, *, bootstrap: Bootstrap = DEFAULT) -> RankingScores:
    """AUROC and AUPRC over all grid times pooled, with intervals over series; unknown labels are left out.

    Args:
        series: with one label a grid time.
        risk: ``(G,)``.
        bootstrap: how intervals are made.

    Raises:
        InputError: if there is not one label a grid time, of one task.
    """
    if series.label_per != "grid" or series.labels is None or series.labels.ndim != 1:
        raise InputError("ranking of times needs one label a grid time; use `series_ranking` for labels a series.")
    return ranked(checked_risk(series, risk), series.labels, series.grid_owner, len(series), bootstrap)


def series_ranking(series: RaggedSeries, risk: ArrayLike, *, bootstrap: Bootstrap = DEFAULT) -> RankingScores:
    """AUROC and AUPRC over series, each with one score, such as `largest_risk`; unknown labels are left out.

    Args:
        series: with labels; a series is positive if any of its grid times is.
        risk: ``(N,)``.
        bootstrap: how intervals are made.

    Raises:
        ShapeError: if there is not one score a series.
    """
    score = np.asarray(risk, dtype=np.float64)
    if score.shape != (len(series),):
        raise ShapeError(f"`risk` must have shape ({len(series)},), one a series; got {score.shape}.")
    return ranked(score, series.series_labels, np.arange(len(series)), len(series), bootstrap)


def ranked(score: Array, label: Array, owner: Index, n: int, bootstrap: Bootstrap) -> RankingScores:
    """AUROC and AUPRC of rows that belong to n series; rows with unknown labels are left out."""
    known = ~np.isnan(label)
    ranking = Ranking(score[known], label[known], owner[known])
    auroc, auprc = bootstrap.of_weights(n, ranking.areas)
    return RankingScores(auroc, auprc, float(np.mean(label[known] > 0)) if known.any() else np.nan)


def largest_risk(series: RaggedSeries, risk: ArrayLike) -> Array:
    """Largest risk of each series, ``(N,)``; minus infinity for one without grid times."""
    score = checked_risk(series, risk)
    largest = np.full(len(series), -np.inf)
    some = np.diff(series.grid_offsets) > 0
    largest[some] = np.maximum.reduceat(score, series.grid_offsets[:-1][some]) if some.any() else []
    return largest
