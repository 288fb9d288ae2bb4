"""Labels from event times: whether the event comes soon."""

from dataclasses import replace

import numpy as np

from gpmoe.early_warning.series import RaggedSeries
from gpmoe.errors import InputError


def horizon_labels(series: RaggedSeries, horizon: float) -> RaggedSeries:
    """The series with a label for each grid time: 1 where the event comes within `horizon`, 0 where it does not.

    From the event on, labels are unknown (NaN). A series whose observation ends without an event is taken to have
    none: its labels are 0.

    Args:
        series: with event times, infinite where there is none.
        horizon: in the unit of time.

    Raises:
        InputError: without event times, or if the horizon is not positive.

    Example:
        >>> series = RaggedSeries.from_arrays(
        ...     [], [], [], [0, 0], n_channels=1, grid_times=[1.0, 2.0, 3.0], grid_offsets=[0, 3], event_time=[3.0])
        >>> horizon_labels(series, 1.5).labels.tolist()
        [0.0, 1.0, nan]
    """
    if series.event_time is None:
        raise InputError("labels from events need the `event_time` of each series, infinite where there is none.")
    if not horizon > 0:
        raise InputError(f"`horizon` must be positive; got {horizon}.")
    left = series.event_time[series.grid_owner] - series.grid_times
    labels = np.where(left <= 0, np.nan, (left <= horizon).astype(np.float64))
    return replace(series, labels=labels, label_per="grid")
