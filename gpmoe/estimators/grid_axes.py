"""Rows that lie on a grid: which columns make up each axis, and which cell each row is."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpmoe.errors import InputError, MemoryLimitError

Array = NDArray[np.float64]
Codes = NDArray[np.int64]

_FULL_ENOUGH = 0.5  # two groups of columns are axes of their own if so much of their product occurs
_MOST_CELLS = 2**27


@dataclass(frozen=True)
class GridRows:
    """Rows as cells of a grid.

    Attributes:
        columns: the columns of each axis.
        points: the distinct points of each axis, ``(n_j, d_j)``.
        cells: the index on each axis of each row, ``(k, n)``.
    """

    columns: tuple[tuple[int, ...], ...]
    points: tuple[Array, ...]
    cells: Codes

    @property
    def shape(self) -> tuple[int, ...]:
        """n_1, …, n_k."""
        return tuple(len(points) for points in self.points)

    def on_grid(self, y: Array) -> Array:
        """Targets ``(n,)`` on the grid, NaN where there is no row."""
        grid = np.full(self.shape, np.nan)
        grid[tuple(self.cells)] = y
        return grid


def find_grid(X: Array, axes: Sequence[Sequence[int]] | None = None) -> GridRows:
    """Read rows as cells of a grid.

    Args:
        X: ``(n, d)``; values that should be one point of an axis must be equal to the last bit.
        axes: the columns of each axis; None to look for them: columns of which less than half the combinations occur
            belong to one axis.

    Raises:
        InputError: if the rows have no product structure, if two lie in one cell, or `axes` doesn't name each column
            once.
        MemoryLimitError: if the grid had more than 2^27 cells.

    Example:
        >>> import numpy as np
        >>> X = np.array([[place, time] for place in (0.0, 1.0, 2.0) for time in (5.0, 6.0, 9.0)])
        >>> find_grid(X[:-1]).shape
        (3, 3)
    """
    n, d = X.shape
    if axes is None:
        columns = _find_columns(X)
        if len(columns) == 1 and d > 1:
            raise InputError(
                f"the {n} rows of X ({d} columns) don't lie on a grid: no split of the columns into groups has even "
                "half of its combinations among the rows. Usual causes, most likely first: scattered points (use "
                "GPRegressor); coordinates that differ by rounding (X.round(6)); a grid with most of its cells missing "
                "(name the columns of each axis: axes=[[0], [1, 2]])."
            )
    else:
        columns = [tuple(int(c) for c in axis) for axis in axes]
        if sorted(c for axis in columns for c in axis) != list(range(d)) or not all(columns):
            raise InputError(f"`axes` must name each of the {d} columns once, as in [[0], [1, 2]]; got {axes}.")
    pairs = [np.unique(X[:, axis], axis=0, return_inverse=True) for axis in columns]
    grid = GridRows(
        tuple(columns), tuple(points for points, _ in pairs), np.stack([codes.reshape(-1) for _, codes in pairs])
    )
    _check_cells(grid)
    return grid


def _find_columns(X: Array) -> list[tuple[int, ...]]:
    """Start with each column alone; merge the two groups whose product is emptiest, while it is too empty."""
    groups: list[tuple[int, ...]] = [(c,) for c in range(X.shape[1])]
    codes: list[Codes] = [np.unique(column, return_inverse=True)[1].astype(np.int64) for column in X.T]
    while len(groups) > 1:
        joint = {
            (a, b): np.unique(codes[a] * (codes[b].max() + 1) + codes[b], return_inverse=True)
            for a in range(len(groups))
            for b in range(a + 1, len(groups))
        }
        fullness = {(a, b): len(joint[a, b][0]) / ((codes[a].max() + 1) * (codes[b].max() + 1)) for a, b in joint}
        a, b = min(fullness, key=lambda pair: fullness[pair])
        if fullness[a, b] >= _FULL_ENOUGH:
            break
        merged, code = tuple(sorted(groups[a] + groups[b])), joint[a, b][1].astype(np.int64)
        keep = [i for i in range(len(groups)) if i not in (a, b)]
        groups, codes = [*(groups[i] for i in keep), merged], [*(codes[i] for i in keep), code]
    return sorted(groups)


def _check_cells(grid: GridRows) -> None:
    size = 1
    for points in grid.points:
        size *= len(points)
    if size > _MOST_CELLS:
        raise MemoryLimitError(
            f"the grid of X would have {' x '.join(map(str, grid.shape))} = {size} cells, of which "
            f"{grid.cells.shape[1]} are observed; at most {_MOST_CELLS} are taken. Put columns that vary together into "
            "one axis (axes=[[0], [1, 2]]), or use GPRegressor."
        )
    flat = np.ravel_multi_index(tuple(grid.cells), grid.shape)
    order = np.argsort(flat, kind="stable")
    twice = np.flatnonzero(np.diff(flat[order]) == 0)
    if len(twice):
        first, second = (int(order[twice[0] + i]) for i in (0, 1))
        raise InputError(
            f"rows {first} and {second} of X are the same cell of the grid, and {len(twice)} rows in all repeat one. "
            "Average their targets, or use GPRegressor."
        )
