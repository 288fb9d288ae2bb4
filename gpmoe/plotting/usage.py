"""How much each expert is used, over the iterations of training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from gpmoe.distributions import Array
from gpmoe.errors import ShapeError
from gpmoe.plotting.ink import GREY, expert_colour, open_axes
from gpmoe.plotting.responsibilities import checked_shares

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class UsageCurves:
    """The numbers of a usage figure.

    Args:
        usage: share of the data that each expert has after each iteration, ``(t, k)``, rows sum to one.
        effective_experts: exp of the usage's entropy, ``(t,)``: k if all are used alike, one if all but one are idle.

    Example:
        >>> UsageCurves(np.full((3, 2), 0.5), np.full(3, 2.0)).effective_experts
        array([2., 2., 2.])
    """

    usage: Array
    effective_experts: Array


def usage_curves(usage: ArrayLike) -> UsageCurves:
    """Compute the effective number of experts over training.

    Args:
        usage: ``(t, k)``, a row an iteration: the mean over the data of the responsibilities, as ``report_.usage`` of
            a fitted mixture.

    Raises:
        ShapeError, NonFiniteError, InputError: if its rows are not probability vectors; names the row.

    Example:
        >>> usage_curves([[0.5, 0.5], [1.0, 0.0]]).effective_experts
        array([2., 1.])
    """
    if np.size(usage) == 0:
        raise ShapeError(
            "`usage` holds no iteration: reports of variational and hard EM of several experts keep it, others don't."
        )
    shares = checked_shares("usage", usage)
    logs = np.log(np.where(shares > 0, shares, 1.0))
    return UsageCurves(shares, np.exp(-(shares * logs).sum(1)))


def plot_usage(curves: UsageCurves, ax: Axes | None = None) -> Axes:
    """Draw each expert's share of the data over training in its colour; the grey line is an equal share.

    Args:
        curves: from `usage_curves`.
        ax: axes to draw on, or None for a new figure.

    Returns:
        The axes drawn on.

    Raises:
        MissingPackageError: if matplotlib is not installed.

    Example:
        >>> plot_usage(usage_curves([[0.5, 0.5], [0.7, 0.3]])).get_xlabel()
        'iteration'
    """
    ax = open_axes(ax, figsize=(6.4, 2.8))
    from matplotlib.ticker import MaxNLocator

    t, k = curves.usage.shape
    ax.axhline(1 / k, color=GREY, linewidth=0.8, linestyle=(0, (4, 2)), label="equal share")
    for i, share in enumerate(curves.usage.T):
        ax.plot(
            np.arange(1, t + 1), share, "o-" if t <= 30 else "-", color=expert_colour(i), linewidth=1.6, markersize=3,
            label=f"expert {i + 1}",
        )  # fmt: skip
    title = f"effective experts: {curves.effective_experts[0]:.1f} at first, {curves.effective_experts[-1]:.1f} at last"
    ax.set_title(title, fontsize="small", loc="left")
    ax.set(xlabel="iteration", ylabel="share of the data", ylim=(-0.02, 1.02))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.margins(x=0.02)
    ax.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return ax
