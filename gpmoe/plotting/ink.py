"""The ink that all figures share: colours that colour-blind readers can tell apart, open axes, black data dots."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from gpmoe.distributions import Array
from gpmoe.errors import MissingPackageError, ShapeError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE = "#0072B2"
GREY = "#7F7F7F"
RED = "#B2182B"
"""Of thresholds, alarms and events, and of nothing else."""
EXPERT_COLOURS: tuple[str, ...] = (BLUE, "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
"""Okabe & Ito's colours without black, strongest first; an eighth expert starts again."""


def expert_colour(k: int) -> str:
    """Colour of expert k = 0, 1, ..., the same in every figure.

    Source: Okabe & Ito (2008), Color universal design.

    Example:
        >>> expert_colour(0) == expert_colour(7)
        True
    """
    return EXPERT_COLOURS[k % len(EXPERT_COLOURS)]


def open_axes(ax: Axes | None, *, figsize: tuple[float, float] = (6.4, 3.8)) -> Axes:
    """The axes given, or those of a new figure, with thin spines on the left and at the bottom only.

    Args:
        ax: axes to draw on, or None for a new figure.
        figsize: width and height of a new figure, inches.

    Raises:
        MissingPackageError: if matplotlib is not installed.

    Example:
        >>> bool(open_axes(None).spines["top"].get_visible())
        False
    """
    if ax is None:
        try:
            from matplotlib import pyplot
        except ImportError as error:
            raise MissingPackageError('plotting needs matplotlib: pip install "gpmoe[plot]"') from error
        ax = pyplot.subplots(figsize=figsize, layout="constrained")[1]
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set(linewidth=0.6, color="0.3")
    ax.tick_params(width=0.6, length=3, color="0.3")
    return ax


def draw_data(ax: Axes, X: ArrayLike | None, y: ArrayLike | None) -> None:
    """Black dots at the data, or nothing where there are none.

    Args:
        ax: axes to draw on.
        X: ``(n, 1)`` or ``(n,)``, or None.
        y: ``(n,)``, or None.

    Raises:
        ShapeError: if only one of the two is given, or their lengths differ.

    Example:
        >>> ax = open_axes(None)
        >>> draw_data(ax, [[0.0], [1.0]], [2.0, 3.0])
        >>> len(ax.lines)
        1
    """
    if X is None and y is None:
        return
    if X is None or y is None:
        raise ShapeError("`X` and `y` must be given together; got only one of them.")
    x, targets = one_column("X", X), np.asarray(y, dtype=np.float64)
    if targets.shape != x.shape:
        raise ShapeError(f"`y` must have shape {x.shape}, one target a row of `X`; got {targets.shape}.")
    ax.plot(x, targets, "o", color="black", markersize=2.6, markeredgewidth=0, alpha=0.75, label="data", zorder=4)


def one_column(name: str, X: ArrayLike) -> Array:
    """Inputs with one feature as a vector, ``(m, 1)`` or ``(m,)`` to ``(m,)``.

    Raises:
        ShapeError: if there are more features, or none.

    Example:
        >>> one_column("X", [[1.0], [2.0]])
        array([1., 2.])
    """
    x = np.asarray(X, dtype=np.float64)
    if not (x.ndim == 1 or (x.ndim == 2 and x.shape[1] == 1)):
        raise ShapeError(f"`{name}` must have one feature, shape (m, 1), to be drawn against; got {x.shape}.")
    return x.ravel()
