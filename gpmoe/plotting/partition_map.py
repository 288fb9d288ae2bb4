"""Which expert rules where, over two inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import ArrayLike

from gpmoe.distributions import Array
from gpmoe.errors import InputError, ShapeError
from gpmoe.plotting.ink import expert_colour, open_axes
from gpmoe.plotting.responsibilities import checked_shares

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class PredictsGate(Protocol):
    """What `partition_map` asks of a model: a fitted mixture-of-experts estimator has it.

    Example:
        >>> class Coin:
        ...     def predict_gate_probs(self, X):
        ...         return np.full((len(X), 2), 0.5)
        >>> partition_map(Coin(), [(0.0, 1.0), (0.0, 1.0)], resolution=2).probability
        array([[0.5, 0.5],
               [0.5, 0.5]])
    """

    def predict_gate_probs(self, X: ArrayLike) -> Array:
        """Gate probabilities at X, ``(m, k)``."""
        ...


@dataclass(frozen=True, eq=False)
class PartitionMap:
    """The numbers of a partition map on a grid.

    Args:
        x1: the first input, ``(a,)``, ascending.
        x2: the second input, ``(b,)``, ascending.
        expert: the most probable expert, ``(b, a)``, integers from 0.
        probability: its probability, ``(b, a)``, from 1/k to 1.
        n_experts: k.

    Example:
        >>> ones = np.ones((1, 2))
        >>> PartitionMap(np.zeros(2), np.zeros(1), ones.astype(int), ones, 2).expert.shape
        (1, 2)
    """

    x1: Array
    x2: Array
    expert: Array
    probability: Array
    n_experts: int


def partition_map(
    model: PredictsGate,
    bounds: Sequence[tuple[float, float]],
    *,
    inputs: tuple[int, int] = (0, 1),
    at: ArrayLike | None = None,
    resolution: int = 120,
) -> PartitionMap:
    """Compute the most probable expert and its probability on a grid over two inputs.

    Args:
        model: a fitted mixture of experts.
        bounds: lower and upper end of each of the two inputs.
        inputs: which two inputs, where there are more.
        at: the point whose other inputs are kept, ``(d,)``; None where there are two inputs.
        resolution: points along each input.

    Raises:
        InputError: if the bounds are not two ascending pairs, or the resolution is below two.
        ShapeError: if `inputs` are not two different inputs of `at`.

    Example: see `PredictsGate`.
    """
    if len(bounds) != 2 or any(not low < high for low, high in bounds):
        raise InputError(f"`bounds` must be two pairs (low, high) with low < high; got {bounds}.")
    if resolution < 2:
        raise InputError(f"`resolution` must be at least 2; got {resolution}.")
    point = np.zeros(2) if at is None else np.asarray(at, dtype=np.float64)
    if point.ndim != 1 or len(set(inputs)) != 2 or not all(0 <= j < len(point) for j in inputs):
        raise ShapeError(f"`inputs` must be two different inputs of {point.shape[-1:]}; got {inputs}. Pass `at`.")
    x1, x2 = (np.linspace(low, high, resolution) for low, high in bounds)
    X = np.tile(point, (resolution**2, 1))
    X[:, inputs[0]], X[:, inputs[1]] = np.tile(x1, resolution), np.repeat(x2, resolution)
    probs = checked_shares("predict_gate_probs", model.predict_gate_probs(X))
    shape = (resolution, resolution)
    return PartitionMap(x1, x2, probs.argmax(1).reshape(shape), probs.max(1).reshape(shape), probs.shape[1])


def plot_partition_map(
    parts: PartitionMap,
    ax: Axes | None = None,
    *,
    X: ArrayLike | None = None,
    xlabel: str = "x1",
    ylabel: str = "x2",
) -> Axes:
    """Draw the ruling expert's colour, paler where its probability is lower, with black dots at the data.

    Args:
        parts: from `partition_map`.
        ax: axes to draw on, or None for a new figure.
        X: the two inputs of data to show, ``(n, 2)``.
        xlabel: label of the first input, with its unit.
        ylabel: label of the second input, with its unit.

    Returns:
        The axes drawn on.

    Raises:
        MissingPackageError: if matplotlib is not installed.
        ShapeError: if X has not two columns.

    Example:
        >>> ones = np.ones((2, 2))
        >>> parts = PartitionMap(np.array([0.0, 1.0]), np.array([0.0, 1.0]), ones.astype(int), ones, 2)
        >>> plot_partition_map(parts, xlabel="east [km]", ylabel="north [km]").get_xlabel()
        'east [km]'
    """
    ax = open_axes(ax, figsize=(5.2, 4.2))
    from matplotlib.colors import to_rgb

    colours = np.array([to_rgb(expert_colour(k)) for k in range(parts.n_experts)])
    least = 1 / parts.n_experts
    certainty = 0.15 + 0.7 * (parts.probability - least) / max(1 - least, 1e-12)  # even experts leave a trace of colour
    image = 1 - certainty[..., None] * (1 - colours[parts.expert])
    half1, half2 = 0.5 * (parts.x1[1] - parts.x1[0]), 0.5 * (parts.x2[1] - parts.x2[0])
    extent = (parts.x1[0] - half1, parts.x1[-1] + half1, parts.x2[0] - half2, parts.x2[-1] + half2)
    ax.imshow(image, origin="lower", extent=extent, aspect="auto", interpolation="nearest")
    if X is not None:
        points = np.asarray(X, dtype=np.float64)
        if points.ndim != 2 or points.shape[1] != 2:
            raise ShapeError(f"`X` must have shape (n, 2), the two inputs drawn; got {points.shape}.")
        ax.plot(points[:, 0], points[:, 1], "o", color="black", markersize=2.6, markeredgewidth=0, label="data")
    for k in np.unique(parts.expert):
        ax.plot([], [], "s", color=expert_colour(int(k)), markersize=7, label=f"expert {int(k) + 1}")
    ax.set(xlabel=xlabel, ylabel=ylabel, xlim=extent[:2], ylim=extent[2:])
    ax.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return ax
