"""Which expert made each training point: responsibilities along one input, beside the gate's probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from gpmoe.distributions import Array
from gpmoe.errors import InputError, NonFiniteError, ShapeError
from gpmoe.plotting.ink import expert_colour, one_column, open_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LEAST_SEEN = 0.01  # responsibility from which a dot is drawn


@dataclass(frozen=True, eq=False)
class ResponsibilityPoints:
    """The numbers of a responsibility figure, rows sorted by x.

    Args:
        x: training inputs, ``(n,)``.
        responsibilities: probability that each expert made each point, ``(n, k)``, rows sum to one.

    Example:
        >>> ResponsibilityPoints(np.zeros(2), np.full((2, 3), 1 / 3)).responsibilities.shape
        (2, 3)
    """

    x: Array
    responsibilities: Array


def responsibility_points(X: ArrayLike, responsibilities: ArrayLike) -> ResponsibilityPoints:
    """Sort responsibilities by the one input.

    Args:
        X: training inputs, ``(n, 1)``, any order.
        responsibilities: ``(n, k)``, for instance ``estimator.responsibilities_``.

    Raises:
        ShapeError: if X has more than one feature, or another length than the responsibilities.
        NonFiniteError, InputError: if a row of responsibilities is not a probability vector; names the row.

    Example:
        >>> responsibility_points([[1.0], [0.0]], [[0.2, 0.8], [1.0, 0.0]]).responsibilities[:, 0]
        array([1. , 0.2])
    """
    x = one_column("X", X)
    r = checked_shares("responsibilities", responsibilities)
    if len(r) != len(x):
        raise ShapeError(f"`responsibilities` must have one row a row of `X`, {len(x)}; got {len(r)}.")
    order = np.argsort(x, kind="stable")
    return ResponsibilityPoints(x[order], r[order])


def plot_responsibilities(points: ResponsibilityPoints, ax: Axes | None = None, *, xlabel: str = "x") -> Axes:
    """Draw each expert's responsibility at each training point as a dot in the expert's colour.

    On the axes of `plot_gate` it shows where data and gate disagree. Dots below 0.01 are left out: with several experts
    there are many of them, on top of each other.

    Args:
        points: from `responsibility_points`.
        ax: axes to draw on, or None for a new figure.
        xlabel: label of the input, with its unit.

    Returns:
        The axes drawn on.

    Raises:
        MissingPackageError: if matplotlib is not installed.

    Example:
        >>> points = responsibility_points([[0.0], [1.0]], [[0.9, 0.1], [0.3, 0.7]])
        >>> plot_responsibilities(points, xlabel="time [s]").get_ylabel()
        'responsibility'
    """
    ax = open_axes(ax, figsize=(6.4, 2.2))
    named = ax.get_legend_handles_labels()[1]
    for k, r in enumerate(points.responsibilities.T):
        seen = r >= _LEAST_SEEN
        name = f"expert {k + 1}"
        ax.plot(
            points.x[seen],
            r[seen],
            "o",
            color=expert_colour(k),
            markersize=4,
            markeredgecolor="white",
            markeredgewidth=0.4,
            label="_" if name in named else name,
        )
    ax.set(xlabel=xlabel, ylabel="responsibility", ylim=(-0.04, 1.04), yticks=[0, 0.5, 1])
    ax.margins(x=0.01)
    ax.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return ax


def checked_shares(name: str, shares: ArrayLike) -> Array:
    """Rows of probabilities as float64 ``(n, k)``.

    Raises:
        ShapeError: if they are no matrix.
        NonFiniteError, InputError: naming the first row that is not finite, not positive or does not sum to one.
    """
    values = np.asarray(shares, dtype=np.float64)
    if values.ndim != 2 or 0 in values.shape:
        raise ShapeError(f"`{name}` must have shape (n, k), at least (1, 1); got {values.shape}.")
    bad = ~np.isfinite(values).all(1)
    if bad.any():
        raise NonFiniteError(f"`{name}` must be finite; row {int(np.argmax(bad))} is {values[np.argmax(bad)]}.")
    bad = (values < 0).any(1) | (np.abs(values.sum(1) - 1) > 1e-6)
    if bad.any():
        row = int(np.argmax(bad))
        raise InputError(f"rows of `{name}` must be non-negative and sum to one; row {row} is {values[row]}.")
    return values
