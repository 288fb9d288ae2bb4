"""What is known of a series besides its measurements, checked: grid times, labels, covariates, ends."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpmoe.early_warning.offsets import offsets_of
from gpmoe.early_warning.rows import Array, Index
from gpmoe.errors import InputError, NonFiniteError, ShapeError

Grid = tuple[Array, Index]


def checked_grid(
    grid: Grid, labels: Array | None, n: int, ids: NDArray[Any], repair: bool
) -> tuple[Grid, Array | None, int]:
    """Grid times that rise strictly within each series, labels that went along, and how many rows were repaired.

    Raises:
        ShapeError: if there are offsets for another number of series.
        NonFiniteError, InputError: if a time is NaN or infinite, or does not lie after the one above; names the row.
    """
    times, offsets = grid
    if len(offsets) != n + 1:
        raise ShapeError(f"`grid_offsets` must have shape ({n + 1},), as there are {n} series; got ({len(offsets)},).")
    owner = np.repeat(np.arange(n), np.diff(offsets))
    bad = ~np.isfinite(times)
    if bad.any() and not repair:
        row = int(np.argmax(bad))
        raise NonFiniteError(f"grid row {row} (series {ids[owner[row]]!s}) is {times[row]}; drop it or repair=True.")
    stuck = (np.diff(times) <= 0) & (np.diff(owner) == 0)
    if stuck.any() and not repair:
        row = int(np.argmax(stuck)) + 1
        raise InputError(
            f"grid row {row} (series {ids[owner[row]]!s}, time {times[row]:g}) does not lie after the row above it, "
            f"{times[row - 1]:g}. Sort grid times and keep each once, or pass repair=True, which keeps the last."
        )
    if not bad.any() and not stuck.any():
        return grid, labels, 0
    order = np.flatnonzero(~bad)
    order = order[np.lexsort((times[order], owner[order]))]
    last = np.ones(len(order), dtype=bool)
    last[:-1] = (np.diff(times[order]) != 0) | (np.diff(owner[order]) != 0)
    kept = order[last]
    follows = labels is not None and len(labels) == len(times)
    counts = offsets_of(owner[kept], n)
    touched = int(bad.sum() + stuck.sum())
    return (times[kept], counts), (labels[kept] if labels is not None and follows else labels), touched


def checked_labels(labels: Array | None, n_grid: int, n: int) -> tuple[Array | None, str | None]:
    """Labels, and whether there is one a "grid" time or one a "series".

    Raises:
        ShapeError: if it is neither.
        InputError: if a label is infinite.
    """
    if labels is None:
        return None, None
    if labels.ndim not in (1, 2) or len(labels) not in (n_grid, n):
        raise ShapeError(
            f"`labels` must hold one row a grid time ({n_grid}) or one a series ({n}); got shape {labels.shape}."
        )
    if np.isinf(labels).any():
        raise InputError("`labels` must be numbers, or NaN where unknown; got an infinite one.")
    return labels, "grid" if len(labels) == n_grid else "series"


def checked_static(static: ArrayLike | None, names: Sequence[str] | None, n: int) -> tuple[Array, tuple[str, ...]]:
    """Covariates ``(N, s)`` and their names.

    Raises:
        ShapeError: if there is not one row a series, or not one name a column.
        InputError: if one is infinite.
    """
    values = np.zeros((n, 0)) if static is None else np.array(static, dtype=np.float64)
    values = values[:, None] if values.ndim == 1 else values
    if values.ndim != 2 or len(values) != n:
        raise ShapeError(f"`static` must have shape ({n}, s), one row a series; got {values.shape}.")
    found = tuple(f"static {i}" for i in range(values.shape[1])) if names is None else tuple(map(str, names))
    if len(found) != values.shape[1]:
        raise ShapeError(
            f"`static_names` must hold {values.shape[1]} names, one a column of `static`; got {len(found)}."
        )
    if np.isinf(values).any():
        row, column = np.argwhere(np.isinf(values))[0]
        raise InputError(f"`static` row {row}, column {column} ({found[column]}) is infinite; use NaN for unknown.")
    return values, found


def checked_ends(
    event_time: ArrayLike | None, censoring_time: ArrayLike | None, n: int
) -> tuple[Array | None, Array | None]:
    """Event times, infinite where no event was seen, and censoring times, each ``(N,)`` or None.

    Raises:
        ShapeError: if there is not one a series.
    """
    event = None if event_time is None else np.array(event_time, dtype=np.float64)
    censoring = None if censoring_time is None else np.array(censoring_time, dtype=np.float64)
    for name, times in (("event_time", event), ("censoring_time", censoring)):
        if times is not None and times.shape != (n,):
            raise ShapeError(f"`{name}` must have shape ({n},), one a series; got {times.shape}.")
    if event is not None:
        event[np.isnan(event)] = np.inf
    return event, censoring
