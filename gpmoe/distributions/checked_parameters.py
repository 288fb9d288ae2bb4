"""Parameters of distributions as float64 arrays, checked."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpmoe.distributions.standard_densities import Array
from gpmoe.errors import InputError, NonFiniteError, ShapeError


def finite(name: str, values: ArrayLike, *, ndim: int) -> Array:
    """A float64 copy of ``values`` with ``ndim`` dimensions and every entry finite."""
    array = np.array(values, dtype=np.float64)
    if array.ndim != ndim:
        raise ShapeError(f"`{name}` must have shape {'(n,)' if ndim == 1 else '(n, k)'}; got {array.shape}.")
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        raise NonFiniteError(f"`{name}` must be finite; {_place(bad[0])} is {array[tuple(bad[0])]}.")
    return array


def shaped(name: str, values: ArrayLike, shape: tuple[int, ...], *, like: str) -> Array:
    """A float64 copy of ``values``, which must have the shape that another parameter has."""
    array = np.array(values, dtype=np.float64)
    if array.shape != shape:
        raise ShapeError(f"`{name}` must have shape {shape}, as `{like}` has; got {array.shape}.")
    return array


def scalar_or_vector(name: str, values: ArrayLike, n: int) -> Array:
    """A float64 copy of a scalar or ``(n,)``, as ``(n,)``."""
    array = np.array(values, dtype=np.float64)
    if array.shape not in ((), (n,)):
        raise ShapeError(f"`{name}` must be a scalar or have shape ({n},); got {array.shape}.")
    return np.array(np.broadcast_to(array, (n,)))


def positive(name: str, array: Array) -> Array:
    """The array, every entry of which must be positive and finite."""
    bad = np.argwhere(~((array > 0) & np.isfinite(array)))
    if len(bad):
        raise InputError(f"`{name}` must be positive and finite; {_place(bad[0])} is {array[tuple(bad[0])]}.")
    return array


def normalised(weights: Array) -> Array:
    """Weights with rows that sum to one exactly, from rows that do so within 1e-6."""
    negative = np.argwhere(weights < 0)
    if len(negative):
        raise InputError(f"`weights` must not be negative; {_place(negative[0])} is {weights[tuple(negative[0])]}.")
    total = weights.sum(-1, keepdims=True)
    bad = np.flatnonzero(np.abs(total - 1.0) > 1e-6)
    if len(bad):
        raise InputError(f"each row of `weights` must sum to 1 within 1e-6; row {bad[0]} sums to {total[bad[0], 0]}.")
    return np.asarray(weights / total)


def _place(index: NDArray[np.intp]) -> str:
    return f"row {index[0]}" if len(index) == 1 else f"row {index[0]}, component {index[1]}"
