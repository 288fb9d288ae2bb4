"""L-BFGS in steps, whose memory outlives small changes of its objective.

Between two M-steps of variational EM the responsibilities change a little and the curvature hardly at all: what earlier
steps learned of it makes the first step of the next M-step a good one.

Source: Nocedal and Wright (2006), Numerical Optimization, alg. 7.4 (two-loop recursion) and sec. 3.1 (backtracking).
"""

from collections import deque
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Loss = Callable[[Vector], tuple[float, Vector]]

_LONGEST = 2.0  # of a step in any coordinate, a factor of e² on scale parameters
_SUFFICIENT = 1e-4  # share of the decrease that the slope promises
_FLAT = 1e-6  # largest slope at which no step is taken


class LBFGS:
    """Minimises a function of a vector, a few steps at a time; the function may change between calls."""

    def __init__(self, memory: int = 10) -> None:
        self._pairs: deque[tuple[Vector, Vector, float]] = deque(maxlen=memory)

    def minimise(self, loss: Loss, x: Vector, steps: int, lower: Vector | None = None) -> tuple[Vector, float]:
        """Take steps down, each of which lowers the loss; fewer where none can be found.

        Args:
            loss: value and gradient; infinity where it is not defined, but not at `x`.
            x: where to start, ``(p,)``.
            steps: the most.
            lower: what no coordinate goes below, ``(p,)``; one that lies there, and would go on, does not count.

        Returns:
            The last x and its loss.
        """
        if lower is not None:
            loss = _bounded(loss, lower)
        value, gradient = loss(x)
        for _ in range(steps):
            if np.abs(gradient).max(initial=0.0) < _FLAT:
                break
            found = self._search(loss, x, value, gradient)
            if found is None and self._pairs:  # the memory misleads: steepest descent instead
                self._pairs.clear()
                found = self._search(loss, x, value, gradient)
            if found is None:
                break
            new_x, value, new_gradient = found
            new_x = new_x if lower is None else np.maximum(new_x, lower)
            self._remember(new_x - x, new_gradient - gradient)
            x, gradient = new_x, new_gradient
        return x, value

    def _search(self, loss: Loss, x: Vector, value: float, gradient: Vector) -> tuple[Vector, float, Vector] | None:
        """A point along the quasi-Newton direction that lowers the loss enough, by backtracking."""
        direction = self._direction(gradient)
        slope = float(direction @ gradient)
        if not slope < 0:
            return None
        size = min(1.0, _LONGEST / float(np.abs(direction).max()))
        if not self._pairs:
            size = min(size, 1 / float(np.abs(gradient).sum()))
        for _ in range(20):
            trial = x + size * direction
            new, new_gradient = loss(trial)
            if new <= value + _SUFFICIENT * size * slope:
                return trial, new, new_gradient
            vertex = -0.5 * slope * size**2 / (new - value - slope * size) if np.isfinite(new) else 0.0
            size = min(max(vertex, 0.1 * size), 0.5 * size)
        return None

    def _direction(self, gradient: Vector) -> Vector:
        direction = -gradient
        shares = []
        for s, y, inverse in reversed(self._pairs):
            share = inverse * float(s @ direction)
            shares.append(share)
            direction = direction - share * y
        if self._pairs:
            s, y, inverse = self._pairs[-1]
            direction = direction / (inverse * float(y @ y))
        for (s, y, inverse), share in zip(self._pairs, reversed(shares), strict=True):
            direction = direction + (share - inverse * float(y @ direction)) * s
        return direction

    def _remember(self, s: Vector, y: Vector) -> None:
        product = float(s @ y)
        if product > 1e-10 * float(np.linalg.norm(s) * np.linalg.norm(y)):  # else the curvature is not positive
            self._pairs.append((s, y, 1 / product))


def _bounded(loss: Loss, lower: Vector) -> Loss:
    """The loss at the nearest allowed point, its gradient without what would lead out."""

    def inside(x: Vector) -> tuple[float, Vector]:
        value, gradient = loss(np.maximum(x, lower))
        return value, np.where((x <= lower) & (gradient > 0), 0.0, gradient)

    return inside
