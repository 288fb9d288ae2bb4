"""The experts of a mixture along one input, and the gate that weighs them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import ArrayLike

from gpmoe.distributions import Array, Predictive
from gpmoe.errors import ShapeError
from gpmoe.plotting.ink import draw_data, expert_colour, one_column, open_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STRIP = 512  # colours along a band


class PredictsExperts(Protocol):
    """What `expert_curves` asks of a model: a fitted mixture-of-experts estimator has it.

    Example:
        >>> class Coin:
        ...     def predict_experts(self, X):
        ...         return [Predictive.gaussian(np.full(len(X), side), np.ones(len(X))) for side in (-1.0, 1.0)]
        ...     def predict_gate_probs(self, X):
        ...         return np.full((len(X), 2), 0.5)
        >>> expert_curves(Coin(), [[0.0]]).expert_means
        array([[-1.,  1.]])
    """

    def predict_experts(self, X: ArrayLike) -> Sequence[Predictive]:
        """Each expert's own p(y | data) at X, ``(m, 1)``."""
        ...

    def predict_gate_probs(self, X: ArrayLike) -> Array:
        """Gate probabilities at X, ``(m, k)``."""
        ...


@dataclass(frozen=True, eq=False)
class ExpertCurves:
    """The numbers of an expert or gate figure, rows sorted by x.

    Args:
        x: inputs, ``(m,)``.
        mean: mean of the mixture, ``(m,)``, units of y.
        expert_means: predictive mean of each expert, ``(m, k)``, units of y.
        gate_probs: probability of each expert, ``(m, k)``, rows sum to one.
        expert_lower: lower end of each expert's central 90 % predictive interval, ``(m, k)``, units of y, or None.
        expert_upper: upper end of it, ``(m, k)``, units of y, or None.

    Example:
        >>> ExpertCurves(np.zeros(2), np.zeros(2), np.zeros((2, 3)), np.full((2, 3), 1 / 3)).expert_means.shape
        (2, 3)
    """

    x: Array
    mean: Array
    expert_means: Array
    gate_probs: Array
    expert_lower: Array | None = None
    expert_upper: Array | None = None


def expert_curves(model: PredictsExperts, X_new: ArrayLike) -> ExpertCurves:
    """Compute each expert's mean, 90 % band and gate probability along one input.

    Args:
        model: a fitted mixture of experts with ``predict_experts`` and ``predict_gate_probs``.
        X_new: where to predict, ``(m, 1)``, any order.

    Raises:
        ShapeError: if X_new has more than one feature, or the gate and the mixture differ in experts.

    Example: see `PredictsExperts`.
    """
    x = one_column("X_new", X_new)
    order = np.argsort(x, kind="stable")
    experts = [each[order] for each in model.predict_experts(X_new)]
    gate_probs = np.asarray(model.predict_gate_probs(X_new), dtype=np.float64)
    if gate_probs.shape != (len(x), len(experts)):
        raise ShapeError(
            "`predict_gate_probs` must give one probability an expert, shape "
            f"{(len(x), len(experts))}; got {gate_probs.shape}."
        )
    gate_probs = gate_probs[order]
    means = np.stack([each.mean for each in experts], 1)
    ends = np.stack([each.interval(0.9) for each in experts], -1)
    return ExpertCurves(x[order], (gate_probs * means).sum(1), means, gate_probs, ends[0], ends[1])


def plot_experts(
    curves: ExpertCurves,
    ax: Axes | None = None,
    *,
    X: ArrayLike | None = None,
    y: ArrayLike | None = None,
    xlabel: str = "x",
    ylabel: str = "y",
) -> Axes:
    """Draw each expert's mean and 90 % band, as opaque as its gate probability, and the mixture's mean dashed.

    Args:
        curves: from `expert_curves`.
        ax: axes to draw on, or None for a new figure.
        X: inputs of data to show, ``(n, 1)``, with ``y``.
        y: targets of data to show, ``(n,)``.
        xlabel: label of the input, with its unit.
        ylabel: label of the target, with its unit.

    Returns:
        The axes drawn on.

    Raises:
        MissingPackageError: if matplotlib is not installed.
        ShapeError: if X and y don't fit each other.

    Example:
        >>> x = np.linspace(0.0, 1.0, 50)
        >>> curves = ExpertCurves(x, x, np.stack([x, -x], 1), np.stack([1 - x, x], 1))
        >>> [text.get_text() for text in plot_experts(curves).get_legend().get_texts()]
        ['expert 1', 'expert 2', 'mixture mean']
    """
    ax = open_axes(ax)
    for k, (mean, probs) in enumerate(zip(curves.expert_means.T, curves.gate_probs.T, strict=True)):
        _draw_fading_line(ax, curves.x, mean, probs, expert_colour(k))
        ax.plot([], [], color=expert_colour(k), linewidth=2.2, label=f"expert {k + 1}")
    if curves.expert_lower is not None and curves.expert_upper is not None:
        for k, (low, high) in enumerate(zip(curves.expert_lower.T, curves.expert_upper.T, strict=True)):
            _draw_fading_band(ax, curves.x, low, high, curves.gate_probs[:, k], expert_colour(k))
    ax.plot(curves.x, curves.mean, color="0.15", linewidth=1.0, linestyle=(0, (4, 2)), label="mixture mean")
    draw_data(ax, X, y)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.margins(x=0.01)
    ax.legend(frameon=False, fontsize="small")
    return ax


