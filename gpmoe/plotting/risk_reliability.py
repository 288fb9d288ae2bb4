"""Calibration of risks: observed frequency against the risk that was said."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gpmoe.early_warning.calibration import Reliability
from gpmoe.plotting.ink import BLUE, GREY, open_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_reliability(numbers: Reliability, ax: Axes | None = None) -> Axes:
    """Draw the observed frequency of each bin against its mean risk; above the diagonal risks were too low.

    Bars are two standard errors of the frequency, as if rows were independent.

    Args:
        numbers: from `early_warning.reliability`.
        ax: axes to draw on, or None for a new figure.

    Returns:
        The axes drawn on.

    Raises:
        MissingPackageError: if matplotlib is not installed.

    Example:
        >>> from gpmoe.early_warning import Estimate
        >>> bins = np.array([0.1, 0.6])
        >>> plot_reliability(Reliability(Estimate(0.0, 0.0, 0.1), bins, bins, np.array([50.0, 9.0]))).get_xlabel()
        'risk'
    """
    ax = open_axes(ax, figsize=(3.8, 3.8))
    error = 2 * np.sqrt(numbers.observed * (1 - numbers.observed) / numbers.count)
    bounds = [np.minimum(error, numbers.observed), np.minimum(error, 1 - numbers.observed)]
    top = min(1.0, 1.15 * max(float((numbers.observed + bounds[1]).max()), float(numbers.mean_risk.max())))
    ax.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, label="calibrated")
    ax.errorbar(
        numbers.mean_risk, numbers.observed, bounds, fmt="o-", color=BLUE, ecolor=(BLUE, 0.45), elinewidth=1.0,
        linewidth=1.2, markersize=3.5, label=f"observed (error {numbers.error.value:.3f})",
    )  # fmt: skip
    ax.set(xlabel="risk", ylabel="observed frequency", xlim=(0, top), ylim=(0, top))
    ax.set_aspect("equal")
    ax.legend(frameon=False, fontsize="small", loc="upper left")
    return ax
