"""Calibration: how often targets fall inside central intervals, against how often they should."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from gpmoe.distributions import Array, Predictive
from gpmoe.metrics import LEVELS, calibration_error, interval_coverage
from gpmoe.plotting.ink import BLUE, GREY, open_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class CalibrationCurve:
    """The numbers of a calibration figure.

    Args:
        levels: nominal coverages, ``(l,)``.
        observed: fraction of targets inside the central interval of each level, ``(l,)``.
        n: number of targets.
        error: `gpmoe.metrics.calibration_error`.

    Example:
        >>> CalibrationCurve(np.array([0.5]), np.array([0.4]), n=10, error=0.1).error
        0.1
    """

    levels: Array
    observed: Array
    n: int
    error: float


def calibration_curve(predictive: Predictive, y: ArrayLike, levels: Sequence[float] = LEVELS) -> CalibrationCurve:
    """Compute the observed coverage of central intervals at each nominal level.

    Args:
        predictive: length n, noise included.
        y: ``(n,)``, units of y.
        levels: nominal coverages, each strictly between zero and one.

    Raises:
        ShapeError: if y is not a vector of length n >= 1.
        NonFiniteError: if a target is NaN or infinite.
        InputError: if a level is not strictly between zero and one.

    Example:
        >>> curve = calibration_curve(Predictive.gaussian([0.0, 0.0], [1.0, 1.0]), [0.1, 9.0], levels=[0.5, 0.9])
        >>> curve.observed
        array([0.5, 0.5])
    """
    observed = np.array([interval_coverage(predictive, y, level) for level in levels])
    error = calibration_error(predictive, y, levels)
    return CalibrationCurve(np.asarray(levels, dtype=np.float64), observed, len(predictive), error)


def plot_calibration(curve: CalibrationCurve, ax: Axes | None = None) -> Axes:
    """Draw observed against nominal coverage, on a grey region of what chance allows a calibrated model.

    The region is two binomial standard errors about the diagonal. Above the diagonal the intervals are wider
    than they need be, below it too narrow.

    Args:
        curve: from `calibration_curve`.
        ax: axes to draw on, or None for a new figure.

    Returns:
        The axes drawn on.

    Raises:
        MissingPackageError: if matplotlib is not installed.

    Example:
        >>> curve = CalibrationCurve(np.array([0.5, 0.9]), np.array([0.4, 0.9]), n=10, error=0.07)
        >>> plot_calibration(curve).get_ylabel()
        'observed coverage'
    """
    ax = open_axes(ax, figsize=(3.8, 3.8))
    nominal = np.linspace(0.0, 1.0, 201)
    chance = 2.0 * np.sqrt(nominal * (1.0 - nominal) / curve.n)
    ax.fill_between(nominal, nominal - chance, nominal + chance, color=GREY, alpha=0.22, linewidth=0, label="chance")
    ax.plot(nominal, nominal, color=GREY, linewidth=0.8)
    ax.plot(
        curve.levels,
        curve.observed,
        "o-",
        color=BLUE,
        linewidth=1.4,
        markersize=3.5,
        label=f"observed (error {curve.error:.3f})",
    )
    ticks = [0, 0.25, 0.5, 0.75, 1]
    ax.set(xlabel="nominal coverage", ylabel="observed coverage", xlim=(0, 1), ylim=(0, 1), xticks=ticks, yticks=ticks)
    ax.set_aspect("equal")
    ax.legend(frameon=False, fontsize="small", loc="upper left")
    return ax
