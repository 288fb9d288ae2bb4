"""The configuration at which an acquisition is largest: in continuous, discrete, mixed and conditional spaces.

From the best of many scattered candidates, two moves alternate until neither gains: L-BFGS-B over what moves
continuously, and the best of all neighbours in what does not. Constraints are kept by leaving out what breaks them.
"""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.stats import qmc

from gpmoe.bo.acquisition import Acquisition
from gpmoe.bo.encoding import Encoding

Matrix = NDArray[np.float64]
Vector = NDArray[np.float64]

_ALL = 4096  # configurations up to which all are scored
_SCATTERED = 1024
_NEAR = 64  # candidates around each of the best points
_ROUNDS = 6  # of the two moves
_CHOICES = 24  # neighbours of a parameter that are looked at


class Search:
    """Maximises acquisitions over one space.

    Args:
        encoding: of the space.
        seen: coordinates that must not be proposed again, ``(n, p)``, NaN where inactive.
        rng: for the candidates.
        n_starts: how many climbs.
    """

    def __init__(self, encoding: Encoding, seen: Matrix, *, rng: np.random.Generator, n_starts: int = 6) -> None:
        self.encoding = encoding
        self.rng = rng
        self.n_starts = n_starts
        self._seen = {key(c) for c in seen}

    def maximise(self, acquisition: Acquisition, incumbents: Matrix) -> Vector | None:
        """Coordinates of the best unseen configuration that is found, ``(p,)``, NaN where inactive.

        Args:
            acquisition: of model inputs.
            incumbents: coordinates of the best points so far, ``(b, p)``, around which is searched too.

        Returns:
            None if every configuration has been seen, or none obeys the constraints.
        """
        C = self._candidates(incumbents)
        C = C[self.encoding.allowed(self.encoding.active(C))]
        if not len(C):
            return None
        values = self._score(acquisition, C)
        if self.encoding.size <= _ALL:
            return self._first_unseen(C, values)
        starts = C[self._best_apart(C, values)]
        ends = [self._climb(acquisition, start) for start in starts]
        everything = np.concatenate([[c for c, _ in ends], C])
        return self._first_unseen(everything, np.concatenate([[value for _, value in ends], values]))

    def is_new(self, c: Vector) -> bool:
        """Whether a configuration, ``(p,)`` with NaN where inactive, has not been seen."""
        return key(c) not in self._seen

    def random(self) -> Vector | None:
        """A random unseen configuration's coordinates; None as in `maximise`."""
        C = self._candidates(np.empty((0, len(self.encoding.names))))
        C = C[self.encoding.allowed(self.encoding.active(C))]
        return self._first_unseen(C, self.rng.random(len(C))) if len(C) else None

    def _score(self, acquisition: Acquisition, C: Matrix) -> Vector:
        return acquisition(self.encoding.inputs(self.encoding.active(C)))

    def _candidates(self, incumbents: Matrix) -> Matrix:
        """Scattered coordinates and some near the incumbents, every parameter active, ``(m, p)``."""
        encoding = self.encoding
        p = len(encoding.names)
        if encoding.size <= _ALL:
            grids = [levels for levels in encoding.grids if levels is not None]
            return np.stack([axis.ravel() for axis in np.meshgrid(*grids, indexing="ij")], axis=1)
        scattered = encoding.draw(qmc.Sobol(p, seed=self.rng).random(_SCATTERED))
        if not len(incumbents):
            return scattered
        base = np.repeat(incumbents, _NEAR, axis=0)
        fresh = encoding.draw(self.rng.random(base.shape))
        base = np.where(np.isnan(base), fresh, base)
        # Some coordinates move a little, on a scale of its own for each candidate; categorical ones are drawn anew.
        reach = 10 ** self.rng.uniform(-3, -0.5, (len(base), 1))
        moves = self.rng.random(base.shape) < np.maximum(self.rng.random((len(base), 1)), 1 / p)
        stepped = base + reach * self.rng.standard_normal(base.shape)
        stepped = np.where(encoding.categorical, fresh, stepped.clip(0, 1))
        return np.concatenate([scattered, encoding.snap(np.where(moves, stepped, base))])

    def _best_apart(self, C: Matrix, values: Vector) -> NDArray[np.intp]:
        """Where to climb from: the best candidate, and others drawn with weights that grow with their values."""
        order = np.argsort(-values, kind="stable")
        top = order[: max(8 * self.n_starts, 50)]
        weights = np.exp(np.maximum(values[top] - values[top[0]], -10.0))
        others = self.rng.choice(top, min(self.n_starts - 1, len(top)), replace=False, p=weights / weights.sum())
        return np.concatenate([top[:1], others[others != top[0]]])

    def _climb(self, acquisition: Acquisition, c: Vector) -> tuple[Vector, float]:
        """The two moves from one start; coordinates, every parameter active, and value of its end."""
        value = float(self._score(acquisition, c[None])[0])
        for _ in range(_ROUNDS):
            before = value
            c, value = self._slide(acquisition, c, value)
            c, value = self._hop(acquisition, c, value)
            if value <= before + 1e-6 or self.encoding.moved.all():
                break
        return c, value

    def _slide(self, acquisition: Acquisition, c: Vector, value: float) -> tuple[Vector, float]:
        """Climb over the continuous active coordinates."""
        encoding = self.encoding
        free = np.flatnonzero(encoding.moved & ~np.isnan(encoding.active(c[None])[0]))
        if not len(free):
            return c, value
        columns = encoding.column[free]
        inputs = encoding.inputs(encoding.active(c[None]))

        def loss(u: Vector) -> tuple[float, Vector]:
            inputs[0, columns] = u
            values, slope = acquisition.with_slope(inputs)
            return -float(values[0]), -slope[0, columns]

        options = {"maxiter": 60, "ftol": 1e-8, "gtol": 1e-5}
        end = minimize(loss, c[free], jac=True, method="L-BFGS-B", bounds=[(0, 1)] * len(free), options=options)
        moved = c.copy()
        moved[free] = end.x
        moved = encoding.snap(moved[None])
        gained = float(self._score(acquisition, moved)[0])
        if gained > value and encoding.allowed(encoding.active(moved))[0]:
            return moved[0], gained
        return c, value

    def _hop(self, acquisition: Acquisition, c: Vector, value: float) -> tuple[Vector, float]:
        """Go to the best neighbour in the discrete coordinates, as often as that gains."""
        for _ in range(3 * len(c)):
            neighbours = np.array(list(self._neighbours(c)))
            if not len(neighbours):
                break
            neighbours = neighbours[self.encoding.allowed(self.encoding.active(neighbours))]
            if not len(neighbours):
                break
            values = self._score(acquisition, neighbours)
            best = int(np.argmax(values))
            if values[best] <= value + 1e-9:
                break
            c, value = neighbours[best], float(values[best])
        return c, value

    def _neighbours(self, c: Vector) -> Iterator[Vector]:
        """Coordinates that differ in one active discrete parameter."""
        active = ~np.isnan(self.encoding.active(c[None])[0])
        for j, levels in enumerate(self.encoding.grids):
            if levels is None or not active[j] or self.encoding.moved[j]:
                continue
            at = int(np.argmin(np.abs(levels - c[j])))
            if len(levels) > _CHOICES and not self.encoding.categorical[j]:
                steps = 2 ** np.arange(_CHOICES // 2)
                places = np.unique(np.clip(np.concatenate([at - steps, at + steps]), 0, len(levels) - 1))
            elif len(levels) > _CHOICES:
                places = self.rng.choice(len(levels), _CHOICES, replace=False)
            else:
                places = np.arange(len(levels))
            for place in places[places != at]:
                other = c.copy()
                other[j] = levels[place]
                yield other

    def _first_unseen(self, C: Matrix, values: Vector) -> Vector | None:
        active = self.encoding.active(C)
        for i in np.argsort(-values, kind="stable"):
            if self.is_new(active[i]) and math.isfinite(values[i]):
                return active[i]
        return None


def key(c: Vector) -> bytes:
    """What two rows of coordinates have in common that are one configuration."""
    return (np.where(np.isnan(c), -1.0, c).round(9) + 0.0).tobytes()
