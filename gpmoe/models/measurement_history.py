"""When each channel was last measured, as seen from a grid of times: companions of a posterior."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gpmoe.linalg.series_batch import SeriesBatch


@dataclass(frozen=True)
class MeasurementHistory:
    """What each grid time knows of the measuring itself; row for row as the batch's grid.

    Attributes:
        time_since_last: since the channel's last measurement, ``(T, M)``; where there is none yet, since the series'
            first measurement of any channel, and 0 before that.
        measured: whether the channel was measured at least once so far, ``(T, M)``, 0 or 1.
        count: measurements since the grid time before, or since the start at the first, ``(T, M)``.
    """

    time_since_last: Tensor
    measured: Tensor
    count: Tensor


def measurement_history(batch: SeriesBatch, n_channels: int) -> MeasurementHistory:
    """Time since the last measurement, missingness and counts on the grid: causal, a row at a grid time counts.

    Args:
        batch: the series and their grids.
        n_channels: M.

    Returns:
        Three tensors ``(T, M)`` in the dtype of the times: in units of time, 0 or 1, and counts.

    Raises:
        InputError: if a channel is beyond M.

    Example:
        >>> import torch
        >>> time, grid = torch.tensor([0.0, 1.5]), torch.tensor([1.0, 2.0])
        >>> ends, value = torch.tensor([0, 2]), torch.zeros(2)
        >>> history = measurement_history(SeriesBatch(time, torch.tensor([0, 1]), value, ends, grid, ends), 2)
        >>> history.time_since_last.tolist(), history.measured.tolist()
        ([[1.0, 1.0], [2.0, 0.5]], [[1.0, 0.0], [1.0, 1.0]])
    """
    batch.expect_channels(n_channels)
    time, grid = (each.detach().cpu().double().numpy() for each in (batch.time, batch.grid))
    channel = batch.channel.cpu().numpy()
    last = np.full((len(grid), n_channels), -np.inf)
    count = np.zeros((len(grid), n_channels))
    first = np.full((len(grid), 1), np.inf)
    rows, points = batch.observed.offsets, batch.wanted.offsets
    for b in range(len(batch)):
        places = batch.grid_order[points[b] : points[b + 1]]
        mine = batch.order[rows[b] : rows[b + 1]]
        seen = np.searchsorted(grid[places], time[mine], side="left")  # the first grid time that knows each row
        known = seen < len(places)
        where = (places[seen[known]], channel[mine[known]])
        np.maximum.at(last, where, time[mine[known]])
        np.add.at(count, where, 1)
        last[places] = np.maximum.accumulate(last[places], axis=0)
        if len(mine):
            first[places] = time[mine[0]]
    measured = np.isfinite(last)
    since = np.maximum(grid[:, None] - np.where(measured, last, first), 0.0)
    return MeasurementHistory(*(torch.from_numpy(part).to(batch.time) for part in (since, measured, count)))
