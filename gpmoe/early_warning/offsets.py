"""Rows of many series one after another: where each series begins."""

import numpy as np
from numpy.typing import ArrayLike

from gpmoe.early_warning.rows import Index
from gpmoe.errors import ShapeError


def offsets_of(owner: Index, n: int) -> Index:
    """Offsets ``(n + 1,)`` of rows grouped by their series ``owner`` ``(rows,)``."""
    return np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=n))]).astype(np.int64)


def picked(offsets: Index, index: Index) -> tuple[Index, Index]:
    """Numbers of the rows of the series ``index``, in that order, and their new offsets."""
    sizes = np.diff(offsets)[index]
    new = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return np.arange(new[-1]) + np.repeat(offsets[index] - new[:-1], sizes), new


def checked_offsets(name: str, offsets: ArrayLike, rows: int) -> Index:
    """Offsets as int64.

    Raises:
        ShapeError: if they are not integers that rise from 0 to the number of rows.
    """
    bounds = np.asarray(offsets)
    whole = bounds.ndim == 1 and len(bounds) > 0 and bounds.dtype.kind in "iu"
    bounds = bounds.astype(np.int64) if whole else np.full(1, -1)
    if bounds[0] != 0 or bounds[-1] != rows or (np.diff(bounds) < 0).any():
        raise ShapeError(
            f"`{name}` must be integers (N + 1,) that rise from 0 to the number of rows, {rows}; "
            f"got {np.asarray(offsets).dtype} {np.shape(offsets)}."
        )
    return bounds
