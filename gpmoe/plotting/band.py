"""The posterior along one input: mean, median and central bands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import ArrayLike

from gpmoe.distributions import Array, Predictive
from gpmoe.errors import InputError
from gpmoe.plotting.ink import BLUE, draw_data, one_column, open_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class PredictsBand(Protocol):
    """What `posterior_band` asks of a model: any fitted estimator of gpmoe has it.

    Example:
        >>> class StandardNormal:
        ...     def predict_dist(self, X):
        ...         return Predictive.gaussian([0.0] * len(X), [1.0] * len(X))
        ...     predict_latent_dist = predict_dist
        >>> posterior_band(StandardNormal(), [[0.0], [1.0]]).mean
        array([0., 0.])
    """

    def predict_dist(self, X: ArrayLike) -> Predictive:
        """p(y | data) at X, ``(m, 1)``, noise included."""
        ...

    def predict_latent_dist(self, X: ArrayLike) -> Predictive:
        """p(f | data) at X, ``(m, 1)``."""
        ...


@dataclass(frozen=True, eq=False)
class PosteriorBand:
    """The numbers of a band figure, rows sorted by x.

    Args:
        x: inputs, ``(m,)``.
        mean: predictive mean, ``(m,)``, units of y.
        median: predictive median, ``(m,)``, units of y; it leaves the mean where the distribution is skew.
        levels: coverages of the bands, ascending, ``(l,)``.
        lower: lower ends of the central predictive intervals, ``(l, m)``, units of y.
        upper: upper ends, ``(l, m)``, units of y.
        latent_lower: lower end of the widest latent interval, ``(m,)``, units of y, or None.
        latent_upper: upper end of it, ``(m,)``, units of y, or None.

    Example:
        >>> zeros = np.zeros(2)
        >>> PosteriorBand(zeros, zeros, zeros, (0.9,), zeros[None] - 1.6, zeros[None] + 1.6).levels
        (0.9,)
    """

    x: Array
    mean: Array
    median: Array
    levels: tuple[float, ...]
    lower: Array
    upper: Array
    latent_lower: Array | None = None
    latent_upper: Array | None = None


def posterior_band(
    model: PredictsBand, X_new: ArrayLike, levels: Sequence[float] = (0.5, 0.9), *, include_latent: bool = True
) -> PosteriorBand:
    """Compute the mean, the median and the central bands of a fitted model along one input.

    Args:
        model: a fitted estimator with ``predict_dist`` and, for the latent band, ``predict_latent_dist``.
        X_new: where to predict, ``(m, 1)``, any order.
        levels: coverages of the bands, each strictly between zero and one.
        include_latent: also the interval of the latent function at the largest level.

    Raises:
        ShapeError: if X_new has more than one feature.
        InputError: if there is no level, or one not strictly between zero and one.

    Example:
        >>> class StandardNormal:
        ...     def predict_dist(self, X):
        ...         return Predictive.gaussian([0.0] * len(X), [1.0] * len(X))
        >>> band = posterior_band(StandardNormal(), [[0.0], [1.0]], levels=[0.9], include_latent=False)
        >>> band.upper.round(3)
        array([[1.645, 1.645]])
    """
    if len(levels) == 0:
        raise InputError("`levels` must hold at least one coverage; got none.")
    x = one_column("X_new", X_new)
    order = np.argsort(x, kind="stable")
    predictive = model.predict_dist(X_new)[order]
    coverages = tuple(sorted(float(level) for level in levels))
    ends = [predictive.interval(level) for level in coverages]
    latent = model.predict_latent_dist(X_new)[order].interval(coverages[-1]) if include_latent else (None, None)
    return PosteriorBand(
        x=x[order],
        mean=predictive.mean,
        median=predictive.quantile(0.5),
        levels=coverages,
        lower=np.array([lower for lower, _ in ends]),
        upper=np.array([upper for _, upper in ends]),
        latent_lower=latent[0],
        latent_upper=latent[1],
    )


def plot_band(
    band: PosteriorBand,
    ax: Axes | None = None,
    *,
    X: ArrayLike | None = None,
    y: ArrayLike | None = None,
    xlabel: str = "x",
    ylabel: str = "y",
    with_mean: bool = True,
    colour: str = BLUE,
) -> Axes:
    """Draw a posterior band: the mean a line, predictive bands in tints of one hue, the latent band inside dashed.

    Args:
        band: from `posterior_band`.
        ax: axes to draw on, or None for a new figure.
        X: inputs of data to show, ``(n, 1)``, with ``y``.
        y: targets of data to show, ``(n,)``.
        xlabel: label of the input, with its unit.
        ylabel: label of the target, with its unit.
        with_mean: whether the mean is drawn; `plot_experts` on the same axes draws it too.
        colour: of bands and mean; "grey" leaves the colours to experts on the same axes.

    Returns:
        The axes drawn on.

    Raises:
        MissingPackageError: if matplotlib is not installed.
        ShapeError: if X and y don't fit each other.

    Example:
        >>> x = np.linspace(0.0, 1.0, 50)
        >>> band = PosteriorBand(x, x, x, (0.9,), x[None] - 1.6, x[None] + 1.6)
        >>> plot_band(band, xlabel="time [s]", ylabel="load [kN]").get_xlabel()
        'time [s]'
    """
    ax = open_axes(ax)
    tints = np.linspace(0.18, 0.36, len(band.levels)) if len(band.levels) > 1 else [0.22]
    for level, lower, upper, tint in zip(band.levels[::-1], band.lower[::-1], band.upper[::-1], tints, strict=True):
        ax.fill_between(band.x, lower, upper, color=colour, alpha=tint, linewidth=0, label=f"{level:.0%} predictive")
    if band.latent_lower is not None and band.latent_upper is not None:
        edges = np.stack([band.latent_lower, band.latent_upper], axis=1)
        label = [f"{band.levels[-1]:.0%} latent", "_"]
        ax.plot(band.x, edges, color=colour, linewidth=0.8, linestyle=(0, (4, 2)), label=label)
    if with_mean:
        ax.plot(band.x, band.mean, color=colour, linewidth=1.6, label="mean")
    draw_data(ax, X, y)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.margins(x=0.01)
    ax.legend(frameon=False, fontsize="small")
    return ax
