"""Configurations as rows of coordinates, and rows of coordinates as the inputs of a model.

| symbol | name in code | shape |
|---|---|---|
| coordinates: number in [0, 1], index of a choice, NaN where inactive | `C` | (n, p) |
| inputs: a column a number, one a choice of a categorical | `X` | (n, d) |
| the parameter that each column belongs to, and shares its lengthscale | `owner` | (d,) |

An inactive parameter stands at the middle of its range, so that two configurations in which it is inactive do not
differ in it; what sets active and inactive apart are the parents. The columns of a categorical are divided by √2: two
different choices are at distance one.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpmoe.bo.parameters import Categorical, grid
from gpmoe.bo.space import Configuration, Space

Matrix = NDArray[np.float64]

_FEW = 100  # levels up to which a number is moved from level to level, above as if it were continuous


class Encoding:
    """The maps between configurations of a space, coordinates and model inputs.

    Parameters of one level are left out of coordinates.

    Args:
        space: the search space.

    Attributes:
        names: of the parameters that vary, parents first, ``p`` of them.
        grids: for each its levels' coordinates, None if it is continuous.
        moved: for each whether it moves continuously in a search.
        owner: for each column of the inputs the place of its parameter, ``(d,)``.
        column: for each parameter its first column, ``(p,)``.

    Example:
        >>> from gpmoe.bo import Categorical, Float, Space
        >>> encoding = Encoding(Space({"a": Float(0, 4), "b": Categorical(["x", "y", "z"])}))
        >>> C = encoding.coordinates([{"a": 1.0, "b": "z"}])
        >>> C.tolist(), encoding.inputs(C).shape
        ([[0.25, 2.0]], (1, 4))
    """

    def __init__(self, space: Space) -> None:
        self.space = space
        self.names = [name for name, parameter in space.parameters.items() if parameter.levels != 1]
        self.parameters = [space.parameters[name] for name in self.names]
        self.grids = [grid(parameter) for parameter in self.parameters]
        self.categorical = np.array([isinstance(p, Categorical) for p in self.parameters], dtype=bool)
        few = [levels is not None and len(levels) <= _FEW for levels in self.grids]
        self.moved = ~self.categorical & ~np.array(few, dtype=bool)
        widths = [len(p.choices) if isinstance(p, Categorical) else 1 for p in self.parameters]
        self.owner = np.repeat(np.arange(len(self.names)), widths)
        self.column = np.concatenate([[0], np.cumsum(widths)])[:-1].astype(np.intp)
        self.conditions = [self._conditions(name) for name in self.names]
        self.conditional = any(condition for condition in self.conditions)

    @property
    def size(self) -> float:
        """How many configurations there are, without constraints; infinite if a parameter is continuous.

        Inactive parameters are counted as if they were active.
        """
        return math.prod(p.levels if p.levels is not None else math.inf for p in self.parameters)

    def coordinates(self, configurations: Sequence[Mapping[str, Any]]) -> Matrix:
        """Coordinates of configurations, NaN for what they don't have, ``(n, p)``."""
        C = np.full((len(configurations), len(self.names)), np.nan)
        for i, configuration in enumerate(configurations):
            for j, (name, parameter) in enumerate(zip(self.names, self.parameters, strict=True)):
                if name in configuration:
                    C[i, j] = parameter.to_unit(configuration[name])
        return C

    def configuration(self, c: Matrix) -> Configuration:
        """The configuration at one row of coordinates, ``(p,)``, which need not be on a level or NaN where inactive."""
        values = {
            name: parameter.from_unit(float(u))
            for name, parameter, u in zip(self.names, self.parameters, c, strict=True)
            if not math.isnan(u)
        }
        fixed = {name: p.from_unit(0.0) for name, p in self.space.parameters.items() if p.levels == 1}
        everything = fixed | values
        return {name: everything[name] for name in self.space.active(everything) if name in everything}

    def draw(self, U: Matrix) -> Matrix:
        """Coordinates at uniform numbers ``(n, p)``, all active."""
        C = np.empty_like(U)
        for j, (parameter, levels) in enumerate(zip(self.parameters, self.grids, strict=True)):
            C[:, j] = U[:, j] if levels is None else [parameter.draw(u) for u in U[:, j]]
        return C

    def snap(self, C: Matrix) -> Matrix:
        """Coordinates of the nearest levels, ``(n, p)``."""
        C = C.copy()
        for j, (parameter, levels) in enumerate(zip(self.parameters, self.grids, strict=True)):
            if levels is not None:
                right = np.clip(np.searchsorted(levels, C[:, j]), 1, len(levels) - 1)
                left_is_nearer = C[:, j] - levels[right - 1] < levels[right] - C[:, j]
                C[:, j] = np.where(np.isnan(C[:, j]), np.nan, levels[right - left_is_nearer])
            elif parameter.levels is not None:
                C[:, j] = [u if math.isnan(u) else parameter.to_unit(parameter.from_unit(u)) for u in C[:, j]]
        return C

    def active(self, C: Matrix) -> Matrix:
        """Coordinates with NaN where parameters are inactive, from rows where every parameter has one."""
        if not self.conditional:
            return C
        C = C.copy()
        for j, condition in enumerate(self.conditions):
            for parent, wanted in condition:
                C[~np.isin(C[:, parent].round(9), wanted), j] = np.nan  # NaN parents too: they come first
        return C

    def inputs(self, C: Matrix) -> Matrix:
        """Model inputs ``(n, d)`` of coordinates ``(n, p)`` with NaN where inactive."""
        X = np.empty((len(C), len(self.owner)))
        for j, parameter in enumerate(self.parameters):
            u, at = C[:, j], self.column[j]
            inactive = np.isnan(u)
            if isinstance(parameter, Categorical):
                k = len(parameter.choices)
                choices = (u[:, None] == np.arange(k)) / math.sqrt(2)
                X[:, at : at + k] = np.where(inactive[:, None], 1 / k / math.sqrt(2), choices)
            else:
                X[:, at] = np.where(inactive, 0.5, u)
        return X

    def allowed(self, C: Matrix) -> NDArray[np.bool_]:
        """Which rows obey the constraints, ``(n,)``."""
        if not self.space.constraints:
            return np.ones(len(C), dtype=bool)
        return np.array([self.space.allows(self.configuration(c)) for c in C], dtype=bool)

    def _conditions(self, name: str) -> list[tuple[int, Matrix]]:
        """Places of parents that vary, and the coordinates under which the parameter is active."""
        conditions = []
        for parent, choices in (self.space.parameters[name].when or {}).items():
            if parent in self.names:
                unit = self.space.parameters[parent].to_unit
                conditions.append((self.names.index(parent), np.round([unit(choice) for choice in choices], 9)))
        return conditions