def plot_gate(curves: ExpertCurves, ax: Axes | None = None, *, xlabel: str = "x") -> Axes:
    """Draw the gate probabilities stacked to one, each expert in the colour that `plot_experts` gives it.

    Args:
        curves: from `expert_curves`.
        ax: axes to draw on, or None for a new figure.
        xlabel: label of the input, with its unit.

    Returns:
        The axes drawn on.

    Raises:
        MissingPackageError: if matplotlib is not installed.

    Example:
        >>> x = np.linspace(0.0, 1.0, 50)
        >>> curves = ExpertCurves(x, x, np.stack([x, -x], 1), np.stack([1 - x, x], 1))
        >>> plot_gate(curves).get_ylabel()
        'gate probability'
    """
    ax = open_axes(ax, figsize=(6.4, 2.2))
    edges = np.cumsum(np.pad(curves.gate_probs, ((0, 0), (1, 0))), axis=1)
    for k in range(curves.gate_probs.shape[1]):
        lower, upper = edges[:, k], edges[:, k + 1]
        ax.fill_between(
            curves.x, lower, upper, color=expert_colour(k), alpha=0.75, linewidth=0, label=f"expert {k + 1}"
        )
        if k > 0:
            ax.plot(curves.x, lower, color="white", linewidth=0.8)
    ax.set(xlabel=xlabel, ylabel="gate probability", ylim=(0, 1), yticks=[0, 0.5, 1])
    ax.margins(x=0.01)
    return ax


def _draw_fading_line(ax: Axes, x: Array, mean: Array, probs: Array, colour: str) -> None:
    """A line through (x, mean) with the opacity of each piece set by the gate; never quite invisible.

    Where the gate all but rules the expert out, the line may leave the axes: such values are often far off.
    """
    from matplotlib.collections import LineCollection
    from matplotlib.colors import to_rgb

    points = np.stack([x, mean], axis=1)
    opacity = 0.08 + 0.92 * np.clip(0.5 * (probs[:-1] + probs[1:]), 0.0, 1.0)
    colours = [(*to_rgb(colour), float(a)) for a in opacity]
    pieces = np.stack([points[:-1], points[1:]], axis=1)
    ax.add_collection(LineCollection(list(pieces), colors=colours, linewidths=2.2, capstyle="butt"), autolim=False)
    if (probs > 0.05).any():
        ax.update_datalim(points[probs > 0.05])


def _draw_fading_band(ax: Axes, x: Array, lower: Array, upper: Array, probs: Array, colour: str) -> None:
    """The area between two lines, whose opacity follows the gate: a strip of colour cut to the area."""
    from matplotlib.colors import to_rgb
    from matplotlib.image import AxesImage
    from matplotlib.path import Path

    bottom, top = lower.min(), upper.max()
    if not (x[0] < x[-1] and bottom < top):  # no area
        return
    outline = np.concatenate([np.stack([x, lower], 1), np.stack([x, upper], 1)[::-1]])
    opacity = 0.22 * np.interp(np.linspace(x[0], x[-1], _STRIP), x, np.clip(probs, 0.0, 1.0))
    strip = np.concatenate([np.tile(to_rgb(colour), (_STRIP, 1)), opacity[:, None]], axis=1)
    band = AxesImage(ax, extent=(x[0], x[-1], bottom, top), origin="lower", interpolation="bilinear")
    band.set_data(strip[None])
    ax.add_image(band)
    band.set_zorder(1)
    band.set_clip_path(Path(outline), ax.transData)
    band.set_in_layout(False)  # what leaves the axes takes no room
    seen = probs > 0.05
    if seen.any():
        ax.update_datalim(np.concatenate([np.stack([x, end], 1)[seen] for end in (lower, upper)]))
