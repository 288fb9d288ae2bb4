"""Grid times at multiples of one step, the same for a table and for a stream."""

import math

import numpy as np

from gpmoe.early_warning.offsets import offsets_of
from gpmoe.early_warning.series import RaggedSeries
from gpmoe.errors import InputError


def grid_step(time: float, every: float) -> int:
    """The least integer k for which k · every, as computed, is not before a time.

    Raises:
        InputError: if `every` is not positive and finite.

    Example:
        >>> grid_step(2.5, 1.0), grid_step(2.0, 1.0)
        (3, 2)
    """
    if not 0 < every < math.inf:
        raise InputError(f"`every`, the distance of grid times, must be positive and finite; got {every}.")
    k = math.ceil(time / every)
    while (k - 1) * every >= time:
        k -= 1
    while k * every < time:
        k += 1
    return k


def regular_grid(series: RaggedSeries, every: float) -> RaggedSeries:
    """The series with grid times k · every, from a series' first measurement to its last.

    The first grid time is not before the first measurement, and the last not before the last; a series without
    measurements has none.

    Args:
        series: labels of its grid times are dropped; those of series are kept.
        every: distance of grid times.

    Raises:
        InputError: if `every` is not positive and finite.

    Example:
        >>> series = RaggedSeries.from_arrays([0.5, 2.2], [0, 0], [1.0, 2.0], [0, 2], n_channels=1)
        >>> regular_grid(series, 1.0).grid_times.tolist()
        [1.0, 2.0, 3.0]
    """
    some = np.flatnonzero(np.diff(series.offsets) > 0)
    first, last = series.time[series.offsets[some]], series.time[series.offsets[some + 1] - 1]
    steps = [np.arange(grid_step(a, every), grid_step(b, every) + 1) for a, b in zip(first, last, strict=True)]
    owner = np.repeat(some, [len(each) for each in steps])
    times = np.concatenate(steps) * every if steps else np.zeros(0)
    return series.with_grid(times, offsets_of(owner, len(series)))
