"""How well a score ranks: the receiver operating curve, and precision against recall."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from gpmoe.distributions import Array
from gpmoe.errors import InputError, ShapeError
from gpmoe.plotting.ink import BLUE, GREY, open_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_POINTS = 400
_STYLES: tuple[dict[str, Any], ...] = (
    {"color": BLUE, "linewidth": 1.8},
    {"color": GREY, "linewidth": 1.2, "linestyle": (0, (4, 2))},
)


@dataclass(frozen=True, eq=False)
class RankingCurves:
    """The numbers of both curves, from the highest threshold to the lowest.

    Args:
        false_positive_rate: ``(k,)``, from 0 to 1.
        recall: share of positives above each threshold, ``(k,)``, from 0 to 1.
        precision: share of positives among what is above, ``(k,)``; at recall 0 that of the next point.
        prevalence: share of positives.
    """

    false_positive_rate: Array
    recall: Array
    precision: Array
    prevalence: float


def ranking_curves(risk: ArrayLike, label: ArrayLike) -> RankingCurves:
    """Compute both curves, at most 400 points each.

    Args:
        risk: ``(n,)``.
        label: 0 or 1, NaN where unknown, ``(n,)``.

    Raises:
        ShapeError: if the two don't fit each other.
        InputError: if one class is missing.

    Example:
        >>> curves = ranking_curves([0.9, 0.8, 0.1], [1, 0, 0])
        >>> curves.recall.tolist(), curves.false_positive_rate.tolist()
        ([0.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.5, 1.0])
    """
    score, truth = np.asarray(risk, dtype=np.float64), np.asarray(label, dtype=np.float64)
    if score.ndim != 1 or score.shape != truth.shape:
        raise ShapeError(f"`risk` and `label` must have one shape (n,); got {score.shape} and {truth.shape}.")
    known = ~np.isnan(truth)
    score, truth = score[known], truth[known]
    if not 0 < truth.sum() < len(truth):
        raise InputError(f"curves need both classes; got {int(truth.sum())} positives of {len(truth)}.")
    order = np.argsort(-score, kind="stable")
    last = np.append(np.flatnonzero(np.diff(score[order]) != 0), len(score) - 1)  # of each run of equal scores
    hits = np.cumsum(truth[order])[last]
    if len(last) > _MOST_POINTS:
        # half of the points at even ranks, for the first curve, and half at even recall, for the second
        by_recall = np.searchsorted(hits, np.linspace(hits[0], hits[-1], _MOST_POINTS // 2))
        kept = np.unique(np.concatenate([np.linspace(0, len(last) - 1, _MOST_POINTS // 2).astype(int), by_recall]))
        last, hits = last[kept], hits[kept]
    above = last + 1.0
    precision = hits / above
    recall, false = hits / truth.sum(), (above - hits) / (len(truth) - truth.sum())
    return RankingCurves(
        np.append(0.0, false), np.append(0.0, recall), np.append(precision[0], precision), float(truth.mean())
    )


def plot_roc(curves: Mapping[str, RankingCurves], ax: Axes | None = None) -> Axes:
    """Draw recall against the share of false positives; the thin diagonal is chance.

    Args:
        curves: by name, the model first, then what it is set beside.
        ax: axes to draw on, or None for a new figure.

    Returns:
        The axes drawn on.

    Raises:
        MissingPackageError: if matplotlib is not installed.

    Example:
        >>> plot_roc({"model": ranking_curves([0.9, 0.1], [1, 0])}).get_ylabel()
        'share of positives found'
    """
    ax = open_axes(ax, figsize=(3.8, 3.8))
    ax.plot([0, 1], [0, 1], color=GREY, linewidth=0.6)
    for i, (name, curve) in enumerate(curves.items()):
        ax.plot(curve.false_positive_rate, curve.recall, label=name, **_STYLES[min(i, 1)])
    ax.set(xlabel="share of negatives called", ylabel="share of positives found", xlim=(0, 1), ylim=(0, 1.01))
    ax.set_aspect("equal")
    ax.legend(frameon=False, fontsize="small", loc="lower right")
    return ax


def plot_precision_recall(curves: Mapping[str, RankingCurves], ax: Axes | None = None) -> Axes:
    """Draw precision against recall; the thin line is the prevalence, which scores that tell nothing reach.

    Args:
        curves: by name, the model first, then what it is set beside.
        ax: axes to draw on, or None for a new figure.

    Returns:
        The axes drawn on.

    Raises:
        MissingPackageError: if matplotlib is not installed.

    Example:
        >>> plot_precision_recall({"model": ranking_curves([0.9, 0.1], [1, 0])}).get_ylabel()
        'share of calls that are true'
    """
    ax = open_axes(ax, figsize=(3.8, 3.8))
    for i, (name, curve) in enumerate(curves.items()):
        if not i:
            ax.axhline(curve.prevalence, color=GREY, linewidth=0.6)
        ax.plot(curve.recall, curve.precision, label=name, **_STYLES[min(i, 1)])
    ax.set(xlabel="share of positives found", ylabel="share of calls that are true", xlim=(0, 1), ylim=(0, 1.01))
    ax.set_aspect("equal")
    ax.legend(frameon=False, fontsize="small", loc="upper right")
    return ax
